"""Aguinaldo et al. 2019, arXiv:1902.00159, Eq. 3:   min_S  E_z || G_S(z) - G_T(z) ||^2,   the same z for both.

The norm is averaged over pixels, so that the value does not depend on the resolution; the minimiser is the same.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss

from gancompress.gan import GAN, Batch
from gancompress.losses.base import DistillationLoss, Weights


class Mse(DistillationLoss):
    needs = frozenset({"teacher_images"})

    def __init__(self, teacher: GAN | None, student: GAN, weights: Weights) -> None:
        super().__init__()

    def generator_loss(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        return {"mse": mse_loss(fake, batch.teacher)}
