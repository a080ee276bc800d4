"""Images per second of a teacher drawn live and read from its recording, in each format; as ratios in one run.

    python benchmarks/recorded.py [TEACHER] [--num 4096] [--batch-size 64] [--steps 40] [--rounds 5] [--device auto]

Drawn live: latents from their seed, the generator, images on the device, as a batch of `distill` gets them. Read: the same batch from a
recording of --num pairs, shuffled, decoded by threads and moved to the device. `step` is a training step of recipe mse with the student at
--ch-mul on either. The variants take turns, round by round; the median of the rounds counts. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from common import Notes, finish, take_turns

from gancompress.collecting import prepare, record
from gancompress.data import FALLBACK, LATENTS, Batches
from gancompress.devices import choose_device
from gancompress.loop import Trainer
from gancompress.planning import make_plan
from gancompress.recorded import Feed, RecordedTeacher
from gancompress.request import Request

FORMATS = ("png", "webp-lossless", "float16")


def variants(source: dict[str, str], folder: Path, args: argparse.Namespace, device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
    """(a batch with its teacher images, a training step on such a batch) of a live or a recorded teacher."""
    changes = [("student.ch_mul", args.ch_mul), ("schedule.batch_size", args.batch_size), ("schedule.kimg", 1000)]
    plan = make_plan(Request(recipe="mse", overrides=changes, out=folder / f"run-{len(list(folder.iterdir()))}", device=str(device), **source))
    teacher, schedule, feeds = plan.teacher, plan.recipe.schedule, {}
    assert teacher is not None
    if isinstance(teacher, RecordedTeacher):
        feeds = {name: Feed(teacher.recorded, 0, stream, device) for name, stream in (("pairs", LATENTS), ("others", FALLBACK))}
    teacher.to(device)
    plan.student.to(device)
    batches = Batches(teacher, teacher, None, schedule, mirror=False, seed=0, pool=0, device=device, **feeds)
    trainer, places = Trainer(plan.student, plan.loss, plan.recipe), iter(range(1 << 40))

    def batch() -> None:
        batches(next(places), 0).teacher  # noqa: B018 it is drawn when asked for

    def step() -> None:
        trainer.train_step(batches)

    return batch, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", nargs="?", default="sample:dcgan-mnist")
    parser.add_argument("--num", type=int, default=4096)
    parser.add_argument("--ch-mul", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = choose_device(args.device)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recorded, sizes = {}, {}
        for name in FORMATS:
            began = time.perf_counter()
            path = record(prepare(args.teacher, folder / name, num=args.num, image_format=name, device=args.device), Notes())
            recorded[name] = round(args.num / (time.perf_counter() - began), 1)
            sizes[name] = round(sum(p.stat().st_size for p in path.glob("shard-*")) / args.num)
        sources = {"live": {"teacher": args.teacher}} | {name: {"recorded": str(folder / name)} for name in FORMATS}
        pairs = {name: variants(source, folder, args, device) for name, source in sources.items()}
        turns = {f"{what} {name}": run for name, each in pairs.items() for what, run in zip(("batch", "step"), each, strict=True)}
        seconds = take_turns(turns, args.rounds, device, args.steps, warm=1)
    rates = {what: {name: [args.batch_size / t for t in seconds[f"{what} {name}"]] for name in pairs} for what in ("batch", "step")}
    found = {what: {name: round(median(values), 1) for name, values in by.items()} for what, by in rates.items()}
    ratios = {what: {name: round(median(a / b for a, b in zip(by[name], by["live"], strict=True)), 3) for name in FORMATS} for what, by in rates.items()}
    settings = {k: v for k, v in vars(args).items() if k not in ("teacher", "device")}
    result = {"teacher": Path(args.teacher).name, "bytes_per_pair": sizes, "recording_images_per_s": recorded, "images_per_s": found, "ratio_to_live": ratios}
    finish("recorded", {**settings, **result})


if __name__ == "__main__":
    main()
