"""Chen et al. 2020, Distilling portable Generative Adversarial Networks for Image Translation, AAAI 2020, Eq. 9:

    min_S max_D  L_GAN + beta1 |G_T(x) - G_S(x)| + gamma1 |D_T^(G_T(x)) - D_T^(G_S(x))| + beta2 L_GT(D_S) + gamma2 L_tri(D_S),
    L_tri = [ |D_S^(y) - D_S^(G_T(x))| - |D_S^(y) - D_S^(G_S(x))| + margin ]_+.

D_T^ is the first layers of the teacher's discriminator, frozen; D_S^ the student's without its last; L_GT takes the teacher's images for real.
L_GAN is pix2pix's (Isola et al. 2017, arXiv:1611.07004, Eq. 4), with ``truth`` |y - G_S(x)| where y is x's own; without pairs the one of CycleGAN in
one direction; cycle.py makes one of two. Distances are means over pixels and features; ``squared``: of each image, as Eqs. 4 and 5 print it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu

from gancompress.errors import UsageError
from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss
from gancompress.losses.cycle import CycleWeights
from gancompress.losses.gan import GAMES, GameName


class PortableWeights(CycleWeights):
    """``adv``, ``truth``: of the usual loss; ``d_loss``: share of all that the discriminator minimises; ``layers``: of the teacher's discriminator.
    ``game`` null: the one the family's discriminators are trained with."""

    game: GameName | None = None
    adv: float = Field(1.0, ge=0)
    truth: float = Field(1.0, ge=0)
    beta1: float = Field(10.0, ge=0)
    gamma1: float = Field(10.0, ge=0)
    layers: int = Field(2, ge=1)
    squared: bool = False
    beta2: float = Field(1.0, ge=0)
    gamma2: float = Field(1.0, ge=0)
    margin: float = Field(0.2, ge=0)
    d_loss: float = Field(0.5, gt=0)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """(N,) mean absolute differences of (N, ...) values."""
    return (a - b).abs().flatten(1).mean(1)


class PortableI2i(DistillationLoss):
    needs = frozenset({"translator", "teacher_images", "real"})
    uses = frozenset({"teacher_discriminator"})
    Weights = PortableWeights

    def __init__(self, teacher: GAN, student: GAN, weights: PortableWeights) -> None:
        super().__init__()
        self.weights, self.teacher = weights, teacher
        self.game = GAMES[weights.game or student.family.game]
        own = teacher.discriminator is None  # D_S stands in for D_T
        if weights.adv or (weights.gamma1 and own):
            self.critics["student"] = student.family.discriminator(student.arch)
        if not weights.gamma1:
            return
        depth = len(self.judge.arch.d_widths)
        if weights.layers > depth:
            raise UsageError(f"weights.layers={weights.layers}: that discriminator has {depth} hidden layers")
        whose = "the student's discriminator, since the teacher has none (--fit-discriminator KIMG trains one)" if own else "the teacher's discriminator"
        self.notes.append(f"perceptual term: the first {weights.layers} of {depth} hidden layers of {whose}")

    @property
    def judge(self) -> Any:
        """Whose features the perceptual term compares; the teacher's is no part of what is trained and saved."""
        return self.teacher.discriminator or self.critics["student"]

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        w, terms = self.weights, {}
        if w.adv:
            terms["adv"] = w.adv * self.game.g(self.critics["student"](fake, batch.condition))
        if w.truth and batch.paired:
            terms["truth"] = w.truth * distance(fake, batch.real).mean()
        if w.beta1:
            terms["l1"] = w.beta1 * self.mean(distance(fake, batch.teacher))
        if w.gamma1:
            judge = self.judge
            beside = batch.inputs if judge.arch.d_nc > judge.arch.nc else None
            with torch.no_grad():
                wanted = judge.features(batch.teacher, beside)[: w.layers]
            found = judge.features(fake, beside)[: w.layers]
            layers = [self.mean(distance(a, b)) for a, b in zip(found, wanted, strict=True)]
            terms["perc"] = w.gamma1 * torch.stack(layers).mean()
        return terms

    def mean(self, distances: Tensor) -> Tensor:
        return (distances.square() if self.weights.squared else distances).mean()

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        w, critic = self.weights, cast(Any, self.critics["student"])
        real, false = critic.features(batch.real, batch.real_condition), critic.features(fake, batch.condition)
        terms = {"d_adv": w.d_loss * self.game.d(real[-1], false[-1])}
        if w.beta2 or w.gamma2:
            taught = critic.features(batch.teacher, batch.condition)
            if w.beta2:
                terms["d_teacher"] = w.d_loss * w.beta2 * self.game.real(taught[-1])
            if w.gamma2:
                y, positive, negative = real[-2], taught[-2], false[-2]
                terms["d_tri"] = w.d_loss * w.gamma2 * relu(distance(y, positive) - distance(y, negative) + w.margin).mean()
        return terms

    def check(self, kimg: float, part_size: int) -> list[str]:
        w = self.weights
        if not (w.adv or w.truth or w.beta1 or w.gamma1):
            raise UsageError("weights adv, truth, beta1 and gamma1 are all 0: nothing would train the student")
        if "student" in self.critics:
            return []
        return ["no discriminator is trained: nothing in the student's loss asks one" + (" (beta2 and gamma2 have no effect)" if w.beta2 or w.gamma2 else "")]
