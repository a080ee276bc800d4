"""The interface of every recipe's loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from gancompress.gan import Batch

#: what a loss may need, and how a person calls it
NEEDS = {
    "teacher_images": "a teacher generator",
    "teacher_discriminator": "the teacher's discriminator",
    "real": "real images (--data)",
}


class Weights(BaseModel):
    """A recipe's ``weights:``; each loss declares its own. Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DistillationLoss(nn.Module, ABC):
    """The terms of one paper's equation.

    ``needs`` is read everywhere: by the plan, by refusals, by ``inspect``. ``uses`` adds what it takes where it is there.
    ``critics`` are trained; the teacher never is. The two methods return one entry per term of the equation, already weighted,
    so that their sum is what is minimised and each is logged under its name.
    """

    needs: ClassVar[frozenset[str]]
    uses: ClassVar[frozenset[str]] = frozenset()
    Weights: ClassVar[type[Weights]] = Weights

    def __init__(self) -> None:
        super().__init__()
        self.critics = nn.ModuleDict()
        #: what the plan tells of choices made here (where the critic comes from, say)
        self.notes: list[str] = []

    @abstractmethod
    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        """Scalars to minimise over the student, by name of the term. ``fake``: (N, C, H, W), carries the student's gradient."""

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        """Scalars to minimise over the critics; ``{}`` where there is none. ``fake`` is detached."""
        return {}

    def after_discriminator_step(self) -> None:
        """Called after each optimiser step of the critics (weight clipping)."""
