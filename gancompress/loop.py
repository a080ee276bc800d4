"""The training loop of every recipe: critic steps, student step, average, log, pictures, state."""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gancompress.checkpoint import atomic_write, load_state, save_state, write_failure
from gancompress.config import Recipe
from gancompress.data import PICTURES, STEP, Batches, draw, rng, seed_for
from gancompress.errors import DivergedError, StoppedError
from gancompress.gan import GAN
from gancompress.losses.base import DistillationLoss

#: steps after which a person is first told how long it will take
FIRST_LOOK = 5


class Reporter(Protocol):
    """What the loop tells a person."""

    def progress(self, step: int, terms: dict[str, float], images_per_second: float) -> None: ...

    def note(self, text: str) -> None: ...


class StopRequest:
    """Set by SIGINT or SIGTERM, looked at between steps. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @contextmanager
    def installed(self) -> Iterator[StopRequest]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Ema:
    """Exponential moving average of the student, its buffers included."""

    def __init__(self, net: nn.Module, half_life_kimg: float, rampup: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.half_life, self.rampup = half_life_kimg, rampup

    @torch.no_grad()
    def update(self, net: nn.Module, images: int, batch_size: int) -> None:
        """Half-life ``ema_kimg``, or ``ema_rampup`` of the images seen while that is shorter (Karras et al. 2020, ADA, code)."""
        half_life = min(self.half_life, self.rampup * images / 1000) if self.rampup else self.half_life
        beta = 0.5 ** (batch_size / 1000 / half_life) if half_life > 0 else 0.0
        for mine, new in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new.to(mine.dtype), 1 - beta)
            else:
                mine.copy_(new)


class Trainer:
    """All that changes during a run, so that it can be saved and brought back."""

    def __init__(self, student: GAN, loss: DistillationLoss, recipe: Recipe) -> None:
        self.student, self.loss, self.recipe = student.generator, loss, recipe
        self.ema = Ema(self.student, recipe.schedule.ema_kimg, recipe.schedule.ema_rampup)
        optim = recipe.optim
        self.g_opt = torch.optim.Adam(self.student.parameters(), optim.g_lr, betas=optim.g_betas)
        critics = list(loss.critics.parameters())
        self.d_opt = torch.optim.Adam(critics, optim.d_lr, betas=optim.d_betas) if critics else None
        self.step = 0
        self.attempt = 0
        self.sums: dict[str, Tensor] = {}  # of each term since the last log line
        self.first_bad = torch.tensor(-1, device=next(self.student.parameters()).device)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs; random numbers and the place in the data are functions of seed, attempt and step."""
        return {
            "step": self.step,
            "attempt": self.attempt,
            "seed": self.recipe.seed,
            "student": self.student.state_dict(),
            "ema": self.ema.net.state_dict(),
            "critics": self.loss.critics.state_dict(),
            "g_opt": self.g_opt.state_dict(),
            "d_opt": self.d_opt.state_dict() if self.d_opt else None,
            "sums": self.sums,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.attempt = state["step"], state["attempt"]
        self.student.load_state_dict(state["student"])
        self.ema.net.load_state_dict(state["ema"])
        self.loss.critics.load_state_dict(state["critics"])
        self.g_opt.load_state_dict(state["g_opt"])
        if self.d_opt:
            self.d_opt.load_state_dict(state["d_opt"])
        self.sums = {k: v.to(self.first_bad.device) for k, v in state["sums"].items()}
        self.first_bad.fill_(-1)

    def bad_step(self, check_weights: bool) -> int | None:
        """The first step whose loss, or the last one after which a weight, was not finite; None where all is well.

        Weights are looked at before they are saved: a finite loss may have had a gradient that was not.
        """
        if (bad := int(self.first_bad)) >= 0:
            return bad
        saved = [self.student, self.ema.net, self.loss.critics] if check_weights else []
        tensors = [t for net in saved for t in net.state_dict().values() if t.is_floating_point()]
        return None if all(bool(torch.isfinite(t).all()) for t in tensors) else self.step - 1

    def train_step(self, batches: Batches) -> None:
        """Critic steps, then one student step; the last critic step and the student's share their fake images."""
        schedule, optim = self.recipe.schedule, self.recipe.optim
        progress = self.step / schedule.steps
        decay = 0.5 * (1 + math.cos(math.pi * progress)) if optim.decay == "cosine" else 1.0
        torch.manual_seed(seed_for(self.recipe.seed, self.attempt, STEP, self.step))
        for substep in range(schedule.d_steps):
            last = substep == schedule.d_steps - 1
            batch = batches(self.step, substep, progress)
            with torch.set_grad_enabled(last):
                fake = self.student(batch.inputs, batch.condition)
            if self.d_opt:
                self.loss.critics.requires_grad_(True)
                terms = self.loss.discriminator_loss(batch, fake.detach())
                self._update(self.d_opt, terms, optim.d_lr * decay)
                self.loss.after_discriminator_step()
                if last:
                    self._record(terms)
                self.loss.critics.requires_grad_(False)
        terms = self.loss.generator_loss(batch, fake)
        self._update(self.g_opt, terms, optim.g_lr * decay)
        self._record(terms)
        self.step += 1
        self.ema.update(self.student, self.step * schedule.batch_size, schedule.batch_size)

    def _update(self, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        # noted on the device without waiting for it: the host looks only when it writes
        bad = ~torch.isfinite(total.detach()) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, self.step, self.first_bad)
        optimizer.step()

    def _record(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()

    def take_means(self, steps: int) -> dict[str, float]:
        means = {name: float(value) / steps for name, value in self.sums.items()}
        self.sums = {}
        return means


class Log:
    """log.jsonl; lines after the step of a resumed state are taken back."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Forget the lines after ``step``."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        atomic_write(self.path, "".join(kept).encode())

    def write(self, **entry: Any) -> None:
        line = json.dumps(entry) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise write_failure(self.path, len(line), error) from None


def _every(kimg: float, batch_size: int) -> int:
    return max(1, round(kimg * 1000 / batch_size))


def train(
    student: GAN, teacher: GAN | None, loss: DistillationLoss, recipe: Recipe, batches: Batches, run_dir: Path, reporter: Reporter, device: torch.device
) -> GAN:
    """Train ``student`` to the end of the schedule and return it with its averaged weights.

    ``run_dir`` gets log.jsonl, samples/*.png and state.pt. A state already there is gone on from; on a CPU the result is then
    bitwise that of an unbroken run.

    Raises:
        StoppedError: SIGINT or SIGTERM; the state is saved. DivergedError: a second non-finite loss; state.pt is the last good one.
    """
    from gancompress.report import save_comparison

    state_path = run_dir / "state.pt"
    trainer = Trainer(student, loss, recipe)
    if state_path.is_file():
        trainer.load_state(load_state(state_path))
        reporter.note(f"going on at step {trainer.step:,} of {recipe.schedule.steps:,}")
    else:
        save_state(state_path, trainer.state())
    log = Log(run_dir / "log.jsonl", trainer.step)
    n, steps = recipe.schedule.batch_size, recipe.schedule.steps
    log_every, picture_every, save_every = (_every(k, n) for k in (recipe.output.log_kimg, recipe.output.pictures_kimg, recipe.output.save_kimg))
    shown = batches.sampler.sample(16, rng(recipe.seed, PICTURES))
    averaged = GAN(student.family, student.arch, trainer.ema.net)
    paired = draw(teacher, *shown, device) if teacher and "teacher_images" in loss.needs else None
    clock, clock_step, first_step = time.monotonic(), trainer.step, trainer.step

    with StopRequest().installed() as stop:
        while trainer.step < steps:
            batches.attempt = trainer.attempt
            trainer.train_step(batches)
            step = trainer.step
            stopped = stop.signal  # looked at once: what comes later in this step waits for the next
            logs, saves, ends = step % log_every == 0, step % save_every == 0, step == steps or bool(stopped)
            if step == first_step + FIRST_LOOK and not (logs or ends):
                int(trainer.first_bad)  # waits for the device, so that the clock is right
                reporter.progress(step, {}, FIRST_LOOK * n / max(time.monotonic() - clock, 1e-9))
            if not (logs or saves or ends or step % picture_every == 0):
                continue
            if (bad := trainer.bad_step(check_weights=saves or ends)) is not None:
                _roll_back(trainer, state_path, bad, log, reporter)
                clock, clock_step = time.monotonic(), trainer.step
                continue
            if logs or step == steps:
                since = step % log_every or log_every
                rate = (step - clock_step) * n / max(time.monotonic() - clock, 1e-9)
                means = trainer.take_means(since)
                log.write(step=step, kimg=step * n / 1000, **means, images_per_s=round(rate, 1))
                reporter.progress(step, means, rate)
            if step % picture_every == 0 or step == steps:
                images = draw(averaged, *shown, device)
                save_comparison(run_dir / "samples" / f"step-{step:07d}.png", paired, images)
                if paired is not None:
                    log.write(step=step, kimg=step * n / 1000, paired_mse=float((images - paired).square().mean()))
            if saves or ends:
                save_state(state_path, trainer.state())
            if logs:
                clock, clock_step = time.monotonic(), step  # pictures and states are no part of the speed
            if stopped and step < steps:
                name = signal.Signals(stopped).name
                code = 130 if stopped == signal.SIGINT else 75
                raise StoppedError(f"stopped by {name} at step {step:,} of {steps:,}; the state is saved in {run_dir}", exit_code=code)
    averaged.discriminator = loss.critics["student"].eval() if "student" in loss.critics else None
    return averaged


def _roll_back(trainer: Trainer, state_path: Path, bad: int, log: Log, reporter: Reporter) -> None:
    """Back to the last good state, once; with other data from there on.

    Raises:
        DivergedError: it was done before.
    """
    retried = trainer.attempt > 0
    trainer.load_state(load_state(state_path))
    if retried:
        raise DivergedError(
            f"a loss or a weight was not finite again at step {bad + 1:,}; the last good state is of step {trainer.step:,}",
            "lower optim.g_lr or optim.d_lr, and start in a new --out",
        )
    trainer.attempt = 1
    save_state(state_path, trainer.state())
    log.rewind(trainer.step)
    log.write(step=trainer.step, event="rolled back", non_finite_at_step=bad + 1)
    reporter.note(f"a loss or a weight was not finite at step {bad + 1:,}: going back to step {trainer.step:,}, with other random numbers from there")
