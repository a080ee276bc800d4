"""TinyGAN's distillation terms on a recorded teacher: all of them, each left out, pixels alone and mse, at equal images seen.

    python benchmarks/tinygan.py NAME TEACHER OUT --features digits|MOBILENET.pth [--num 20000] [--kimg 12] [--width 16] [--data LABELLED]
        [--lr 1e-3] [--batch-size 16] [--rows all,...] [--seeds 0] [--num-images 2000] [--device auto]

The teacher is recorded once (collect, --num pairs of 8 bits), and every student, a depthwise TinyGAN of so many channels, is trained on the recording
alone, with real images for the two terms of the real distribution where --data names some. Learning rate and length are ours, the same for every
row: the paper's 742,000 steps are out of reach of a CPU. Distances on the named features: to other samples of the teacher (with the teacher's own as
the floor), of a conditional teacher class by class too. A second call goes on where the first stopped. The last line printed is one JSON object, kept
in results/tinygan_NAME.json; the picture beside the runs shows the teacher and the students of the first seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import Notes, finish

import gancompress
from gancompress.classwise import evaluate_classes
from gancompress.collecting import collect
from gancompress.data import EVALUATION, PICTURES, draw, rng
from gancompress.devices import choose_device
from gancompress.distances import frechet_distance
from gancompress.extractors import make_extractor
from gancompress.fidelity import features_of, generated, paired_fidelity
from gancompress.loading import load_gan
from gancompress.report import save_rows

#: the rows of the paper's Table 2 that its terms allow, and mse
ROWS: dict[str, dict[str, Any]] = {
    "all terms": {},
    "without features": {"weights.feat": 0},
    "without adversarial distillation": {"weights.kd": 0, "weights.d_kd": 0},
    "without the real distribution": {"weights.gan": 0, "weights.d_gan": 0},
    "pixels alone": {"weights.feat": 0, "weights.kd": 0, "weights.gan": 0, "weights.pix_until": None},
    "mse": {},
}
OF_REAL = "without the real distribution"  # a row only where there are real images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("teacher")
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", required=True)
    parser.add_argument("--num", type=int, default=20000)
    parser.add_argument("--kimg", type=float, default=12)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--data")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = choose_device(args.device)
    teacher, extractor = load_gan(args.teacher).to(device), make_extractor(args.features, None, device)
    recorded = collect(args.teacher, args.out / "pairs", num=args.num, device=args.device, reporter=Notes())
    classes = list(range(teacher.arch.classes))
    reference = features_of(generated(teacher, args.num_images, 1, device), extractor)[0]
    floor = frechet_distance(features_of(generated(teacher, args.num_images, 0, device), extractor)[0], reference)
    rows: list[dict[str, Any]] = [{"row": "teacher", "parameters": sum(p.numel() for p in teacher.generator.parameters()), "frechet_distance": floor}]
    shown = teacher.sample(12, rng(0, PICTURES))
    pictures = [("teacher", draw(teacher, *shown, device))]

    def train(row: str, seed: int) -> str:
        recipe = "mse" if row == "mse" else "tinygan-blackbox"
        changes = {"student.family": "tinygan", "student.ch_mul": 1.0, "student.arch.width": args.width, "student.init": "random", "seed": seed}
        changes |= {"optim.g_lr": args.lr, "schedule.kimg": args.kimg, "schedule.batch_size": args.batch_size, "output.pictures_kimg": 1e6}
        changes |= {"output.save_kimg": 4, "output.log_kimg": 1, "optim.decay": "cosine", "schedule.ema_kimg": 1}
        changes |= {} if row == "mse" else {"optim.d_lr": args.lr}
        out = args.out / f"{row.replace(' ', '-')}-{seed}"
        data = args.data if row != "mse" else None
        changes |= ROWS[row]
        path = gancompress.distill(None, recipe, overrides=changes.items(), recorded=recorded, data=data, out=out, device=args.device, reporter=Notes())
        return str(path)

    for row in args.rows.split(","):
        if row == OF_REAL and not args.data:
            continue
        for seed in map(int, args.seeds.split(",")):
            student = load_gan(train(row, seed)).to(device)
            paired = paired_fidelity(student, teacher, 1000, EVALUATION, device) or {}
            found: dict[str, Any] = {"row": row, "seed": seed, "parameters": sum(p.numel() for p in student.generator.parameters())}
            found["frechet_distance"] = frechet_distance(features_of(generated(student, args.num_images, 0, device), extractor)[0], reference)
            found |= {"paired_mse": paired.get("mse"), "ssim": paired.get("ssim")}
            if classes:
                protocol: dict[str, Any] = {"num_images": max(2, args.num_images // 10), "seed": 0, "device": device}
                found["within_classes"] = evaluate_classes(student, teacher, None, extractor, classes, **protocol)["student"]
            rows.append(found)
            print(found, flush=True)
            if seed == int(args.seeds.split(",")[0]):
                pictures.append((row, draw(student, *shown, device)))
    save_rows(args.out / "pictures.png", pictures)
    facts = {k: v for k, v in vars(args).items() if k not in ("out", "teacher", "device", "features", "data")}
    result = {**facts, "features": extractor.name, "real_images": bool(args.data), "rows": rows}
    finish(f"tinygan_{args.name}", result)


if __name__ == "__main__":
    main()
