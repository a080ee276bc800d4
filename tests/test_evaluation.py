"""What eval asks for, refuses and keeps: metrics by name, references and their cache, thresholds."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from PIL import Image
from typer.testing import CliRunner

from gancompress import api, references
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.data import Images
from gancompress.errors import UsageError
from gancompress.extractors import make_extractor
from gancompress.metrics import evaluate, parse_metrics
from gancompress.protocol import comparable
from gancompress.screens import show_evaluation

CPU = torch.device("cpu")


@pytest.fixture
def extractor():
    return make_extractor("random", None, CPU)


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch):
    monkeypatch.setattr("gancompress.metrics.latency", lambda gan, batch_size, device: (2.0, 0.1))


@pytest.fixture
def pictures(tmp_path):
    """A folder's worth of images of twice the size, as an .npz."""
    np.savez(tmp_path / "d.npz", x_train=np.random.default_rng(0).integers(0, 256, (64, 16, 16), dtype=np.uint8))
    return str(tmp_path / "d.npz")


# ----------------------------------------------------------------------------------------------------------------------- metrics


def test_only_what_is_named_is_measured(extractor):
    found = evaluate(make_gan(), make_gan(seed=2), num_images=20, extractor=extractor, metrics=["pr", "diversity"])
    assert {"precision", "recall", "diversity"} <= found["student"].keys()
    assert not {"frechet_distance", "inception_score", "variance_of_laplacian", "latency_ms_batch_1"} & found["student"].keys()
    assert "paired" not in found


def test_a_kernel_distance_stands_beside_a_distance_of_few_images(extractor, monkeypatch):
    monkeypatch.setattr("gancompress.metrics.KID_SUBSETS", 3)
    found = evaluate(make_gan(), make_gan(seed=2), num_images=1001, extractor=extractor, metrics=["fid"])
    assert found["student"].keys() >= {"frechet_distance", "kernel_distance", "kernel_distance_sd"}
    assert "biased" in found["notes"][0]
    fewer = evaluate(make_gan(), make_gan(seed=2), num_images=50, extractor=extractor, metrics=["fid"])
    assert "kernel_distance" not in fewer["student"]
    assert "needs 1,000 images" in fewer["notes"][0]


def test_no_deviation_is_told_of_subsets_that_are_all_the_same(extractor, monkeypatch, capsys):
    monkeypatch.setattr("gancompress.metrics.KID_SUBSETS", 3)
    found = evaluate(make_gan(), make_gan(seed=2), num_images=1000, extractor=extractor, metrics=["kid"])
    assert "kernel_distance" in found["student"]
    assert "kernel_distance_sd" not in found["student"]
    show_evaluation(found | {"source": "s"})
    said = capsys.readouterr().out
    assert "kernel distance" in said
    assert ", sd" not in said


@pytest.mark.parametrize(
    ("names", "num", "said"),
    [(["kid"], 999, "1,000 images"), (["is"], 9, "10 images"), (["pr"], 3, "4 images"), (["paired"], 20, "a teacher"), (["fid"], 20, "a reference")],
)
def test_a_metric_that_lacks_what_it_needs_is_refused_with_the_remedy(names, num, said, extractor):
    teacher = None if "reference" in said or "teacher" in said else make_gan(seed=2)
    with pytest.raises(UsageError, match=said) as caught:
        evaluate(make_gan(), teacher, num_images=num, extractor=extractor, metrics=names)
    assert caught.value.hint


def test_metrics_are_named_and_checked():
    assert parse_metrics("fid, kid") == ["fid", "kid"]
    with pytest.raises(UsageError, match="'fud'"):
        parse_metrics("fid,fud")
    with pytest.raises(UsageError, match="none named"):
        parse_metrics(",")


def test_a_collapsed_student_is_said_to_have_collapsed(extractor):
    student = make_gan()
    for tensor in student.generator.parameters():
        tensor.zero_()
    notes = evaluate(student, make_gan(), num_images=8)["notes"]
    assert any("collapsed" in note for note in notes)
    assert not any("collapsed" in note for note in evaluate(make_gan(seed=3), make_gan(), num_images=8)["notes"])


# ---------------------------------------------------------------------------------------------------------------------- protocol


def test_every_result_has_its_protocol_and_other_protocols_are_not_comparable(extractor, pictures):
    images = Images(pictures, 8, 1)

    def protocol(**changes):
        return evaluate(make_gan(), None, **{"images": images, "num_images": 20, "extractor": extractor, "metrics": ["fid"]} | changes)["protocol"]

    one = protocol()
    wanted = {"extractor", "weights_sha256", "resize", "num_images", "reference_images", "reference_sha256", "seed", "quantisation", "dtype", "device"}
    assert wanted | {"torch", "gancompress", "reference_resize", "hash"} <= one.keys()
    assert comparable(one, protocol(batch_size=7))
    assert one["hash"] == protocol(batch_size=7)["hash"]
    for change in ({"seed": 1}, {"num_images": 21}, {"extractor": make_extractor("digits", None, CPU)}):
        assert not comparable(one, protocol(**change))
        assert one["hash"] != protocol(**change)["hash"]


def test_a_resize_of_the_reference_is_said(extractor, pictures):
    found = evaluate(make_gan(), None, Images(pictures, 8, 1), num_images=20, extractor=extractor, metrics=["fid"])
    assert any("16 x 16" in note and "8 x 8" in note for note in found["notes"])


@pytest.mark.parametrize("fields", [{"resolution": 16}, {"nc": 3}])
def test_images_of_another_size_or_other_channels_are_refused(fields, extractor, pictures):
    with pytest.raises(UsageError, match="channels"):
        evaluate(
            make_gan(), make_gan(**fields | ({"g_widths": (8, 4), "d_widths": (4, 8)} if "resolution" in fields else {})), num_images=20, extractor=extractor
        )
    with pytest.raises(UsageError, match="channels"):
        evaluate(make_gan(), None, Images(pictures, fields.get("resolution", 8), fields.get("nc", 1)), num_images=20, extractor=extractor)


# ------------------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def counted(extractor, monkeypatch):
    """The extractor, counting the images it sees."""
    seen = []
    call = type(extractor).__call__
    monkeypatch.setattr(type(extractor), "__call__", lambda self, images: (seen.append(len(images)), call(self, images))[1])
    return seen


def measured(pictures, extractor, cache, **changes):
    options = {"num_images": 30, "extractor": extractor, "metrics": ["fid", "pr"], "cache": cache} | changes
    return evaluate(make_gan(), None, Images(pictures, 8, 1), **options)


def test_the_reference_is_measured_once_and_gives_the_same_numbers(extractor, counted, pictures, tmp_path):
    first = measured(pictures, extractor, tmp_path / "c")
    assert sum(counted) == 60
    assert [p.suffix for p in (tmp_path / "c").iterdir()] == [".safetensors"]
    again = measured(pictures, extractor, tmp_path / "c")
    assert sum(counted) == 90
    assert again["student"] == first["student"]


def test_another_data_set_under_the_same_name_is_measured_anew(extractor, counted, pictures, tmp_path):
    first = measured(pictures, extractor, tmp_path / "c")
    np.savez(pictures, x_train=np.full((64, 16, 16), 7, dtype=np.uint8))
    assert measured(pictures, extractor, tmp_path / "c")["student"]["frechet_distance"] != first["student"]["frechet_distance"]
    assert sum(counted) == 120


@pytest.mark.parametrize("change", [{"num_images": 31}, {"seed": 1}, {"metrics": ["fid"]}])
def test_what_changes_the_reference_s_features_changes_its_place_in_the_cache(change, extractor, pictures, tmp_path):
    measured(pictures, extractor, tmp_path / "c")
    measured(pictures, extractor, tmp_path / "c", **change)
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_damaged_or_unwritable_cache_is_no_failure(extractor, pictures, tmp_path):
    first = measured(pictures, extractor, tmp_path / "c")
    kept = next((tmp_path / "c").iterdir())
    kept.write_bytes(kept.read_bytes()[:100])
    assert measured(pictures, extractor, tmp_path / "c")["student"] == first["student"]
    (tmp_path / "file").write_text("in the way")
    found = measured(pictures, extractor, tmp_path / "file" / "c")
    assert found["student"] == first["student"]
    assert any("not kept" in note for note in found["notes"])


def test_a_file_of_a_folder_that_was_written_again_changes_its_place_in_the_cache(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    images = Images(str(folder), 8, 1)
    before = references._stamps(images)
    os.utime(folder / "a.png", ns=(1, 1))
    assert references._stamps(images) != before


# ------------------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def words(tmp_path):
    gan = make_gan()
    save_networks(tmp_path / "s.safetensors", gan.family, gan.arch, gan.networks, {})
    return ["eval", str(tmp_path / "s.safetensors"), "--feature-extractor", "random", "--device", "cpu", "--num-images", "20"]


def ran(*words):
    return CliRunner().invoke(app, [*words])


def test_a_threshold_is_kept_with_exit_code_six_and_the_numbers_are_printed(words, pictures):
    done = ran(*words, "--data", pictures, "--metrics", "fid", "--json", "--max-fid", "1e-9")
    assert done.exit_code == 6, done.output
    found = json.loads(done.stdout)
    assert f"{found['student']['frechet_distance']:.4g}" in done.stderr
    assert ran(*words, "--data", pictures, "--metrics", "fid", "--max-fid", "1e9").exit_code == 0
    unmeasured = ran(*words, "--max-fid", "1e9")
    assert (unmeasured.exit_code, "no distance was measured" in unmeasured.output) == (2, True)


def test_statistics_that_were_saved_give_the_same_distance_as_the_images(words, pictures, tmp_path):
    stats = str(tmp_path / "stats.npz")
    one = json.loads(ran(*words, "--data", pictures, "--metrics", "fid", "--json", "--save-stats", stats).stdout)
    done = ran(*words, "--data", stats, "--metrics", "fid", "--json")
    assert done.exit_code == 0, done.output
    other = json.loads(done.stdout)
    assert other["student"]["frechet_distance"] == pytest.approx(one["student"]["frechet_distance"], rel=1e-9)
    assert other["protocol"]["reference_sha256"] == one["protocol"]["reference_sha256"]
    assert comparable(one["protocol"], other["protocol"])
    refused = ran(*words, "--data", stats, "--metrics", "kid")
    assert (refused.exit_code, "single features" in refused.output) == (2, True)


@pytest.mark.parametrize("other", ["dimension", "weights"])
def test_statistics_of_another_extractor_are_refused(other, words, pictures, tmp_path, monkeypatch):
    stats = str(tmp_path / "stats.npz")
    assert ran(*words, "--data", pictures, "--metrics", "fid", "--save-stats", stats).exit_code == 0
    if other == "dimension":
        words[3] = "digits"
    else:
        monkeypatch.setattr("gancompress.extractors.state_hash", lambda state: "another")
    done = ran(*words, "--data", stats, "--metrics", "fid")
    assert done.exit_code == 2
    assert ("64 features, and digits has 128" if other == "dimension" else "weights_sha256") in done.output


def test_a_truncation_is_the_family_s_own_and_part_of_the_protocol(words, tmp_path):
    gan = small_gan("biggan", SMALL["biggan"][0])
    save_networks(tmp_path / "b.safetensors", gan.family, gan.arch, gan.networks, {})
    done = ran("eval", str(tmp_path / "b.safetensors"), *words[2:], "--metrics", "vol", "--truncation", "0.5", "--json")
    assert json.loads(done.stdout)["protocol"]["truncation"] == 0.5
    refused = ran(*words, "--truncation", "0.5")
    assert (refused.exit_code, "truncation" in refused.output) == (2, True)


def test_the_table_shows_speed_beside_size(words):
    done = ran(*words, "--against", words[1], "--metrics", "latency")
    assert done.exit_code == 0, done.output
    assert "1.0x as fast" in done.output
    assert "1.0x fewer" in done.output
    assert "IQR 0.1" in done.output


def test_exported_latency_stands_beside_eager_latency(words):
    pytest.importorskip("onnxruntime")
    done = ran(*words, "--against", words[1], "--metrics", "exported,memory")
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if "as ONNX" in line or "peak memory" in line]
    assert len(rows) == 4
    assert all("ratio" not in row and ("x as fast" in row or "1.0x fewer" in row) for row in rows)


def test_exported_latency_without_the_extra_says_what_to_install(words, monkeypatch):
    monkeypatch.setattr("gancompress.onnx_export.find_spec", lambda name: None)
    done = ran(*words, "--metrics", "exported")
    assert done.exit_code == 4
    assert 'pip install "gancompress[onnx]"' in " ".join(done.output.split())


def test_a_threshold_holds_for_distances_within_classes_too():
    result = {"student": {"mean": 5.0}, "protocol": {"distance": "FID"}}
    api.check_distance(result, 6.0)
    with pytest.raises(Exception, match="FID 5 is above --max-fid 4"):
        api.check_distance(result, 4.0)
