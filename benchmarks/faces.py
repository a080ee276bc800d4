"""The trained faces DCGAN distilled by mse: three ways to start a student at equal images seen, several seeds.

    python benchmarks/faces.py dcgan_faces64.tar mobilenet_v2_imagenet.pth OUT [--kimg 12] [--seeds 3] [--num-images 1000]

For ch_mul 0.25 every start and seed, for 0.5 every start with one seed. Reports the paired MSE on 1,000 fresh latents and, for the first seed, the Frechet
distance (MobileNetV2 features, not FID) to the teacher's own samples, with the teacher's distance to itself as the floor.
A second call goes on where the first stopped. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

import torch
from common import Notes, finish

import gancompress
from gancompress.data import EVALUATION
from gancompress.distances import frechet_distance
from gancompress.extractors import make_extractor
from gancompress.fidelity import features_of, generated, paired_fidelity
from gancompress.loading import load_gan

STARTS = ("random", "slice", "top-magnitude")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("mobilenet")
    parser.add_argument("out", type=Path)
    parser.add_argument("--kimg", type=float, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=1000)
    args = parser.parse_args()
    cpu = torch.device("cpu")
    teacher, extractor = load_gan(args.teacher), make_extractor(args.mobilenet, None, cpu)
    reference = features_of(generated(teacher, args.num_images, 1, cpu), extractor)[0]
    floor = frechet_distance(features_of(generated(teacher, args.num_images, 0, cpu), extractor)[0], reference)
    rows = []
    plan = [(0.25, init, seed) for seed in range(args.seeds) for init in STARTS] + [(0.5, init, 0) for init in STARTS]
    for ch_mul, init, seed in plan:
        overrides = [("student.ch_mul", ch_mul), ("student.init", init), ("schedule.kimg", args.kimg), ("seed", seed)]
        path = gancompress.distill(args.teacher, "mse", overrides=overrides, out=args.out / f"x{ch_mul}-{init}-{seed}", device="cpu", reporter=Notes())
        student = load_gan(str(path))
        paired = paired_fidelity(student, teacher, 1000, EVALUATION, cpu)
        assert paired is not None
        row = {"ch_mul": ch_mul, "init": init, "seed": seed, "paired_mse": paired["mse"], "ssim": paired["ssim"]}
        if seed == 0:
            row["frechet_distance"] = frechet_distance(features_of(generated(student, args.num_images, 0, cpu), extractor)[0], reference)
        rows.append(row)
        print(rows[-1], flush=True)
    means = {}
    for init in STARTS:
        mse = [r["paired_mse"] for r in rows if r["init"] == init and r["ch_mul"] == 0.25]
        means[init] = {"mean": mean(mse), "sd": stdev(mse) if len(mse) > 1 else None}
    finish("faces", {"kimg": args.kimg, "num_images": args.num_images, "features": "mobilenet-v2", "floor": floor, "paired_mse_at_0.25": means, "rows": rows})


if __name__ == "__main__":
    main()
