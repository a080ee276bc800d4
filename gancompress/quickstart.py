"""``gancompress quickstart``: the whole journey on the bundled teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from gancompress import console
from gancompress.checkpoint import unused
from gancompress.data import PICTURES, draw, rng
from gancompress.devices import choose_device
from gancompress.exporter import export
from gancompress.extractors import Digits
from gancompress.loading import load_gan
from gancompress.metrics import evaluate
from gancompress.planning import make_plan
from gancompress.report import save_rows
from gancompress.request import Request
from gancompress.running import run_plan
from gancompress.screens import show_evaluation, show_plan

TEACHER = "sample:dcgan-mnist"


def run(out: Path) -> Path:
    """Distil, evaluate and export the bundled teacher at a quarter of its width; returns the folder.

    Raises:
        GanCompressError: as the commands it stands for.
    """
    folder = unused(out)
    device = choose_device("auto")
    commands = [
        f"gancompress distill {TEACHER} --recipe mse --ch-mul 0.25 --kimg 60 --out {folder}/run",
        f"gancompress eval {folder}/run --feature-extractor digits --num-images 2000",
        f"gancompress export {folder}/run --out {folder}/export",
    ]
    console.stdout.print(f"[bold]$ {commands[0]}[/bold]", highlight=False)
    plan = make_plan(Request(TEACHER, "mse", overrides=[("student.ch_mul", 0.25), ("schedule.kimg", 60)], out=folder / "run"))
    show_plan(plan)
    with console.reporter(plan.recipe.schedule.steps, plan.recipe.schedule.batch_size) as reporter:
        run_plan(plan, reporter)
    console.stdout.print(f"\n[bold]$ {commands[1]}[/bold]", highlight=False)
    student, teacher = load_gan(str(folder / "run")), load_gan(TEACHER)
    result = evaluate(student, teacher, num_images=2000, extractor=Digits(device), device=device)
    result["source"] = "before and after"
    show_evaluation(result)
    console.stdout.print(f"\n[bold]$ {commands[2]}[/bold]", highlight=False)
    export(str(folder / "run"), folder / "export")
    inputs, condition = teacher.sample(32, rng(1, PICTURES))
    rows: list[tuple[str, torch.Tensor]] = []
    for part in range(0, 32, 16):
        rows += [(name, draw(gan, inputs[part : part + 16], condition, device)) for name, gan in (("teacher", teacher), ("student", student))]
    save_rows(folder / "teacher-and-student.png", rows, gaps_after=(1,))
    console.stdout.print(f"exported: {folder / 'export'}\npicture:  {folder / 'teacher-and-student.png'}", highlight=False)
    console.stdout.print("next:     gancompress inspect YOUR_TEACHER.pt, then gancompress distill YOUR_TEACHER.pt --recipe mse --ch-mul 0.5", highlight=False)
    return folder
