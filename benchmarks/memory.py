"""Peak memory of ``inspect`` and ``export`` on a large checkpoint, against that of importing torch alone.

    python benchmarks/memory.py [--width 256]

Writes an Aguinaldo generator (d = 256: 47,324,929 parameters, 189 MB) with random weights as a torch file and runs the two commands on it in
processes of their own. The last line printed is one JSON object; ``times_file`` is (peak - torch alone) / file size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import finish

from gancompress.families import FAMILIES


def peak(*command: str) -> tuple[float, float]:
    """(peak resident memory in MB, seconds) of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return usage.ru_maxrss / 1e3, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    family = FAMILIES["dcgan"]
    arch = family.build_arch(None, {"width": args.width, "nc": 1, "g_bias": True, "g_norm": "batch-noaffine"})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "netG.pth"
        torch.save(family.generator(arch).state_dict(), path)
        size = path.stat().st_size / 1e6
        alone, _ = peak("-c", "import torch, gancompress.api")
        result = {"file_mb": round(size, 1), "imports_alone_mb": round(alone, 1)}
        for name, command in (("inspect", ["inspect", str(path)]), ("export", ["export", str(path), "--out", f"{folder}/out"])):
            memory, seconds = peak("-m", "gancompress", *command)
            result |= {f"{name}_mb": round(memory, 1), f"{name}_times_file": round((memory - alone) / size, 2), f"{name}_s": round(seconds, 1)}
    finish("memory", result)


if __name__ == "__main__":
    main()
