"""The other direction of a CycleGAN: where its teacher is found, what it must be, and what its student is like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gancompress.config import Recipe
from gancompress.errors import UsageError
from gancompress.gan import GAN
from gancompress.hub import SUFFIXES
from gancompress.layers import natural_key
from gancompress.loading import load_gan
from gancompress.losses.base import DistillationLoss
from gancompress.losses.cycle import CycleWeights
from gancompress.runs import STUDENT_BACK
from gancompress.students import INITS


@dataclass(frozen=True)
class Teachers:
    """Sources of both teachers and of their discriminators, None where there is none."""

    there: str | None
    discriminator: str | None
    back: str | None = None
    back_discriminator: str | None = None


@dataclass
class WayBack:
    """Teacher and student of the other direction."""

    teacher: GAN
    student: GAN


def teachers_of(
    teacher: str | None, discriminator: str | None, back: str | None, loss: type[DistillationLoss], numbers: Recipe, direction: str | None
) -> Teachers:  # fmt: skip
    """The sources as they are named; of junyanz' folder of a CycleGAN all four files, where both directions are to be trained.

    G_A translates A to B and D_A judges what it makes; ``direction`` BtoA makes G_B the way there.
    """
    named = Teachers(teacher, discriminator, back)
    folder = Path(teacher).expanduser() if teacher else None
    if back or folder is None or not folder.is_dir() or numbers.data.paired or not issubclass(loss.Weights, CycleWeights):
        return named
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir(), key=lambda p: natural_key(p.name)):  # 5_net_G_A, iter_900_net_G_A, latest_net_G_A
        if path.suffix in SUFFIXES and (match := re.search(r"_net_([GD]_[AB])$", path.stem)):
            files[match[1]] = str(path)
    if not {"G_A", "G_B"} <= files.keys():
        return named
    there, other = ("B", "A") if direction == "BtoA" else ("A", "B")
    return Teachers(files[f"G_{there}"], discriminator or files.get(f"D_{there}"), files[f"G_{other}"], files.get(f"D_{other}"))


def check_request(back: str | None, recipe: str, loss: type[DistillationLoss], numbers: Recipe, fit: float | None) -> None:
    """Whether these settings go together with a second teacher, or with none.

    Raises:
        UsageError: they do not.
    """
    if not back:
        if numbers.weights.get("identity"):
            raise UsageError(f"weights.identity={numbers.weights['identity']:g}: it is a term of two directions", "--back TEACHER, or weights.identity=0")
        return
    if not issubclass(loss.Weights, CycleWeights):
        raise UsageError(f"--back {back}: recipe {recipe!r} trains one direction", "--recipe portable-i2i data.paired=false --data A --target B")
    if numbers.data.paired:
        raise UsageError(f"--back {back}: cycles are for images without pairs", "data.paired=false --data A --target B; or leave --back out")
    if fit is not None:
        hint = "leave it out: the students' discriminators then stand in; or `convert G.pth BOTH.safetensors --discriminator D.pth` joins what you have"
        raise UsageError(f"--fit-discriminator {fit:g}: it is for one teacher, and --back {back} is a second", hint)
    if numbers.schedule.standing_stats:
        raise UsageError(f"schedule.standing_stats={numbers.schedule.standing_stats}: not with --back {back}", "schedule.standing_stats=0")


def open_back(sources: Teachers, teacher: GAN, options: Mapping[str, Any] | None) -> GAN:
    """The teacher of the other direction. ``options``: those of the first, but for ``key``, which names a place in its file.

    Raises:
        UsageError: it does not translate what the first makes into what that takes, or is the first itself. Else as ``load_gan``.
    """
    name = str(sources.back)
    found = load_gan(name, discriminator=sources.back_discriminator, options={k: v for k, v in (options or {}).items() if k != "key"})
    if found.arch.nz:
        raise UsageError(f"--back {name}: it takes latents, and the way back is an image translator's")
    here, other = ((gan.arch.nc_in, gan.arch.nc) for gan in (teacher, found))
    if here != other[::-1]:
        raise UsageError(
            f"--back {name}: it makes images of {other[1]} channels of such of {other[0]}, and {teacher.source} makes {here[1]} of {here[0]}",
            "the way back takes what the way there makes",
        )
    if teacher.arch.resolution != found.arch.resolution:
        raise UsageError(
            f"--back {name}: it is for images of {found.arch.resolution} x {found.arch.resolution}, {teacher.source} for {teacher.arch.resolution} x "
            f"{teacher.arch.resolution}", f"--reader resolution={teacher.arch.resolution} is taken by both",
        )  # fmt: skip
    if teacher.generator.state_dict().keys() == found.generator.state_dict().keys() and _same(teacher, found):
        raise UsageError(f"--back {name}: this is the teacher itself", "name the generator of the other direction")
    return found


def _same(a: GAN, b: GAN) -> bool:
    return GAN(a.family, a.arch, a.generator).sha256() == GAN(b.family, b.arch, b.generator).sha256()


def numbers_back(numbers: Recipe, teacher: GAN) -> Recipe:
    """The recipe as the student of the other direction is made by it: its channels are its teacher's, its discriminator sees outputs alone.

    Raises:
        UsageError: ``student.init`` names a student that has no other direction beside it.
    """
    arch = teacher.arch
    own = {**numbers.student.arch, "nc": arch.nc, "nc_in": arch.nc_in, "d_nc": arch.nc}
    return numbers.model_copy(update={"student": numbers.student.model_copy(update={"arch": own, "init": _init_back(numbers.student.init)})})


def _init_back(init: str) -> str:
    path = Path(init).expanduser()
    if init in INITS or not path.exists():  # what is nowhere is refused with the first student
        return init
    beside = (path if path.is_dir() else path.parent) / STUDENT_BACK
    if not beside.is_file():
        raise UsageError(f"student.init={init}: with --back a student of each direction is needed, and there is no {beside}", "student.init=slice")
    return str(beside)
