"""``gancompress toy``: AKDG's proof on what can be looked at, the 2D Ring of 8 modes and the 2D Grid of 25 (Tsunashima et al. 2020, slides).

A GAN teacher, and a narrower student three times: vanilla (scratch), mse and akdg, by the losses and the loop of every other run. An image is
a point of the plane, (N, 2, 1, 1). The distributions and the count are the field's (Srivastava et al. 2017, VEEGAN, arXiv:1705.07761, §4.1);
the slides publish no settings, so that every other number is ours. The three students are of one size, begin with the same weights, see
equally many points, and have the same optimiser and critics, but that mse has no critic and akdg two.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancompress import console
from gancompress.checkpoint import write_json
from gancompress.config import Recipe, load_recipe
from gancompress.data import EVALUATION, INIT, PICTURES, REAL, Batches, draw, rng, seed_for
from gancompress.errors import StoppedError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN, Batch
from gancompress.loop import train
from gancompress.losses import LOSSES
from gancompress.report import save_scatter

TEACHER_WIDTH, STUDENT_WIDTH, CRITIC_WIDTH = 64, 32, 64
SHAPES: dict[str, Any] = {"resolution": 1, "nc": 2, "nz": 2, "output": "linear", "d_widths": (CRITIC_WIDTH,) * 3}
KIMG = 750.0
#: the teacher sees so many times the points of a student
TEACHER_TIMES = 2
GAME = {"weights.r1": 0.1, "optim.g_betas": [0.0, 0.99], "optim.d_betas": [0.0, 0.99], "optim.d_lr": 2e-3}
COMMON = {"optim.g_lr": 2e-3, "optim.decay": "cosine", "schedule.batch_size": 256, "schedule.accumulate": 1, "schedule.ema_kimg": 10}
#: students: what they are called, and their recipe
STUDENTS = {"vanilla": "scratch", "mse": "mse", "akdg": "akdg"}
SAMPLES = 10_000
#: a mode is covered where it has this share of what an even spread of the samples would give it, in samples of high quality
COVERED = 0.2


@dataclass(frozen=True)
class Toy:
    """A mixture of equally likely round normals. ``modes``: (M, 2), their means."""

    modes: Tensor
    sd: float

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points as images (n, 2, 1, 1)."""
        means = self.modes[torch.randint(len(self.modes), (n,), generator=generator)]
        return (means + self.sd * torch.randn(n, 2, generator=generator))[:, :, None, None]

    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Of points (N, 2): the index of the nearest mode (N,), and whether it is within three standard deviations: of high quality (N,)."""
        distance, index = torch.cdist(points, self.modes).min(1)
        return index, distance <= 3 * self.sd

    def measure(self, points: Tensor) -> dict[str, Any]:
        """``modes`` covered, ``modes_hit`` (at least one sample of high quality: VEEGAN's count) and the share ``high_quality`` of points (N, 2)."""
        index, good = self.nearest(points)
        counts = torch.bincount(index[good], minlength=len(self.modes))
        even = len(points) / len(self.modes)
        return {
            "modes": int((counts >= COVERED * even).sum()),
            "modes_hit": int((counts > 0).sum()),
            "high_quality": round(float(good.float().mean()), 4),
        }


def _ring() -> Toy:
    angles = torch.arange(8) * (math.tau / 8)
    return Toy(torch.stack([angles.cos(), angles.sin()], 1), 0.01)


def _grid() -> Toy:
    places = torch.linspace(-4, 4, 5)
    return Toy(torch.cartesian_prod(places, places), 0.05)


TOYS: dict[str, Callable[[], Toy]] = {"ring": _ring, "grid": _grid}


class Points(Batches):
    """Batches whose real images are points of a toy, drawn anew for each."""

    def __init__(self, toy: Toy, sampler: GAN, teacher: GAN | None, recipe: Recipe, device: torch.device) -> None:
        super().__init__(sampler, teacher, None, recipe.schedule, mirror=False, seed=recipe.seed, pool=0, device=device)
        self.toy = toy

    def __call__(self, step: int, substep: int, part: int = 0) -> Batch:
        batch = super().__call__(step, substep, part)
        generator = rng(self.seed, self.attempt, REAL, step, substep, part)
        return replace(batch, draw_real=lambda: (self.toy.draw(len(batch.inputs), generator).to(self.device), None))


def recipe_of(name: str, kimg: float, seed: int) -> Recipe:
    """A recipe of the package with the toys' numbers."""
    changes: dict[str, Any] = COMMON | ({} if name == "mse" else GAME)
    changes |= {"schedule.kimg": kimg, "seed": seed, "output.log_kimg": kimg / 50, "output.pictures_kimg": kimg, "output.save_kimg": kimg}
    return load_recipe(name, changes.items())


def fit(toy: Toy, width: int, recipe: Recipe, teacher: GAN | None, device: torch.device) -> GAN:
    """A trained MLP GAN of the toy, averaged and frozen.

    Raises:
        StoppedError: SIGINT or SIGTERM; nothing is kept. DivergedError: a loss was not finite twice.
    """
    family = FAMILIES["mlp"]
    arch = family.build_arch(None, SHAPES | {"g_widths": (width,) * 3})
    torch.manual_seed(seed_for(recipe.seed, INIT, width))
    student = GAN(family, arch, family.generator(arch)).to(device)
    loss_type = LOSSES[recipe.loss]
    loss = loss_type(teacher, student, loss_type.Weights.model_validate(recipe.weights)).to(device)  # type: ignore[call-arg]
    sampler = teacher if teacher and "teacher_images" in loss.needs else student
    schedule = recipe.schedule
    try:
        with tempfile.TemporaryDirectory() as folder, console.reporter(schedule.steps, schedule.batch_size) as reporter:
            done = train(student, loss, recipe, Points(toy, sampler, teacher, recipe, device), Path(folder), reporter, device)
    except StoppedError as error:
        raise StoppedError("stopped: a toy keeps nothing of a run that is cut", exit_code=error.exit_code) from None
    done.discriminator = None
    return done.freeze()


def run(name: str, out: Path, *, seed: int, kimg: float, device: torch.device) -> dict[str, Any]:
    """Train the teacher and the students of one toy and write ``out``/NAME.json and NAME.png; returns what the first holds.

    Raises:
        UsageError: no such toy.
    """
    if name not in TOYS:
        raise UsageError(f"no toy {name!r}", f"toys: {', '.join(TOYS)}")
    toy = TOYS[name]()
    out.mkdir(parents=True, exist_ok=True)  # now rather than after minutes, should it not be possible
    console.stderr.print(f"{name}: teacher, {TEACHER_TIMES * kimg:g} kimg", highlight=False)
    networks = {"teacher": fit(toy, TEACHER_WIDTH, recipe_of("scratch", TEACHER_TIMES * kimg, seed), None, device)}
    for label, recipe in STUDENTS.items():
        console.stderr.print(f"{name}: {label} student, {kimg:g} kimg", highlight=False)
        networks[label] = fit(toy, STUDENT_WIDTH, recipe_of(recipe, kimg, seed), networks["teacher"], device)
    points = {"real": toy.draw(SAMPLES, rng(seed, PICTURES)).flatten(1)}
    for label, gan in networks.items():
        points[label] = draw(gan, *gan.sample(SAMPLES, rng(seed, EVALUATION)), device).flatten(1).cpu()
    rows = {label: {"parameters": _parameters(networks.get(label)), **toy.measure(found)} for label, found in points.items()}
    result = {"toy": name, "of_modes": len(toy.modes), "seed": seed, "kimg": kimg, "samples": SAMPLES, "networks": rows}
    write_json(out / f"{name}.json", result)
    titles = {label: f"{label}\n{row['modes']} of {len(toy.modes)} modes, {row['high_quality']:.0%} on a mode" for label, row in rows.items()}
    save_scatter(out / f"{name}.png", [(titles[label], found[:2500], toy.nearest(found[:2500])[1]) for label, found in points.items()])
    return result


def _parameters(gan: GAN | None) -> int | None:
    return sum(p.numel() for p in gan.generator.parameters()) if gan else None


def show(result: Mapping[str, Any]) -> None:
    """The table of one toy."""
    columns = ["", "parameters", f"modes covered, of {result['of_modes']}", "modes hit", "high quality"]
    rows = [
        [label, console.number(row["parameters"] or ""), str(row["modes"]), str(row["modes_hit"]), f"{row['high_quality']:.1%}"]
        for label, row in result["networks"].items()
    ]
    console.stdout.print(console.table(f"2D {result['toy'].title()}", columns, rows))
