"""What two families or more use."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F


def with_labels(z: Tensor, condition: Tensor | None, classes: int, nz: int) -> Tensor:
    """(N, nz) -> (N, nz + classes): a one-hot label beside the latent, as conditional DCGANs and MLPs take it.

    Raises:
        ValueError: a latent of another size, labels missing, or labels outside 0 ... classes - 1.
    """
    if z.shape[1] != nz:
        raise ValueError(f"latents have {z.shape[1]} values each, this network takes {nz}")
    if not classes:
        return z
    if condition is None:
        raise ValueError(f"this network is conditional: give labels (N,) in 0 ... {classes - 1} as condition")
    if condition.shape != (len(z),):
        raise ValueError(f"labels have shape {tuple(condition.shape)}, expected ({len(z)},)")
    return torch.cat([z, F.one_hot(condition, classes).to(z.dtype)], 1)


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key under which main.10 follows main.9."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", text) if p]


def scale_width(width: int, ch_mul: float) -> int:
    """``width * ch_mul`` as a whole number of channels, at least 1.

    Rounded to a multiple of 8 from 64 up and of 4 from 16 up, as convolution kernels like them; ch_mul 1 changes nothing.
    """
    if ch_mul == 1:
        return width
    scaled = width * ch_mul
    step = 8 if scaled >= 64 else 4 if scaled >= 16 else 1
    return max(1, step * round(scaled / step))
