"""A grid of students of one teacher: widths, recipes and seeds, one run after the other, and the comparison of them all."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gancompress.comparing import Comparison, measure
from gancompress.comparison import write
from gancompress.config import parse_override
from gancompress.devices import choose_device
from gancompress.errors import GanCompressError, StoppedError, UsageError
from gancompress.extractors import make_extractor
from gancompress.loop import Reporter
from gancompress.planning import Plan, make_plan
from gancompress.request import Request
from gancompress.running import run_plan


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    recipe: str
    ch_mul: float
    seed: int

    @property
    def name(self) -> str:
        return f"{Path(self.recipe).stem}-x{self.ch_mul:g}-seed{self.seed}"


@dataclass
class Sweep:
    """A grid over one teacher; ``words``: further key=value for every run."""

    teacher: str
    cells: list[Cell]
    out: Path
    data: str | None = None
    discriminator: str | None = None
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    words: Sequence[str] = ()

    def plan(self, cell: Cell) -> Plan:
        """Raises GanCompressError where the run cannot be."""
        changes = [*map(parse_override, self.words), ("student.ch_mul", cell.ch_mul), ("seed", cell.seed)]
        try:
            return make_plan(Request(
                self.teacher, cell.recipe, overrides=changes, data=self.data, out=self.out / cell.name, device=self.device,
                discriminator=self.discriminator, reader_options=dict(self.reader_options),
            ))  # fmt: skip
        except GanCompressError as error:
            error.args = (f"{cell.name}: {error}",)
            raise

    def command(self, cell: Cell) -> str:
        """The ``gancompress distill`` that does the same, for a shell."""
        words = ["gancompress", "distill", self.teacher, *self.words, "--recipe", cell.recipe, "--ch-mul", f"{cell.ch_mul:g}", "--seed", str(cell.seed)]
        for flag, value in (("--data", self.data), ("--discriminator", self.discriminator), ("--out", str(self.out / cell.name))):
            words += [flag, value] if value else []
        for key, value in self.reader_options.items():
            words += ["--reader", f"{key}={value}"]
        return shlex.join([*words, *(["--device", self.device] if self.device != "auto" else [])])


def grid(ch_muls: str, recipes: str, seeds: int) -> list[Cell]:
    """Every combination of ``0.5,0.25``, ``mse,dgl`` and the seeds 0 ... seeds - 1, widths outermost.

    Raises:
        UsageError: a width that is no number in (0, 1], the same one twice, or none.
    """
    widths: list[float] = []
    for text in filter(None, map(str.strip, ch_muls.split(","))):
        try:
            width = float(text)
        except ValueError:
            width = 0.0
        if not 0 < width <= 1:
            raise UsageError(f"--ch-mul {ch_muls}: {text!r} is no width in (0, 1]", "for example --ch-mul 0.5,0.25,0.125")
        widths.append(width)
    names = [name for name in map(str.strip, recipes.split(",")) if name]
    cells = [Cell(recipe, width, seed) for width in widths for recipe in names for seed in range(seeds)]
    if not cells:
        raise UsageError(f"--ch-mul {ch_muls!r} --recipes {recipes!r}: no run to make", "for example --ch-mul 0.5,0.25 --recipes mse")
    if len({cell.name for cell in cells}) < len(cells):
        raise UsageError(f"--ch-mul {ch_muls} --recipes {recipes}: the same run twice", "name each width and each recipe once")
    return cells


def run_sweep(
    sweep: Sweep,
    reporter_of: Callable[[Plan], AbstractContextManager[Reporter]],
    say: Callable[[str], None],
    *,
    num_images: int,
    feature_extractor: str | None,
) -> tuple[Comparison | None, list[tuple[Cell, GanCompressError]]]:
    """Plan every run, then make or resume them one after the other, and write compare.html and compare.json of teacher and finished students.

    Args:
        reporter_of: shows the progress of a run.
        say: takes a line about a run that begins, is finished already or failed.

    Returns:
        The comparison, None where no run was finished; the runs that failed, such as diverged ones.

    Raises:
        GanCompressError: some run cannot be, or the features cannot be had (nothing is trained then), or a signal stopped one (the same command goes on).
    """
    for cell in sweep.cells:  # refused before the first is trained; not kept, for each holds its teacher and student
        sweep.plan(cell)
    if feature_extractor:
        make_extractor(feature_extractor, None, choose_device(sweep.device))
    finished: list[Cell] = []
    failed: list[tuple[Cell, GanCompressError]] = []
    for i, cell in enumerate(sweep.cells, 1):
        try:
            plan = sweep.plan(cell)
            say(f"run {i} of {len(sweep.cells)}: {cell.name}" + (", finished already" if plan.finished else ", goes on" if plan.resumes else ""))
            with reporter_of(plan) as reporter:
                run_plan(plan, reporter)
            finished.append(cell)
        except StoppedError as error:
            error.hint = "the same command goes on"
            raise
        except GanCompressError as error:
            say(f"{cell.name} failed: {error}")
            failed.append((cell, error))
    if not finished:
        return None, failed
    sources = [sweep.teacher, *(str(sweep.out / cell.name) for cell in finished)]
    options: dict[str, Any] = {"data": sweep.data, "num_images": num_images, "feature_extractor": feature_extractor, "device": sweep.device}
    found = measure(sources, reader_options=sweep.reader_options, **options)
    found.result["notes"] += [f"{cell.name} failed: {error}" for cell, error in failed]
    for name in ("compare.json", "compare.html"):
        write(sweep.out / name, found.result, found.pictures, found.panels)
    return found, failed


def failure(failed: Sequence[tuple[Cell, GanCompressError]], total: int) -> GanCompressError:
    """One error for all runs that failed, with the exit code of the first."""
    first = failed[0][1]
    text = f"{len(failed)} of {total} runs failed: " + "; ".join(f"{cell.name}: {error}" for cell, error in failed)
    error = GanCompressError(text, first.hint)
    error.exit_code = first.exit_code
    return error
