"""Which of the teacher's channels a student starts from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gancompress.gan import Axes, Axis
from gancompress.layers import SpectralNorm

Init = Literal["random", "slice", "top-magnitude"]


def _sizes(state: dict[str, Tensor], axes: Axes) -> dict[str, int]:
    """Channels of each group: from the axes where it is alone, else from those where all others are known."""
    found: dict[str, int] = {}
    known = -1
    while known < len(found):
        known = len(found)
        for key, groups in axes.items():
            for axis, stretches in enumerate(map(_stretches, groups)):
                names = {group for group, _ in stretches if group is not None and group not in found}
                if len(names) == 1:
                    rest = state[key].shape[axis] - sum(each if group is None else found.get(group, 0) * each for group, each in stretches)
                    found[names.pop()] = rest // sum(each for group, each in stretches if group is not None and group not in found)
    return found


def _stretches(axis: Axis) -> tuple[tuple[str | None, int], ...]:
    return ((axis, 1),) if isinstance(axis, str) else axis or ()


def _segments(axis: Axis, sizes: dict[str, int]) -> Iterator[tuple[str, int, int, int]]:
    """(group, first position, channels, positions per channel) of each sliced stretch of an axis."""
    start = 0
    for group, each in _stretches(axis):
        if group is None:
            start += each
        else:
            yield group, start, sizes[group], each
            start += sizes[group] * each


def channel_scores(state: dict[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """Importance of each channel of each group: the L1 norm of every weight it produces or feeds.

    Each tensor counts relative to its own mean, so that large layers do not drown small ones. Biases and statistics are left out.
    """
    sizes = _sizes(state, axes)
    scores = {group: torch.zeros(n) for group, n in sizes.items()}
    for key, groups in axes.items():
        tensor = state[key]
        if tensor.ndim < 2:
            continue
        for axis, group in enumerate(groups):
            norm = tensor.abs().float().sum([d for d in range(tensor.ndim) if d != axis])
            for name, start, channels, each in _segments(group, sizes):
                part = norm[start : start + channels * each].reshape(channels, each).sum(1)
                scores[name] += part / part.mean()
    return scores


def initialise_from(teacher: nn.Module, student: nn.Module, axes: Axes, how: Literal["slice", "top-magnitude"]) -> None:
    """Copy into ``student`` the teacher's leading (slice) or heaviest (top-magnitude) channels, the same ones in every layer.

    Both are of one family; ``axes`` names the channel groups of each axis of each tensor. With equal widths the student becomes
    the teacher. Of a wider student only the teacher's share is written.
    """
    source, target = teacher.state_dict(), student.state_dict()
    have, want = _sizes(source, axes), _sizes(target, axes)
    scores = channel_scores(source, axes)
    keep: dict[str, Tensor] = {}
    for name, n in have.items():
        heaviest = scores[name].argsort(descending=True, stable=True) if how == "top-magnitude" else torch.arange(n)
        keep[name] = heaviest[: want[name]].sort().values  # in the teacher's order
    leading = {name: torch.arange(len(kept)) for name, kept in keep.items()}
    with torch.no_grad():
        for key, groups in axes.items():
            places: list[Tensor] = []
            for axis, group in enumerate(groups):
                if group is None:
                    taken = given = torch.arange(min(source[key].shape[axis], target[key].shape[axis]))
                else:
                    taken, given = _positions(group, have, keep), _positions(group, want, leading)
                places.append(given)
                source[key] = source[key].index_select(axis, taken.to(source[key].device))
            if places:
                target[key][torch.meshgrid(*places, indexing="ij")] = source[key].to(target[key].dtype)
            else:
                target[key].copy_(source[key])
        for module in student.modules():  # singular vectors of a cut weight are not cut singular vectors
            if isinstance(module, parametrize.ParametrizationList) and isinstance(norm := module[0], SpectralNorm) and have != want:
                for _ in range(15):
                    norm.step(module.original)


def _positions(axis: Axis, sizes: dict[str, int], keep: dict[str, Tensor]) -> Tensor:
    """Places along an axis of the channels kept of each group, and of all that is never sliced."""
    found, start = [], 0
    for group, each in _stretches(axis):
        if group is None:
            found.append(torch.arange(start, start + each))
            start += each
        else:
            found.append((start + keep[group][:, None] * each + torch.arange(each)).flatten())
            start += sizes[group] * each
    return torch.cat(found)
