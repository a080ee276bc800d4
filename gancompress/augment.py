"""Differentiable augmentation of what critics see (Zhao et al. 2020, arXiv:2006.10738, §3.2 and App. B): its three operations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from gancompress import distributed as ranks

Operation = Literal["colour", "translation", "cutout"]


def _colour(x: Tensor) -> Tensor:
    """Brightness + U(-0.5, 0.5), saturation x U(0, 2), contrast x U(0.5, 1.5), of each image."""
    brightness, saturation, contrast = ranks.rows(len(x), lambda n: torch.rand(3, n, 1, 1, 1, device=x.device, dtype=x.dtype), dim=1)
    x = x + brightness - 0.5
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * saturation * 2
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _offsets(x: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Rows and columns (N, H, W) of each pixel after a shift of each image by whole pixels low ... high, each way."""
    n, _, height, width = x.shape
    down, right = ranks.rows(n, lambda n: torch.randint(low, high + 1, (2, n, 1, 1), device=x.device), dim=1)
    rows = torch.arange(height, device=x.device)[None, :, None] + down
    columns = torch.arange(width, device=x.device)[None, None, :] + right
    return rows.expand(n, height, width), columns.expand(n, height, width)


def _translation(x: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its width either way; what comes in is 0."""
    n, _, height, width = x.shape
    rows, columns = _offsets(x, -(width // 8), width // 8)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    which = torch.arange(n, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[which, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def _cutout(x: Tensor) -> Tensor:
    """A square of half the width in each image set to 0; its centre lies anywhere in the image."""
    _height, width = x.shape[2:]
    rows, columns = _offsets(x, 1 - width, 0)  # 0 at the pixel that is the centre
    half = width // 4
    hole = (rows >= -half) & (rows < half) & (columns >= -half) & (columns < half)
    return x * ~hole[:, None]


_OPERATIONS = {"colour": _colour, "translation": _translation, "cutout": _cutout}


def augment(images: Tensor, operations: Iterable[Operation]) -> Tensor:
    """Images (N, C, H, W), each changed at random by each operation in turn; differentiable in them."""
    for name in operations:
        images = _OPERATIONS[name](images)
    return images
