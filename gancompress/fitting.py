"""Which batch fits into memory, found by trying."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import nn

from gancompress.errors import is_out_of_memory


def largest_part(attempt: Callable[[int], None], part: int, networks: list[nn.Module]) -> int:
    """The first of part / 2, part / 4 ... 1 images (rounded down) that ``attempt`` takes without an error; 0: there is none.

    What an attempt left behind, gradients of the networks included, is given back before the next one.
    """
    while part := part // 2:
        _release(networks)
        if _fits(attempt, part):
            break
    _release(networks)
    return part


def _fits(attempt: Callable[[int], None], part: int) -> bool:
    try:
        attempt(part)
    except (MemoryError, RuntimeError, ValueError) as error:
        # ValueError: BatchNorm knows no statistics of one image; any other error would have ended the run before its memory did
        if not (is_out_of_memory(error) or isinstance(error, ValueError)):
            raise
        return False
    return True


def _release(networks: list[nn.Module]) -> None:
    for net in networks:
        net.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
