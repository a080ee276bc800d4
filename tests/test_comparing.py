"""Several generators side by side: one protocol, right numbers in right places, pages that are safe to open."""

import json
import statistics

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from test_runreport import CHROMIUM, HOSTILE, check_inert, distilled, look
from typer.testing import CliRunner

import gancompress
from gancompress import comparing, comparison, metrics, report
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.data import PICTURES, draw, rng
from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.loading import load_gan


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """curves.png and latencies take longer than all the rest; a latency is one millisecond for each channel of the first layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "save_curves", lambda log_path, path: path.write_bytes(b"curves"))
        patch.setattr(metrics, "latency", lambda gan, batch_size, device: (float(next(gan.generator.parameters()).numel() * batch_size), 0.5))
        yield


@pytest.fixture(scope="module")
def runs(tiny_teacher, tmp_path_factory):
    """Three run folders: two that differ in their seed alone, and a wider one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, width, seed in (("a", 0.5, 0), ("b", 0.5, 1), ("c", 1.0, 0)):
        distilled(folder / name, tiny_teacher, more=[("student.ch_mul", width), ("seed", seed)])
    return [str(folder / name) for name in "abc"]


@pytest.fixture(scope="module")
def found(tiny_teacher, runs):
    return comparing.measure([str(tiny_teacher), *runs], num_images=40, feature_extractor="digits", device="cpu")


def test_every_number_is_what_evaluate_says_of_it(found, tiny_teacher, runs):
    teacher, student = load_gan(str(tiny_teacher)), load_gan(runs[0])
    digits = comparing.make_extractor("digits", None, torch.device("cpu"))
    alone = metrics.evaluate(student, teacher, num_images=40, extractor=digits)
    one, two = found.result["rows"][:2]
    assert {k: two[k] for k in alone["student"]} == alone["student"]
    assert {k: one[k] for k in alone["teacher"]} == alone["teacher"]
    assert two["paired"] == alone["paired"]
    assert two["against_1"]["parameters"] == alone["teacher"]["parameters"] / alone["student"]["parameters"] > 1
    assert two["against_1"]["latency_ms_batch_32"] == alone["teacher"]["latency_ms_batch_32"] / alone["student"]["latency_ms_batch_32"]
    assert found.result["protocol"] == alone["protocol"] | {"reference": f"samples of 1 ({tiny_teacher})"}
    json.dumps(found.result, allow_nan=False)


def test_with_data_distances_are_to_it_and_paired_errors_to_the_first(tiny_teacher, tiny_data, runs):
    options = {"num_images": 40, "feature_extractor": "digits", "device": "cpu"}
    rows = comparing.measure([str(tiny_teacher), runs[0]], data=str(tiny_data), **options).result
    assert rows["protocol"]["reference"] == str(tiny_data)
    alone = metrics.paired_fidelity(load_gan(runs[0]), load_gan(str(tiny_teacher)), 40, 0, torch.device("cpu"))
    assert rows["rows"][1]["paired"] == alone
    assert "paired" not in rows["rows"][0]


def test_runs_that_differ_in_their_seed_alone_are_averaged(found):
    group = found.result["over_seeds"]
    assert [g["members"] for g in group] == [[2, 3]]
    values = [found.result["rows"][i]["frechet_distance"] for i in (1, 2)]
    assert group[0]["metrics"]["frechet_distance"] == {"mean": statistics.mean(values), "standard_deviation": statistics.stdev(values)}
    assert {"mse", "psnr", "ssim", "inception_score"} <= group[0]["metrics"].keys()
    assert "seed" not in group[0]["run"]


def test_unsteady_milliseconds_are_said(tiny_teacher, runs, monkeypatch):
    monkeypatch.setattr(metrics, "latency", lambda gan, batch_size, device: (4.0, 1.1 if gan.source == runs[0] else 0.9))
    got = comparing.measure([str(tiny_teacher), runs[0]], num_images=8, device="cpu", feature_extractor="digits").result
    assert [note.split(" spread")[0] for note in got["notes"] if "spread" in note] == ["Milliseconds of 2"]


def test_a_run_given_twice_counts_once(tiny_teacher, runs):
    twice = comparing.measure([str(tiny_teacher), runs[0], runs[0], runs[1]], num_images=8, device="cpu", feature_extractor="digits")
    assert [g["members"] for g in twice.result["over_seeds"]] == [[2, 4]]


def test_pictures_are_on_the_latents_of_the_first(found, tiny_teacher, runs):
    z, c = load_gan(str(tiny_teacher)).sample(16, rng(0, PICTURES))
    for (label, images), source in zip(found.pictures, [str(tiny_teacher), *runs], strict=True):
        assert label == str(1 + [str(tiny_teacher), *runs].index(source))
        assert torch.equal(images, draw(load_gan(source), z, c, torch.device("cpu")))


def test_curves_of_all_runs_share_a_panel(found):
    assert list(found.panels) == ["mse", "diversity", "paired_mse"]
    assert list(found.panels["mse"]) == ["2", "3", "4"]


def test_other_latents_are_drawn_by_themselves_and_said(tiny_teacher, tmp_path):
    other = make_gan(nz=6)
    save_networks(tmp_path / "other.safetensors", other.family, other.arch, other.networks, {})
    got = comparing.measure([str(tiny_teacher), str(tmp_path / "other.safetensors")], num_images=8, feature_extractor="digits", device="cpu")
    assert [label for label, _ in got.pictures] == ["1", "2 (latents of its own)"]
    assert "2 shares no latents with 1: its pictures are of its own, and it has no paired error" in got.result["notes"]
    assert "paired" not in got.result["rows"][1]
    assert "save where latents" in check_inert(comparison.as_page(got.result, got.pictures, got.panels).decode()).text


def test_translators_are_fed_the_same_images(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        gan = small_gan("unet", SMALL["unet"][0], seed)
        save_networks(tmp_path / f"{name}.safetensors", gan.family, gan.arch, gan.networks, {})
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    sources, options = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")], {"num_images": 8, "device": "cpu", "feature_extractor": "digits"}
    got = comparing.measure(sources, data=str(tmp_path / "data.npz"), **options)
    assert [label for label, _ in got.pictures] == ["inputs", "1", "2"]
    assert got.result["rows"][1]["paired"]["mse"] > 0
    with pytest.raises(MissingError, match="translates images"):
        comparing.measure(sources, **options)


def test_numbers_of_different_protocols_are_refused(tiny_teacher, runs, monkeypatch):
    calls, real = [], metrics.evaluate

    def other_each_time(*args, **kwargs):
        calls.append(1)
        got = real(*args, **kwargs)
        return got | {"protocol": got["protocol"] | {"extractor": str(len(calls))}}

    monkeypatch.setattr(comparing, "evaluate", other_each_time)
    with pytest.raises(GanCompressError, match="different protocols"):
        comparing.measure([str(tiny_teacher), *runs[:2]], num_images=8, feature_extractor="digits", device="cpu")


def test_what_evaluate_notes_of_some_is_told_with_their_numbers_and_of_all_once(tiny_teacher, runs, monkeypatch):
    real = metrics.evaluate
    monkeypatch.setattr(comparing, "evaluate", lambda gan, *a, **k: real(gan, *a, **k) | {"notes": ["few images"] + ["collapsed"] * (gan.source == runs[1])})
    options = {"num_images": 8, "feature_extractor": "digits", "device": "cpu"}
    assert comparing.measure([str(tiny_teacher), *runs], **options).result["notes"] == ["few images", "3: collapsed"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"resolution": 16, "g_widths": (4, 4), "d_widths": (4, 4)}, "images of resolution 16, .* 8"), ({"nc": 3}, "channels: 3, .* 1")],
)
def test_images_of_other_sizes_or_channels_are_refused(fields, said, tiny_teacher, tmp_path):
    other = make_gan(**fields)
    save_networks(tmp_path / "other.safetensors", other.family, other.arch, other.networks, {})
    with pytest.raises(UsageError, match=said):
        comparing.measure([str(tiny_teacher), str(tmp_path / "other.safetensors")], device="cpu", feature_extractor="digits")


def test_one_source_a_wrong_suffix_and_an_unfinished_run_are_refused_before_anything_is_measured(tiny_teacher, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "evaluate", None)
    with pytest.raises(UsageError, match="given 1"):
        gancompress.compare([tiny_teacher])
    with pytest.raises(UsageError, match=r"out\.pdf: expected a name that ends in \.html, \.md, \.json"):
        gancompress.compare([tiny_teacher, runs[0]], "out.pdf")
    (tmp_path / "state.pt").touch()
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(MissingError, match="not finished"):
        gancompress.compare([tiny_teacher, tmp_path], device="cpu")


def test_without_weights_distances_are_left_out_and_said(tiny_teacher, runs, monkeypatch, tmp_path):
    def none(name, weights, device):
        raise MissingError("no weights here", "get them")

    monkeypatch.setattr(comparing, "make_extractor", none)
    result = gancompress.compare([tiny_teacher, runs[0]], tmp_path / "a.html", num_images=8, device="cpu")
    assert result["notes"] == ["distances and scores are left out: no weights here; get them"]
    assert result["rows"][1]["variance_of_laplacian"] > 0
    assert "Distance against cost" not in (tmp_path / "a.html").read_text()
    with pytest.raises(MissingError):
        gancompress.compare([tiny_teacher, runs[0]], num_images=8, device="cpu", feature_extractor="inception")


# ------------------------------------------------------------------------------------------------------------------- what is written


def test_a_page_has_it_all_and_is_inert(found, runs):
    elements = check_inert(comparison.as_page(found.result, found.pictures, found.panels).decode())
    assert sum(tag == "table" for tag, _ in elements.found) == 4
    labels = [a["aria-label"] for tag, a in elements.found if tag == "svg"]
    assert [label.split(" against ")[1].split(":")[0] for label in labels[:3]] == ["parameters", "MACs (input positions)", "milliseconds, batch 1"]
    assert [label.split(" over ")[0] for label in labels[3:]] == ["mse", "diversity", "paired mse"]
    assert len([a for tag, a in elements.found if tag == "img"]) == 8
    assert runs[0] in elements.text
    assert "weights sha256" in elements.text


def test_hostile_sources_and_logs_do_no_harm(found, runs, tmp_path):
    result = json.loads(json.dumps(found.result))
    for row in result["rows"]:
        row["source"] = row["run"] = row["family"] = HOSTILE
    result["notes"], result["protocol"]["reference"], result["over_seeds"][0]["run"] = [HOSTILE], HOSTILE, HOSTILE
    panels = {HOSTILE: {HOSTILE: [(0, 1), (1, 2)]}}
    elements = check_inert(comparison.as_page(result, [(HOSTILE, i) for _, i in found.pictures], panels).decode())
    assert elements.text.count(HOSTILE) > 20
    assert "<script" not in comparison.as_markdown(result, "x.png")
    for content in ('{"kimg": "x", "step": 1, "mse": 1}\n', '[1]\n"', '{"mse": 1}\n', "\0"):
        (tmp_path / "log.jsonl").write_text(content)
        comparing._curves([tmp_path])


def test_the_command_prints_tables_and_writes_each_format(tiny_teacher, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["compare", str(tiny_teacher), *runs[:2], "--num-images", "8", "--feature-extractor", "digits", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--out", "a.html"])
    assert done.exit_code == 0, done.output
    for title in ("Quality", "Cost", "Speed-up against reduction", "Over seeds", f"2 {runs[0]} (recipe mse, ch_mul 0.5"):
        assert title in done.output
    assert CliRunner().invoke(app, [*words, "--out", "a.html"]).output.splitlines()[-1] == "comparison: a-2.html"
    printed = json.loads(CliRunner().invoke(app, [*words, "--out", "a.json", "--json"]).stdout)
    assert printed == json.loads((tmp_path / "a.json").read_text())
    assert CliRunner().invoke(app, [*words, "--out", "a.md"]).exit_code == 0
    assert "![Rows of images, each of the source of that number](<a-pictures.png>)" in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a-pictures.png").read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(app, ["compare", str(tiny_teacher), "nowhere.pt", "--device", "cpu"])
    assert refused.exit_code == 4
    assert "nowhere.pt" in refused.output


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_comparison_renders_on_a_phone_without_overflow_and_fetches_nothing(found, tmp_path):
    result = json.loads(json.dumps(found.result))
    result["rows"][1]["source"] = "a-very-long-name-without-any-space-in-it-" * 6
    (tmp_path / "c.html").write_bytes(comparison.as_page(result, found.pictures, found.panels))
    over, fetched, _, not_shown, beyond, title = look(tmp_path / "c.html", 390, tmp_path)
    assert (over, fetched, not_shown, beyond) == (0, [], 0, 0)
    assert title == "4 generators compared"
