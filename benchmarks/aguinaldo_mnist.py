"""Aguinaldo et al. 2019, Table 1 on MNIST: a teacher and students of a few widths d by mse, joint and scratch.

    python benchmarks/aguinaldo_mnist.py mnist_70k.npz OUT [--teacher-d 16] [--teacher-d-width 16] [--teacher-kimg 150]
        [--students 2,4,8] [--recipes mse,scratch,joint] [--scratch-d-width 16] [--kimg 100] [--num-images 5000] [--device auto]

All networks are the paper's: 64 x 64, one channel, biases, BatchNorm without parameters; the standard GAN is played. IS is that of the
bundled digit classifier, the distance is taken on its features to MNIST's training images (neither is the paper's). A second call goes on where
the first stopped. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import Notes, finish

import gancompress
from gancompress.data import EVALUATION, Images, positions, to_float
from gancompress.devices import choose_device
from gancompress.distances import frechet_distance, inception_score
from gancompress.extractors import Digits
from gancompress.fidelity import features_of, generated, paired_fidelity
from gancompress.loading import load_gan

#: with DCGAN's own settings (BatchNorm in D, both rates 2e-4) the 64 x 64 game collapsed to one digit: see docs/negative.md
GAN_SETTINGS: list[tuple[str, Any]] = [("optim.g_lr", 1e-3), ("optim.d_lr", 2e-4), ("optim.decay", "cosine"), ("schedule.batch_size", 32)]


def architecture(d: int, d_width: int) -> list[tuple[str, Any]]:
    shape = {"resolution": 64, "nc": 1, "nz": 100, "g_bias": True, "g_norm": "batch-noaffine", "width": d, "d_width": d_width}
    shape |= {"d_norm": "none", "d_bias": True}
    return [("student.family", "dcgan"), *((f"student.arch.{k}", v) for k, v in shape.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher-d", type=int, default=16)
    parser.add_argument("--teacher-d-width", type=int, default=16)
    parser.add_argument("--teacher-kimg", type=float, default=150)
    parser.add_argument("--students", default="2,4,8")
    parser.add_argument("--recipes", default="mse,scratch,joint")
    parser.add_argument("--scratch-d-width", type=int, help="width of scratch's discriminator; default: the student's")
    parser.add_argument("--kimg", type=float, default=100)
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = choose_device(args.device)
    images, extractor = Images(args.data, 64, 1), Digits(device)
    chosen = positions(0, args.num_images, len(images), 0, EVALUATION)
    reference, logits, _ = features_of((to_float(images[part][0].to(device)) for part in chosen.split(64)), extractor)
    rows = [{"d": None, "recipe": "real images", "inception_score": inception_score(logits)}]

    def measure(path: Path, **facts: Any) -> None:
        gan = load_gan(str(path)).to(device)
        features, logits, sharpness = features_of(generated(gan, args.num_images, 0, device), extractor)
        row = {**facts, "parameters": sum(p.numel() for p in gan.generator.parameters()), "inception_score": inception_score(logits)}
        row |= {"frechet_distance": frechet_distance(features, reference), "variance_of_laplacian": sharpness}
        if teacher is not None:
            paired = paired_fidelity(gan, teacher, 1000, EVALUATION, device)
            row["paired_mse"] = paired["mse"] if paired else None
            row["ratio"] = round(sum(p.numel() for p in teacher.generator.parameters()) / row["parameters"], 1)
        rows.append(row)
        print(row, flush=True)

    def run(name: str, recipe: str, source: str | None, changes: list[tuple[str, Any]]) -> Path:
        data = args.data if recipe != "mse" else None
        return gancompress.distill(source, recipe, overrides=changes, data=data, out=args.out / name, device=args.device, reporter=Notes())

    teacher = None
    shape = architecture(args.teacher_d, args.teacher_d_width)
    path = run("teacher", "scratch", None, [*shape, ("schedule.kimg", args.teacher_kimg), *GAN_SETTINGS])
    measure(path, d=args.teacher_d, recipe="teacher")
    source = str(args.out / "teacher")
    teacher = load_gan(source).to(device)
    for recipe in args.recipes.split(","):
        for d in map(int, args.students.split(",")):
            if recipe == "scratch":
                critic = args.scratch_d_width or d
                own = [*architecture(d, critic), ("schedule.kimg", args.kimg), *GAN_SETTINGS]
                path = run(f"d{d}-{recipe}{critic}", recipe, None, own)
            else:
                width = [("student.arch.width", d), ("student.init", "random"), ("schedule.kimg", args.kimg), ("schedule.teacher_pool", 16384)]
                path = run(f"d{d}-{recipe}", recipe, source, [*width])
            measure(path, d=d, recipe=recipe)
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "out", "device")}
    finish("aguinaldo_mnist", {**settings, "seed": 0, "score": extractor.score, "rows": rows})


if __name__ == "__main__":
    main()
