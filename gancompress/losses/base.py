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
    "teacher_samples": "a teacher generator",
    "teacher_discriminator": "the teacher's discriminator",
    "real": "real images (--data)",
    "translator": "an image translator",
}


class Weights(BaseModel):
    """A recipe's ``weights:``; each loss declares its own. Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DistillationLoss(nn.Module, ABC):
    """The terms of one paper's equation.

    ``needs`` is read everywhere: by the plan, by refusals, by ``inspect``; ``teacher_images`` are of the student's latents,
    ``teacher_samples`` of latents of their own; ``translator``: the networks take images. ``uses`` adds what it takes where it is there.
    ``critics`` are trained, ``adapters`` with the student; the teacher never is. The methods return one entry per term of the equation, already
    weighted, so that their sum is what is minimised and each is logged under its name. All that must survive a resume is a parameter or a buffer.
    """

    needs: ClassVar[frozenset[str]]
    uses: ClassVar[frozenset[str]] = frozenset()
    Weights: ClassVar[type[Weights]] = Weights
    #: what the plan says where ``real`` is used and there is no data set
    without_real: ClassVar[str] = "the teacher's own samples stand in for real images"
    #: the family of the critic, which is then handed to the constructor; None: the loss makes its critics itself
    critic_family: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.critics = nn.ModuleDict()
        self.adapters = nn.ModuleDict()
        #: what the plan tells of choices made here (where the critic comes from, say)
        self.notes: list[str] = []
        #: whether a term of these weights asks for ``real``, where ``uses`` says that one may
        self.asks_real = True
        #: every so many steps the regulariser of critics and of student has an optimiser step of its own; 0: it has none
        self.d_every = 0
        self.g_every = 0
        #: what is logged beside the terms, filled anew by each call of generator_loss
        self.shown: dict[str, Tensor] = {}

    def make_fake(self, generator: nn.Module, batch: Batch) -> Tensor:
        """The student's images (N, C, H, W) of a batch."""
        images: Tensor = generator(batch.inputs, batch.condition)
        return images

    @abstractmethod
    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        """Scalars to minimise over the student, by name of the term; ``{}`` where it is not trained.

        ``fake``: (N, C, H, W), carries the student's gradient.
        """

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        """Scalars to minimise over the critics; ``{}`` where there is none. ``fake`` is detached."""
        return {}

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        """Terms over the critics that are asked for every ``d_every`` steps, and weighted by as much."""
        return {}

    def generator_regulariser(self, batch: Batch, generator: nn.Module) -> dict[str, Tensor]:
        """Terms over the student that are asked for every ``g_every`` steps, and weighted by as much."""
        return {}

    def pictures(self, generator: nn.Module, inputs: Tensor) -> list[tuple[str, Tensor]]:
        """(label, images (N, C, H, W)) of a run's pictures, in blocks of four rows; ``[]``: teacher and student, one above the other."""
        return []

    def after_discriminator_step(self) -> None:
        """Called after each optimiser step of the critics (weight clipping)."""

    def check(self, last_kimg: float, batch_size: int) -> list[str]:
        """What a person should know of a run with so large a batch, whose last step begins after so many kimg.

        Raises:
            UsageError: it cannot be what was meant.
        """
        return []

    def closing_notes(self) -> list[str]:
        """What a person should know at the end of a run."""
        return []
