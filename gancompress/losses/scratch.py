"""The same-size GAN without a teacher, every paper's baseline:   min_S max_D  Adv(S, D)   (see losses/gan.py for the games).

Of a translator with pairs (x, y) that of pix2pix (Isola et al. 2017, arXiv:1611.07004, Eq. 4):   ... + truth E |y - S(x)|, averaged over pixels.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import l1_loss

from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss
from gancompress.losses.gan import AdversarialWeights, Adversary


class ScratchWeights(AdversarialWeights):
    """``truth``: of the distance to a pair's target; 0: off."""

    truth: float = Field(0.0, ge=0)


class Scratch(DistillationLoss):
    needs = frozenset({"real"})
    Weights = ScratchWeights

    def __init__(self, teacher: GAN | None, student: GAN, weights: ScratchWeights) -> None:
        super().__init__()
        self.truth = weights.truth
        self.adversary = Adversary(student, weights)
        self.critics["student"] = self.adversary.critic
        self.d_every = self.adversary.every

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        terms = {"adv": self.adversary.generator_term(batch, fake)}
        if self.truth and batch.paired:
            terms["truth"] = self.truth * l1_loss(fake, batch.real)
        return terms

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return self.adversary.discriminator_terms((fake, batch.condition), batch.real_and_condition)

    def discriminator_regulariser(self, batch: Batch) -> dict[str, Tensor]:
        return self.adversary.r1(batch.real_and_condition)

    def after_discriminator_step(self) -> None:
        self.adversary.clip()
