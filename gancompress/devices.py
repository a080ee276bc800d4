"""Which device work is done on."""

from __future__ import annotations

import re

import torch

from gancompress.errors import UsageError


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not match:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this torch ({torch.__version__}) sees no CUDA device", "--device cpu, or a torch built for CUDA")
    if match.group(1) and int(match.group(1)) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)
