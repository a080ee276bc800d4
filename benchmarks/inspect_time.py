"""Wall time and peak memory of ``gancompress inspect`` on a large torch-zip checkpoint, beside those of importing torch alone.

    python benchmarks/inspect_time.py [--mb 300] [--rounds 5]

Writes a DCGAN generator of that size with random weights, as torch.save writes it, and inspects it in processes of their own; the median of the rounds
counts. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from common import finish
from memory import peak

from gancompress.families import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    family = FAMILIES["dcgan"]
    width = math.isqrt(args.mb * 1_000_000 // (4 * 16 * 42)) // 8 * 8  # kernels of 16 weights, (8 * 4 + 4 * 2 + 2 * 1) width^2 of them and few beside
    with TemporaryDirectory() as folder:
        path = Path(folder) / "netG.pth"
        torch.save(family.generator(family.build_arch(None, {"width": width})).state_dict(), path)
        commands = {"import_torch": ("-c", "import torch"), "inspect": ("-m", "gancompress", "inspect", str(path))}
        rounds = [{name: peak(*command) for name, command in commands.items()} for _ in range(args.rounds)]
        result: dict[str, float] = {"file_mb": round(path.stat().st_size / 1e6, 1), "rounds": args.rounds}
        for name in commands:
            result |= {f"{name}_mb": round(median(r[name][0] for r in rounds), 1), f"{name}_s": round(median(r[name][1] for r in rounds), 2)}
    finish("inspect_time", result)


if __name__ == "__main__":
    main()
