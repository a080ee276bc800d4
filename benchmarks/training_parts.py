"""Where a training step's time goes, and what the device could do: the parts of benchmarks/training.py that are measured apart from its rates."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gancompress.checkpoint import save_state
from gancompress.data import Batches, draw
from gancompress.gan import GAN
from gancompress.loop import Log, Trainer
from gancompress.planning import Plan
from gancompress.report import save_comparison


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds. Of one thread on a CPU the time that it really had: what else the machine does then counts for less."""
    wait(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


class Clock:
    """Seconds by name, each without what others measured inside it took. The device is waited for at each end."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._open = device, dict[str, float](), list[str]()
        self._since = 0.0

    def _turn(self) -> None:
        moment = now(self.device)
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + moment - self._since
        self._since = moment

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def around(self, owner: Any, method: str, name: str | Callable[..., str]) -> None:
        """Measure every call of a method of this very object."""
        real = getattr(owner, method)

        @functools.wraps(real)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self(name if isinstance(name, str) else name(*args)):
                return real(*args, **kwargs)

        object.__setattr__(owner, method, measured)


def time_split(plan: Plan, trainer: Trainer, batches: Batches, steps: int) -> dict[str, float]:
    """Milliseconds of a step by part; ``trainer`` is not to be used again.

    Networks: their forward passes. ``student_update`` and ``critics_update``: what else an update takes, which is the gradients of all
    networks in it and Adam. ``data``: seeds, latents and real images.
    """
    clock = Clock(plan.device)
    teachers = [gan for gan in (plan.teacher, batches.teacher) if gan]  # images are drawn from a folded copy
    for net in {id(net): net for gan in teachers for net in gan.networks.values()}.values():
        for method in ("forward", "features"):
            if hasattr(net, method):
                clock.around(net, method, "teacher")
    for method in ("forward", "features", "styles"):
        if hasattr(trainer.student, method):
            clock.around(trainer.student, method, "student")
    for critic in plan.loss.critics.values():
        for method in ("forward", "features"):
            if hasattr(critic, method):
                clock.around(critic, method, "critics")
    clock.around(trainer, "_update", lambda optimizer, *_: "student_update" if optimizer is trainer.g_opt else "critics_update")
    clock.around(trainer.ema, "update", "average")

    def timed_batches(step: int, substep: int, part: int = 0) -> Any:
        with clock("data"):
            batch = batches(step, substep, part)
        for name in ("draw_real", "draw_teacher", "draw_unpaired"):
            clock.around(batch, name, "data")
        return batch

    for _ in range(steps):
        with clock("rest"):
            trainer.train_step(timed_batches)  # type: ignore[arg-type]
    return {name: round(1000 * seconds / steps, 4) for name, seconds in sorted(clock.seconds.items())}


def writing(plan: Plan, trainer: Trainer, batches: Batches) -> dict[str, float]:
    """Milliseconds a step that a run's log lines, pictures and saved states take, each at the intervals that the recipe has."""
    output, n, device = plan.recipe.output, plan.recipe.schedule.batch_size, plan.device
    z, c, taught = batches.pictures(16, plan.teacher is not None and "teacher_images" in plan.loss.needs)
    averaged = GAN(plan.student.family, plan.student.arch, trainer.ema.net)
    found = {}
    with TemporaryDirectory() as name:
        log = Log(Path(name) / "log.jsonl", 0)
        tasks: dict[str, tuple[float, Callable[[], object]]] = {
            "log": (output.log_kimg, lambda: log.write(step=trainer.step, **trainer.take_means())),
            "pictures": (output.pictures_kimg, lambda: save_comparison(Path(name) / "step.png", taught, draw(averaged, z, c, device))),
            "states": (output.save_kimg, lambda: save_state(Path(name) / "state.pt", trainer.state())),
        }
        for what, (kimg, write) in tasks.items():
            start = now(device)
            write()
            found[what] = round((now(device) - start) * n / kimg, 4)
    return found


class _Products(TorchDispatchMode):
    """Counts as torch's own counter does; that one follows modules as well, which gradients of gradients do not survive."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops_of(step: Callable[[], object], steps: int) -> float:
    """Floating-point operations of one step: matrix products and convolutions, forwards and backwards."""
    with _Products() as counter:
        for _ in range(steps):
            step()
    return counter.total / steps


def peak(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Floating-point operations a second that a large matrix product and a large convolution come to on the device, the best of five."""
    large = device.type == "cuda"
    side, batch, channels = (8192, 64, 512) if large else (1024, 8, 128)
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.randn(batch, channels, 32, 32, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    tasks: dict[str, Callable[[], object]] = {"matmul": lambda: a @ a, "convolution": lambda: conv2d(x, weight, padding=1)}
    found = {}
    for name, task in tasks.items():
        count = flops_of(task, 1)
        times = []
        for _ in range(6):
            start = now(device)
            task()
            times.append(now(device) - start)
        found[name] = count / min(times[1:])
    return found
