"""The FCN score: its arithmetic against matrices worked by hand, label maps, segmenters, and the command."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest
import torch
from conftest import REPO, small_gan
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from gancompress.checkpoint import save_networks
from gancompress.cli import app
from gancompress.data import Images, to_float, to_uint8
from gancompress.errors import CheckpointError, GanCompressError, MissingError, UsageError
from gancompress.segmentation import NETWORKS, LabelMaps, confusion, nearest, network_of, open_segmenter, scores

CPU = torch.device("cpu")
NET = {"resolution": 16, "nc": 3, "g_widths": (4, 8), "blocks": 1, "d_widths": (4, 8)}
#: bright pixels are class 1, dark ones class 0; class 2 is never found
SEGMENTER = """
from torch import nn, stack

class Bright(nn.Module):
    def forward(self, x):
        assert x.shape[1] == 3 and x.abs().max() <= 1
        grey = x.mean(1)
        return stack([-grey, grey, -9 + 0 * grey], 1)

class Broken(nn.Module):
    def forward(self, x):
        return {"out": x} if x.shape[1] == 3 else x

class Odd(nn.Module):
    def forward(self, x):
        return x / 0

def bright(): return Bright()
def broken(): return Broken()
def odd(): return Odd()
def number(): return 3
def fails(): raise KeyError("weights")
"""


# -------------------------------------------------------------------------------------------------------------------- arithmetic


def test_a_confusion_matrix_counts_truth_by_rows_and_prediction_by_columns():
    truth = torch.tensor([[0, 0, 0, 0], [1, 1, -1, -1]])
    predicted = torch.tensor([[0, 0, 0, 1], [1, 2, 0, 2]])
    found = confusion(truth, predicted, 4)
    assert found.dtype == torch.int64
    assert found.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_measures_are_those_worked_by_hand():
    # t = 4, 2, 0, 0; p = 3, 2, 1, 0; n = 3, 1, 0, 0: class 2 is predicted once and nowhere true, class 3 neither
    found = scores(torch.tensor([[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert found["per_pixel_accuracy"] == pytest.approx(4 / 6)
    assert found["per_class_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 4)
    assert found["class_iou"] == pytest.approx((3 / 4 + 1 / 3) / 4)
    assert found["per_class_accuracy_present"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["class_iou_present"] == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert found["of_class"][1] == {"pixels": 2, "accuracy": 0.5, "iou": pytest.approx(1 / 3)}
    assert found["of_class"][2:] == [{"pixels": 0, "accuracy": None, "iou": 0.0}, {"pixels": 0, "accuracy": None, "iou": None}]


def test_the_means_are_pix2pix_s():
    """Its denominators have 1e-12 added, so that 0 / 0 is 0."""
    matrix = torch.randint(0, 50, (7, 7), generator=torch.Generator().manual_seed(0))
    matrix[2], matrix[:, 2], matrix[4] = 0, 0, 0
    hits, rows, columns = matrix.diag().double(), matrix.sum(1), matrix.sum(0)
    found = scores(matrix)
    assert found["per_pixel_accuracy"] == pytest.approx(float(hits.sum() / (matrix.sum() + 1e-12)))
    assert found["per_class_accuracy"] == pytest.approx(float((hits / (rows + 1e-12)).mean()))
    assert found["class_iou"] == pytest.approx(float((hits / (rows + columns - hits + 1e-12)).mean()))


def test_label_maps_without_a_class_are_refused():
    with pytest.raises(MissingError, match="not one pixel"):
        scores(torch.zeros(3, 3, dtype=torch.int64))


def test_nearest_takes_the_label_under_each_centre():
    labels = torch.arange(16).reshape(4, 4)
    assert nearest(labels, 2, 2).tolist() == [[5, 7], [13, 15]]
    assert nearest(labels, 4, 4).equal(labels)
    assert nearest(torch.tensor([[1, 2]]), 2, 4).tolist() == [[1, 1, 2, 2]] * 2
    labels = torch.arange(25).reshape(5, 5)
    picture = Image.fromarray(labels.numpy().astype(np.uint8)).resize((7, 3), Image.Resampling.NEAREST)
    assert nearest(labels, 3, 7).tolist() == np.asarray(picture).tolist()


# -------------------------------------------------------------------------------------------------------------------- label maps


def maps_of(folder, classes=3, ignored=(255,)):
    return LabelMaps(str(folder), classes, frozenset(ignored))


def write_png(path, values, mode=None):
    picture = Image.fromarray(np.asarray(values, np.uint8 if mode != "I;16" else np.uint16))
    if mode == "P":
        picture = picture.convert("P")
        picture.putdata(np.asarray(values, np.uint8).reshape(-1).tolist())
    picture.save(path)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "npy"])
def test_label_maps_are_read_as_numbers_of_classes(tmp_path, mode):
    values = np.array([[0, 1, 2], [2, 255, 0], [1, 1, 1]])
    name = "a.npy" if mode == "npy" else "a.png"
    np.save(tmp_path / name, values) if mode == "npy" else write_png(tmp_path / name, values, mode)
    assert maps_of(tmp_path).load(name, (9, 9)).tolist() == [[0, 1, 2], [2, -1, 0], [1, 1, 1]]


def test_label_maps_are_cut_as_images_are(tmp_path):
    values = np.repeat([[0, 1, 2, 0, 1, 2]], 4, 0)
    np.save(tmp_path / "a.npy", values)
    assert maps_of(tmp_path).load("a.npy", (60, 40)).tolist() == [[1, 2, 0, 1]] * 4
    with pytest.raises(UsageError, match=r"a\.npy: 6 x 4, of another shape than its image of 40 x 40"):
        maps_of(tmp_path).load("a.npy", (40, 40))


def test_values_outside_the_classes_name_file_and_value(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 7], [7, -1]]))
    with pytest.raises(UsageError, match=r"a\.npy: 7 at 3 pixels, and the classes are 0 \.\.\. 2") as caught:
        maps_of(tmp_path).load("a.npy", (2, 2))
    assert "--ignore-label" in caught.value.hint
    assert maps_of(tmp_path, ignored=(7, -1)).load("a.npy", (2, 2)).tolist() == [[0, -1], [-1, -1]]


def truncated_array(path):
    np.save(path.with_suffix(".npy"), np.zeros((4, 4), np.uint8))
    path.with_suffix(".npy").write_bytes(path.with_suffix(".npy").read_bytes()[:-3])


@pytest.mark.parametrize(
    ("write", "error", "said"),
    [
        (lambda p: Image.new("RGB", (4, 4)).save(p), UsageError, "mode RGB; a label map has one whole number"),
        (lambda p: p.write_bytes(b"no picture"), MissingError, "not a readable label map"),
        (lambda p: np.save(p.with_suffix(".npy"), np.zeros((4, 4))), UsageError, "type float64"),
        (lambda p: np.save(p.with_suffix(".npy"), np.zeros((4, 4, 1), np.uint8)), UsageError, r"shape \(4, 4, 1\)"),
        (lambda p: np.save(p.with_suffix(".npy"), np.array([[{}]]), allow_pickle=True), MissingError, "not a readable label map"),
        (truncated_array, MissingError, "not a readable label map"),
    ],
)
def test_what_is_no_label_map_is_named(tmp_path, write, error, said):
    write(tmp_path / "a.png")
    maps = maps_of(tmp_path)
    with pytest.raises(error, match=f"{maps.names[0]}.*{said}"):
        maps.load(maps.names[0], (4, 4))


def test_label_maps_belong_to_images_by_name(tmp_path):
    data, labels = tmp_path / "data", tmp_path / "labels"
    for folder in (data / "x", labels / "x"):
        folder.mkdir(parents=True)
    for name in ("x/b.jpg", "a.png", "a.o.png"):
        Image.new("RGB", (8, 8)).save(data / name)
    for name in ("x/b.npy", "a.npy", "a.o.npy"):
        np.save(labels / name, np.zeros((8, 8), np.uint8))
    images = Images(str(data), 8, 3)
    assert maps_of(labels).of(images) == [name.rsplit(".", 1)[0] + ".npy" for name in images.names]
    (labels / "a.npy").rename(labels / "c.npy")
    with pytest.raises(UsageError, match=r"without a partner of its name: a\.png"):
        maps_of(labels).of(images)
    np.save(labels / "a.npy", np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"without a partner of its name: c\.npy"):
        maps_of(labels).of(images)
    Image.new("L", (8, 8)).save(labels / "c.png")
    with pytest.raises(UsageError, match=r"c\.npy and c\.png are of one name"):
        maps_of(labels)


def test_label_maps_of_an_array_of_images_are_in_their_order(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "labels").mkdir()
    for name in ("0", "1"):
        np.save(tmp_path / "labels" / f"{name}.npy", np.zeros((8, 8), np.uint8))
    images = Images(str(tmp_path / "x.npz"), 8, 3)
    assert maps_of(tmp_path / "labels").of(images) == ["0.npy", "1.npy"]
    (tmp_path / "labels" / "1.npy").unlink()
    with pytest.raises(UsageError, match=r"2 images and .* 1 label maps"):
        maps_of(tmp_path / "labels").of(images)


# -------------------------------------------------------------------------------------------------------------------- segmenters


@pytest.fixture(scope="module")
def lraspp():
    from torchvision.models import segmentation

    torch.manual_seed(0)
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_s_networks_are_told_from_their_keys(name):
    from torchvision.models import segmentation

    with torch.device("meta"):
        net = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4)
    assert network_of(net.state_dict()) == name
    assert network_of({"backbone." + key: tensor for key, tensor in net.state_dict().items()}) == ""


def test_a_torchvision_file_segments_as_torchvision_does(tmp_path, lraspp):
    torch.save({"model": lraspp.state_dict(), "epoch": 3}, tmp_path / "seg.pth")
    found = open_segmenter(str(tmp_path / "seg.pth"), 32, None, CPU)
    assert found.classes == 5
    assert found.name.endswith("(lraspp_mobilenet_v3_large)")
    assert len(found.sha256) == 64
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = lraspp(((images + 1) / 2 - mean[:, None, None]) / std[:, None, None])["out"]
    assert found(images).equal(wanted.argmax(1))
    assert open_segmenter(str(tmp_path / "seg.pth"), 32, 3, CPU)(images).equal(wanted[:, :3].argmax(1))
    with pytest.raises(UsageError, match=r"--segmenter-classes 6: .* has 5"):
        open_segmenter(str(tmp_path / "seg.pth"), 32, 6, CPU)


def test_an_auxiliary_classifier_in_the_file_is_taken_too(tmp_path):
    from torchvision.models import segmentation

    net = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2, aux_loss=True).half()
    torch.save(net.state_dict(), tmp_path / "seg.pth")
    found = open_segmenter(str(tmp_path / "seg.pth"), 16, None, CPU)
    assert found(torch.zeros(1, 3, 16, 16)).shape == (1, 16, 16)
    assert "(deeplabv3_mobilenet_v3_large)" in found.name


@pytest.mark.parametrize(("key", "tensor"), [("backbone.0.0.weight", None), ("classifier.low_classifier.weight", torch.tensor(1.0))])
def test_a_state_dict_is_loaded_strictly(tmp_path, lraspp, key, tensor):
    state = {**lraspp.state_dict(), key: tensor}
    torch.save({k: t for k, t in state.items() if t is not None}, tmp_path / "seg.pth")
    with pytest.raises(CheckpointError, match=r"seg\.pth: not a whole lraspp_mobilenet_v3_large of [15] classes: .*" + re.escape(key)):
        open_segmenter(str(tmp_path / "seg.pth"), 32, None, CPU)


def test_a_torchscript_archive_is_refused_with_the_remedy(tmp_path):
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 2, 1)), str(tmp_path / "seg.pt"))
    with pytest.raises(CheckpointError, match="TorchScript archive") as caught:
        open_segmenter(str(tmp_path / "seg.pt"), 16, None, CPU)
    assert caught.value.exit_code == 3
    assert "state_dict" in caught.value.hint


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("seg.py:number", UsageError, "returned int"),
        ("seg.py:nothing", UsageError, "no function 'nothing'"),
        ("seg.py:fails", GanCompressError, r"KeyError: 'weights' .*seg\.py:\d+"),
        ("seg.py:broken", UsageError, r"it returned dict, expected logits"),
        ("seg.py:odd", CheckpointError, "logits are not finite"),
        ("seg.py", UsageError, "which function"),
        ("other.py:bright", MissingError, "no such file"),
        ("none.pth", MissingError, "no such file"),
        ("other.pth", CheckpointError, "not a state dict of torchvision's fcn_resnet50"),
    ],
)
def test_what_is_no_segmenter_is_refused(tmp_path, monkeypatch, spec, error, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seg.py").write_text(SEGMENTER)
    torch.save(nn.Conv2d(3, 2, 1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(error, match=said):
        open_segmenter(spec, 16, None, CPU)


# -------------------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """Ten inputs and targets, label maps that say which pixels of the targets are bright, and two translators."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seg.py").write_text(SEGMENTER)
    rng = np.random.default_rng(0)
    for folder in ("inputs", "targets", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        target = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "inputs" / f"{i}.png")
        Image.fromarray(target).save(tmp_path / "targets" / f"{i}.png")
        labels = (target.mean(2) > 127.5).astype(np.uint8)
        labels[0] = 255
        write_png(tmp_path / "labels" / f"{i}.png", labels)
    for name, seed in (("student", 0), ("teacher", 1)):
        gan = small_gan("resnet", NET, seed)
        save_networks(tmp_path / f"{name}.safetensors", gan.family, gan.arch, {"generator": gan.generator}, {})
    return tmp_path


def call(*words, code=0):
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, done.output + str(done.exception)
    return done


SCORE = ("eval", "student.safetensors", "--data", "inputs", "--segmenter", "seg.py:bright", "--label-maps", "labels", "--device", "cpu")


def test_the_command_scores_student_teacher_and_ground_truth(scene):
    found = json.loads(call(*SCORE, "--against", "teacher.safetensors", "--target", "targets", "--json").stdout)
    assert list(found) == ["protocol", "ground truth", "student", "teacher"]
    assert found["protocol"]["classes"] == 3
    assert found["protocol"]["images"] == 10
    assert found["protocol"]["ignored"] == [255]
    truth = found["ground truth"]
    assert truth["per_pixel_accuracy"] == truth["class_iou_present"] == truth["per_class_accuracy_present"] == 1
    assert truth["class_iou"] == pytest.approx(2 / 3)  # class 2 is nowhere
    assert sum(c["pixels"] for c in truth["of_class"]) == 10 * 15 * 16
    for name, seed in (("student", 0), ("teacher", 1)):
        net, images, hits = small_gan("resnet", NET, seed).generator, Images("inputs", 16, 3), 0
        for i in range(10):
            bright = to_float(to_uint8(net(to_float(images[torch.tensor([i])][0])))).mean(1)[0] > 0
            labels = torch.from_numpy(np.asarray(Image.open(f"labels/{i}.png")).astype(np.int64))
            hits += int((bright == labels)[1:].sum())
        assert found[name]["per_pixel_accuracy"] == pytest.approx(hits / (10 * 15 * 16))


def test_num_images_takes_the_first_and_a_table_is_printed(scene):
    (scene / "labels" / "9.png").write_bytes(b"never read")
    said = call(*SCORE, "--target", "targets", "--num-images", "8", "--segmenter-classes", "2").stdout
    assert "8 of 10 images of inputs" in said
    assert [line for line in said.splitlines() if "per-pixel accuracy" in line and "100.00" in line]
    assert "0 / 0" not in said


def test_pictures_of_both_sides_give_the_ground_truth_too(scene):
    (scene / "both").mkdir()
    for i in range(10):
        halves = [np.asarray(Image.open(scene / side / f"{i}.png")) for side in ("inputs", "targets")]
        Image.fromarray(np.concatenate(halves, 1)).save(scene / "both" / f"{i}.png")
    words = [*SCORE, "--direction", "AtoB", "--json"]
    words[3] = "both"
    apart, both = (json.loads(call(*w).stdout) for w in ([*SCORE, "--target", "targets", "--json"], words))
    assert both["ground truth"] == apart["ground truth"]
    assert both["student"] == apart["student"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((*SCORE[:6],), 4, "--label-maps DIR"),
        ((*SCORE[:4], "--label-maps", "labels"), 2, "are for the FCN score"),
        ((*SCORE[:2], *SCORE[4:]), 4, "translates images, so it needs some"),
        ((*SCORE, "--per-class", "all"), 2, "the FCN score alone"),
        ((*SCORE[:1], "sample:dcgan-mnist", *SCORE[2:]), 2, "does not translate images"),
        ((*SCORE[:7], "targets"), 2, "mode RGB"),
        ((*SCORE[:7], "nowhere"), 4, "--label-maps nowhere: no such directory"),
        ((*SCORE, "--segmenter-classes", "1"), 2, "1 at"),
        ((*SCORE, "--ignore-label", "0", "--ignore-label", "1"), 4, "not one pixel"),
    ],
)
def test_what_cannot_be_scored_is_refused(scene, words, code, said):
    output = call(*words, code=code).output
    assert said in output
    assert "Traceback" not in output


def test_an_unreadable_input_is_named(scene):
    path = scene / "inputs" / "3.png"
    path.write_bytes(path.read_bytes()[:40])
    assert "inputs: 3.png cannot be read" in call(*SCORE, code=4).output


def test_a_picture_of_enormous_size_is_no_label_map(scene):
    path = scene / "labels" / "0.png"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    path.write_bytes(data)
    assert "0.png: not a readable label map" in call(*SCORE, code=4).output


def test_the_recipe_s_page_says_how_to_score():
    assert "fcn-score.md" in (REPO / "docs" / "recipes" / "portable-i2i.md").read_text()
