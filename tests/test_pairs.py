"""Inputs and targets of translators: where they are read from, what belongs together, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.config import Data, Schedule
from gancompress.data import Batches, to_uint8
from gancompress.errors import UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN
from gancompress.pairs import ImagePairs, backwards, open_pairs

ARCH = SimpleNamespace(resolution=8, nc_in=3, nc=3)


@pytest.fixture
def arrays():
    """Ten pairs of 8 x 8: a target is the negative of its input."""
    a = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    return a, 255 - a


def folder(path, images, names=None):
    path.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / (names[i] if names else f"{i:02d}.png"))
    return str(path)


def spelt(how, arrays, tmp_path):
    """(--data, --target) of the same pairs."""
    a, b = arrays
    if how == "aligned":
        return folder(tmp_path / "ab", np.concatenate([a, b], 2)), None
    if how == "two":
        return folder(tmp_path / "a", a), folder(tmp_path / "b", b)
    names = {"source": ("source", "target"), "ab": ("A", "B")}[how]
    np.savez(tmp_path / "pairs.npz", **dict(zip(names, arrays, strict=True)), names=np.array(["x"] * len(a)))
    return str(tmp_path / "pairs.npz"), None


def negatives(x, y):
    return torch.equal(to_uint8(y), 255 - to_uint8(x))


@pytest.mark.parametrize("how", ["aligned", "two", "source", "ab"])
def test_every_spelling_gives_the_same_pairs(how, arrays, tmp_path):
    pairs = ImagePairs(*spelt(how, arrays, tmp_path), ARCH, Data())
    x, y = pairs.take(0, 10, 0)
    assert negatives(x, y)
    assert sorted(t.tolist() for t in to_uint8(x).flatten(1)) == sorted(a.transpose(2, 0, 1).ravel().tolist() for a in arrays[0])  # each once


@pytest.mark.parametrize("how", ["aligned", "two", "source"])
def test_the_other_direction_exchanges_inputs_and_targets(how, arrays, tmp_path):
    spelling = spelt(how, arrays, tmp_path)
    there, back = (ImagePairs(*spelling, ARCH, Data(), direction=d) for d in ("AtoB", "BtoA"))
    (x, y), (v, w) = there.take(0, 10, 0), back.take(0, 10, 0)
    assert torch.equal(x, w)
    assert torch.equal(y, v)
    assert there.fingerprint != back.fingerprint  # a run is not gone on with in the other direction


def test_channels_follow_the_direction(arrays, tmp_path):
    arch = SimpleNamespace(resolution=8, nc_in=1, nc=3)
    pairs = ImagePairs(*spelt("source", arrays, tmp_path), arch, Data(), direction="BtoA")
    x, y = pairs.take(0, 2, 0)
    assert (x.shape, y.shape) == ((2, 1, 8, 8), (2, 3, 8, 8))


def test_crops_and_flips_are_of_both_sides_alike_and_of_different_places_different(arrays, tmp_path):
    spelling = spelt("source", arrays, tmp_path)
    plain = ImagePairs(*spelling, ARCH, Data())
    varied = ImagePairs(*spelling, ARCH, Data(mirror=True, jitter=1.5))
    x, y = varied.take(0, 40, 0)
    assert x.shape == (40, 3, 8, 8)
    # Lanczos of the negative is the negative of Lanczos but for rounding
    assert (x + y).abs().max() <= 2 / 127.5
    assert len({tuple(t.flatten().tolist()) for t in x}) > 10  # ten images, cropped otherwise in each epoch
    flipped = ImagePairs(*spelling, ARCH, Data(mirror=True)).take(0, 40, 0)[0]
    same = [torch.equal(a, b) for a, b in zip(plain.take(0, 40, 0)[0], flipped, strict=True)]
    assert 8 < sum(same) < 32


def test_without_pairs_each_side_has_epochs_and_flips_of_its_own(arrays, tmp_path):
    a, b = arrays
    data, target = folder(tmp_path / "a", a), folder(tmp_path / "b", b[:7])
    pairs = ImagePairs(data, target, ARCH, Data(paired=False))
    x, y = pairs.take(0, 70, 0)
    assert len(torch.unique(x.flatten(1), dim=0)) == 10
    assert torch.unique(y.flatten(1), dim=0, return_counts=True)[1].tolist() == [10] * 7
    assert not negatives(x[:7], y[:7])
    one = folder(tmp_path / "one", a[:1])
    x, y = ImagePairs(one, one, ARCH, Data(paired=False, mirror=True)).take(0, 40, 0)
    assert 8 < sum(torch.equal(a, b) for a, b in zip(x, y, strict=True)) < 32


def test_a_pair_of_which_one_side_cannot_be_read_is_passed_over_whole(arrays, tmp_path):
    data, target = spelt("two", arrays, tmp_path)
    (tmp_path / "b" / "03.png").write_bytes(b"not a picture")
    pairs = ImagePairs(data, target, ARCH, Data())
    x, y = pairs.take(0, 10, 0)
    assert negatives(x, y)
    assert pairs.unreadable == ["03.png"]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_s_inputs_and_real_images_are_pairs_and_its_parts_the_whole(beside, parts, arrays, tmp_path):
    family = FAMILIES["unet"]
    arch = family.build_arch(None, {"resolution": 8, "g_widths": (4, 4), "d_widths": (4, 8)})
    teacher = GAN(family, arch, family.generator(arch)).freeze()
    pairs = ImagePairs(*spelt("source", arrays, tmp_path), arch, Data(mirror=True), beside=beside)
    teacher.inputs = pairs.inputs
    schedule = Schedule(kimg=1, batch_size=4, accumulate=parts, ema_kimg=0, ema_rampup=0)
    batches = Batches(teacher, teacher, pairs, schedule, mirror=False, seed=3, pool=0, device=torch.device("cpu"))
    found = [batches(5, 0, part) for part in range(parts)]
    assert all(negatives(b.inputs, b.real) and b.paired for b in found)
    assert torch.equal(torch.cat([b.inputs for b in found]), pairs.take(20, 4, 3, 0)[0])
    for batch in found:
        assert torch.allclose(batch.teacher, teacher.generator(batch.inputs), atol=1e-6)
        images, seen = batch.unpaired
        for condition in (batch.condition, batch.real_condition):
            assert (condition is None) if not beside else torch.equal(condition, batch.inputs)
        assert (seen is None) if not beside else torch.allclose(images, teacher.generator(seen), atol=1e-6)
    batches.attempt = 1
    assert not torch.equal(batches(5, 0).inputs, found[0].inputs)


def test_a_teacher_that_translates_the_other_way_is_told_of(arrays, tmp_path):
    class Darken(torch.nn.Module):
        def forward(self, inputs, condition=None):
            return inputs - 0.5

    light = np.full((4, 8, 8, 3), 200, dtype=np.uint8)
    spelling = spelt("source", (light, light - 64), tmp_path)  # 64 of 255 are 0.5 of [-1, 1]
    teacher = GAN(FAMILIES["unet"], ARCH, Darken())
    assert not backwards(teacher, ImagePairs(*spelling, ARCH, Data()))
    pairs = ImagePairs(*spelling, ARCH, Data(), direction="BtoA")
    (said,) = backwards(teacher, pairs)
    assert "1.00 from the targets and 0.00" in said
    assert "--direction" in said
    assert "samples/direction.png" in said
    assert [name for name, _ in pairs.doubt] == ["input", "teacher", "target", "target", "teacher", "input"]
    x, of_x, y, also_y, of_y, also_x = (images for _, images in pairs.doubt)
    assert torch.equal(x, also_x)
    assert torch.equal(y, also_y)
    assert torch.equal(of_x, x - 0.5)
    assert torch.allclose(of_y, x, atol=0.01)  # the exchanged are alike: what a person is to see


def test_the_picture_of_a_doubtful_direction_is_the_run_s_and_no_plan_s(tmp_path):
    family = FAMILIES["unet"]
    arch = family.build_arch(None, {"resolution": 8, "g_widths": (4, 4), "d_widths": (4, 8), "d_nc": 3})
    grey, light = np.full((4, 8, 8, 3), 128, np.uint8), np.full((4, 8, 8, 3), 230, np.uint8)
    generator = family.generator(arch)
    for parameter in generator.parameters():
        torch.nn.init.zeros_(parameter)  # grey, whatever it is given
    save_networks(tmp_path / "g.safetensors", family, arch, {"generator": generator}, {})
    data, target = spelt("two", (grey, light), tmp_path)
    words = ["distill", str(tmp_path / "g.safetensors"), "--recipe", "portable-i2i", "--data", data, "--target", target, "--steps", "1", "--device", "cpu"]
    for more, shown in ((["--dry-run"], False), ([], True), (["--direction", "BtoA"], False)):
        out = tmp_path / f"run{len(more)}"
        done = CliRunner().invoke(app, [*words, *more, "--out", str(out)])
        assert done.exit_code == 0, done.output
        said = " ".join(done.output.split())
        assert ("does the teacher translate the other way?" in said) == ("BtoA" not in more)
        assert ("what the teacher makes of inputs, and of targets:" in said) == shown
        assert (out / "samples" / "direction.png").is_file() == shown


@pytest.mark.parametrize(("width", "half"), [(12, "6 x 16"), (32, None), (40, "20 x 16")])
def test_halves_of_any_shape_are_cut_to_their_central_squares(width, half, tmp_path):
    """Portrait, square and landscape: left green, right blue, and red where nothing is to be seen of it."""
    picture = np.zeros((16, width, 3), np.uint8)
    picture[..., 0] = 255
    side, middle = min(width // 2, 16), width // 2
    top, left = (16 - side) // 2, (middle - side) // 2
    picture[top : top + side, left : left + side] = (0, 255, 0)
    picture[top : top + side, middle + left : middle + left + side] = (0, 0, 255)
    data, arch = folder(tmp_path / "ab", [picture]), SimpleNamespace(resolution=side, nc_in=3, nc=3, d_nc=3)
    numbers = SimpleNamespace(data=Data(), weights={})
    pairs, notes = open_pairs(data, None, arch, numbers, None, None)
    x, y = pairs.take(0, 1, 0)
    assert to_uint8(x).unique(dim=2).flatten().tolist() == [0] * side + [255] * side + [0] * side
    assert to_uint8(y).unique(dim=2).flatten().tolist() == [0] * side + [0] * side + [255] * side
    assert any("central squares" in note for note in notes) == bool(half)
    assert half is None or half in notes[1]


# -------------------------------------------------------------------------------------------------------------------- bad input


def test_pairs_of_different_counts_name_the_first_without_a_partner(arrays, tmp_path):
    a, b = arrays
    data, target = folder(tmp_path / "a", a), folder(tmp_path / "b", np.delete(b, 4, 0), [f"{i:02d}.png" for i in range(10) if i != 4])
    with pytest.raises(UsageError, match=r"has 10 images and .*b 9; the first without a partner of its name: 04.png"):
        ImagePairs(data, target, ARCH, Data())
    with pytest.raises(UsageError, match=r"the first without a partner of its name: 04.png"):
        ImagePairs(target, data, ARCH, Data())


def test_arrays_of_different_counts_are_refused_with_both(arrays, tmp_path):
    a, b = arrays
    with pytest.raises(UsageError, match=r"has 10 images and .* 9"):
        ImagePairs(*spelt("source", (a, b[:9]), tmp_path), ARCH, Data())


def test_pairs_of_different_sizes_name_the_first(arrays, tmp_path):
    data, target = spelt("two", arrays, tmp_path)
    for name in ("05.png", "07.png"):
        Image.new("RGB", (9, 8)).save(tmp_path / "b" / name)
    with pytest.raises(UsageError, match=r"the pair 05.png is 8 x 8 in .*a and 9 x 8 in .*b"):
        ImagePairs(data, target, ARCH, Data())


@pytest.mark.parametrize("size", [(7, 8), (15, 8), (17, 8)])
def test_a_picture_that_cannot_be_two_is_named(size, arrays, tmp_path):
    data, _ = spelt("aligned", arrays, tmp_path)
    Image.new("RGB", size).save(tmp_path / "ab" / "02.png")
    with pytest.raises(UsageError, match=rf"02.png is {size[0]} x {size[1]}, and two images side by side have an even width") as caught:
        ImagePairs(data, None, ARCH, Data())
    assert "--target" in caught.value.hint


def test_one_folder_where_two_are_needed_is_refused(arrays, tmp_path):
    with pytest.raises(UsageError, match="one set of images") as caught:
        ImagePairs(*spelt("aligned", arrays, tmp_path), ARCH, Data(paired=False))
    assert "--target" in caught.value.hint


def test_an_npz_of_other_arrays_names_them(tmp_path):
    np.savez(tmp_path / "p.npz", left=np.zeros((2, 8, 8), np.uint8), right=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"it holds left, right; pairs in an .npz are called source and target"):
        ImagePairs(str(tmp_path / "p.npz"), None, ARCH, Data())


def test_a_direction_that_is_none_is_refused(arrays, tmp_path):
    with pytest.raises(UsageError, match="--direction AB: expected AtoB or BtoA"):
        ImagePairs(*spelt("source", arrays, tmp_path), ARCH, Data(), direction="AB")


@pytest.mark.parametrize(("family", "resolution", "nearest"), [("unet", 99, 96), ("unet", 3, 8), ("resnet", 103, 104), ("resnet", 3, 8)])
def test_a_resolution_the_network_cannot_take_is_refused_with_the_nearest(family, resolution, nearest):
    with pytest.raises(UsageError, match=f"resolution {resolution}") as caught:
        FAMILIES[family].build_arch(None, {"g_widths": (4, 4, 4), "resolution": resolution})
    assert caught.value.hint == f"the nearest that works: {nearest}"
    FAMILIES[family].build_arch(None, {"g_widths": (4, 4, 4), "resolution": nearest})


@pytest.mark.parametrize("flag", [["--target", "images/"], ["--direction", "AtoB"]])
def test_what_only_translators_have_is_refused_elsewhere(flag, tiny_teacher, tiny_data):
    said = CliRunner().invoke(app, ["distill", str(tiny_teacher), "--recipe", "joint", "--data", str(tiny_data), "--device", "cpu", "--dry-run", *flag])
    assert said.exit_code == 2
    assert "are for image translators" in said.output
