"""Images for a translator: what it is given, and what it is to make of it."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from gancompress.config import Data, Recipe
from gancompress.data import LATENTS, MIRROR, REAL, Images, positions, rng, to_float
from gancompress.errors import MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN
from gancompress.losses.base import DistillationLoss

Direction = Literal["AtoB", "BtoA"]
#: how an .npz calls its two sides
ARRAYS = (("source", "target"), ("A", "B"))


class ImagePairs:
    """Inputs and targets of a translator, at its resolution and channels.

    Side A is ``data`` and side B ``target``, each whatever ``Images`` takes; or ``data`` holds both: images with A on the left and B on the
    right (junyanz' aligned data), or an .npz with the arrays source and target, or A and B. ``settings.paired``: an image and the one at the
    same place on the other side are a pair, and are cropped and flipped alike; else each side is a set of its own. ``beside``: whether
    discriminators see inputs beside outputs.

    Raises:
        UsageError: pairs of different counts, names or sizes, or one source where two are needed. MissingError: as ``Images``.
    """

    def __init__(self, data: str, target: str | None, arch: Any, settings: Data, *, direction: str | None = None, beside: bool = False) -> None:
        self.settings, self.resolution, self.paired, self.beside = settings, arch.resolution, settings.paired, beside
        #: rows of a picture, where ``backwards`` found cause for one
        self.doubt: list[tuple[str, Tensor]] = []
        loaded = round(settings.jitter * arch.resolution)
        self.first, self.second = sides(data, target, loaded, (arch.nc_in, arch.nc), direction, settings.paired)
        if settings.paired:
            _check_pairs(self.first, self.second)
        self.source = data if target is None else f"{self.first.source} and {self.second.source}"
        self.fingerprint = hashlib.sha256(f"{self.first.fingerprint} {self.second.fingerprint} {direction or 'AtoB'}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.first)

    @property
    def unreadable(self) -> list[str]:
        return self.first.unreadable + self.second.unreadable

    def inputs(self, n: int, rng: torch.Generator) -> Tensor:
        """n inputs in [-1, 1], drawn with replacement, their central part where images are loaded larger (jitter)."""
        return self._central(self.first.inputs(n, rng))

    def targets(self, n: int, rng: torch.Generator) -> Tensor:
        """The same of the other side: what the way back is fed with."""
        return self._central(self.second.inputs(n, rng))

    def _central(self, images: Tensor) -> Tensor:
        edge = (self.first.resolution - self.resolution) // 2
        return images[:, :, edge : edge + self.resolution, edge : edge + self.resolution]

    def take(self, start: int, count: int, *seed: int) -> tuple[Tensor, Tensor]:
        """Inputs (count, nc_in, R, R) and targets (count, nc, R, R) in [-1, 1], at places start ... of an endless sequence of shuffled epochs.

        Without pairs each side has epochs of its own. The crop and the flip of a place are functions of the place and ``seed`` alone.
        """
        at = positions(start, count, len(self.first), *seed, LATENTS).tolist()
        other = at if self.paired else positions(start, count, len(self.second), *seed, REAL).tolist()
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for place, i, j in zip(range(start, start + count), at, other, strict=True):
            draws = rng(*seed, MIRROR, place)
            x, y = self._both(i) if self.paired else (self.first[torch.tensor([i])][0][0], self.second[torch.tensor([j])][0][0])
            varied = self._variation(draws)
            found[0].append(varied(x))
            found[1].append((varied if self.paired else self._variation(draws))(y))
        return to_float(torch.stack(found[0])), to_float(torch.stack(found[1]))

    def _both(self, index: int) -> tuple[Tensor, Tensor]:
        """A pair of which both can be read: that of ``index``, or the next one."""
        for i in range(index, index + len(self)):
            x, y = self.first.load(i % len(self)), self.second.load(i % len(self))
            if x is not None and y is not None:
                return x, y
        raise MissingError(f"{self.source}: not one of its {len(self)} pairs can be read (first: {self.unreadable[0]})")

    def _variation(self, draws: torch.Generator) -> Callable[[Tensor], Tensor]:
        """One crop and flip, for as many images (C, H, W) as are to have the same."""
        top, left = torch.randint(self.first.resolution - self.resolution + 1, (2,), generator=draws).tolist()
        flip = self.settings.mirror and bool(torch.rand((), generator=draws) < 0.5)

        def vary(image: Tensor) -> Tensor:
            image = image[:, top : top + self.resolution, left : left + self.resolution]
            return image.flip(2) if flip else image

        return vary


def sides(data: str, target: str | None, resolution: int, channels: tuple[int, int], direction: str | None, paired: bool = True) -> tuple[Images, Images]:
    """(inputs, targets) of such sources, at one resolution and so many channels each.

    Raises:
        UsageError: no such direction, or no two sides. MissingError: as ``Images``.
    """
    if direction not in (None, "AtoB", "BtoA"):
        raise UsageError(f"--direction {direction}: expected AtoB or BtoA")
    swap = direction == "BtoA"
    nc_a, nc_b = reversed(channels) if swap else channels
    if target is not None:
        found = Images(data, resolution, nc_a), Images(target, resolution, nc_b)
    elif arrays := _arrays(data):
        found = Images(data, resolution, nc_a, array_name=arrays[0]), Images(data, resolution, nc_b, array_name=arrays[1])
    elif not paired:
        raise UsageError(f"{data}: one set of images, and data.paired=false needs two", "--data A --target B")
    else:
        found = Images(data, resolution, nc_a, half="left"), Images(data, resolution, nc_b, half="right")
        _check_halves(found[0])
    return (found[1], found[0]) if swap else found


def _arrays(data: str) -> tuple[str, str] | None:
    """The names of the two sides in an .npz; None where ``data`` is none, or one that ``Images`` refuses.

    Raises:
        UsageError: it holds other arrays.
    """
    path = Path(data).expanduser()
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        return None
    for pair in ARRAYS:
        if set(pair) <= set(names):
            return pair
    raise UsageError(f"{data}: it holds {', '.join(names)}; pairs in an .npz are called source and target, or A and B", "--target names another one")


def holds_both(data: str) -> bool:
    """Whether this is an .npz with the two sides of pairs in it; other data do not tell."""
    try:
        return _arrays(data) is not None
    except UsageError:
        return False


@torch.no_grad()
def backwards(teacher: GAN, pairs: ImagePairs) -> list[str]:
    """A sentence where the teacher seems to translate the other way: it brings targets nearer to their inputs than inputs to their targets.

    ``pairs.doubt`` are then the images of a picture of it.
    """
    if teacher.arch.nc != teacher.arch.nc_in:
        return []
    x, y = pairs.take(0, min(4, len(pairs)), 0)
    of_x, of_y = teacher.generator(x), teacher.generator(y)
    there, back = float((of_x - y).abs().mean()), float((of_y - x).abs().mean())
    if back >= 0.7 * there:
        return []
    said = f"does the teacher translate the other way? On {len(x)} pairs its images are {there:.2f} from the targets and {back:.2f} where the two are exchanged"
    pairs.doubt = [("input", x), ("teacher", of_x), ("target", y), ("target", y), ("teacher", of_y), ("input", x)]
    return [said + " (--direction BtoA, or AtoB); samples/direction.png of the run shows both"]


def _check_halves(images: Images) -> None:
    """Whether each picture can be two side by side; Images themselves see halves only."""
    for i, name in enumerate(images.names):
        size = images.size(i)
        if size and size[0] % 2:
            raise UsageError(
                f"{images.source}: {name} is {size[0]} x {size[1]}, and two images side by side have an even width",
                "--target FOLDER where the other side lies apart",
            )


class Named(Protocol):
    """Files of ``source``, or entries of an array, whose names end with ``]``."""

    source: str
    names: list[str]


def stem(name: str) -> str:
    """What an image and what belongs to it have in common: the name without its suffix."""
    return str(Path(name).with_suffix(""))


def check_names(first: Named, second: Named, hint: str) -> None:
    """Whether each has a partner of its name on the other side, where both are files.

    Raises:
        UsageError: the first that has none.
    """
    if any(name.endswith("]") for side in (first, second) for name in side.names[:1]):
        return
    for mine, theirs in ((first, second), (second, first)):
        others = set(map(stem, theirs.names))
        if alone := [name for name in mine.names if stem(name) not in others]:
            raise UsageError(
                f"{mine.source} has {len(mine.names):,} images and {theirs.source} {len(theirs.names):,}; the first without a partner of its name: {alone[0]}",
                hint,
            )


def _cut(images: Images) -> list[str]:
    """A sentence where halves of pictures are no squares; they may be one image that nobody meant to be two."""
    size = images.size(0) if images.half else None
    if size is None or size[0] == 2 * size[1]:
        return []
    half = f"{size[0] // 2} x {size[1]}"
    return [f"each picture is two side by side ({images.names[0]}: {half} each), cut to their central squares; --target FOLDER where the other side lies apart"]


def _check_pairs(first: Images, second: Images) -> None:
    """Whether the two sides have equal counts, names (where both are files) and sizes; the first difference is named."""
    check_names(first, second, "data.paired=false where they are no pairs")
    if len(first) != len(second):
        raise UsageError(f"{first.source} has {len(first):,} images and {second.source} {len(second):,}", "data.paired=false where they are no pairs")
    for i, name in enumerate(first.names):
        a, b = first.size(i), second.size(i)
        if a and b and a != b:
            raise UsageError(f"the pair {name} is {a[0]} x {a[1]} in {first.source} and {b[0]} x {b[1]} in {second.source}", "both sides of one size")


# --------------------------------------------------------------------------------------------------------------- what a plan asks


def takes_pairs(
    loss: type[DistillationLoss], numbers: Recipe, source: GAN | None, data: str | None, target: str | None, direction: str | None
) -> bool:  # fmt: skip
    """Whether the data are inputs and targets of a translator.

    Raises:
        UsageError: something is asked for that only they have.
    """
    family = FAMILIES.get(numbers.student.family or "")
    translates = not source.arch.nz if source else family is not None and "nc_in" in {f.name for f in dataclasses.fields(family.Arch)}
    takes = data is not None and translates and ("real" in loss.needs or ("real" in loss.uses and (bool(target or direction) or holds_both(data))))
    if not translates and (target or direction):
        raise UsageError("--target and --direction are for image translators")
    if not takes and numbers.data.jitter != 1:
        raise UsageError(f"data.jitter={numbers.data.jitter:g} is for recipes that show a translator's targets")
    if takes and numbers.schedule.teacher_pool:
        raise UsageError("schedule.teacher_pool: a translator's inputs come with their targets, so they are translated as they come", "schedule.teacher_pool=0")
    return takes


def channels_seen(numbers: Recipe, source: GAN | None) -> int:
    """Channels that fresh discriminators take where nothing says otherwise (0: something does): of inputs and outputs, where they are pairs, else of
    outputs. The teacher's arch follows."""
    by_hand = numbers.student.arch
    if "d_nc" in by_hand or (source and source.discriminator is not None):
        return 0
    nc, nc_in = (source.arch.nc, source.arch.nc_in) if source else (int(by_hand.get(key, 3)) for key in ("nc", "nc_in"))
    seen = int(nc + nc_in if numbers.data.paired else nc)
    if source:
        source.arch = dataclasses.replace(source.arch, d_nc=seen)
    return seen


def open_pairs(
    data: str, target: str | None, arch: Any, numbers: Recipe, direction: str | None, teacher: GAN | None, back: GAN | None = None
) -> tuple[ImagePairs, list[str]]:
    """(inputs and targets, which the teachers are given too; what is worth telling). ``back``: the other direction's teacher.

    Raises:
        UsageError: the discriminator could not be shown them.
    """
    beside, paired = arch.d_nc > arch.nc, numbers.data.paired
    if beside and not paired:
        raise UsageError(
            f"d_nc={arch.d_nc}: that discriminator judges pairs, and data.paired=false has none", f"student.arch.d_nc={arch.nc} makes one of outputs"
        )
    if beside and numbers.weights.get("augment"):
        raise UsageError("weights.augment: outputs alone would be moved, not the inputs beside which the discriminator sees them", "weights.augment=[]")
    pairs = ImagePairs(data, target, arch, numbers.data, direction=direction, beside=beside)
    if teacher:
        teacher.inputs = pairs.inputs
    if back:
        back.inputs = pairs.targets
    if not paired:
        trained = "both directions are trained, with the cycle" if back else "this one direction is trained, without the cycle"
        return pairs, [f"{len(pairs.first):,} inputs and {len(pairs.second):,} targets, unpaired: {trained}"]
    notes = [f"{len(pairs):,} pairs of {pairs.source}", *_cut(pairs.first)]
    return pairs, notes + (backwards(teacher, pairs) if teacher else [])


def feed_translator(gan: GAN, data: str | None, direction: str | None = None) -> Images:
    """The images that an image translator is to be fed with, which it is given. ``direction``: of data that holds inputs and targets.

    Raises:
        MissingError: none are named.
    """
    if data is None:
        raise MissingError(f"{gan.source} translates images, so it needs some", "--data FOLDER (or a zip of images, an .npz)")
    arch = gan.arch
    if direction or holds_both(data):
        images = sides(data, None, arch.resolution, (arch.nc_in, arch.nc), direction)[0]
    else:
        images = Images(data, arch.resolution, arch.nc_in)
    gan.inputs = images.inputs
    return images
