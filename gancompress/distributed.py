"""Several processes that train one student, through torch.distributed: started by torchrun, by ``--gpus`` or by a scheduler.

Rows of a batch are dealt out like cards: process r of n has the rows r, r + n, r + 2n ... In this way the first half of a batch, and the groups
of a minibatch deviation (images N / group apart), hold the same images for any number of processes.
"""

from __future__ import annotations

import datetime
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gancompress.errors import GanCompressError, ToldElsewhereError, UsageError

T = TypeVar("T")

#: how long a process waits for the others within a step, and while one of them reads, plans or writes
TIMEOUT, PATIENCE = datetime.timedelta(seconds=30), datetime.timedelta(minutes=10)
GOODBYE = datetime.timedelta(seconds=10)
#: steps between two looks at the others' signals
LOOK_EVERY = 4
FOREVER = 2**62


@dataclass(frozen=True)
class _Here:
    """This process among those of a run; ``group``: through which gradients go (the default group is for all else, on the CPU)."""

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None


_here = _Here()


def rank() -> int:
    return _here.rank


def world() -> int:
    """Processes of this run; 1 outside of ``joined``."""
    return _here.world


def place() -> tuple[int, int]:
    """(rank, number of processes) as torchrun writes them into the environment, (0, 1) without it.

    Raises:
        UsageError: they make no sense.
    """
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(t.isdecimal() for t in texts) or not int(texts[0]) < int(texts[1]):
        raise UsageError(f"RANK={texts[0]} and WORLD_SIZE={texts[1]} in the environment: expected a rank below the number of ranks")
    return int(texts[0]), int(texts[1])


def device_of_process(device: torch.device) -> torch.device:
    """Under torchrun each process of a machine takes a CUDA device of its own, where none is named."""
    local = os.environ.get("LOCAL_RANK", "0")
    if device.type == "cuda" and device.index is None and local.isdecimal():
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    return device


# ------------------------------------------------------------------------------------------------------------------- coming together


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be one of the processes that the environment tells of; nothing happens where it tells of none.

    Within a step they wait 30 seconds for each other: gradients go through NCCL where ``device`` is a CUDA device, else through gloo.

    Raises:
        UsageError: an environment without a meeting point, or fewer GPUs than processes. GanCompressError: the others do not come.
    """
    global _here
    number, count = place()
    if count == 1:
        yield
        return
    backend = _backend(device)
    if dist.is_initialized():  # left by a run that failed in this process
        dist.destroy_process_group()
    with _talking("not all processes came together"):
        dist.init_process_group("gloo", timeout=PATIENCE)
        group = dist.new_group(timeout=TIMEOUT, backend=backend)
        _here = _Here(number, count, group if isinstance(group, dist.ProcessGroup) else None)
    try:
        yield
    except ToldElsewhereError:
        _deaf()
        with suppress(RuntimeError):  # let the one that tells of it be the first to end: a launcher ends the others in the middle of a word
            dist.monitored_barrier(timeout=GOODBYE)
        raise
    except GanCompressError as error:
        _deaf()
        if number:
            error.args = (f"process {number + 1} of {count}: {error}",)
        raise
    else:
        dist.destroy_process_group()
    finally:
        _here = _Here()


def _deaf() -> None:
    """On the way out with an error: a launcher now sends SIGTERM to all, and this process has its own code and words."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _backend(device: torch.device) -> str:
    if absent := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UsageError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment, and no {' and '.join(absent)}", "start it with torchrun, or with --gpus N")
    if device.type == "cpu":
        return "gloo"
    local, here = os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    if device.index is not None:
        raise UsageError(f"--device {device}: each process takes a GPU of its own", "--device cuda")
    if not local.isdecimal() or int(local) >= here:
        raise UsageError(f"LOCAL_RANK={local}: this machine has {here} CUDA devices, and each process takes one", "fewer processes, or --device cpu")
    torch.cuda.set_device(int(local))
    return "nccl" if dist.is_nccl_available() else "gloo"


def to_launch(gpus: int | None) -> bool:
    """Whether ``--gpus`` asks for processes that are not there yet.

    Raises:
        UsageError: torchrun has started another number of them.
    """
    started = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE"))
    if gpus and started and started != str(gpus):
        raise UsageError(f"--gpus {gpus}: {started} processes were started on this machine already", "leave out --gpus, or torchrun")
    return bool(gpus and gpus > 1 and not started)


def launch(processes: int, device: torch.device) -> int:
    """This very command in so many processes of this machine, under torch.distributed.run; returns the exit code of the first that failed.

    Raises:
        UsageError: fewer GPUs than that. GanCompressError: one was killed; it is named.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise UsageError(f"--gpus {processes}: this machine has {torch.cuda.device_count()}", "--device cpu runs as many processes as you like")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would say of exit codes, we say
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # and of connections that break
    try:
        # -- keeps torchrun from taking options such as --num for its own
        run.run(run.parse_args(["--standalone", f"--nproc-per-node={processes}", "-m", "--", "gancompress", *sys.argv[1:]]))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise GanCompressError(f"process {number + 1} of {processes} was killed by {name}; the others have ended", AGAIN) from None
        return failure.exitcode
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 75
    return 0


# --------------------------------------------------------------------------------------------------------------------- of one mind

AGAIN = "the same command goes on from the last saved state"


@contextmanager
def _talking(otherwise: str = "another process of this run has ended, or has not answered in time") -> Iterator[None]:
    """Turns torch's word for a connection that broke into ours."""
    try:
        yield
    except RuntimeError as error:  # torch's errors of connections and stores are of this kind
        raise GanCompressError(f"{otherwise} ({str(error).strip().splitlines()[0][:120]})", f"its own message, or its launcher's, tells why; {AGAIN}") from None


def on_first(do: Callable[[], T]) -> T:
    """What ``do`` returns in the first process, in each of them; the others wait, and its error is theirs."""
    if _here.world == 1:
        return do()
    failure: GanCompressError | None = None
    sent: list[tuple[T | None, str, int]] = [(None, "", 0)]
    if _here.rank == 0:
        try:
            sent = [(do(), "", 0)]
        except GanCompressError as error:
            failure, sent = error, [(None, str(error), error.exit_code)]
    with _talking():
        dist.broadcast_object_list(sent, src=0)
    if failure:
        raise failure
    found, said, code = sent[0]
    if code:
        raise ToldElsewhereError(said, exit_code=code)
    return found  # type: ignore[return-value]


def agreed(do: Callable[[], T], identity: Callable[[T], str] = lambda made: "") -> T:
    """What ``do`` returns here, once it has returned in all processes; an error of one of them ends all, and is told once.

    ``identity``: of what was made; it has to be the same in all.
    """
    if _here.world == 1:
        return do()
    failure: GanCompressError | None = None
    mine: tuple[str, str, int] = ("", "", 0)
    try:
        made = do()
        mine = (identity(made), "", 0)
    except GanCompressError as error:
        failure, mine = error, ("", str(error), error.exit_code)
    everyones: list[tuple[str, str, int]] = [mine] * _here.world
    with _talking():
        dist.all_gather_object(everyones, mine)
    first = next((r for r, (_, _, code) in enumerate(everyones) if code), None)
    if failure and first == _here.rank:
        raise failure
    if first is not None:
        raise ToldElsewhereError(everyones[first][1], exit_code=everyones[first][2])
    if odd := next((r for r, told in enumerate(everyones) if told != everyones[0]), 0):
        if _here.rank:
            raise ToldElsewhereError(f"process {odd + 1} plans another run", exit_code=UsageError.exit_code)
        raise UsageError(f"process {odd + 1} of {_here.world} plans another run than the first", "the same command, teacher, data and version for all of them")
    return made


def dealt(parts: Sequence[T]) -> Sequence[T]:
    """This process's parts of what is shared out: every n-th of them."""
    return parts[_here.rank :: _here.world]


def everyones(mine: T) -> list[T]:
    """What each process has, in their order, in all of them; it goes through pickle."""
    if _here.world == 1:
        return [mine]
    found: list[T] = [mine] * _here.world
    with _talking():
        dist.all_gather_object(found, mine)
    return found


def agreed_signal(number: int, step: int) -> int:
    """The signal that any of the processes was sent, 0: none; they look at each other's every few steps only."""
    if _here.world == 1:
        return number
    if step % LOOK_EVERY:
        return 0
    highest = torch.tensor(number)
    with _talking():
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def earliest(step: Tensor) -> Tensor:
    """The lowest of the processes' numbers () that are not negative; -1: there is none."""
    if _here.world == 1:
        return step
    lowest = torch.where(step < 0, FOREVER, step)
    with _talking():
        dist.all_reduce(lowest, dist.ReduceOp.MIN, group=_here.group)
    return torch.where(lowest == FOREVER, -1, lowest)


def average_(tensors: list[Tensor]) -> None:
    """Put the mean over the processes into each of these tensors, which may be of any floating type; one message for each type."""
    if _here.world == 1:
        return
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        mine = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in mine])
        with _talking():
            dist.all_reduce(flat, group=_here.group)
        flat /= _here.world
        for tensor, mean in zip(mine, flat.split([t.numel() for t in mine]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """The gradients of the mean over all processes' images, in each of them."""
    average_([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])


# ------------------------------------------------------------------------------------------------------------------ rows of a batch


def check_batch(batch_size: int, accumulate: int) -> None:
    """Raises UsageError where a batch does not divide among the processes."""
    part, count = batch_size // accumulate, _here.world
    if part % count:
        of = f"a batch of {batch_size}" + (f" in {accumulate} parts of {part}" if accumulate > 1 else "")
        nearest = -(-part // count) * count * accumulate
        raise UsageError(f"{of} does not divide among {count} processes", f"--batch-size {nearest}, or another number of processes")


def rows(n: int, draw: Callable[[int], Tensor], dim: int = 0) -> Tensor:
    """This process's n rows of random numbers: those which a single one would ``draw`` for all rows of the batch, along ``dim``."""
    if _here.world == 1:
        return draw(n)
    return draw(n * _here.world)[(slice(None),) * dim + (slice(_here.rank, None, _here.world),)]


def normal(like: Tensor) -> Tensor:
    """This process's rows of standard normal numbers, of the shape (n, ...) of ``like``."""
    return rows(like.shape[0], lambda n: torch.randn(n, *like.shape[1:], device=like.device, dtype=like.dtype))


def gathered(values: Tensor) -> Tensor:
    """(n, ...) of this process -> (n * processes, ...) of the whole batch, in its order; no gradient goes through."""
    if _here.world == 1:
        return values
    parts = [torch.empty_like(values, requires_grad=False) for _ in range(_here.world)]
    with _talking():
        dist.all_gather(parts, values.detach().contiguous(), group=_here.group)
    return torch.stack(parts, 1).flatten(0, 1)


def mean(value: Tensor) -> Tensor:
    """The mean over the processes of a value; no gradient goes through."""
    found = value.detach().clone()
    average_([found])
    return found


@contextmanager
def alone() -> Iterator[None]:
    """For what every process draws whole: ``rows`` are all of them."""
    global _here
    here, _here = _here, _Here()
    try:
        yield
    finally:
        _here = here
