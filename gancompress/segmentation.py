"""The FCN score of translators: how well a segmentation network finds in their images the classes of label maps (Isola et al. 2017,
arXiv:1611.07004, §4.2; the measures are those of Long et al. 2015, arXiv:1411.4038, §5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gancompress.contents import contents, strip
from gancompress.data import Images, draw, to_float, to_uint8
from gancompress.errors import CheckpointError, MissingError, UsageError
from gancompress.extractors import check_torchvision
from gancompress.gan import GAN, StateDict
from gancompress.pairs import check_names, stem
from gancompress.unpickle import open_checkpoint
from gancompress.user_module import make_module, running

#: networks of torchvision.models.segmentation
NETWORKS = ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
#: what the network runs inside
Guard = Callable[[], AbstractContextManager[None]]
#: images that are segmented at once
BATCH = 8
#: pixels of no class, in Cityscapes' and many other label maps
VOID = 255


# -------------------------------------------------------------------------------------------------------------------- arithmetic


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: pixels of class i, as truth has it, that were predicted as class j. Both are int64 of one shape; pixels whose
    truth is negative are left out."""
    counted = truth >= 0
    return torch.bincount(truth[counted] * classes + predicted[counted], minlength=classes**2).reshape(classes, classes)


def scores(matrix: Tensor) -> dict[str, Any]:
    """The measures of a confusion matrix, shares in [0, 1].

    With t_i pixels of class i, p_i predicted as it and n_ii both: per-pixel accuracy sum n_ii / sum t_i, per-class accuracy the mean of
    n_ii / t_i, class IoU the mean of n_ii / (t_i + p_i - n_ii). pix2pix's code adds 1e-12 to these denominators, so that a class without pixels
    counts as 0 in its means; so it does here. ``per_class_accuracy_present`` and ``class_iou_present`` leave out what is 0 / 0, as Long et al. do.
    ``of_class``: pixels, accuracy and IoU of each, None for 0 / 0.

    Raises:
        MissingError: no pixel is of any class.
    """
    hits, truth = matrix.diag().double(), matrix.sum(1).double()
    union = truth + matrix.sum(0) - hits
    if not truth.sum():
        raise MissingError("not one pixel of the label maps is of a class that is scored")
    accuracy, iou = hits / truth, hits / union
    return {
        "per_pixel_accuracy": float(hits.sum() / truth.sum()),
        "per_class_accuracy": float(accuracy.nan_to_num(0.0).mean()),
        "class_iou": float(iou.nan_to_num(0.0).mean()),
        "per_class_accuracy_present": float(accuracy.nanmean()),
        "class_iou_present": float(iou.nanmean()),
        "of_class": [
            {"pixels": int(t), "accuracy": float(a) if t else None, "iou": float(u) if n else None}
            for t, n, a, u in zip(truth, union, accuracy, iou, strict=True)
        ],
    }


# --------------------------------------------------------------------------------------------------------------------- label maps


class LabelMaps:
    """A folder of label maps: PNG of one channel (of a palette: its indices) or .npy, a whole number for each pixel.

    Raises:
        MissingError: no such folder, or none in it.
    """

    def __init__(self, source: str, classes: int, ignored: frozenset[int]) -> None:
        self.source, self.classes, self.ignored = source, classes, ignored
        self.folder = Path(source).expanduser()
        if not self.folder.is_dir():
            raise MissingError(f"--label-maps {source}: no such directory", "a folder with a label map (.png or .npy) for each image, of its name")
        self.names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.suffix.lower() in (".png", ".npy") and p.is_file())
        if not self.names:
            raise MissingError(f"--label-maps {source}: no .png and no .npy in it")
        self._of = {stem(name): name for name in self.names}
        if len(self._of) < len(self.names):
            twice = next(name for name in self.names if self._of[stem(name)] != name)
            raise UsageError(f"--label-maps {source}: {twice} and {self._of[stem(twice)]} are of one name")

    def of(self, images: Images) -> list[str]:
        """The label map of each image, by name; of those in an array, in the order of the names.

        Raises:
            UsageError: an image without one, one without an image.
        """
        check_names(images, self, "one label map for each image, of the same name but for its suffix")
        if not images.names[0].endswith("]"):
            return [self._of[stem(name)] for name in images.names]
        if len(images) != len(self.names):
            raise UsageError(
                f"{images.source} has {len(images):,} images and {self.source} {len(self.names):,} label maps", "one for each image, in their order"
            )
        return self.names

    def load(self, name: str, size: tuple[int, int]) -> Tensor:
        """Classes (side, side) int64 of the central square that ``Images`` takes of a picture of ``size`` (width, height); -1: of none.

        Raises:
            UsageError: no label map, a value that is no class, or not of the picture's shape. MissingError: unreadable.
        """
        path = self.folder / name
        values = torch.from_numpy(_values(path).astype(np.int64))
        void = torch.isin(values, torch.tensor(sorted(self.ignored), dtype=torch.int64))
        wrong = values[~void & ((values < 0) | (values >= self.classes))]
        if len(wrong):
            hint = "--ignore-label leaves a value out; label maps are of the classes of the segmenter, in its order"
            raise UsageError(f"{path}: {int(wrong[0])} at {len(wrong):,} pixels, and the classes are 0 ... {self.classes - 1}", hint)
        height, width = values.shape
        if abs(width * size[1] - height * size[0]) > 0.02 * height * size[0]:
            said = f"{path}: {width} x {height}, of another shape than its image of {size[0]} x {size[1]}"
            raise UsageError(said, "label maps of any size, cut and stretched as the images were")
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return values.masked_fill(void, -1)[top : top + side, left : left + side]


def _values(path: Path) -> np.ndarray[Any, Any]:
    """Whole numbers (H, W) of a label map.

    Raises:
        UsageError: it is none. MissingError: it cannot be read.
    """
    try:
        if path.suffix.lower() == ".npy":
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            kind = f"an array of shape {found.shape} and type {found.dtype}"
        else:
            with Image.open(path, formats=["PNG"]) as picture:
                found = np.asarray(picture)
                kind = f"a picture of mode {picture.mode}"
    except Exception as error:  # what a damaged file makes of a decoder is beyond listing
        raise MissingError(f"{path}: not a readable label map ({error})") from None
    if found.ndim != 2 or found.dtype.kind not in "iub" or not found.size:
        raise UsageError(f"{path}: {kind}; a label map has one whole number for each pixel", "colours are to be written as the numbers of their classes")
    return found


def nearest(labels: Tensor, height: int, width: int) -> Tensor:
    """Labels (H, W) at another size: each pixel has the label under its centre."""
    rows, columns = ((2 * torch.arange(n) + 1) * m // (2 * n) for n, m in zip((height, width), labels.shape, strict=True))
    return labels[rows][:, columns]


# --------------------------------------------------------------------------------------------------------------------- the network


class Segmenter:
    """Images (N, 3, H, W) in [-1, 1] -> classes (N, h, w): the likeliest of the network's first ``classes``; None: of all.

    Raises:
        UsageError: it returns something else, or has fewer classes.
    """

    def __init__(self, name: str, net: nn.Module, resolution: int, classes: int | None, device: torch.device, guard: Guard) -> None:
        self.name, self.net, self.device, self.guard, self.sha256 = name, net.requires_grad_(False).to(device), device, guard, ""
        found = self._logits(torch.zeros(1, 3, resolution, resolution)).shape[1]
        if classes is not None and classes > found:
            raise UsageError(f"--segmenter-classes {classes}: {name} has {found}")
        self.classes = classes or found

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        with self.guard():
            found = self.net(images.to(self.device))
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(images):
            shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
            raise UsageError(f"--segmenter {self.name}: it returned {type(found).__name__}{shape}, expected logits (N, classes, H, W)")
        if not torch.isfinite(found).all():
            raise CheckpointError(f"--segmenter {self.name}: its logits are not finite")
        return found

    def __call__(self, images: Tensor) -> Tensor:
        """Classes int64, on the CPU."""
        return self._logits(images)[:, : self.classes].argmax(1).cpu()


class _Torchvision(nn.Module):
    """Images in [-1, 1] as torchvision's weights expect them: mean and standard deviation of ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(((images + 1) / 2 - self.mean) / self.std)["out"]
        return found


def network_of(state: StateDict) -> str:
    """The name in torchvision.models.segmentation of the network with such keys, "" of another."""
    heads = {"lraspp": "classifier.low_classifier.weight", "deeplabv3": "classifier.0.convs.0.0.weight", "fcn": "classifier.4.weight"}
    bodies = {"resnet101": "backbone.layer3.22.conv1.weight", "resnet50": "backbone.layer3.5.conv1.weight", "mobilenet_v3_large": "backbone.16.0.weight"}
    head, body = (next((name for name, key in keys.items() if key in state), "") for keys in (heads, bodies))
    name = f"{head}_{body}"
    return name if name in NETWORKS else ""


def _torchvision(path: Path) -> tuple[str, nn.Module]:
    """(architecture, network) of a state dict, wherever it lies in the file.

    Raises:
        CheckpointError: none of torchvision's, or not all of one.
    """
    check_torchvision()
    from torchvision.models import segmentation

    states = [strip(c.state) for c in contents(open_checkpoint(path).content)[0]]
    state, name = next(((s, n) for s in states if (n := network_of(s))), ({}, ""))
    if not name:
        raise CheckpointError(
            f"{path}: not a state dict of torchvision's {', '.join(NETWORKS)}", "--segmenter file.py:factory takes any network that you build yourself"
        )
    weight = state["classifier.low_classifier.weight" if name.startswith("lraspp") else "classifier.4.weight"]
    classes = max(1, len(weight)) if weight.ndim else 1
    more = {"aux_loss": True} if any(key.startswith("aux_classifier.") for key in state) else {}
    net: nn.Module = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes, **more)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: not a whole {name} of {classes} classes: {said}") from None
    return name, _Torchvision(net).eval()


def open_segmenter(spec: str, resolution: int, classes: int | None, device: torch.device) -> Segmenter:
    """``file.py:factory``, which is run and whose network takes images (N, 3, R, R) in [-1, 1], or the path of a torchvision state dict, which is not.

    Raises:
        MissingError, CheckpointError, UsageError: nothing there, not what it should be; GanCompressError: the user's code failed.
    """
    path = Path(spec).expanduser()
    if not path.is_file() and ".py:" in spec:
        return Segmenter(spec, make_module(spec), resolution, classes, device, partial(running, spec))
    if not path.is_file():
        raise MissingError(f"--segmenter {spec}: no such file", "the path of a torchvision state dict, or file.py:factory")
    if path.suffix == ".py":
        raise UsageError(f"--segmenter {spec}: which function of it makes the network?", f"--segmenter {spec}:factory")
    name, net = _torchvision(path)
    found = Segmenter(f"{spec} ({name})", net, resolution, classes, device, nullcontext)
    found.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# --------------------------------------------------------------------------------------------------------------------- the score


def in_order(images: Images, num: int) -> Iterator[Tensor]:
    """The first ``num`` images in their order, as batches in [-1, 1].

    Raises:
        MissingError: one cannot be read.
    """
    for start in range(0, num, BATCH):
        batch = [images.load(i) for i in range(start, min(start + BATCH, num))]
        found = [image for image in batch if image is not None]
        if len(found) < len(batch):
            raise MissingError(f"{images.source}: {images.unreadable[0]} cannot be read", "replace it, or take it away with its label map")
        yield to_float(torch.stack(found))


def fcn_score(translator: GAN | None, images: Images, segmenter: Segmenter, maps: LabelMaps, num: int) -> dict[str, Any]:
    """``scores`` of a translator's images of the first ``num`` of ``images``, rounded to 8 bits; None: of these themselves.

    Raises:
        UsageError, MissingError: as ``LabelMaps`` and ``scores``.
    """
    names, classes = maps.of(images), segmenter.classes
    matrix, place = torch.zeros(classes, classes, dtype=torch.int64), 0
    for batch in in_order(images, min(num, len(images))):
        shown = to_float(to_uint8(draw(translator, batch, None, segmenter.device))) if translator else batch
        for predicted in segmenter(shown.expand(-1, 3, -1, -1)):
            width, height = images.size(place) or (1, 1)
            labels = maps.load(names[place], (width // 2 if images.half else width, height))
            matrix += confusion(nearest(labels, *predicted.shape), predicted, classes)
            place += 1
    return scores(matrix)
