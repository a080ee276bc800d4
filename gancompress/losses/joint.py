"""Aguinaldo et al. 2019, arXiv:1902.00159, Eq. 4:   min_S max_D  alpha Adv(S, D) + (1 - alpha) E_z || G_S(z) - G_T(z) ||^2.

Adv is the standard GAN or WGAN; D starts from the teacher's discriminator and is updated. The norm is averaged over pixels.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss
from gancompress.losses.gan import AdversarialWeights, Adversary, student_or_teacher


class JointWeights(AdversarialWeights):
    """``alpha``: share of the adversarial term."""

    alpha: float = Field(1e-4, ge=0, le=1)


class Joint(DistillationLoss):
    needs = frozenset({"teacher_images"})
    uses = frozenset({"real", "teacher_discriminator"})
    Weights = JointWeights

    def __init__(self, teacher: GAN | None, student: GAN, weights: JointWeights) -> None:
        super().__init__()
        self.alpha = weights.alpha
        self.adversary = Adversary(student_or_teacher(teacher, student), weights, copy_of=teacher)
        self.critics["student"] = self.adversary.critic
        self.d_every = self.adversary.every
        origin = "starts from the teacher's discriminator and is updated" if teacher is not None and teacher.discriminator is not None else "starts fresh"
        self.notes = [f"critic: {origin}"]

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {
            "adv": self.alpha * self.adversary.generator_term(batch, fake),
            "mse": (1 - self.alpha) * mse_loss(fake, batch.teacher),
        }

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return self.adversary.discriminator_terms((fake, batch.condition), batch.real_and_condition)

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        return self.adversary.r1(batch.real_and_condition)

    def after_discriminator_step(self) -> None:
        self.adversary.clip()
