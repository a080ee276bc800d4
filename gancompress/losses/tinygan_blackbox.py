"""Chang & Lu 2020, TinyGAN, arXiv:2009.13829, Eqs. 1 to 7; x_T = T(z, y) the teacher's image, x_S = S(z, y) the student's, hinge games:

    L_S = feat sum_i a_i |D_i(x_T) - D_i(x_S)|_1 + pix |x_T - x_S|_1 - kd E D(x_S, y) - gan E D(S(z', y_r), y_r)
    L_D = d_kd (E max(0, 1 - D(x_T, y)) + E max(0, 1 + D(x_S, y))) + d_gan (E max(0, 1 - D(x_r, y_r)) + E max(0, 1 + D(S(z', y_r), y_r)))

D is TinyGAN's discriminator, from scratch; D_i are the activations of its convolutions, x_r and y_r real images and their labels, z' is
fresh. Norms are means over elements, as in the authors' code.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from gancompress import distributed as ranks
from gancompress.errors import UsageError
from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss, Weights
from gancompress.losses.gan import GAMES
from gancompress.speed import sent

HINGE = GAMES["hinge"]


class TinyganBlackboxWeights(Weights):
    """Weights of the equations above; 0 leaves a term out. ``pix`` falls evenly to zero until the share ``pix_until`` of the run; null: it
    stays. The student's adversarial terms are asked for in every ``adversarial_every``-th of its steps."""

    feat: float = Field(1.0, ge=0)
    pix: float = Field(0.2, ge=0)
    pix_until: float | None = Field(0.6667, gt=0, le=1)
    kd: float = Field(0.01, ge=0)
    gan: float = Field(0.002, ge=0)
    d_kd: float = Field(1.0, ge=0)
    d_gan: float = Field(0.2, ge=0)
    adversarial_every: int = Field(5, ge=1)


def layer_weights(depth: int) -> list[float]:
    """1 for the last layer, 1/4 for the one before and half as much for each earlier one: the authors' for five, the rule for others ours."""
    return [0.5 ** (depth - i) for i in range(depth - 1)] + [1.0]


class TinyganBlackbox(DistillationLoss):
    needs = frozenset({"teacher_images"})
    uses = frozenset({"real"})
    without_real = "no real images: the terms gan and d_gan are off"
    critic_family = "tinygan"
    Weights = TinyganBlackboxWeights

    def __init__(self, teacher: GAN | None, student: GAN, weights: TinyganBlackboxWeights, critic: nn.Module) -> None:
        super().__init__()
        self.student, self.weights = student, weights
        #: who draws z': the teacher, for the student learns on its latents, which may be truncated
        self.latents = teacher or student
        self.asks_real = bool(weights.gan or (weights.d_gan and (weights.feat or weights.kd)))
        if weights.feat or weights.kd or weights.gan:
            self.critics["student"] = critic
            self.notes = [f"critic: TinyGAN's discriminator, {sum(p.numel() for p in critic.parameters()):,} parameters, starts fresh"]

    def pixel_weight(self, progress: float) -> float:
        """``pix`` where that share of the run is done."""
        until = self.weights.pix_until
        return self.weights.pix * (1.0 if until is None else max(0.0, 1 - progress / until))

    def features(self, images: Tensor, condition: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """(activations (N, C, H, W) of each convolution of D, logits (N,))."""
        *layers, logits = self.critics["student"].features(images, condition)  # type: ignore[operator]
        return layers, logits

    def judge(self, images: Tensor, condition: Tensor | None) -> Tensor:
        return self.features(images, condition)[1]

    def real(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        images, labels = batch.real_and_condition
        return images, labels if self.student.arch.classes else None

    def imagined(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """S(z', y_r) and y_r, as many as there are real images."""
        images, labels = self.real(batch)
        # the loop seeds torch's own numbers in each step
        seeded = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        z = sent(ranks.rows(len(images), lambda n: self.latents.sample(n, seeded)[0]), images.device)
        made: Tensor = self.student.generator(z, labels)
        return made, labels

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        weights, terms = self.weights, {}
        adversarial = (batch.step + 1) % weights.adversarial_every == 0
        if weights.feat or (weights.kd and adversarial):
            layers, logits = self.features(fake, batch.condition)
        if weights.feat:
            with torch.no_grad():
                wanted, _ = self.features(batch.teacher, batch.condition)
            distances = [a * l1_loss(mine, theirs) for a, mine, theirs in zip(layer_weights(len(layers)), layers, wanted, strict=True)]
            terms["feat"] = weights.feat * torch.stack(distances).sum()
        if pix := self.pixel_weight(batch.progress):
            terms["pix"] = pix * l1_loss(fake, batch.teacher)
        if weights.kd and adversarial:
            terms["kd"] = weights.kd * HINGE.g(logits)
        if weights.gan and adversarial and batch.has_real:
            terms["gan"] = weights.gan * HINGE.g(self.judge(*self.imagined(batch)))
        return terms

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        weights, terms = self.weights, {}
        if weights.d_kd:
            terms["d_kd"] = weights.d_kd * HINGE.d(self.judge(batch.teacher, batch.condition), self.judge(fake, batch.condition))
        if weights.d_gan and batch.has_real:
            with torch.no_grad():
                imagined = self.imagined(batch)
            terms["d_gan"] = weights.d_gan * HINGE.d(self.judge(*self.real(batch)), self.judge(*imagined))
        return terms

    def check(self, last_kimg: float, batch_size: int) -> list[str]:
        weights = self.weights
        if self.critics or (weights.pix and weights.pix_until is None):
            return []
        if not weights.pix:
            raise UsageError("weights.feat, pix, kd and gan are all 0: nothing would train the student")
        raise UsageError(
            f"weights.pix_until={weights.pix_until:g}: the pixels are the only term, and nothing would train the student from there on",
            "weights.pix_until=null keeps their weight",
        )
