"""What a person sees: progress and notes on stderr, tables on stdout; plain lines where it is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gancompress.errors import printable


class _Console(Console):
    """Shows what names and settings of files hold without obeying it."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o, lines=True) if isinstance(o, str) else o for o in objects), **options)


stdout = _Console(soft_wrap=not sys.stdout.isatty())
stderr = _Console(stderr=True, soft_wrap=not sys.stderr.isatty())


class Silent:
    """Says nothing; for use from Python."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def progress(self, step: int, terms: dict[str, float], images_per_second: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Plain:
    """One line at most every ten seconds."""

    def __init__(self, steps: int, batch_size: int, unit: str) -> None:
        self.steps, self.batch_size, self.unit, self.last = steps, batch_size, unit, 0.0

    def progress(self, step: int, terms: dict[str, float], images_per_second: float) -> None:
        now = time.monotonic()
        if now - self.last < 10 and step < self.steps and self.last:
            return
        self.last = now
        left = (self.steps - step) * self.batch_size / images_per_second
        said = "  ".join(f"{k} {v:.4g}" for k, v in terms.items())
        stderr.print(f"{self.unit} {step}/{self.steps}  {images_per_second:.0f} images/s  {duration(left)} left  {said}", highlight=False)

    def note(self, text: str) -> None:
        stderr.print(text, highlight=False, markup=False)

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class Live(Plain):
    """A bar that moves, with images/s, time left and every loss term."""

    def __init__(self, steps: int, batch_size: int, unit: str) -> None:
        super().__init__(steps, batch_size, unit)
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[said]}"))
        self.bar = Progress(*columns, console=stderr)
        self.task = self.bar.add_task("", total=steps, said="")

    def progress(self, step: int, terms: dict[str, float], images_per_second: float) -> None:
        said = "  ".join(f"{k} {v:.4g}" for k, v in terms.items())
        self.bar.update(self.task, completed=step, said=f"{images_per_second:.0f} images/s  {said}")

    def note(self, text: str) -> None:
        self.bar.console.print(text, highlight=False, markup=False)

    def __enter__(self) -> Live:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()


def reporter(steps: int, batch_size: int, unit: str = "step") -> Plain:
    return (Live if stderr.is_terminal else Plain)(steps, batch_size, unit)


def number(value: Any) -> str:
    """Counts with separators, large ones in M and G beside; fractions with four digits."""
    if isinstance(value, int):
        return f"{value:,}" + (f" ({value / 1e9:.3g} G)" if value >= 1e9 else f" ({value / 1e6:.3g} M)" if value >= 1e7 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    made = Table(title=escape(title), title_justify="left", title_style="bold", header_style="", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(escape(printable(cell)) for cell in row))
    return made
