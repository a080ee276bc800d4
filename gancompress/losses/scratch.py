"""The same-size GAN without a teacher, every paper's baseline:   min_S max_D  Adv(S, D)   (see losses/gan.py for the games)."""

from __future__ import annotations

from torch import Tensor

from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss
from gancompress.losses.gan import AdversarialWeights, Adversary


class Scratch(DistillationLoss):
    needs = frozenset({"real"})
    Weights = AdversarialWeights

    def __init__(self, teacher: GAN | None, student: GAN, weights: AdversarialWeights) -> None:
        super().__init__()
        self.adversary = Adversary(student, weights)
        self.critics["student"] = self.adversary.critic
        self.d_every = self.adversary.every

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {"adv": self.adversary.generator_term(batch, fake)}

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return self.adversary.discriminator_terms((fake, batch.condition), batch.real_and_condition)

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        return self.adversary.r1(batch.real_and_condition)

    def after_discriminator_step(self) -> None:
        self.adversary.clip()
