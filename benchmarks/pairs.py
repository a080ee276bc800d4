"""A pix2pix teacher trained on pairs, then its students by scratch, vanilla L1 and portable-i2i: equal sizes, equal images seen, held-out pairs.

    python benchmarks/pairs.py NAME PAIRS.npz OUT [--hold-out 200] [--width 32] [--teacher-kimg 50] [--kimg 20] [--batch-size 4]
        [--ch-mul 0.5,0.25] [--rows scratch,vanilla,portable] [--seeds 0] [--set weights.beta1=30 ...]
        [--features MOBILENET.pth] [--device auto]

PAIRS.npz holds source and target; the pairs held out are a random choice, the same for every run. Measured on them: mean absolute differences in
[0, 1] to the truth and to the teacher; with --features also the Frechet distance of as many features to those of the truth (so few are biased
upwards, all rows alike). All networks are tested on each image's own statistics. A second call goes on where the first stopped. The
last line printed is one JSON object, kept in results/pairs_NAME.json; the picture beside the runs shows source, truth, teacher and the students.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Notes, finish
from torch import Tensor

import gancompress
from gancompress.config import Data, parse_override
from gancompress.data import draw
from gancompress.devices import choose_device
from gancompress.distances import frechet_distance
from gancompress.extractors import make_extractor
from gancompress.fidelity import features_of
from gancompress.gan import GAN
from gancompress.loading import load_gan
from gancompress.pairs import ImagePairs
from gancompress.report import save_rows

OFF = {"beta1": 0, "gamma1": 0, "beta2": 0, "gamma2": 0}
#: what makes a row of the paper's Table 1 of portable-i2i
ROWS: dict[str, dict[str, Any]] = {"scratch": OFF, "vanilla": OFF | {"adv": 0, "truth": 0, "beta1": 10}, "portable": {}}


def split(path: str, held: int, folder: Path) -> tuple[str, str]:
    """(training pairs, held-out pairs) as files in ``folder``."""
    names = [str(folder / f"{part}.npz") for part in ("train", "held-out")]
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(path, allow_pickle=False) as arrays:
        order = np.random.default_rng(0).permutation(len(arrays["source"]))
        for name, chosen in zip(names, (order[held:], order[:held]), strict=True):
            if not Path(name).is_file():
                np.savez(name, source=arrays["source"][chosen], target=arrays["target"][chosen])
    return names[0], names[1]


def translated(gan: GAN, inputs: Tensor, device: torch.device) -> Tensor:
    return torch.cat([draw(gan.to(device), part, None, device).cpu() for part in inputs.split(50)])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean()) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("pairs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--hold-out", type=int, default=200)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--teacher-kimg", type=float, default=50)
    parser.add_argument("--kimg", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--ch-mul", default="0.5,0.25")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--features")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device, (data, held) = choose_device(args.device), split(args.pairs, args.hold_out, args.out)
    extractor = make_extractor(args.features, None, device) if args.features else None

    def train(name: str, recipe: str, source: str | None, kimg: float, changes: dict[str, Any]) -> str:
        shared = {"schedule.kimg": kimg, "schedule.batch_size": args.batch_size, "output.pictures_kimg": 1e6}
        changes = shared | {"output.save_kimg": 5, "data.mirror": True, "student.arch.statistics": "image"} | changes
        path = gancompress.distill(source, recipe, overrides=changes.items(), data=data, out=args.out / name, device=args.device, reporter=Notes())
        return str(path.parent)

    arch = {"student.family": "unet", "student.arch.resolution": 64, "student.arch.width": args.width, "student.arch.d_width": args.width}
    linear = {"optim.decay": "linear", "optim.decay_from": 0.5, "schedule.ema_kimg": 0}
    source = train("teacher", "scratch", None, args.teacher_kimg, arch | linear | {"weights.truth": 100})
    teacher = load_gan(source)
    x, y = ImagePairs(held, None, teacher.arch, Data()).take(0, args.hold_out, 0)
    taught = translated(teacher, x, device)

    def measured(images: Tensor) -> dict[str, float]:
        """Against the held-out targets."""
        found = {"l1_to_truth": distance(images, y), "l1_to_teacher": distance(images, taught)}
        if extractor:
            found["frechet_distance"] = frechet_distance(*(features_of(iter(part.to(device).split(50)), extractor)[0] for part in (images, y)))
        return found

    rows: list[dict[str, Any]] = [{"row": "teacher", **measured(taught)}, {"row": "the inputs themselves", **measured(x)}]
    print(rows, flush=True)
    pictures = [("source", x[:12]), ("truth", y[:12]), ("teacher", taught[:12])]
    for ch_mul in map(float, args.ch_mul.split(",")):
        for row in args.rows.split(","):
            for seed in map(int, args.seeds.split(",")):
                changes = {"student.ch_mul": ch_mul, "seed": seed, "data.jitter": 1.0} | {f"weights.{k}": v for k, v in ROWS[row].items()}
                name = "-".join([row, f"x{ch_mul:g}", str(seed), *(s.replace("weights.", "") for s in args.set)])
                student = load_gan(train(name, "portable-i2i", source, args.kimg, changes | dict(map(parse_override, args.set))))
                made = translated(student, x, device)
                parameters = sum(p.numel() for p in student.generator.parameters())
                rows.append({"row": row, "ch_mul": ch_mul, "seed": seed, "parameters": parameters, **measured(made)})
                print(rows[-1], flush=True)
                if not seed:
                    pictures.append((f"{row} {ch_mul:g}", made[:12]))
    save_rows(args.out / "rows.png", pictures)
    settings = {"width": args.width, "teacher_kimg": args.teacher_kimg, "kimg": args.kimg, "batch_size": args.batch_size, "held_out": args.hold_out}
    finish(f"pairs_{args.name}", settings | {"set": args.set, "features": extractor.name if extractor else None, "rows": rows})


if __name__ == "__main__":
    main()
