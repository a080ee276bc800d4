"""Tsunashima et al. 2020, Adversarial Knowledge Distillation for a Compact Generator:

    min_S max_{D_S, D_KD}  weight_s Adv(S(z), x; D_S) + weight_kd Adv(S(z), G_T(z'); D_KD),   z and z' independent.

D_S tells real images x from the student's, D_KD the teacher's from the student's; each has R1 at what it is to take for real.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss
from gancompress.losses.gan import AdversarialWeights, Adversary

#: below so many images a batch the authors saw training collapse (their slides, "Why does not AKDG work in case of the small batchsize?")
SMALL_BATCH = 256


class AkdgWeights(AdversarialWeights):
    """``weight_s``, ``weight_kd``: of the two games in the student's loss; each critic plays its own in full."""

    weight_s: float = Field(1.0, ge=0)
    weight_kd: float = Field(1.0, ge=0)


class Akdg(DistillationLoss):
    needs = frozenset({"teacher_samples", "real"})
    Weights = AkdgWeights

    def __init__(self, teacher: GAN | None, student: GAN, weights: AkdgWeights) -> None:
        super().__init__()
        self.weights = weights
        self.against_real, self.against_teacher = Adversary(student, weights), Adversary(student, weights)
        self.critics["student"], self.critics["kd"] = self.against_real.critic, self.against_teacher.critic
        self.d_every = self.against_real.every

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {
            "adv_s": self.weights.weight_s * self.against_real.generator_term(batch, fake),
            "adv_kd": self.weights.weight_kd * self.against_teacher.generator_term(batch, fake),
        }

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        images = fake, batch.condition
        return self.against_real.discriminator_terms(images, batch.real_and_condition, "d_s") | self.against_teacher.discriminator_terms(
            images, batch.unpaired, "d_kd"
        )

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        return self.against_real.r1(batch.real_and_condition, "d_s") | self.against_teacher.r1(batch.unpaired, "d_kd")

    def after_discriminator_step(self) -> None:
        self.against_real.clip()
        self.against_teacher.clip()

    def check(self, last_kimg: float, batch_size: int) -> list[str]:
        if batch_size >= SMALL_BATCH:
            return []
        return [
            f"a batch of {batch_size}: the authors use 2,048 and saw training collapse with small ones, about {SMALL_BATCH} and below; "
            "--batch-size 2048 schedule.accumulate=16 takes no more memory than a batch of 128"
        ]
