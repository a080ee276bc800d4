"""Recorded teachers: every pair is its seed's and number's alone, nothing is lost or repeated, damage is named, what is read is what was drawn."""

import json
import multiprocessing
import random
import shutil
import signal
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import gancompress
from gancompress import collecting, opening, shards
from gancompress.api import inspect
from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.collecting import collect, prepare
from gancompress.config import load_recipe
from gancompress.data import FALLBACK, LATENTS, Batches, draw, to_uint8
from gancompress.errors import GanCompressError, MissingError, StoppedError, UsageError
from gancompress.loading import load_gan
from gancompress.loop import Trainer
from gancompress.planning import make_plan
from gancompress.recorded import Feed, Recorded, RecordedTeacher
from gancompress.request import Request
from gancompress.runs import locked
from gancompress.shards import classes_text, decode, encode, open_shard, pack, parse_classes, read_settings, shard_path

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(collecting, "SHARD_PAIRS", 16)


def saved(folder, gan, name="teacher.safetensors"):
    save_networks(folder / name, gan.family, gan.arch, gan.networks, {})
    return str(folder / name)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Path of an unconditional teacher."""
    return saved(tmp_path_factory.mktemp("plain"), make_gan())


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """Path of a teacher of three classes with three channels."""
    return saved(tmp_path_factory.mktemp("conditional"), small_gan("dcgan", SMALL["dcgan"][1]))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".lock") and p.name != "manifest.json"}


def everything(folder):
    recorded = Recorded(str(folder))
    return recorded[torch.arange(len(recorded))]


# --------------------------------------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("kind", ["png", "webp-lossless", "float16"])
def test_the_images_are_the_teachers_of_their_latents_and_labels(kind, conditional, tmp_path):
    inputs, labels, images = everything(collect(conditional, tmp_path / "r", num=20, image_format=kind, batch_size=8))
    drawn = draw(load_gan(conditional), inputs, labels, CPU)
    if kind == "float16":
        assert images.dtype == torch.float16
        assert torch.allclose(images.float(), drawn, atol=1e-3)
    else:
        assert (images.int() - to_uint8(drawn).int()).abs().max() <= 1, "another batch size may move the last bit"
        assert (images == to_uint8(drawn)).float().mean() > 0.99
    assert len({tuple(z.tolist()) for z in inputs}) == 20


@pytest.mark.parametrize(("kind", "channels"), [("png", 1), ("png", 3), ("webp-lossless", 1), ("webp-lossless", 3), ("float16", 5)])
def test_formats_give_back_every_value(kind, channels):
    image = np.random.default_rng(0).integers(0, 256, (channels, 6, 6)).astype(np.float16 if kind == "float16" else np.uint8)
    assert np.array_equal(decode(encode(image, kind), kind, image.shape), image)


def test_a_pair_is_a_function_of_seed_and_number(teacher, tmp_path):
    few, many = everything(collect(teacher, tmp_path / "a", num=10)), everything(collect(teacher, tmp_path / "b", num=40))
    assert torch.equal(few[0], many[0][:10])
    assert torch.equal(few[2], many[2][:10])
    other = everything(collect(teacher, tmp_path / "c", num=10, seed=1))
    assert not torch.equal(other[0], few[0])


def test_a_teacher_that_adds_noise_is_recorded_the_same_twice(tmp_path):
    source = saved(tmp_path, small_gan("stylegan2", SMALL["stylegan2"][0] | {"noise": "random"}))
    a, b = (everything(collect(source, tmp_path / name, num=20)) for name in "ab")
    assert torch.equal(a[2], b[2])


def test_latents_are_standard_normal_or_tinygans_truncated_ones(teacher, tmp_path):
    plain = everything(collect(teacher, tmp_path / "plain", num=400))[0]
    assert plain.abs().max() > 2
    assert plain.std().item() == pytest.approx(1, abs=0.05)
    half = everything(collect(teacher, tmp_path / "half", num=400, truncation=0.5))[0]
    assert 0.9 < half.abs().max() <= 1
    assert half.std().item() == pytest.approx(0.5 * 0.8796, abs=0.02), "a normal within [-2, 2] has a standard deviation of 0.8796"
    assert json.loads((tmp_path / "half" / "manifest.json").read_text())["settings"]["truncation"] == 0.5


def test_a_family_with_a_truncation_of_its_own_is_given_it(tmp_path):
    source = saved(tmp_path, small_gan("biggan", SMALL["biggan"][0]))
    z = everything(collect(source, tmp_path / "r", num=200, truncation=0.3))[0]
    assert 0.28 < z.abs().max() <= 0.3
    settings = json.loads((tmp_path / "r" / "manifest.json").read_text())["settings"]
    assert (settings["truncation"], settings["arch"]["truncation"]) == (None, 0.3)
    assert "truncation 0.3" in settings["latents"]
    with pytest.raises(UsageError, match="one of them"):
        collect(source, tmp_path / "x", num=4, truncation=0.3, reader_options={"truncation": 0.4})


def test_per_class_counts_are_exact_and_uniform_ones_cover_the_chosen_classes(conditional, tmp_path):
    collect(conditional, tmp_path / "exact", per_class=7)
    assert everything(tmp_path / "exact")[1].bincount().tolist() == [7, 7, 7]
    assert json.loads((tmp_path / "exact" / "index.json").read_text())["per_class"] == {"0": 7, "1": 7, "2": 7}
    labels = everything(collect(conditional, tmp_path / "some", num=60, classes="2,0"))[1]
    assert set(labels.tolist()) == {0, 2}
    assert not torch.equal(labels[:-1:2], labels[1::2])
    assert everything(collect(conditional, tmp_path / "both", per_class=5, classes="1-2"))[1].bincount().tolist() == [0, 5, 5]


@pytest.mark.parametrize(("text", "chosen"), [("3,7-9", [3, 7, 8, 9]), ("1", [1]), ("2,1,1-2", [1, 2]), ("0-9", list(range(10)))])
def test_class_lists_are_read_and_written(text, chosen):
    assert parse_classes(text, 10) == chosen
    assert parse_classes(classes_text(chosen), 10) == chosen


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "1,,2", "1.5", "10", "8-10"])
def test_a_class_list_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"--classes"):
        parse_classes(text, 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "how many"),
        ({"num": 0}, "--num 0"),
        ({"per_class": 3}, "no classes"),
        ({"num": 4, "classes": "1"}, "no classes"),
        ({"num": 4, "truncation": 0.0}, "--truncation 0"),
        ({"num": 4, "truncation": 1.5}, "--truncation 1.5"),
        ({"num": 4, "image_format": "jpg"}, "--format jpg"),
        ({"num": 4, "batch_size": 0}, "--batch-size 0"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_written(options, said, teacher, tmp_path):
    with pytest.raises(UsageError, match=said):
        collect(teacher, tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_counts_that_contradict_each_other_are_refused(conditional, tmp_path):
    with pytest.raises(UsageError, match="3 classes make 12"):
        collect(conditional, tmp_path / "r", num=10, per_class=4)
    with pytest.raises(UsageError, match=r"no class 3; this network has 0 \.\.\. 2"):
        collect(conditional, tmp_path / "r", num=10, classes="1,3")


def test_a_teacher_gone_wrong_is_refused(tmp_path):
    gan = make_gan(output="linear")
    with torch.no_grad():
        list(gan.generator.parameters())[-1].fill_(3e38)
    with pytest.raises(GanCompressError, match="not finite"):
        collect(saved(tmp_path, gan), tmp_path / "r", num=4)
    assert not (tmp_path / "r").exists()


# ------------------------------------------------------------------------------------------------- resumed, spread, stopped, killed


def test_ranks_write_disjoint_shards_of_the_very_same_recording(teacher, tmp_path, monkeypatch):
    alone = contents(collect(teacher, tmp_path / "alone", num=100, batch_size=8))
    monkeypatch.setenv("WORLD_SIZE", "3")
    names = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        before = set(contents(tmp_path / "r")) if names else set()
        assert "index.json" not in before
        collect(teacher, tmp_path / "r", num=100, batch_size=8)
        names.append(set(contents(tmp_path / "r")) - before - {"index.json"})
    assert [len(n) for n in names] == [2, 3, 2]
    assert contents(tmp_path / "r") == alone


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("-1", "2"), ("0", "0")])
def test_ranks_that_make_no_sense_are_refused(rank, world, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match=f"RANK={rank} and WORLD_SIZE={world}"):
        prepare(teacher, tmp_path / "r", num=4)


def _collect_slowly(teacher, out, num):
    drawn = collecting.draw
    collecting.draw = lambda *args: time.sleep(0.04) or drawn(*args)
    try:
        collect(teacher, out, num=num, batch_size=8)
    except StoppedError as error:
        sys.exit(error.exit_code)


def started(teacher, out, num=90):
    """A process that records there, at least half a second long."""
    process = multiprocessing.get_context("fork").Process(target=_collect_slowly, args=(teacher, out, num))
    process.start()
    return process


@pytest.mark.parametrize("recorded", [0, 42])
def test_killed_at_random_points_it_loses_and_repeats_no_pair(teacher, tmp_path, recorded):
    """From the start, and on the way from a shorter recording, of which no file is ever without its pairs."""
    alone = contents(collect(teacher, tmp_path / "alone", num=90, batch_size=8))
    moments, killed, out = random.Random(0), 0, tmp_path / "r"
    short = contents(collect(teacher, out, num=recorded, batch_size=8)) if recorded else {}

    def length():
        try:
            return len(Recorded(str(out)))
        except MissingError:
            return 0

    while killed < 30 and length() != 90:
        assert length() in (0, recorded)
        process = started(teacher, out)
        process.join(moments.uniform(0.05, 0.25))
        process.kill()
        process.join()
        killed += 1
        for name in short.keys() - {"index.json"}:
            assert (out / name).read_bytes() in (short[name], alone[name])
    assert killed > 2
    collect(teacher, out, num=90, batch_size=8)
    assert {k: v for k, v in contents(out).items() if not k.endswith(".tmp")} == alone
    assert len({tuple(z.tolist()) for z in everything(out)[0]}) == 90


@pytest.mark.parametrize("lengths", [[7, 20, 40], [16, 32, 40], [33, 34, 40], [40, 40]])
def test_a_recording_that_grew_is_one_of_its_length_from_the_start(lengths, teacher, tmp_path):
    collect(teacher, tmp_path / "alone", num=40, batch_size=8)
    out = tmp_path / "r"
    for before, num in zip([0, *lengths], lengths, strict=False):
        kept = {k: shard_path(out, k).stat().st_mtime_ns for k in range(before // 16)}
        collect(teacher, out, num=num, batch_size=8)
        assert len(Recorded(str(out))) == num
        assert {k: shard_path(out, k).stat().st_mtime_ns for k in kept} == kept, "a whole shard was written again"
    assert contents(out) == contents(tmp_path / "alone")
    assert (out / "manifest.json").read_bytes() == (tmp_path / "alone" / "manifest.json").read_bytes()


def test_classes_in_turn_grow_too_and_uniform_ones_do_not_mix_with_them(conditional, tmp_path):
    alone = contents(collect(conditional, tmp_path / "alone", per_class=9, batch_size=8))
    out = collect(conditional, tmp_path / "r", per_class=4, batch_size=8)
    with pytest.raises(UsageError, match="labels: of each class in turn -> uniform over classes"):
        collect(conditional, out, num=60, batch_size=8)
    assert contents(collect(conditional, out, per_class=9, batch_size=8)) == alone
    with pytest.raises(UsageError, match=r"--per-class 4: .* is a recording of --per-class 9"):
        collect(conditional, out, per_class=4)
    assert contents(out) == alone


def test_ranks_make_a_recording_longer_together(teacher, tmp_path, monkeypatch):
    alone = contents(collect(teacher, tmp_path / "alone", num=100, batch_size=8))
    out = collect(teacher, tmp_path / "r", num=20, batch_size=8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        collect(teacher, out, num=100, batch_size=8)
    assert contents(out) == alone


def test_a_recording_is_whole_until_it_begins_to_grow(teacher, tmp_path, monkeypatch):
    """Stopped between its index and its manifest it is the shorter one still, which the old command makes whole."""
    out = collect(teacher, tmp_path / "r", num=40)
    before = contents(out)
    assert "40 pairs are recorded" in prepare(teacher, out, num=44).notes[0]
    assert len(prepare(teacher, out, num=44).notes) == 1
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "write_json", None)
        with pytest.raises(TypeError):
            collect(teacher, out, num=44)
    with pytest.raises(MissingError, match=r"index\.json: missing"):
        Recorded(str(out))
    assert contents(collect(teacher, out, num=40)) == before


def test_sigterm_leaves_whole_shards_and_the_same_command_goes_on(teacher, tmp_path):
    out = tmp_path / "r"
    process = started(teacher, out)
    while not shard_path(out, 0).is_file():
        assert process.is_alive()
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == 75
    names = set(contents(out))
    assert all(name.endswith(".safetensors") for name in names), names
    kept = {name: (out / name).stat().st_mtime_ns for name in names}
    collect(teacher, out, num=90, batch_size=8)
    assert {name: (out / name).stat().st_mtime_ns for name in names} == kept, "a shard was written twice"
    assert len(Recorded(str(out))) == 90


def test_another_teacher_or_other_settings_are_not_mixed_in(teacher, conditional, tmp_path):
    collect(teacher, tmp_path / "r", num=20)
    before = contents(tmp_path / "r")
    for change, said in (
        ({"num": 19}, "--num 19: .* is a recording of --num 20"),
        ({"seed": 2}, "seed: 0 -> 2"),
        ({"truncation": 0.5}, "truncation: None -> 0.5"),
    ):
        with pytest.raises(UsageError, match=said):
            collect(teacher, tmp_path / "r", **{"num": 20, **change})
    with pytest.raises(UsageError, match=r"teacher_sha256: [\s\S]*arch.resolution: 8 -> 16"):
        collect(conditional, tmp_path / "r", num=20)
    assert contents(tmp_path / "r") == before


def test_a_folder_of_other_things_is_left_alone(teacher, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds no recording"):
        collect(teacher, tmp_path, num=4)
    with pytest.raises(UsageError, match="is a file"):
        collect(teacher, tmp_path / "letter.txt", num=4)


def test_two_launches_do_not_record_in_one_folder(teacher, tmp_path, monkeypatch):
    for held in (".lock-0-of-1", ".lock-1-of-2"):
        with locked(tmp_path / "r", held), pytest.raises(UsageError, match="another process is recording"):
            collect(teacher, tmp_path / "r", num=4)
    assert len(Recorded(str(collect(teacher, tmp_path / "r", num=4)))) == 4


def test_too_small_a_disk_is_told_before_anything_is_written(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(GanCompressError, match=r"about .* are needed and 1\.0 kB are free"):
        collect(teacher, tmp_path / "r", num=100)
    assert not (tmp_path / "r").exists()


def test_the_disk_that_is_told_is_near_what_is_taken(conditional, tmp_path):
    told = prepare(conditional, tmp_path / "r", num=200).bytes_needed
    collect(conditional, tmp_path / "r", num=200)
    taken = sum(p.stat().st_size for p in tmp_path.glob("r/shard-*"))
    assert told == pytest.approx(taken, rel=0.15)


# ------------------------------------------------------------------------------------------------------------------------ damage


@pytest.fixture
def recording(teacher, tmp_path):
    return collect(teacher, tmp_path / "r", num=40)


def test_a_truncated_shard_is_named_and_recorded_anew(recording, teacher):
    path, whole = shard_path(recording, 1), contents(recording)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(MissingError, match=r"shard-000001\.safetensors.*truncated") as caught:
        Recorded(str(recording))
    assert "gancompress collect" in caught.value.hint
    assert "shard-000001" in prepare(teacher, recording, num=40).notes[0]
    collect(teacher, recording, num=40)
    assert contents(recording) == whole


@pytest.mark.parametrize("place", [-1, -300, 700])
def test_a_flipped_bit_is_named_when_its_pair_is_read(place, recording):
    path = shard_path(recording, 2)
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    recorded = Recorded(str(recording))
    assert len(recorded[torch.arange(32)][0]) == 32
    with pytest.raises(MissingError, match=r"shard-000002\.safetensors"):
        recorded[torch.arange(32, 40)]


@pytest.mark.parametrize("part", ["inputs", "labels", "images", "crc"])
def test_whatever_part_of_a_pair_is_damaged_it_is_noticed(part, conditional, tmp_path):
    folder = collect(conditional, tmp_path / "r", num=16, image_format="float16")
    data = bytearray(shard_path(folder, 0).read_bytes())
    header = int.from_bytes(data[:8], "little")
    data[8 + header + json.loads(data[8 : 8 + header])[part]["data_offsets"][1] - 8] ^= 1  # of the last pair
    shard_path(folder, 0).write_bytes(data)
    assert len(Recorded(str(folder))[torch.arange(15)][0]) == 15
    with pytest.raises(MissingError, match="its pair 15 is damaged"):
        everything(folder)


def test_a_missing_shard_index_or_manifest_is_named(recording, tmp_path):
    index = (recording / "index.json").read_text()
    (recording / "index.json").write_text(index[:50])
    with pytest.raises(MissingError, match=r"index\.json"):
        Recorded(str(recording))
    (recording / "index.json").write_text(index)
    shard_path(recording, 0).unlink()
    with pytest.raises(MissingError, match=r"2 of its 3 shards are there, and shard-000000\.safetensors is not"):
        Recorded(str(recording))
    for damage in ("{", "[" * 100_000, "[]", '{"settings": {}}', '{"settings": {"num": "x"}}'):
        (recording / "manifest.json").write_text(damage)
        with pytest.raises(MissingError, match=r"manifest\.json: damaged"):
            Recorded(str(recording))
    with pytest.raises(MissingError, match="no such directory"):
        Recorded(str(tmp_path / "nothing"))


def test_a_shard_of_another_recording_is_named(recording, teacher, tmp_path):
    other = collect(teacher, tmp_path / "other", num=40, seed=5, image_format="float16")
    shutil.copy(shard_path(other, 1), shard_path(recording, 1))
    index = json.loads((recording / "index.json").read_text())
    index["shards"][1]["bytes"] = shard_path(other, 1).stat().st_size
    (recording / "index.json").write_text(json.dumps(index))
    with pytest.raises(MissingError, match=r"shard-000001\.safetensors: not shard 1 of this recording"):
        everything(recording)


def test_a_manifest_that_claims_more_than_there_is_costs_nothing(recording):
    manifest = json.loads((recording / "manifest.json").read_text())
    (recording / "manifest.json").write_text(json.dumps({"settings": {**manifest["settings"], "num": 10**17, "shard": 1}}))
    with pytest.raises(MissingError, match="3 of its 100000000000000000 shards are there"):
        Recorded(str(recording))


def test_a_label_of_no_class_is_named(conditional, tmp_path):
    folder = collect(conditional, tmp_path / "r", num=4)
    settings = read_settings(folder)
    shard = open_shard(folder, settings, 0)
    images = [shard.images[a:b].tobytes() for a, b in pairwise(shard.offsets)]
    shard_path(folder, 0).write_bytes(pack(settings, 0, list(shard.inputs), [0, 1, 3, 2], images))
    assert Recorded(str(folder))[torch.tensor([3])][1].tolist() == [2]
    with pytest.raises(MissingError, match="label 3 of 3 classes"):
        everything(folder)


# ----------------------------------------------------------------------------------------------------------------- others' folders


def others(folder, n=12, name="{:d}.png", prefix="all_", labels=True, side=8):
    """A folder as others record it: the image of row i is grey i."""
    (folder / "images").mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (side, side), (i, i, i)).save(folder / "images" / name.format(i))
    np.save(folder / f"{prefix}noises.npy", np.arange(n * 3, dtype=np.float64).reshape(n, 3))
    if labels:
        np.save(folder / f"{prefix}labels.npy", np.arange(n) % 4)
    return folder


@pytest.mark.parametrize(("name", "prefix"), [("{:d}.png", "all_"), ("{:04d}.png", ""), ("image-{:03d}.png", "")])
def test_a_folder_of_images_noises_and_labels_is_read_row_for_row(name, prefix, tmp_path):
    recorded = Recorded(str(others(tmp_path / "o", name=name, prefix=prefix)))
    inputs, labels, images = recorded[torch.tensor([11, 2])]
    assert inputs.tolist() == [[33, 34, 35], [6, 7, 8]]
    assert inputs.dtype == torch.float32
    assert labels.tolist() == [3, 2]
    assert images[:, :, 0, 0].tolist() == [[11] * 3, [2] * 3]
    assert (recorded.family, recorded.fields) == (None, {"resolution": 8, "nc": 3, "nz": 3, "classes": 4})


def test_a_folder_without_labels_is_unconditional(tmp_path):
    recorded = Recorded(str(others(tmp_path / "o", labels=False)))
    assert recorded[torch.arange(2)][1] is None
    assert recorded.fields["classes"] == 0


def test_images_and_rows_that_do_not_fit_are_named(tmp_path):
    folder = others(tmp_path / "o", name="a{:02d}.png")
    (folder / "images" / "a11.png").unlink()
    with pytest.raises(UsageError, match=r"11 images and 12 rows in noises.npy; row 11 has no image"):
        Recorded(str(folder))
    np.save(folder / "all_noises.npy", np.zeros((9, 3)))
    with pytest.raises(UsageError, match=r"a09\.png has no row"):
        Recorded(str(folder))
    np.save(folder / "all_noises.npy", np.zeros((11, 3)))
    with pytest.raises(UsageError, match=r"12 rows in labels.npy"):
        Recorded(str(folder))
    numbered = others(tmp_path / "n")
    (numbered / "images" / "4.png").rename(numbered / "images" / "40.png")
    with pytest.raises(UsageError, match=r"in the place of 4 there is images/5\.png"):
        Recorded(str(numbered))


def test_what_is_wrong_in_such_a_folder_is_named(tmp_path):
    folder = others(tmp_path / "o")
    Image.new("RGB", (8, 9)).save(folder / "images" / "3.png")
    (folder / "images" / "5.png").write_bytes((folder / "images" / "5.png").read_bytes()[:40])
    recorded = Recorded(str(folder))
    with pytest.raises(UsageError, match=r"3\.png: 8 x 9 pixels, expected 8 x 8"):
        recorded[torch.tensor([3])]
    with pytest.raises(MissingError, match=r"5\.png: not a readable image"):
        recorded[torch.tensor([5])]
    path = folder / "all_noises.npy"
    for array, said in ((np.zeros(12), "expected floats"), (np.zeros((12, 3), int), "expected floats"), (np.array([None] * 12), "not a plain array")):
        np.save(path, array, allow_pickle=True)
        with pytest.raises((UsageError, MissingError), match=said):
            Recorded(str(folder))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MissingError, match=r"all_noises\.npy: truncated"):
        Recorded(str(folder))
    path.unlink()
    with pytest.raises(MissingError, match=r"noises\.npy"):
        Recorded(str(folder))


# -------------------------------------------------------------------------------------------------------------------- translators


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """Path of a translator from three channels to one."""
    fields = {"resolution": 16, "nc": 1, "nc_in": 3, "g_widths": (4, 8), "blocks": 1, "d_widths": (4, 8), "d_nc": 1}
    return saved(tmp_path_factory.mktemp("translator"), small_gan("resnet", fields))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for i in range(40):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path / f"{i:02d}.png")
    return path


@pytest.mark.parametrize("kind", ["png", "float16"])
def test_a_translator_is_recorded_with_what_it_was_given_in_its_order(kind, translator, photos, tmp_path):
    recorded = Recorded(str(collect(translator, tmp_path / "r", data=str(photos), image_format=kind, batch_size=8)))
    inputs, labels, images = recorded[torch.arange(40)]
    assert labels is None
    for i in (0, 17, 39):
        assert torch.equal(to_uint8(inputs[i]), torch.from_numpy(np.asarray(Image.open(photos / f"{i:02d}.png")).transpose(2, 0, 1).copy()))
    drawn = draw(load_gan(translator), inputs, None, CPU)
    if kind == "float16":
        assert torch.allclose(images.float(), drawn, atol=1e-3)
    else:
        assert (images.int() - to_uint8(drawn).int()).abs().max() <= 1
    assert torch.equal(recorded.drawn(torch.arange(40))[0], inputs)


def test_a_translators_recording_grows_up_to_its_inputs(translator, photos, tmp_path):
    alone = contents(collect(translator, tmp_path / "alone", data=str(photos), batch_size=8))
    out = collect(translator, tmp_path / "r", data=str(photos), num=21, batch_size=8)
    assert len(Recorded(str(out))) == 21
    assert contents(collect(translator, out, data=str(photos), batch_size=8)) == alone
    with pytest.raises(UsageError, match="--num 41: there are 40 images"):
        collect(translator, out, data=str(photos), num=41)


def test_other_inputs_are_not_mixed_in(translator, photos, tmp_path):
    out = collect(translator, tmp_path / "r", data=str(photos), num=4)
    other = tmp_path / "photos"
    shutil.copytree(photos, other)
    collect(translator, out, data=str(other), num=4)
    (other / "39.png").unlink()
    with pytest.raises(UsageError, match="latents: images of the data set"):
        collect(translator, out, data=str(other), num=4)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num": 4}, MissingError, "translates images, so it needs some"),
        ({"data": "PHOTOS", "truncation": 0.5}, UsageError, "--truncation 0.5: .* has no latents"),
        ({"data": "PHOTOS", "per_class": 2}, UsageError, "no classes"),
        ({"data": "BROKEN"}, MissingError, r"07\.png cannot be read"),
    ],
)
def test_what_cannot_be_recorded_of_a_translator_is_refused(options, error, said, translator, photos, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(photos, broken)
    (broken / "07.png").write_bytes((photos / "07.png").read_bytes()[:60])
    options = {key: {"PHOTOS": str(photos), "BROKEN": str(broken)}.get(value, value) for key, value in options.items()}
    with pytest.raises(error, match=said):
        collect(translator, tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_a_teacher_of_latents_is_given_no_images(teacher, photos, tmp_path):
    with pytest.raises(UsageError, match="are for translators"):
        collect(teacher, tmp_path / "r", num=4, data=str(photos))


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_damaged_image_of_a_translators_pair_is_noticed(place, translator, photos, tmp_path):
    folder = collect(translator, tmp_path / "r", data=str(photos), num=16, image_format="float16")
    offsets = load_file(shard_path(folder, 0))["offsets"]
    data = bytearray(shard_path(folder, 0).read_bytes())
    header = int.from_bytes(data[:8], "little")
    start = 8 + header + json.loads(data[8 : 8 + header])["images"]["data_offsets"][0]
    data[start + int(offsets[2 * 9 + (place == "output")]) + 50] ^= 1
    shard_path(folder, 0).write_bytes(data)
    assert len(Recorded(str(folder))[torch.arange(9)][0]) == 9
    with pytest.raises(MissingError, match="its pair 9 is damaged"):
        everything(folder)


@pytest.mark.parametrize("recipe", ["mse", "joint"])
def test_a_translator_is_distilled_from_its_recording_alone(recipe, translator, photos, tmp_path, monkeypatch):
    folder = collect(translator, tmp_path / "r", data=str(photos))
    teacher, batches = load_gan(translator), batches_of(folder)
    batch = batches(2, 0)
    assert batch.inputs.shape == (8, 3, 16, 16)
    assert (batch.teacher - draw(teacher, batch.inputs, None, CPU)).abs().max() < 0.01
    monkeypatch.setattr(opening, "load_gan", None)
    path = gancompress.distill(None, recipe, recorded=folder, out=tmp_path / "run", steps=3, **SHORT)
    assert load_gan(str(path)).arch.g_widths == (2, 4)
    assert (tmp_path / "run" / "samples").is_dir()


@pytest.mark.parametrize(("recipe", "more"), [("portable-i2i", {}), ("scratch", {}), ("mse", {"data": "x"}), ("mse", {"target": "x"})])
def test_a_translators_recording_has_no_targets(recipe, more, translator, photos, tmp_path):
    folder = collect(translator, tmp_path / "r", data=str(photos), num=4)
    with pytest.raises(UsageError, match="a translator's recording holds all that it was given and no targets"):
        make_plan(Request(recipe=recipe, recorded=folder, out=tmp_path / "run", device="cpu", **more))


# ----------------------------------------------------------------------------------------------------------------------- reading


def test_an_epoch_has_every_pair_once_in_an_order_that_is_the_seeds(recording):
    recorded = Recorded(str(recording))
    taken = [Feed(recorded, seed, 0, CPU).take(0, 40)[0] for seed in (0, 0, 1)]
    assert torch.equal(taken[0], taken[1])
    assert not torch.equal(taken[0], taken[2])
    assert torch.equal(taken[0].sort(0)[0], recorded[torch.arange(40)][0].sort(0)[0])
    again = Feed(recorded, 0, 0, CPU).take(40, 40)[0]
    assert not torch.equal(again, taken[0])
    assert torch.equal(again.sort(0)[0], taken[0].sort(0)[0])


def test_a_batch_is_the_same_from_wherever_one_comes(recording):
    recorded = Recorded(str(recording))
    steady, jumping = Feed(recorded, 0, 0, CPU), Feed(recorded, 0, 0, CPU)
    in_order = [steady.take(8 * i, 8) for i in range(9)]
    for i in (7, 2, 3, 0):
        assert all(torch.equal(a, b) for a, b in zip(jumping.take(8 * i, 8), in_order[i], strict=True) if a is not None)
    assert not torch.equal(jumping.take(0, 8, attempt=1)[0], in_order[0][0])


def test_images_come_in_the_range_of_networks(conditional, tmp_path):
    for kind in ("png", "float16"):
        recorded = Recorded(str(collect(conditional, tmp_path / kind, num=20, image_format=kind)))
        inputs, labels, images = Feed(recorded, 0, 0, CPU).take(0, 20)
        assert images.dtype == torch.float32
        drawn = draw(load_gan(conditional), inputs, labels, CPU)
        assert (images - drawn).abs().max() < 0.01


def test_damage_on_the_way_is_an_error_of_its_batch(recording):
    path = shard_path(recording, 2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    feed = Feed(Recorded(str(recording)), 0, 0, CPU)
    with pytest.raises(MissingError, match="shard-000002"):
        feed.take(0, 40)


# ------------------------------------------------------------------------------------------------------------------- command line


def test_the_command_tells_what_it_takes_and_goes_on(conditional, tmp_path):
    words = ["collect", conditional, "--out", str(tmp_path / "r"), "--per-class", "10", "--truncation", "0.5", "--classes", "0,2", "--device", "cpu"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output + first.stderr
    for said in ("20 in 2 shards, 10 of each class", "0.5 times a standard normal within [-2, 2]", "0,2", "needed", "recorded: "):
        assert said in first.stdout
    assert "pair 20/20" in first.stderr
    assert "left" in first.stderr
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert "0 pairs" in again.stdout
    other = CliRunner().invoke(app, [*words, "--seed", "3"])
    assert (other.exit_code, other.stdout) == (2, "")
    assert "seed: 0 -> 3" in other.stderr


def test_a_disk_that_fills_on_the_way_keeps_whole_shards(teacher, tmp_path, monkeypatch):
    written = []

    def full(path, data):
        if len(written) == 2:
            raise GanCompressError("disk full")
        written.append(path.write_bytes(data))

    with monkeypatch.context() as patch:
        patch.setattr(collecting, "atomic_write", full)
        with pytest.raises(GanCompressError, match="disk full"):
            collect(teacher, tmp_path / "r", num=90)
    collect(teacher, tmp_path / "r", num=90)
    assert len(Recorded(str(tmp_path / "r"))) == 90


# ---------------------------------------------------------------------------------------------------------- in place of a teacher

SHORT = {"device": "cpu", "overrides": [("schedule.batch_size", 8), ("student.ch_mul", 0.5)]}


def batches_of(folder, **schedule):
    teacher = RecordedTeacher(Recorded(str(folder)))
    made = load_recipe("mse", [(f"schedule.{key}", value) for key, value in {"batch_size": 8, **schedule}.items()]).schedule
    feeds = [Feed(teacher.recorded, 0, stream, CPU, made.accumulate) for stream in (LATENTS, FALLBACK)]
    return Batches(teacher, teacher, None, made, mirror=False, seed=0, pool=0, device=CPU, pairs=feeds[0], others=feeds[1])


def test_latents_are_drawn_without_a_look_at_an_image(conditional, tmp_path, monkeypatch):
    recorded = Recorded(str(collect(conditional, tmp_path / "r", num=40)))
    expected = recorded[torch.arange(40)]
    monkeypatch.setattr(shards, "decode", None)
    inputs, labels = recorded.drawn(torch.arange(40))
    assert torch.equal(inputs, expected[0])
    assert torch.equal(labels, expected[1])
    z, c = RecordedTeacher(recorded).sample(6, torch.Generator().manual_seed(0))
    assert (z.shape, c.shape) == ((6, inputs.shape[1]), (6,))


def test_batches_hold_the_teachers_images_of_their_latents(conditional, tmp_path):
    teacher, batches = load_gan(conditional), batches_of(collect(conditional, tmp_path / "r", num=40))
    batch = batches(3, 0)
    assert (batch.teacher - draw(teacher, batch.inputs, batch.condition, CPU)).abs().max() < 0.01
    assert not torch.equal(batch.unpaired[0], batch.teacher)
    other = batches(2, 0).unpaired
    assert other[0].shape == (8, 3, 16, 16)
    assert other[1].shape == (8,)
    z, c, paired = batches.pictures(6, True)
    assert (paired - draw(teacher, z, c, CPU)).abs().max() < 0.01


def test_the_parts_of_a_batch_are_its_pairs_and_are_read_once(recording, monkeypatch):
    whole = batches_of(recording)(1, 0)
    reads = []
    read = Feed._read
    monkeypatch.setattr(Feed, "_read", lambda self, *window: reads.append((self.stream, *window)) or read(self, *window))
    batches = batches_of(recording, accumulate=4)
    for _ in range(2):  # by the critic, then by the student
        parts = [batches(1, 0, part) for part in range(4)]
    assert torch.equal(torch.cat([p.teacher for p in parts]), whole.teacher)
    assert torch.equal(torch.cat([p.inputs for p in parts]), whole.inputs)
    assert len(reads) == len(set(reads))


@pytest.mark.parametrize("recipe", ["mse", "joint", "akdg"])
def test_black_box_recipes_train_from_a_recording_alone(recipe, conditional, tmp_path, monkeypatch):
    folder = collect(conditional, tmp_path / "r", num=40)

    def no_teacher(*_, **__):
        raise AssertionError("a checkpoint was read")

    monkeypatch.setattr(opening, "load_gan", no_teacher)
    changes = [*SHORT["overrides"], ("schedule.accumulate", 2)]
    np.savez(tmp_path / "real.npz", x_train=np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8), y_train=np.arange(20) % 3)
    options = {"data": str(tmp_path / "real.npz")} if recipe == "akdg" else {}
    path = gancompress.distill(None, recipe, recorded=folder, out=tmp_path / "run", steps=3, device="cpu", overrides=changes, **options)
    student = load_gan(str(path))
    assert (student.family.name, student.arch.g_widths) == ("dcgan", (4, 2))
    assert inspect(str(path))["metadata"]["teacher_sha256"] == load_gan(conditional).sha256()
    terms = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert all(np.isfinite(v) for v in terms.values())
    assert ("paired_mse" in (tmp_path / "run" / "log.jsonl").read_text()) == (recipe != "akdg")


def test_a_stopped_run_on_a_recording_goes_on_bitwise(recording, tmp_path, monkeypatch):
    whole = gancompress.distill(None, "joint", recorded=recording, out=tmp_path / "a", steps=6, **SHORT)
    step = Trainer.train_step

    def stopped(self, batches):
        step(self, batches)
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        with pytest.raises(StoppedError):
            gancompress.distill(None, "joint", recorded=recording, out=tmp_path / "b", steps=6, **SHORT)
    again = gancompress.distill(None, "joint", recorded=recording, out=tmp_path / "b", steps=6, **SHORT)
    a, b = load_file(whole), load_file(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_is_of_one_recording(recording, teacher, tmp_path):
    gancompress.distill(None, recorded=recording, out=tmp_path / "run", steps=1, **SHORT)
    moved = recording.rename(tmp_path / "elsewhere")
    gancompress.distill(None, recorded=moved, out=tmp_path / "run", steps=1, **SHORT)
    other = collect(teacher, tmp_path / "other", num=40, seed=9)
    with pytest.raises(UsageError, match=r"another run:\n  teacher.sha256"):
        gancompress.distill(None, recorded=other, out=tmp_path / "run", steps=1, **SHORT)


def test_the_plan_knows_the_recorded_teachers_size_and_a_folders_not(recording, teacher, tmp_path):
    options = {"out": tmp_path / "run", "steps": 1, **SHORT}
    live, seen = make_plan(Request(teacher, **options)), make_plan(Request(recorded=recording, **options))
    assert seen.teacher_cost == live.teacher_cost
    assert "40 pairs of" in seen.notes[0]
    assert any("it starts from random weights" in note for note in seen.notes)
    assert make_plan(Request(recorded=recording, target_macs="2x", **options | {"overrides": []})).recipe.student.ch_mul < 1
    strange = make_plan(Request(recorded=others(tmp_path / "o"), **options))
    assert strange.teacher_cost is None
    assert {k: getattr(strange.student.arch, k) for k in ("resolution", "nc", "nz", "classes")} == {"resolution": 8, "nc": 3, "nz": 3, "classes": 4}
    with pytest.raises(UsageError, match="network is not known"):
        make_plan(Request(recorded=tmp_path / "o", target_macs="2x", **options | {"overrides": []}))


def test_somebody_elses_folder_is_distilled_into_a_family_of_ones_choice(tmp_path):
    folder = others(tmp_path / "o", n=16)
    path = gancompress.distill(None, recorded=folder, out=tmp_path / "run", steps=2, device="cpu", overrides=[*SHORT["overrides"], ("student.family", "mlp")])
    assert load_gan(str(path)).family.name == "mlp"


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"teacher": "sample:dcgan-mnist"}, UsageError, "two teachers"),
        ({"reader_options": {"classes": 3}}, UsageError, "no checkpoint"),
        ({"recipe": "dgl", "data": "DATA"}, MissingError, "discriminator, and a recording has none"),
        ({"recipe": "dgl", "data": "DATA", "fit_discriminator": 1.0}, MissingError, "discriminator, and a recording has none"),
    ],
)
def test_what_only_a_network_could_give_is_refused(options, kind, said, recording, tiny_data, tmp_path):
    options = {k: str(tiny_data) if v == "DATA" else v for k, v in options.items()}
    with pytest.raises(kind, match=said):
        make_plan(Request(**{"recorded": recording, "out": tmp_path / "run", "device": "cpu", **options}))
    assert not (tmp_path / "run").exists()


def test_a_manifest_of_no_architecture_is_named(recording):
    manifest = json.loads((recording / "manifest.json").read_text())
    for change in ({"family": "nothing"}, {"arch": {**manifest["settings"]["arch"], "g_widths": "x"}}):
        (recording / "manifest.json").write_text(json.dumps({"settings": {**manifest["settings"], **change}}))
        with pytest.raises(MissingError, match=r"manifest\.json|not shard 0"):
            make_plan(Request(recorded=recording, device="cpu"))


def test_distil_and_eval_from_the_command_line(recording, tmp_path):
    words = ["--recorded", str(recording), "--steps", "1", "--batch-size", "8", "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = CliRunner().invoke(app, ["distill", *words])
    assert done.exit_code == 0, done.output + done.stderr
    assert "stand in for the teacher" in done.stdout
    found = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--num-images", "4", "--feature-extractor", "digits", "--device", "cpu"])
    assert found.exit_code == 0, found.output + found.stderr
    assert "--against TEACHER" in found.stderr
