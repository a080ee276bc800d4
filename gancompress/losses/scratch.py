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
        self.adversary = Adversary(None, student, weights)  # nothing of the teacher but its shapes
        self.critics["student"] = self.adversary.critic
        self.notes = [f"critic: {self.adversary.origin}"]

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {"adv": self.adversary.generator_term(batch, fake)}

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return self.adversary.discriminator_terms(batch, fake)

    def after_discriminator_step(self) -> None:
        self.adversary.clip()
