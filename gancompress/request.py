"""What a user asks of a distillation, and the recipe's numbers that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from gancompress.config import Recipe, load_recipe
from gancompress.errors import UsageError
from gancompress.losses import LOSSES
from gancompress.losses.base import DistillationLoss
from gancompress.students import exact_widths

#: what only a teacher can give
OF_TEACHER = {"teacher_images", "teacher_samples", "teacher_discriminator"}


@dataclass(frozen=True)
class Request:
    """The arguments of ``gancompress distill``; ``overrides``: ("schedule.kimg", 50) and so on."""

    teacher: str | None = None
    recipe: str = "mse"
    _: KW_ONLY
    overrides: Iterable[tuple[str, Any]] = ()
    data: str | None = None
    out: str | Path | None = None
    device: str = "auto"
    discriminator: str | None = None
    reader_options: dict[str, Any] | None = None
    target_params: str | None = None
    target_macs: str | None = None
    target_size: str | None = None
    steps: int | None = None
    fit_discriminator: float | None = None
    target: str | None = None
    direction: str | None = None
    recorded: str | Path | None = None
    back: str | None = None
    compiled: bool = False

    @property
    def targets(self) -> tuple[str | None, str | None, str | None]:
        """Sizes that a width is to be chosen for."""
        return self.target_params, self.target_macs, self.target_size


class Settings:
    """The recipe with all that was asked for, then with what follows from teacher and data; ``notes``: what is worth telling, in order.

    Raises:
        UsageError: as ``load_recipe``, no step at all, or widths that are given twice.
    """

    def __init__(self, request: Request) -> None:
        self._recipe, self._overrides = request.recipe, list(request.overrides)
        self.notes: list[str] = []
        self.numbers: Recipe = load_recipe(self._recipe, self._overrides)
        self.loss: type[DistillationLoss] = LOSSES[self.numbers.loss]
        if request.steps is not None:
            if request.steps < 1:
                raise UsageError(f"--steps {request.steps}: at least 1")
            self._add("schedule.kimg", request.steps * self.numbers.schedule.batch_size / 1000)
        if exact_widths(self.numbers):
            if any(request.targets) or any(key == "student.ch_mul" and value != 1 for key, value in self._overrides):
                raise UsageError("widths by hand (student.arch) and a share of the teacher's (--ch-mul, --target-...): give one of them")
            self._add("student.ch_mul", 1.0)

    def follow(self, key: str, value: object, note: str) -> None:
        """Set a key of the recipe as teacher or data ask for it, and tell of it."""
        self._add(key, value)
        self.notes.append(note)

    def _add(self, key: str, value: object) -> None:
        self._overrides.append((key, value))
        self.numbers = load_recipe(self._recipe, self._overrides)


def check_without_teacher(request: Request, loss: type[DistillationLoss]) -> None:
    """Raises UsageError: no teacher is named, and something is asked for that only one could give."""
    if request.teacher is not None or request.recorded is not None:
        return
    if loss.needs & OF_TEACHER:
        raise UsageError(f"recipe {request.recipe!r} needs a teacher", "gancompress distill TEACHER ..., or --recipe scratch to train without one")
    if request.fit_discriminator is not None:
        raise UsageError(f"--fit-discriminator {request.fit_discriminator:g}: there is no teacher to train one for", "leave it out")
