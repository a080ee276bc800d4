"""Which of the teacher's channels a student starts from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gancompress.gan import Axes

Init = Literal["random", "slice", "top-magnitude"]


def channel_scores(state: dict[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """Importance of each channel of each group: the L1 norm of every weight it produces or feeds.

    Each tensor counts relative to its own mean, so that large layers do not drown small ones. Biases and statistics are left out.
    """
    scores: dict[str, Tensor] = {}
    for key, groups in axes.items():
        tensor = state[key]
        if tensor.ndim < 2:
            continue
        for axis, group in enumerate(groups):
            if group is not None:
                norm = tensor.abs().float().sum([d for d in range(tensor.ndim) if d != axis])
                scores[group] = scores.get(group, torch.zeros(len(norm))) + norm / norm.mean()
    return scores


def initialise_from(teacher: nn.Module, student: nn.Module, axes: Axes, how: Literal["slice", "top-magnitude"]) -> None:
    """Copy into ``student`` the teacher's leading (slice) or heaviest (top-magnitude) channels, the same ones in every layer.

    Both are of one family; ``axes`` names the channel group of each axis of each tensor. With equal widths the student becomes
    the teacher. Of a wider student only the teacher's share is written.
    """
    source, target = teacher.state_dict(), student.state_dict()
    scores = channel_scores(source, axes)
    keep: dict[str, Tensor] = {}
    for key, groups in axes.items():
        for axis, group in enumerate(groups):
            if group is not None:
                heaviest = scores[group].argsort(descending=True, stable=True) if how == "top-magnitude" else torch.arange(len(scores[group]))
                keep[group] = heaviest[: target[key].shape[axis]].sort().values  # in the teacher's order
    with torch.no_grad():
        for key, groups in axes.items():
            tensor = source[key]
            for axis, group in enumerate(groups):
                if group is not None:
                    tensor = tensor.index_select(axis, keep[group])
            target[key][tuple(slice(0, n) for n in tensor.shape)] = tensor
