"""From an SNGAN teacher to a DCGAN and an MLP: akdg beside scratch and mse, on real images, from a recording of the teacher.

    python benchmarks/cross.py NAME DATA OUT [--features digits|MOBILENET.pth] [--nc 1] [--teacher-kimg 30] [--num 20000] [--kimg 20]
        [--students dcgan,mlp] [--recipes scratch,mse,akdg] [--seeds 0,1,2] [--num-images 3000] [--device auto]

The teacher, 32 channels at 32 x 32 pixels with a critic of 16, is trained by scratch (hinge, spectral norm) and recorded once; no student sees more
of it. Games, rates and the critics' R1 are those of adversarial.py. Distances on the named features to the real images. A second call goes on where
the first stopped. The last line printed is one JSON object, kept in results/cross_NAME.json; the picture beside the runs shows samples of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adversarial import settings
from common import Notes, arguments, finish, quality, real_features

import gancompress
from gancompress.collecting import collect
from gancompress.data import PICTURES, draw, rng
from gancompress.devices import choose_device
from gancompress.extractors import make_extractor
from gancompress.loading import load_gan
from gancompress.report import save_rows

TEACHER: dict[str, Any] = {
    "student.family": "sngan", "student.arch.resolution": 32, "student.arch.width": 32, "student.arch.d_width": 16, "weights.game": "hinge",
    "optim.g_lr": 5e-4, "optim.g_betas": [0.0, 0.9], "optim.d_lr": 5e-4, "optim.d_betas": [0.0, 0.9], "schedule.batch_size": 64,
    "schedule.ema_kimg": 2, "output.pictures_kimg": 1e6, "output.save_kimg": 5,
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, teacher_kimg=30, kimg=20, recipes="scratch,mse,akdg", num_images=3000)
    parser.add_argument("--num", type=int, default=20000)
    parser.add_argument("--students", default="dcgan,mlp")
    args = parser.parse_args()
    device = choose_device(args.device)
    extractor = make_extractor(args.features, None, device)
    reference, _ = real_features(args, extractor, device)
    changes = TEACHER | {"student.arch.nc": args.nc, "schedule.kimg": args.teacher_kimg}
    teacher = gancompress.distill(None, "scratch", overrides=changes.items(), data=args.data, out=args.out / "teacher", device=args.device, reporter=Notes())
    rows: list[dict[str, Any]] = []
    pictures = []

    def measure(path: Path, name: str, seed: int, **facts: Any) -> None:
        gan = load_gan(str(path)).to(device)
        rows.append({**facts, "seed": seed, **quality(gan, args.num_images, extractor, reference, device)})
        print(rows[-1], flush=True)
        if not seed:
            pictures.append((name, draw(gan, *gan.sample(16, rng(0, PICTURES)), device)))

    measure(teacher, "teacher", 0, recipe="teacher", student="sngan")
    recorded = collect(str(teacher.parent), args.out / "pairs", num=args.num, device=args.device, reporter=Notes())
    for student in args.students.split(","):
        for recipe in args.recipes.split(","):
            for seed in map(int, args.seeds.split(",")):
                own = settings(recipe, args.kimg, seed) | {"student.family": student, "output.pictures_kimg": 1e6, "schedule.teacher_pool": 0}
                own |= {"student.ch_mul": 1.0, "student.arch.width": 16} if student == "dcgan" else {"student.ch_mul": 0.5}
                source: dict[str, Any] = {} if recipe == "scratch" else {"recorded": recorded}
                if recipe == "scratch":
                    own |= {"student.arch.resolution": 32, "student.arch.nc": args.nc, "student.arch.nz": 128}
                data, out = args.data if recipe != "mse" else None, args.out / f"{recipe}-{student}-{seed}"
                path = gancompress.distill(None, recipe, overrides=own.items(), data=data, out=out, device=args.device, reporter=Notes(), **source)
                measure(path, f"{student} {recipe}", seed, recipe=recipe, student=student)
    save_rows(args.out / "pictures.png", pictures, scale=2)
    facts = {k: v for k, v in vars(args).items() if k not in ("data", "out", "device", "features")}
    finish(f"cross_{args.name}", {**facts, "features": extractor.name, "teacher_settings": TEACHER, "rows": rows})


if __name__ == "__main__":
    main()
