"""What the benchmark scripts share: plain progress, variants that take turns, measures on real images, and the last line of JSON, kept in results/."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancompress.cost import device_name
from gancompress.data import EVALUATION, Images, positions, to_float
from gancompress.devices import choose_device
from gancompress.distances import frechet_distance, inception_score
from gancompress.extractors import Extractor
from gancompress.fidelity import features_of, generated
from gancompress.gan import GAN
from gancompress.runs import versions

RESULTS = Path(__file__).parent / "results"


class Notes:
    """Reporter that prints what matters for a long benchmark."""

    def progress(self, step: int, terms: dict[str, float], images_per_second: float) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def take_turns(variants: dict[str, Callable[[], object]], rounds: int, device: torch.device, calls: int = 1, warm: int = 0) -> dict[str, list[float]]:
    """{variant: seconds a call, in each round}. They take turns, so that the machine's moods hit all alike; ``warm``: calls before each turn's first."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            for _ in range(warm):
                run()
            start = now()
            for _ in range(calls):
                run()
            seconds[name].append((now() - start) / calls)
    return seconds


# ------------------------------------------------------------------------------------------------------- students on real images


def arguments(doc: str | None, *, teacher_kimg: float, kimg: float, recipes: str, num_images: int) -> argparse.ArgumentParser:
    """What the benchmarks of students on real images of 32 x 32 pixels are told."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("name")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", default="digits")
    parser.add_argument("--nc", type=int, default=1)
    parser.add_argument("--teacher-kimg", type=float, default=teacher_kimg)
    parser.add_argument("--kimg", type=float, default=kimg)
    parser.add_argument("--recipes", default=recipes)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--num-images", type=int, default=num_images)
    parser.add_argument("--device", default="auto")
    return parser


def real_features(args: argparse.Namespace, extractor: Extractor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (N, F) and logits (N, K) of at most ``--num-images`` of the data."""
    images = Images(args.data, 32, args.nc)
    chosen = positions(0, min(args.num_images, len(images)), len(images), 0, EVALUATION)
    return features_of((to_float(images[part][0].to(device)) for part in chosen.split(64)), extractor)[:2]


def quality(gan: GAN, num_images: int, extractor: Extractor, reference: Tensor, device: torch.device) -> dict[str, Any]:
    """Parameters of a generator on the device, and what its images' features say beside the reference's (N, F)."""
    features, logits, sharpness = features_of(generated(gan, num_images, 0, device), extractor)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in gan.generator.parameters()), "frechet_distance": frechet_distance(features, reference)}
    return found | {"inception_score": inception_score(logits), "variance_of_laplacian": sharpness}


# -------------------------------------------------------------------------------------------------------------------- the result


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def finish(name: str, result: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any]:
    """Print the result as one line of JSON and keep it in the folder; returns all that was kept."""
    result = {"benchmark": name, "commit": commit(), "device": device_name(choose_device("auto")), **versions(), **result}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return result
