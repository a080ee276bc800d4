"""Images per second of mse on a teacher: drawn live, reused from a pool, and by a plain loop written without us; as ratios in one run.

    python benchmarks/throughput.py TEACHER [--ch-mul 0.25] [--batch-size 32] [--steps 60] [--rounds 5] [--device auto]

The plain loop is what one writes in a notebook: teacher under no_grad, student, MSE, Adam, the teacher and student networks being the same
modules. The variants take turns, round by round, so that the machine's moods hit all alike; the median of the rounds counts.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from common import finish, take_turns
from torch.nn.functional import mse_loss

from gancompress.data import Batches
from gancompress.devices import choose_device
from gancompress.loading import load_gan
from gancompress.loop import Trainer
from gancompress.planning import make_plan
from gancompress.request import Request


def ours(teacher: str, args: argparse.Namespace, device: torch.device, pool: int) -> Callable[[], None]:
    """One step of our loop."""
    with TemporaryDirectory() as folder:
        changes = [("student.ch_mul", args.ch_mul), ("schedule.batch_size", args.batch_size), ("schedule.kimg", 1000)]
        plan = make_plan(Request(teacher, "mse", overrides=[*changes, ("schedule.teacher_pool", pool)], out=Path(folder) / "run", device=str(device)))
    assert plan.teacher is not None
    plan.teacher.to(device)
    plan.student.to(device)
    batches = Batches(plan.teacher, plan.teacher, None, plan.recipe.schedule, mirror=False, seed=0, pool=pool, device=device)
    trainer = Trainer(plan.student, plan.loss, plan.recipe)
    for _ in range(pool // args.batch_size):  # the pool is drawn once in a run; what is measured is the rest of it
        trainer.train_step(batches)
    return lambda: trainer.train_step(batches)


def plain(teacher: str, args: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """One step of a loop that knows nothing of us but the two modules."""
    gan = load_gan(teacher).to(device)
    student = gan.family.generator(gan.family.scale(gan.arch, args.ch_mul)).to(device)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)

    def step() -> None:
        z = torch.randn(args.batch_size, gan.arch.nz, device=device)
        with torch.no_grad():
            target = gan.generator(z)
        optimizer.zero_grad()
        mse_loss(student(z), target).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--ch-mul", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = choose_device(args.device)
    variants = {
        "plain": plain(args.teacher, args, device),
        "live": ours(args.teacher, args, device, 0),
        "reused": ours(args.teacher, args, device, 32 * args.batch_size),
    }
    seconds = take_turns(variants, args.rounds, device, args.steps, warm=1)
    rates = {name: [args.batch_size / t for t in each] for name, each in seconds.items()}
    found = {name: round(median(values), 1) for name, values in rates.items()}
    ratios = {name: round(median(a / b for a, b in zip(rates[name], rates["plain"], strict=True)), 3) for name in ("live", "reused")}
    settings = {k: v for k, v in vars(args).items() if k not in ("teacher", "device")}
    finish("throughput", {**settings, "teacher": Path(args.teacher).name, "images_per_s": found, "ratio_to_plain": ratios})


if __name__ == "__main__":
    main()
