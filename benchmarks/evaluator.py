"""Images per second of our Inception extractor against torch-fidelity's own, on the same weights and images, as ratios in one run.

    python benchmarks/evaluator.py [--weights FILE] [--images 64] [--size 32] [--rounds 6] [--device auto]

Without --weights the network has random weights, which takes the same time. torch-fidelity runs at its default batch size of 64 and at 8, which suits
a CPU better. The variants take turns, round by round, so that the machine's moods hit all alike; the fastest round of each counts.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from common import finish, take_turns
from torch import Tensor

from gancompress import weights
from gancompress.devices import choose_device
from gancompress.extractors import Inception, stock_inception
from gancompress.unpickle import open_checkpoint


def random_weights(path: Path) -> None:
    """A file of weights as torch initialises the network; our extractor is told its hash."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    with patch.object(FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None):
        torch.save(stock_inception({}).state_dict(), path)
    weights.INCEPTION = replace(weights.INCEPTION, sha256=weights.file_sha256(path)[:8])


def compare(weights_path: str | None, count: int, size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Rates of both on as many random images of that size, in turns; without weights on random ones."""
    with TemporaryDirectory() as folder:
        path = Path(weights_path or Path(folder) / "random.pth")
        if not weights_path:
            random_weights(path)
        ours, theirs = Inception(path, device), stock_inception(open_checkpoint(path).content).to(device)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)

    def stock(batch: int) -> Callable[[], Tensor]:
        return lambda: torch.cat([theirs(part)[0] for part in images.split(batch)])

    variants: dict[str, Callable[[], Tensor]] = {"torch_fidelity_64": stock(64), "torch_fidelity_8": stock(8), "ours": lambda: ours(images)[0]}
    found: dict[str, Tensor] = {}

    def kept(name: str) -> None:
        found[name] = variants[name]()

    seconds = take_turns({name: partial(kept, name) for name in variants}, rounds, device)
    best = {name: min(times) for name, times in seconds.items()}
    difference = float((found["ours"] - found["torch_fidelity_64"]).norm() / found["torch_fidelity_64"].norm())
    result = {"images": count, "size": size, "rounds": rounds, "weights": Path(weights_path).name if weights_path else "random"}
    result["threads"] = torch.get_num_threads()
    result |= {"images_per_s": {name: round(count / s, 2) for name, s in best.items()}, "relative_feature_difference": difference}
    return result | {f"ratio_to_{name}": round(best[name] / best["ours"], 2) for name in best if name != "ours"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    finish("evaluator", compare(args.weights, args.images, args.size, args.rounds, choose_device(args.device)))


if __name__ == "__main__":
    main()
