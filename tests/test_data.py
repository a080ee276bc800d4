"""Where batches come from: readable images in whatever form, and streams that depend on (seed, step) alone."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from gancompress.config import Schedule
from gancompress.data import Batches, Images, TeacherPool, positions, seed_for, to_float, to_uint8
from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN

CPU = torch.device("cpu")


def gradient(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def write_folder(folder, count=3, size=8):
    folder.mkdir()
    for i in range(count):
        Image.fromarray(gradient(size, size, seed=i)).save(folder / f"{i}.png")
    return folder


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


DIGITS = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
LABELS = np.array([7, 2, 9], np.uint8)


def all_of(images):
    return images[torch.arange(len(images))]


# ----------------------------------------------------------------------------------------------------------------- containers


def test_a_folder_gives_its_images_in_the_order_of_their_names(tmp_path):
    images = Images(str(write_folder(tmp_path / "faces")), 8, 3)
    found, labels = all_of(images)
    assert len(images) == 3
    assert labels is None
    for i in range(3):
        assert torch.equal(found[i], torch.from_numpy(gradient(8, 8, seed=i)).permute(2, 0, 1))


def test_a_folder_is_searched_to_the_bottom_and_other_files_do_not_count(tmp_path):
    folder = write_folder(tmp_path / "faces")
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(gradient(8, 8)).save(folder / "deep" / "er" / "X.JPG")
    (folder / "notes.txt").write_text("no image")
    assert len(Images(str(folder), 8, 3)) == 4


def test_a_zip_gives_the_images_of_the_folder_it_was_made_from(tmp_path):
    folder = write_folder(tmp_path / "faces")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"inside/{path.name}")
        archive.writestr("inside/readme.txt", "hello")
    assert torch.equal(all_of(Images(str(tmp_path / "faces.zip"), 8, 3))[0], all_of(Images(str(folder), 8, 3))[0])


@pytest.mark.parametrize("arrays", [{"x_train": DIGITS, "x_test": DIGITS[:1]}, {"anything": DIGITS}])
def test_an_npz_gives_x_train_or_its_only_array(arrays, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays)
    found, labels = all_of(Images(str(tmp_path / "d.npz"), 8, 1))
    assert torch.equal(found[:, 0], torch.from_numpy(DIGITS))
    assert labels is None


@pytest.mark.parametrize("name", ["y_train", "labels"])
def test_an_npz_gives_its_labels(name, tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x_train=DIGITS, **{name: LABELS})
    images = Images(str(tmp_path / "d.npz"), 8, 1)
    assert images[torch.tensor([2, 0])][1].tolist() == [9, 7]


def test_an_npz_of_several_arrays_names_them(tmp_path):
    np.savez(tmp_path / "d.npz", first=DIGITS, second=DIGITS)
    with pytest.raises(UsageError, match="first, second"):
        Images(str(tmp_path / "d.npz"), 8, 1)


@pytest.mark.parametrize(
    "array",
    [
        DIGITS[..., None],
        DIGITS[:, None],
        DIGITS / 255,
        DIGITS.astype(np.float32) / 127.5 - 1,
        DIGITS.astype(np.int64),
        np.repeat(DIGITS[..., None], 3, 3),
        np.repeat(DIGITS[:, None], 3, 1),
    ],
    ids=["NHW1", "N1HW", "0..1", "-1..1", "int64", "NHW3", "N3HW"],
)
def test_arrays_of_every_usual_layout_and_range_give_the_same_images(array, tmp_path):
    np.savez(tmp_path / "d.npz", array)
    assert torch.equal(all_of(Images(str(tmp_path / "d.npz"), 8, 1))[0][:, 0], torch.from_numpy(DIGITS))


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 2, 2, 2, 2)])
def test_an_array_that_is_no_image_set_is_refused_with_its_shape(shape, tmp_path):
    np.savez(tmp_path / "d.npz", np.zeros(shape, np.uint8))
    with pytest.raises(UsageError) as caught:
        Images(str(tmp_path / "d.npz"), 8, 1)
    assert str(shape) in str(caught.value)


def test_an_npz_of_python_objects_is_refused_and_nothing_in_it_runs(tmp_path):
    np.savez(tmp_path / "d.npz", np.array([{"a": 1}], dtype=object))
    with pytest.raises(MissingError, match="damaged or not a plain array"):
        Images(str(tmp_path / "d.npz"), 8, 1)


@pytest.mark.parametrize("how", ["plain", "gz", "folder", "folder-gz"])
def test_mnist_idx_files_are_read_with_their_labels(how, tmp_path):
    gz = how.endswith("gz")
    suffix = ".gz" if gz else ""
    for name, array in (("train-images-idx3-ubyte", DIGITS), ("train-labels-idx1-ubyte", LABELS), ("t10k-images-idx3-ubyte", DIGITS[:1])):
        (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(idx(array)) if gz else idx(array))
    source = tmp_path if how.startswith("folder") else tmp_path / f"train-images-idx3-ubyte{suffix}"
    images = Images(str(source), 8, 1)
    found, labels = images[torch.tensor([1, 2, 0])]
    assert torch.equal(found[:, 0], torch.from_numpy(DIGITS)[[1, 2, 0]])
    assert labels.tolist() == [2, 9, 7]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        idx(DIGITS)[:-1],
        b"\0\0\x08\x03\0\0",
        b"\0\0\x08\x09" + b"\0" * 8,
        gzip.compress(idx(DIGITS), mtime=0)[:-9],
        b"\x1f\x8b\x08\0" + b"x" * 60,
        gzip.compress(idx(DIGITS), mtime=0)[:20] + b"\xff" * 60,
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_idx_file_is_a_clear_error(content, suffix, tmp_path):
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(MissingError, match="train-images"):
            Images(str(source), 8, 1)


# ---------------------------------------------------------------------------------------------------------- from file to tensor


def test_colour_becomes_grey_by_luminance_and_grey_becomes_three_equal_channels(tmp_path):
    (tmp_path / "d").mkdir()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "d" / "c.png")
    grey = all_of(Images(str(tmp_path / "d"), 8, 1))[0]
    assert grey.shape == (1, 1, 8, 8)
    # 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    assert set(grey.flatten().tolist()) == {124}
    Image.new("L", (8, 8), 77).save(tmp_path / "d" / "c.png")
    assert set(all_of(Images(str(tmp_path / "d"), 8, 3))[0].flatten().tolist()) == {77}


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "1", "I;16"])
def test_every_mode_of_a_picture_is_read(mode, tmp_path):
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / ("c.tif" if mode == "CMYK" else "c.png")
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    if mode == "I;16":
        grey = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    else:
        grey = grey.quantize(4) if mode == "P" else grey.convert(mode, dither=Image.Dither.NONE)
    grey.save(path)
    found = all_of(Images(str(tmp_path / "d"), 8, 3))[0]
    assert int(found[0, 0, 0, 0]) == (255 if mode == "1" else pytest.approx(128, abs=1))


@pytest.mark.parametrize(("height", "width"), [(8, 14), (14, 8)])
def test_a_picture_is_cropped_to_its_central_square(height, width, tmp_path):
    (tmp_path / "d").mkdir()
    pixels = gradient(height, width)
    Image.fromarray(pixels).save(tmp_path / "d" / "c.png")
    middle = pixels[3:11] if height > width else pixels[:, 3:11]
    assert torch.equal(all_of(Images(str(tmp_path / "d"), 8, 3))[0][0], torch.from_numpy(middle.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("resolution", [4, 8, 32])
def test_a_picture_is_resized_to_the_resolution(resolution, tmp_path):
    (tmp_path / "d").mkdir()
    Image.fromarray(gradient(16, 20)).save(tmp_path / "d" / "c.png")
    found = all_of(Images(str(tmp_path / "d"), resolution, 3))[0][0]
    by_hand = Image.fromarray(gradient(16, 20)[:, 2:18]).resize((resolution, resolution), Image.Resampling.LANCZOS)
    assert torch.equal(found, torch.from_numpy(np.array(by_hand)).permute(2, 0, 1))


def test_bytes_and_floats_go_round_without_loss():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert float(to_float(every).min()) == -1
    assert float(to_float(every).max()) == 1
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_uint8(torch.tensor([-3.0, 0.0, 3.0])).tolist() == [0, 128, 255]


# ------------------------------------------------------------------------------------------------------------------- bad images


def test_an_unreadable_image_is_named_and_the_next_one_takes_its_place(tmp_path):
    folder = write_folder(tmp_path / "d", 4)
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "3.png").write_bytes(b"not a picture")
    images = Images(str(folder), 8, 3)
    found = all_of(images)[0]
    assert sorted(images.unreadable) == ["1.png", "3.png"]
    assert torch.equal(found[1], found[2])
    assert torch.equal(found[3], found[0])
    all_of(images)
    assert sorted(images.unreadable) == ["1.png", "3.png"]  # named once


def test_labels_follow_the_image_that_took_the_place(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x_train=DIGITS, y_train=LABELS)
    images = Images(str(tmp_path / "d.npz"), 8, 1)
    draw = images._draw

    def broken(i):
        if i == 1:
            raise OSError("bad sector")
        return draw(i)

    monkeypatch.setattr(images, "_draw", broken)
    assert images[torch.tensor([1])][1].tolist() == [9]


def test_images_of_which_none_can_be_read_are_an_error_that_names_one(tmp_path):
    (tmp_path / "d").mkdir()
    for i in range(3):
        (tmp_path / "d" / f"{i}.png").write_bytes(b"x")
    with pytest.raises(MissingError, match=r"not one of its 3 images can be read \(first: 0.png\)"):
        Images(str(tmp_path / "d"), 8, 3)


def test_an_encrypted_zip_is_refused(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.png", picture.getvalue())
    raw = bytearray((tmp_path / "d.zip").read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # the flag of the central directory
    (tmp_path / "d.zip").write_bytes(raw)
    with pytest.raises(MissingError, match="encrypted"):
        Images(str(tmp_path / "d.zip"), 8, 3)


@pytest.mark.parametrize("shape", [(4, 8, 8, 2), (4, 2, 8, 8), (0, 8, 8), (4, 8)])
def test_an_array_that_is_no_set_of_images_is_refused_with_its_shape(shape, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=np.zeros(shape, np.uint8))
    with pytest.raises(UsageError, match="no set of images"):
        Images(str(tmp_path / "d.npz"), 8, 3)


def test_a_damaged_member_of_a_zip_is_passed_over(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(gradient(8, 8)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("0.png", buffer.getvalue())
        archive.writestr("1.png", buffer.getvalue())
    raw = bytearray((tmp_path / "d.zip").read_bytes())
    raw[raw.index(b"0.png") + 60] ^= 0xFF  # a byte within the first picture: its checksum is wrong
    (tmp_path / "d.zip").write_bytes(raw)
    images = Images(str(tmp_path / "d.zip"), 8, 3)
    all_of(images)
    assert images.unreadable == ["0.png"]


@pytest.mark.parametrize("what", ["nothing", "empty folder", "text file", "empty zip", "damaged npz"])
def test_a_source_without_images_is_missing_data(what, tmp_path):
    path = tmp_path / ("d.npz" if what == "damaged npz" else "d")
    if what == "empty folder":
        path.mkdir()
    elif what == "text file":
        path.write_text("hello")
    elif what == "empty zip":
        zipfile.ZipFile(path, "w").close()
    elif what == "damaged npz":
        np.savez(path, DIGITS)
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MissingError) as caught:
        Images(str(path), 8, 1)
    assert str(path) in str(caught.value)


def test_a_network_of_two_channels_has_no_real_images(tmp_path):
    with pytest.raises(UsageError, match="2 channels"):
        Images(str(write_folder(tmp_path / "d")), 8, 2)


def test_the_fingerprint_changes_with_the_data(tmp_path):
    folder = write_folder(tmp_path / "d")
    before = Images(str(folder), 8, 3).fingerprint
    assert Images(str(folder), 8, 3).fingerprint == before
    (folder / "2.png").unlink()
    assert Images(str(folder), 8, 3).fingerprint != before


# --------------------------------------------------------------------------------------------------------------------- streams


def test_positions_give_each_index_once_an_epoch():
    stream = positions(0, 35, 7, 3)
    for epoch in range(5):
        assert sorted(stream[7 * epoch : 7 * epoch + 7].tolist()) == list(range(7))
    assert len({tuple(stream[7 * e : 7 * e + 7].tolist()) for e in range(5)}) > 1


@pytest.mark.parametrize("cuts", [[0, 35], [0, 4, 8, 35], [0, 7, 14, 35], list(range(36))])
def test_positions_are_the_same_however_they_are_asked_for(cuts):
    pieces = [positions(a, b - a, 7, 3) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(pieces), positions(0, 35, 7, 3))
    assert not torch.equal(positions(0, 35, 7, 4), positions(0, 35, 7, 3))


def test_seeds_of_different_numbers_are_different():
    parts = [(a, b, c) for a in range(6) for b in range(6) for c in range(6)] + [(a,) for a in range(6)] + [(a, b) for a in range(6) for b in range(6)]
    assert len({seed_for(*p) for p in parts}) == len(parts)
    assert all(0 <= seed_for(*p) < 2**63 for p in parts)


@pytest.fixture
def gan():
    family = FAMILIES["mlp"]
    arch = family.build_arch(None, {"resolution": 8, "nc": 1, "nz": 4, "width": 8})
    torch.manual_seed(0)
    return GAN(family, arch, family.generator(arch)).freeze()


def schedule_of(**numbers):
    return Schedule(**({"kimg": 1, "batch_size": 4, "ema_kimg": 0, "ema_rampup": 0} | numbers))


def batches_of(gan, images=None, *, seed=0, pool=0, mirror=False, **schedule):
    return Batches(gan, gan, images, schedule_of(**schedule), mirror=mirror, seed=seed, pool=pool, device=CPU)


def content(batch):
    return torch.cat([batch.inputs.flatten(), batch.real.flatten(), batch.teacher.flatten()])


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("pool", [0, 12])
def test_a_batch_is_a_function_of_seed_step_and_substep_alone(gan, with_data, pool, tiny_data):
    def fresh(seed=0):
        return batches_of(gan, Images(str(tiny_data), 8, 1) if with_data else None, seed=seed, pool=pool, d_steps=2)

    places = [(step, sub) for step in range(6) for sub in range(2)]
    stream = fresh()
    first = {place: content(stream(*place)) for place in places}
    backwards = fresh()
    for place in reversed(places):
        assert torch.equal(content(backwards(*place)), first[place])
    for place in places[::5]:
        assert torch.equal(content(fresh()(*place)), first[place])
    assert len({tuple(v.tolist()) for v in first.values()}) == len(places)
    assert not torch.equal(content(fresh(seed=1)(0, 0)), first[0, 0])


def test_teacher_images_are_the_teachers_images_of_the_batchs_latents(gan):
    batch = batches_of(gan)(3, 0)
    assert torch.equal(batch.teacher, gan.generator(batch.inputs))


def test_without_data_the_teachers_samples_stand_in_and_are_of_other_latents(gan):
    batch = batches_of(gan)(0, 0)
    assert batch.real.shape == batch.teacher.shape
    assert not torch.allclose(batch.real, batch.teacher, atol=1e-3)


@pytest.mark.parametrize(("pool", "with_data"), [(0, True), (0, False), (16, True)])
def test_the_parts_of_a_batch_are_together_the_whole_one(gan, pool, with_data, tiny_data):
    images = Images(str(tiny_data), 8, 1) if with_data else None
    whole = batches_of(gan, images, batch_size=8, pool=pool, mirror=True)
    parts = batches_of(gan, images, batch_size=8, pool=pool, mirror=True, accumulate=2)
    for step in range(5):
        halves, one = [parts(step, 0, part) for part in range(2)], whole(step, 0)
        # a pool draws its pairs in chunks of a part, so that they are other ones
        assert pool or torch.equal(torch.cat([half.inputs for half in halves]), one.inputs)
        assert torch.equal(torch.cat([half.real for half in halves]), one.real)
        assert torch.allclose(torch.cat([half.unpaired[0] for half in halves]), one.unpaired[0], atol=1e-6)
        assert [half.inputs.shape for half in halves] == [(4, 4)] * 2


def test_mirror_flips_about_half_of_the_real_images_and_changes_nothing_else(gan, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", pixels)
    data = Images(str(tmp_path / "d.npz"), 8, 1)
    plain, mirrored = (batches_of(gan, data, batch_size=64, mirror=m)(0, 0) for m in (False, True))
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(mirrored.real, plain.real, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(mirrored.real, plain.real, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48


def test_unpaired_samples_of_the_teacher_are_of_latents_of_their_own(gan):
    batch = batches_of(gan)(0, 0)
    assert batch.unpaired[0].shape == batch.teacher.shape
    assert not torch.allclose(batch.unpaired[0], batch.teacher, atol=1e-3)


def test_real_images_come_once_an_epoch(gan, tmp_path):
    pixels = np.arange(12, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.savez(tmp_path / "d.npz", pixels)
    stream = batches_of(gan, Images(str(tmp_path / "d.npz"), 8, 1))
    for epoch in range(3):
        seen = torch.cat([to_uint8(stream(3 * epoch + i, 0).real)[:, 0, 0, 0] for i in range(3)])
        assert sorted(seen.tolist()) == list(range(12))


def test_labels_of_real_images_go_with_them(gan, tmp_path):
    pixels = np.arange(12, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    np.savez(tmp_path / "d.npz", x_train=pixels, y_train=np.arange(12) % 5)
    batch = batches_of(gan, Images(str(tmp_path / "d.npz"), 8, 1))(2, 0)
    assert torch.equal(batch.real_condition, to_uint8(batch.real)[:, 0, 0, 0].long() % 5)


@pytest.mark.parametrize("pool", [0, 12])
@pytest.mark.parametrize("step", [0, 4])
def test_another_attempt_sees_other_data(gan, pool, step, tiny_data):
    stream = batches_of(gan, Images(str(tiny_data), 8, 1), pool=pool)
    first = stream(step, 0)
    inputs, real = first.inputs, first.real
    stream.attempt = 1
    assert not torch.equal(stream(step, 0).inputs, inputs)
    assert not torch.equal(stream(step, 0).real, real)


def test_every_pair_of_the_pool_is_the_teachers_image_of_its_latent(gan):
    stream = batches_of(gan, pool=12)
    for step in range(9):
        batch = stream(step, 0)
        assert torch.allclose(batch.teacher, gan.generator(batch.inputs), atol=1e-3)  # kept as float16


def test_the_pool_is_drawn_once_and_then_each_pair_comes_once_an_epoch(gan):
    stream = batches_of(gan, pool=12)
    epochs = [torch.cat([stream(3 * e + i, 0).inputs for i in range(3)]) for e in range(4)]
    rows = [sorted(map(tuple, epoch.tolist())) for epoch in epochs]
    assert len(set(rows[0])) == 12
    assert all(r == rows[0] for r in rows)
    assert not torch.equal(epochs[1], epochs[2])


def test_the_pool_runs_the_teacher_once_for_each_pair(gan):
    seen = []
    gan.generator.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    stream = batches_of(gan, pool=12)
    for step in range(20):
        _ = stream(step, 0).teacher
    assert sum(seen) == 12


def test_a_pool_that_is_no_whole_number_of_batches_is_refused(gan):
    with pytest.raises(UsageError, match="multiple of the batch size 4"):
        TeacherPool(gan, 10, 4, 0, CPU)


def test_asking_for_a_teacher_that_is_not_there_is_an_error(gan):
    stream = Batches(gan, None, None, schedule_of(), mirror=False, seed=0, pool=0, device=CPU)
    with pytest.raises(GanCompressError, match="no teacher"):
        _ = stream(0, 0).teacher
    with pytest.raises(GanCompressError, match="neither real ones nor a teacher"):
        _ = stream(0, 0).real
