"""What a request names, opened: teachers, what translators are given, real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gancompress.config import load_recipe, recipe_names
from gancompress.data import Images
from gancompress.errors import MissingError, UsageError
from gancompress.gan import GAN
from gancompress.loading import load_gan
from gancompress.losses import LOSSES
from gancompress.losses.base import DistillationLoss
from gancompress.pairs import ImagePairs, channels_seen, feed_translator, open_pairs, takes_pairs
from gancompress.recorded import Recorded, RecordedTeacher
from gancompress.request import Request, Settings
from gancompress.way_back import Teachers, check_request, open_back, teachers_of


@dataclass
class Opened:
    """The teachers of both directions, None where there is none; hashes as they were before one was given a discriminator that is yet to be trained."""

    names: Teachers
    there: GAN | None
    back: GAN | None = None
    sha256: str | None = None
    back_sha256: str | None = None


# ------------------------------------------------------------------------------------------------------------------------ teachers


def open_teachers(request: Request, settings: Settings) -> Opened:
    """What the teacher, ``--recorded`` and ``--back`` name.

    Raises:
        UsageError: they do not go together, or not with the recipe. MissingError: real images are needed and not named. Else as ``load_gan``.
    """
    names = teachers_of(request.teacher, request.discriminator, request.back, settings.loss, settings.numbers, request.direction)
    check_request(names.back, request.recipe, settings.loss, settings.numbers, request.fit_discriminator)
    there = load_gan(names.there, discriminator=names.discriminator, options=request.reader_options) if names.there else None
    if request.recorded is not None:
        there = _recorded_teacher(str(request.recorded), names, request.reader_options)
    _check_teacher(there, request, settings.loss)
    if isinstance(there, RecordedTeacher):
        settings.notes.append(there.told)
    back = open_back(names, there, request.reader_options) if there and names.back else None
    return Opened(names, there, back, there.sha256() if there else None, back.sha256() if back else None)


def _recorded_teacher(folder: str, names: Teachers, reader_options: dict[str, Any] | None) -> RecordedTeacher:
    """The recording that stands in for a teacher.

    Raises:
        MissingError: as ``Recorded``. UsageError: something is asked for that only the network itself could give.
    """
    if names.there is not None:
        raise UsageError(f"two teachers: {names.there} and --recorded {folder}")
    if names.discriminator is not None or reader_options:
        raise UsageError("--recorded: a recording is no checkpoint; --discriminator and reader options are for one")
    return RecordedTeacher(Recorded(folder))


def _check_teacher(source: GAN | None, request: Request, loss: type[DistillationLoss]) -> None:
    recipe, data = request.recipe, request.data
    if request.recorded is not None and source and not source.arch.nz and ("real" in loss.needs or data or request.target or request.direction):
        hint = f"recipe mse takes it as it is; {recipe} with targets: gancompress distill TEACHER --data A --target B"
        raise UsageError(f"--recorded {request.recorded}: a translator's recording holds all that it was given and no targets", hint)
    if source and source.arch.nz and "translator" in loss.needs:
        raise UsageError(f"recipe {recipe!r} is for image translators, and {source.source} takes latents", "gancompress recipes lists the others")
    if "real" in loss.needs and data is None:
        raise MissingError(f"recipe {recipe!r} needs real images", "--data FOLDER (or a zip of images, an .npz, MNIST idx files)")


def add_discriminator(source: GAN, request: Request, loss: type[DistillationLoss]) -> float:
    """kimg for which a discriminator is to be trained for a teacher that has none, which is given an untrained one of its family; 0: no need.

    Raises:
        MissingError: the recipe needs one, and there is none. UsageError: none can be made.
    """
    recipe, kimg = request.recipe, request.fit_discriminator
    wanted = "teacher_discriminator" in loss.needs | loss.uses
    if kimg is not None and (source.discriminator is not None or not wanted):
        why = f"{source.source} has a discriminator already" if wanted else f"recipe {recipe!r} takes no discriminator of the teacher"
        raise UsageError(f"--fit-discriminator {kimg:g}: {why}", "leave it out")
    if source.discriminator is not None or not wanted or (kimg is None and "teacher_discriminator" in loss.uses):
        return 0.0
    others = [name for name in recipe_names() if "teacher_discriminator" not in LOSSES[load_recipe(name).loss].needs]
    if isinstance(source, RecordedTeacher):
        raise MissingError(f"recipe {recipe!r} needs the teacher's discriminator, and a recording has none", f"recipes without: {', '.join(others)}")
    if kimg is None:
        raise MissingError(
            f"recipe {recipe!r} needs the teacher's discriminator, and {source.source} has none",
            f"--discriminator FILE; or --fit-discriminator KIMG trains one first; or one of the recipes that work without: {', '.join(others)}",
        )
    if not source.family.has_discriminator:
        raise UsageError(f"--fit-discriminator: no discriminator of family {source.family.name} can be made", f"recipes without: {', '.join(others)}")
    if request.data is None:
        raise MissingError("--fit-discriminator needs real images", "--data FOLDER (or a zip of images, an .npz, MNIST idx files)")
    source.discriminator = source.family.discriminator(source.arch)
    source.freeze()
    return kimg


# ---------------------------------------------------------------------------------------------------------------------------- data


def shows_pairs(request: Request, settings: Settings, teacher: GAN | None) -> bool:
    """Whether the data are a translator's inputs and targets; fresh discriminators are then made for what they are to see."""
    if not takes_pairs(settings.loss, settings.numbers, teacher, request.data, request.target, request.direction):
        return False
    if seen := channels_seen(settings.numbers, teacher):
        what = "inputs beside outputs, as in pix2pix" if settings.numbers.data.paired else "outputs alone"
        settings.follow("student.arch.d_nc", seen, f"discriminators see {what} (student.arch.d_nc={seen})")
    return True


def open_inputs(request: Request, settings: Settings, opened: Opened, arch: Any, with_pairs: bool) -> Images | ImagePairs | None:
    """What translators are given, with targets where they are shown those; None for networks that take latents, and for a recording."""
    teacher = opened.there
    if with_pairs:
        pairs, notes = open_pairs(str(request.data), request.target, arch, settings.numbers, request.direction, teacher, opened.back)
        settings.notes += notes
        return pairs
    return feed_translator(teacher, request.data, request.direction) if teacher and not teacher.arch.nz and request.recorded is None else None


def open_images(request: Request, settings: Settings, inputs: Images | ImagePairs | None, arch: Any) -> Images | ImagePairs | None:
    """The real images, of pairs with the inputs they belong to; None where the recipe sees none. What becomes of ``--data`` is told."""
    loss, data, notes = settings.loss, request.data, settings.notes
    if inputs and not isinstance(inputs, ImagePairs):
        notes.append(f"{len(inputs):,} images of {data} are what teacher and student translate")
        if request.target:
            notes.append(f"recipe {request.recipe} takes no targets: --target {request.target} is not used")
    images: Images | ImagePairs | None = inputs if isinstance(inputs, ImagePairs) else None
    if data and not inputs:
        if "real" in loss.needs | loss.uses:
            images = _real_images(data, arch)
        else:
            notes.append(f"recipe {request.recipe} takes no real images: --data {data} is not used")
    if "real" in loss.uses and images is None:
        notes.append(loss.without_real)
    return images


def _real_images(data: str, arch: Any) -> Images:
    """The data set at the student's resolution and channels; labels that are there are of its classes."""
    images = Images(data, arch.resolution, arch.nc)
    if arch.classes and images.labels is not None and not 0 <= int(images.labels.min()) <= int(images.labels.max()) < arch.classes:
        low, high = int(images.labels.min()), int(images.labels.max())
        raise UsageError(f"{data}: labels {low} ... {high}, while this network has classes 0 ... {arch.classes - 1}")
    return images


def grey_or_rgb(data: str) -> int:
    """Channels of the first image of a data set: without a teacher the data decides."""
    images = Images(data, 8, 3)
    pixels = images[torch.arange(min(16, len(images)))][0]
    return 1 if bool((pixels == pixels[:, :1]).all()) else 3
