"""Makes the bundled teacher ``sample:dcgan-mnist`` of a finished run: one file with G and D.

    gancompress distill --recipe scratch --arch dcgan student.arch.width=32 student.arch.resolution=32 --data mnist_70k.npz --kimg 600 optim.decay=cosine \
        --batch-size 64 --out teacher
    python benchmarks/bundle_teacher.py teacher
"""

from __future__ import annotations

import sys
from pathlib import Path

from gancompress.checkpoint import save_networks
from gancompress.loading import load_gan


def main(run: str) -> None:
    gan = load_gan(run)
    target = Path(__file__).parent.parent / "gancompress" / "samples" / "dcgan-mnist.safetensors"
    facts = {"recipe": "scratch", "kimg": 600, "seed": 0, "trained_on": "MNIST, 60,000 training images at 32x32"}
    save_networks(target, gan.family, gan.arch, gan.networks, facts)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
