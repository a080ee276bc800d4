"""Students of one teacher by scratch, mse, joint, akdg and dgl on real images: equal sizes, equal images seen, several seeds.

    python benchmarks/adversarial.py NAME DATA OUT [--features digits|MOBILENET.pth] [--nc 1] [--width 32] [--teacher-kimg 300] [--kimg 100]
        [--ch-mul 0.5,0.25] [--recipes scratch,mse,joint,akdg,dgl] [--seeds 0,1,2] [--num-images 5000] [--device auto]

The teacher is a DCGAN of 32 x 32 pixels that is trained by scratch first and keeps its discriminator. All games are non-saturating with R1, so that
no discriminator has BatchNorm; every student starts at random. Distances are taken on the named features to the real images, the paired error to the
teacher's images of the same latents. A second call goes on where the first stopped. The last line printed is one JSON object, which is kept in
results/adversarial_NAME.json; the picture beside the runs shows teacher and students of the first seed.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from common import Notes, arguments, finish, quality, real_features

import gancompress
from gancompress.data import EVALUATION, PICTURES, draw, rng
from gancompress.devices import choose_device
from gancompress.distances import inception_score
from gancompress.extractors import make_extractor
from gancompress.fidelity import paired_fidelity
from gancompress.loading import load_gan
from gancompress.report import save_rows

#: the same for every game, so that what differs is the recipe; not the papers' (their networks and lengths are others)
GAME: dict[str, Any] = {
    "weights.game": "nonsaturating", "weights.r1": 1.0, "weights.r1_every": 1,
    "optim.g_lr": 1e-3, "optim.g_betas": [0.0, 0.99], "optim.d_lr": 1e-3, "optim.d_betas": [0.0, 0.99], "optim.decay": "cosine",
    "student.init": "random", "schedule.batch_size": 64, "schedule.accumulate": 1, "schedule.ema_kimg": 2, "schedule.ema_rampup": 0.05,
    "output.log_kimg": 2, "output.pictures_kimg": 50, "output.save_kimg": 20,
}  # fmt: skip
#: what is each recipe's own
OWN: dict[str, dict[str, Any]] = {
    "scratch": {},
    "mse": {"optim.g_betas": [0.9, 0.999], "schedule.teacher_pool": 16384},
    "joint": {"schedule.teacher_pool": 16384},
    "akdg": {},
    "dgl": {"weights.r1_every": 1, "data.mirror": False, "weights.path_length": 0, "weights.style_mixing": 0},
}


def settings(recipe: str, kimg: float, seed: int) -> dict[str, Any]:
    chosen = {k: v for k, v in GAME.items() if recipe != "mse" or not k.startswith("weights.")}
    chosen |= OWN[recipe] | {"schedule.kimg": kimg, "seed": seed}
    return chosen | ({"weights.guide_from_kimg": kimg / 2} if recipe == "dgl" else {})  # as in the paper's ablation: 15,000 of 30,000


def main() -> None:
    parser = arguments(__doc__, teacher_kimg=300, kimg=100, recipes="scratch,mse,joint,akdg,dgl", num_images=5000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--ch-mul", default="0.5,0.25")
    args = parser.parse_args()
    device = choose_device(args.device)
    extractor = make_extractor(args.features, None, device)
    reference, logits = real_features(args, extractor, device)
    rows: list[dict[str, Any]] = []
    digits = args.features == "digits"
    if digits:
        rows.append({"recipe": "real images", "inception_score": inception_score(logits)})

    def train(name: str, recipe: str, source: str | None, changes: dict[str, Any]) -> Path:
        data = args.data if recipe != "mse" else None
        return gancompress.distill(source, recipe, overrides=changes.items(), data=data, out=args.out / name, device=args.device, reporter=Notes())

    def measure(path: Path, **facts: Any) -> None:
        gan = load_gan(str(path)).to(device)
        row = {**facts, **quality(gan, args.num_images, extractor, reference, device), "paired_mse": None}
        if not digits:
            del row["inception_score"]  # of other features' classes it says nothing
        if facts["recipe"] in ("mse", "joint") and (paired := paired_fidelity(gan, teacher, 1000, EVALUATION, device)):
            row["paired_mse"] = paired["mse"]
        rows.append(row)
        print(row, flush=True)

    shape = {"student.family": "dcgan", "student.arch.resolution": 32, "student.arch.nc": args.nc, "student.arch.width": args.width}
    path = train("teacher", "scratch", None, settings("scratch", args.teacher_kimg, 0) | shape)
    source = str(args.out / "teacher")
    teacher = load_gan(source).to(device)
    measure(path, recipe="teacher", ch_mul=1.0, seed=0)
    shown = teacher.sample(16, rng(0, PICTURES))
    pictures = [("teacher", draw(teacher, *shown, device))]
    for ch_mul in map(float, args.ch_mul.split(",")):
        for recipe in args.recipes.split(","):
            for seed in map(int, args.seeds.split(",")):
                name = f"{recipe}-x{ch_mul:g}-s{seed}"
                path = train(name, recipe, source, settings(recipe, args.kimg, seed) | {"student.ch_mul": ch_mul})
                measure(path, recipe=recipe, ch_mul=ch_mul, seed=seed)
                if seed == int(args.seeds.split(",")[0]):
                    pictures.append((f"{recipe} x{ch_mul:g}", draw(load_gan(str(path)).to(device), *shown, device)))
    save_rows(args.out / "pictures.png", pictures, scale=2)
    facts = {k: v for k, v in vars(args).items() if k not in ("data", "out", "device", "features")}
    summary = []
    for key in dict.fromkeys((r["recipe"], r["ch_mul"]) for r in rows if "seed" in r):
        found = [r["frechet_distance"] for r in rows if (r["recipe"], r.get("ch_mul")) == key]
        summary.append({"recipe": key[0], "ch_mul": key[1], "frechet_distance": statistics.mean(found), "lowest": min(found), "highest": max(found)})
        print(summary[-1])
    finish(f"adversarial_{args.name}", {**facts, "features": extractor.name, "settings": {"game": GAME, **OWN}, "summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
