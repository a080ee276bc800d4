"""The training loop of every recipe: critic steps, student step, average, log, pictures, state."""

from __future__ import annotations

import copy
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gancompress import distributed as ranks
from gancompress.checkpoint import atomic_write, has_state, newest_state, save_networks, save_state, write_failure
from gancompress.config import Recipe, Schedule
from gancompress.data import STANDING, STEP, Batches, draw, rng, seed_for
from gancompress.distances import COLLAPSED, spread
from gancompress.errors import DivergedError, StoppedError, ToldElsewhereError
from gancompress.gan import GAN, Batch, BothWays, one_way
from gancompress.losses.base import DistillationLoss
from gancompress.speed import applied

#: steps after which a person is first told how long it will take
FIRST_LOOK = 5
#: how often a run goes back before it ends as diverged
RETRIES = 2
#: a float16 run whose gradients still overflow when they are scaled by so little is as one whose loss is not finite
LEAST_SCALE = 2.0**-10


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
    """Exponential moving average of a network, its buffers included. ``of`` stays where it is: its tensors are found once, which takes a while."""

    def __init__(self, of: nn.Module, schedule: Schedule) -> None:
        self.net = copy.deepcopy(of).eval().requires_grad_(False)
        self.half_life, self.rampup, self.start = schedule.ema_kimg, schedule.ema_rampup, schedule.ema_start_kimg
        pairs = list(zip(self.net.state_dict().values(), of.state_dict().values(), strict=True))
        self._averaged = [mine for mine, _ in pairs if mine.is_floating_point()], [new for _, new in pairs if new.is_floating_point()]
        self._copied = [(mine, new) for mine, new in pairs if not mine.is_floating_point()]

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Half-life ``ema_kimg``, or ``ema_rampup`` of the images seen while that is shorter (Karras et al. 2020, ADA, code)."""
        half_life = min(self.half_life, self.rampup * images / 1000) if self.rampup else self.half_life
        half_life = half_life if images > self.start * 1000 else 0.0
        beta = 0.5 ** (batch_size / 1000 / half_life) if half_life > 0 else 0.0
        torch._foreach_lerp_(*self._averaged, 1 - beta)
        for mine, new in self._copied:
            mine.copy_(new)


def _seed(seed: int, device: torch.device) -> None:
    """torch.manual_seed without what it does for GPUs that are not in use: it keeps a stack trace each time, for a fifth of a millisecond."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def _adam(parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], eps: float, every: int) -> tuple[torch.optim.Optimizer, float]:
    """(optimiser, its rate). k + 1 steps where without a lazy regulariser there were k: rate and betas follow (Karras et al. 2020, App. B)."""
    share = every / (every + 1) if every else 1.0
    # fused: one kernel for all tensors, and with a gradient scaler no look at what it found
    return torch.optim.Adam(parameters, lr * share, betas=(betas[0] ** share, betas[1] ** share), eps=eps, fused=True), lr * share


def standing_statistics(generator: nn.Module, sampler: GAN, batches: int, batch_size: int, seed: int, device: torch.device) -> None:
    """BatchNorm statistics of a generator as the plain mean over so many batches (Brock et al. 2019, arXiv:1809.11096, §3).

    Nothing else moves: spectral norms stay as they are.
    """
    norms = [m for m in generator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean
        norm.train()
    for index in range(batches if norms else 0):
        draw(GAN(sampler.family, sampler.arch, generator), *sampler.sample(batch_size, rng(seed, STANDING, index)), device)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


class Trainer:
    """All that changes during a run, so that it can be saved and brought back."""

    def __init__(self, student: GAN, loss: DistillationLoss, recipe: Recipe) -> None:
        self.student, self.loss, self.recipe = student.generator, loss, recipe
        self.ema = Ema(self.student, recipe.schedule)
        optim = recipe.optim
        trained = [*self.student.parameters(), *loss.adapters.parameters()]
        self.g_opt, self.g_lr = _adam(trained, optim.g_lr, optim.g_betas, optim.eps, loss.g_every)
        critics = list(loss.critics.parameters())
        self.d_opt: torch.optim.Optimizer | None = None
        if critics:
            self.d_opt, self.d_lr = _adam(critics, optim.d_lr, optim.d_betas, optim.eps, loss.d_every)
        # float16 alone needs them; switched off they pass everything through
        self.g_scaler, self.d_scaler = (torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16") for _ in range(2))
        self.step = 0
        self.attempt = 0
        self.sums: dict[str, Tensor] = {}  # of each term since the last log line, and the weights that its values had
        self.counts: dict[str, float] = {}
        self.first_bad = torch.tensor(-1, device=self.device)

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    @property
    def trained(self) -> list[nn.Module]:
        """The networks that are trained, one by one."""
        students = [self.student.there, self.student.back] if isinstance(self.student, BothWays) else [self.student]
        return students + [net for net in self.loss.critics.values() if not isinstance(net, nn.ModuleDict)]

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs; random numbers and the place in the data are functions of seed, attempt and step."""
        return {
            "step": self.step,
            "attempt": self.attempt,
            "seed": self.recipe.seed,
            "student": self.student.state_dict(),
            "ema": self.ema.net.state_dict(),
            "loss": self.loss.state_dict(),
            "g_opt": self.g_opt.state_dict(),
            "d_opt": self.d_opt.state_dict() if self.d_opt else None,
            "sums": self.sums,
            "counts": self.counts,
            "scales": [self.g_scaler.state_dict(), self.d_scaler.state_dict()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.attempt = state["step"], state["attempt"]
        self.student.load_state_dict(state["student"])
        self.ema.net.load_state_dict(state["ema"])
        self.loss.load_state_dict(state["loss"])
        self.g_opt.load_state_dict(state["g_opt"])
        if self.d_opt:
            self.d_opt.load_state_dict(state["d_opt"])
        for scaler, scale in zip((self.g_scaler, self.d_scaler), state["scales"], strict=True):
            scaler.load_state_dict(scale)
        self.sums = {k: v.to(self.device) for k, v in state["sums"].items()}
        self.counts = dict(state["counts"])
        self.first_bad.fill_(-1)

    def synchronise(self) -> None:
        """Make the processes of a run alike in what each has of its own: terms since the last line, the first bad step, and BatchNorm's statistics."""
        buffers = [b for net in (self.student, self.ema.net, self.loss) for b in net.buffers() if b.is_floating_point()]
        ranks.average_([*self.sums.values(), *buffers])
        self.first_bad = ranks.earliest(self.first_bad)

    def bad_step(self, check_weights: bool) -> tuple[int, str] | None:
        """(the first step whose loss, or the last one after which a weight, was not finite, what it was); None where all is well.

        Weights are looked at before they are saved: a finite loss may have had a gradient that was not.
        """
        if (bad := int(self.first_bad)) >= 0:
            terms = [name for name, value in self.sums.items() if not bool(torch.isfinite(value).all())]
            return bad, f"loss term {', '.join(terms) or '(of a regulariser)'}"
        for owner, scaler in (("student", self.g_scaler), ("critics", self.d_scaler)):
            if scaler.is_enabled() and scaler.get_scale() < LEAST_SCALE:
                return self.step - 1, f"gradient of the {owner} in float16, scaled by {scaler.get_scale():.1g},"
        saved = {"student": self.student, "average": self.ema.net, "loss": self.loss} if check_weights else {}
        for owner, net in saved.items():
            for name, tensor in net.state_dict().items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    return self.step - 1, f"weight {owner}.{name}"
        return None

    def train_step(self, batches: Batches) -> None:
        """Critic steps, then one student step; the last critic step and the student's share their fake images.

        With ``accumulate`` above 1 they are drawn again instead: only one part's graph is held at a time. A regulariser that is asked for
        every k steps has a step of its own, weighted by k.
        """
        schedule, loss = self.recipe.schedule, self.loss
        share = self.recipe.optim.share(self.step / schedule.steps)
        _seed(seed_for(self.recipe.seed, self.attempt, STEP, self.step), self.device)
        last = schedule.d_steps - 1
        shared: list[tuple[Batch, Tensor]] = []

        def critic_terms(substep: int, part: int) -> dict[str, Tensor]:
            batch, keep = batches(self.step, substep, part), substep == last and schedule.accumulate == 1
            with torch.set_grad_enabled(keep):
                fake = loss.make_fake(self.student, batch)
            if keep:
                shared.append((batch, fake))
            return loss.discriminator_loss(batch, fake.detach())

        def student_terms(part: int) -> dict[str, Tensor]:
            batch, fake = shared[0] if shared else (batch := batches(self.step, last, part), loss.make_fake(self.student, batch))
            terms = loss.generator_loss(batch, fake)
            self._record(loss.shown, 1 / schedule.accumulate)
            return terms

        if self.d_opt:
            loss.critics.requires_grad_(True)
            for substep in range(schedule.d_steps):
                self._update(self.d_opt, partial(critic_terms, substep), self.d_lr * share, self.d_scaler, record=substep == last)
                loss.after_discriminator_step()
            if loss.d_every and self.step % loss.d_every == 0:
                self._update(self.d_opt, lambda part: loss.discriminator_regulariser(batches(self.step, last, part)), self.d_lr * share, weight=loss.d_every)
                loss.after_discriminator_step()
            loss.critics.requires_grad_(False)
        self._update(self.g_opt, student_terms, self.g_lr * share, self.g_scaler)
        if loss.g_every and self.step % loss.g_every == 0:
            terms_of = partial(loss.generator_regulariser, generator=self.student)
            self._update(self.g_opt, lambda part: terms_of(batches(self.step, last, part)), self.g_lr * share, weight=loss.g_every)
        self.step += 1
        self.ema.update(self.step * schedule.batch_size, schedule.batch_size)

    def _update(
        self, optimizer: torch.optim.Optimizer, terms_of: Callable[[int], dict[str, Tensor]], rate: float,
        scaler: torch.amp.GradScaler | None = None, weight: float = 1.0, record: bool = True,
    ) -> None:  # fmt: skip
        """One optimiser step on the mean over the batch's parts; none where a loss has no terms.

        ``scaler``: of the networks' gradients in float16, a step of which is left out where they overflow; a lazy regulariser has none, for its
        own are float32.
        """
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        parts = self.recipe.schedule.accumulate
        for part in range(parts):
            terms = terms_of(part)
            if not terms:
                return
            total = torch.stack(list(terms.values())).sum() * (weight / parts)
            (scaler.scale(total) if scaler else total).backward()
            # noted on the device without waiting for it: the host looks only when it writes
            bad = ~torch.isfinite(total.detach()) & (self.first_bad < 0)
            self.first_bad = torch.where(bad, self.step, self.first_bad)
            if record:
                self._record(terms, weight / parts)
        ranks.average_gradients(optimizer)  # before the scaler looks: what overflows in one process does so in the mean of all
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()

    def _record(self, terms: dict[str, Tensor], weight: float) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double() * weight
            self.counts[name] = self.counts.get(name, 0.0) + weight

    def take_means(self) -> dict[str, float]:
        """The mean of each term over the steps since the last log line that had it."""
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors on a GPU took so far, or this process where there is none; 0: this system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


class Log:
    """log.jsonl; lines after the step of a resumed state are taken back."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.writes = ranks.rank() == 0
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Forget the lines after ``step``."""
        if not self.writes:
            return
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        atomic_write(self.path, "".join(kept).encode())

    def write(self, **entry: Any) -> None:
        if not self.writes:
            return
        line = json.dumps(entry) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise write_failure(self.path, len(line), error) from None


class Collapse:
    """Watches the images of the fixed latents: a student whose images grow alike is told of, and the last one before is kept."""

    def __init__(self, student: GAN, reference: Tensor, run_dir: Path, reporter: Reporter) -> None:
        self.student, self.reference, self.reporter = student, spread(reference), reporter
        self.path = run_dir / "student-before-collapse.safetensors"
        self.sound: tuple[int, nn.Module] | None = None
        self.told = False

    def look(self, step: int, images: Tensor, last: bool) -> float:
        """The student's diversity as a share of the reference's, which the log has."""
        share = spread(images) / max(self.reference, 1e-12)
        if share >= 2 * COLLAPSED:  # not at the very edge, where a student that only begins to learn may be
            self.sound, self.told = (step, copy.deepcopy(one_way(self.student.generator)).cpu()), False
        elif share < COLLAPSED and not self.told and (self.sound or last):
            self.told = True
            said = f"step {step:,}: the student's images are nearly alike (diversity {share:.2g} of the reference's): mode collapse"
            if self.sound:
                at, generator = self.sound
                save_networks(self.path, self.student.family, self.student.arch, {"generator": generator}, {"step": at})
                said += f"; the student of step {at:,} is kept: {self.path}"
            self.reporter.note(said)
        return share


def _every(kimg: float, batch_size: int) -> int:
    return max(1, round(kimg * 1000 / batch_size))


def train(
    student: GAN, loss: DistillationLoss, recipe: Recipe, batches: Batches, run_dir: Path, reporter: Reporter, device: torch.device,
    frozen: Iterable[nn.Module] = (), compiler: str | None = None,
) -> GAN:  # fmt: skip
    """Train ``student`` to the end of the schedule and return it with its averaged weights.

    ``run_dir`` gets log.jsonl, samples/*.png and state.pt. A state already there is gone on from; on a CPU the result is then
    bitwise that of an unbroken run. ``frozen``: the teacher's networks; ``compiler``: a backend of torch.compile, None: nothing is compiled.

    Raises:
        StoppedError: SIGINT or SIGTERM; the state is saved. DivergedError: a third non-finite loss; state.pt is the last good one.
    """
    from gancompress.report import save_comparison, save_rows

    state_path = run_dir / "state.pt"
    trainer = Trainer(student, loss, recipe)
    saved = ranks.on_first(lambda: newest_state(state_path) if has_state(state_path) else None)
    if saved:
        state, said = saved
        if said:
            reporter.note(said)
        trainer.load_state(state)
        reporter.note(f"going on at step {trainer.step:,} of {recipe.schedule.steps:,}")
    else:
        ranks.on_first(lambda: save_state(state_path, trainer.state()))
    log = Log(run_dir / "log.jsonl", trainer.step)
    n, steps = recipe.schedule.batch_size, recipe.schedule.steps
    log_every, picture_every, save_every = (_every(k, n) for k in (recipe.output.log_kimg, recipe.output.pictures_kimg, recipe.output.save_kimg))
    latents, labels, paired = batches.pictures(16, "teacher_images" in loss.needs)
    averaged = GAN(student.family, student.arch, trainer.ema.net)
    with ranks.alone():
        collapse = Collapse(averaged, batches(0, 0).real[:16] if paired is None else paired, run_dir, reporter)
    clock, clock_step, first_step, told_memory = time.monotonic(), trainer.step, trainer.step, False

    with StopRequest().installed() as stop, applied([*trainer.trained, *frozen], recipe.precision, compiler):
        while trainer.step < steps:
            batches.attempt = trainer.attempt
            trainer.train_step(batches)
            step = trainer.step
            stopped = ranks.agreed_signal(stop.signal, step)  # looked at once: what comes later in this step waits for the next
            if not told_memory and (peak := peak_memory(device)):
                told_memory = True
                reporter.note(f"peak memory after the first step: {peak / 2**20:,.0f} MiB")
            logs, saves, ends = step % log_every == 0, step % save_every == 0, step == steps or bool(stopped)
            if step == first_step + FIRST_LOOK and not (logs or ends):
                int(trainer.first_bad)  # waits for the device, so that the clock is right
                reporter.progress(step, {}, FIRST_LOOK * n / max(time.monotonic() - clock, 1e-9))
            if not (logs or saves or ends or step % picture_every == 0):
                continue
            trainer.synchronise()
            if (bad := trainer.bad_step(check_weights=saves or ends)) is not None:
                _roll_back(trainer, state_path, *bad, log, reporter)
                clock, clock_step = time.monotonic(), trainer.step
                continue
            if logs or step == steps:
                rate = (step - clock_step) * n / max(time.monotonic() - clock, 1e-9)
                means = trainer.take_means()
                log.write(step=step, kimg=step * n / 1000, **means, images_per_s=round(rate, 1))
                reporter.progress(step, means, rate)
            if log.writes and (step % picture_every == 0 or step == steps):
                images = draw(averaged, latents, labels, device)
                picture = run_dir / "samples" / f"step-{step:07d}.png"
                rows = loss.pictures(averaged.generator, latents.to(device))
                save_rows(picture, rows, range(3, len(rows) - 1, 4)) if rows else save_comparison(picture, paired, images)
                seen = {"diversity": collapse.look(step, images, step == steps)}
                if paired is not None:
                    seen["paired_mse"] = float((images - paired).square().mean())
                log.write(step=step, kimg=step * n / 1000, **seen)
            if saves or ends:
                ranks.on_first(lambda: save_state(state_path, trainer.state()))
            if logs:
                clock, clock_step = time.monotonic(), step  # pictures and states are no part of the speed
            if stopped and step < steps:
                name = signal.Signals(stopped).name
                code = 130 if stopped == signal.SIGINT else 75
                if ranks.rank():
                    raise ToldElsewhereError(f"stopped by {name}", exit_code=code)
                raise StoppedError(f"stopped by {name} at step {step:,} of {steps:,}; the state is saved in {run_dir}", exit_code=code)
    for note in loss.closing_notes():
        reporter.note(note)
    if batches_of := recipe.schedule.standing_stats:
        standing_statistics(averaged.generator, batches.sampler, batches_of, n, recipe.seed, device)
    averaged.discriminator = loss.critics["student"].eval() if "student" in loss.critics else None
    return averaged


def _roll_back(trainer: Trainer, state_path: Path, bad: int, what: str, log: Log, reporter: Reporter) -> None:
    """Back to the last good state, with other data from there on; ``what`` was not finite at step ``bad``.

    Raises:
        DivergedError: it was done RETRIES times before.
    """
    gone_back = trainer.attempt
    trainer.load_state(ranks.on_first(lambda: newest_state(state_path)[0]))
    if gone_back >= RETRIES:
        raise DivergedError(
            f"{what} was not finite at step {bad + 1:,}, for the third time in this run; the last good state is of step {trainer.step:,}",
            "lower optim.g_lr or optim.d_lr, and start in a new --out",
        )
    trainer.attempt = gone_back + 1
    ranks.on_first(lambda: save_state(state_path, trainer.state()))
    log.rewind(trainer.step)
    log.write(step=trainer.step, event="rolled back", non_finite_at_step=bad + 1, non_finite=what)
    reporter.note(f"{what} was not finite at step {bad + 1:,}: going back to step {trainer.step:,}, with other random numbers from there")
