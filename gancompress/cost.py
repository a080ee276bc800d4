"""What a network costs: parameters, multiply-accumulates in both conventions, bytes, milliseconds."""

from __future__ import annotations

import functools
import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gancompress.gan import GAN, Family

aten = torch.ops.aten
#: where among its arguments a matrix product has its first factor
MATRIX_PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}
ATTENTIONS = {
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
}


@dataclass(frozen=True)
class Cost:
    """``macs_in``: transposed convolutions counted at their input positions, the products really formed (torch's own count);
    ``macs_out``: at their output positions, as most papers print. ``bytes``: of the parameters and buffers as stored in float32."""

    parameters: int
    macs_in: int
    macs_out: int
    bytes: int


def _macs_of(kind: Any, args: tuple[Any, ...], out: Any) -> tuple[int, int]:
    """(input convention, output convention) of one operation; (0, 0) where it forms no products worth counting."""
    if kind is aten.convolution:
        x, weight, transposed = args[0], args[1], args[6]
        position = len(x) * weight.numel()
        return position * math.prod((x if transposed else out).shape[2:]), position * math.prod(out.shape[2:])
    count = 0
    if kind in MATRIX_PRODUCTS:
        first, second = args[MATRIX_PRODUCTS[kind] :][:2]
        count = first.numel() * second.shape[-1]
    elif kind in ATTENTIONS:
        query, key, value = args[:3]
        count = query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return count, count


def _shaped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation on the meta device gives; None where no tensor is there. Torch would say it in Python code that imports its compiler first."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors or any(not t.is_meta for t in tensors):
        return None
    kind = func.overloadpacket
    shape: Sequence[int] | None = None
    if torch.Tag.pointwise in func.tags:
        if func._schema.is_mutable:
            return args[0]
        shape = np.broadcast_shapes(*(t.shape for t in tensors))  # torch's own imports sympy
    elif kind is aten.convolution:
        x, weight, _, *sizes, transposed, added, groups = args
        sides = zip(x.shape[2:], weight.shape[2:], *sizes, added, strict=True)
        if transposed:
            shape = [len(x), groups * weight.shape[1]] + [(n - 1) * step - 2 * pad + gap * (k - 1) + more + 1 for n, k, step, pad, gap, more in sides]
        else:
            shape = [len(x), len(weight)] + [(n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap, _ in sides]
    elif kind in MATRIX_PRODUCTS:
        first, second = args[MATRIX_PRODUCTS[kind] :][:2]
        shape = [*first.shape[:-1], second.shape[-1]]
    if shape is not None:
        return torch.empty(shape, dtype=functools.reduce(torch.promote_types, (t.dtype for t in tensors)), device="meta")
    # the rest costs little beside the products: it is run, on zeros
    real = tree_map_only(Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype, device="cpu"), (args, kwargs))
    return tree_map_only(Tensor, lambda t: t.to("meta"), func(*real[0], **real[1]))


class _Counter(TorchDispatchMode):
    """Adds up the multiply-accumulates of the operations under it, as torch.utils.flop_counter does, in both conventions at once."""

    def __init__(self) -> None:
        super().__init__()
        self.at_input = self.at_output = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to arrange that the compiler leaves us alone, torch would import it

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = _shaped(func, args, kwargs)
        if out is None:
            with self:  # in inference mode operations come whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            out = func(*args, **kwargs)
        at_input, at_output = _macs_of(func.overloadpacket, args, out)
        self.at_input += at_input
        self.at_output += at_output
        return out


def macs(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int]:
    """(input convention, output convention) of one forward pass; works on the meta device."""
    with torch.no_grad(), _Counter() as counter:
        net(*inputs)
    return counter.at_input, counter.at_output


def generator_cost(family: Family, arch: Any) -> Cost:
    """Cost of a family's generator at one image, from its shapes alone."""
    with torch.device("meta"):
        net = family.generator(arch).eval()
    inputs, condition = family.sample(arch, 1, torch.Generator().manual_seed(0))
    return network_cost(net, (inputs.to("meta"), None if condition is None else condition.to("meta")))


def network_cost(net: nn.Module, inputs: tuple[Any, ...]) -> Cost:
    """Cost of a network at the given inputs."""
    at_input, at_output = macs(net, inputs)
    return Cost(sum(p.numel() for p in net.parameters()), at_input, at_output, _stored(net))


def _stored(net: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in net.state_dict().values())


def gan_cost(gan: GAN) -> Cost:
    """Cost of a built generator, on its own device."""
    device = next((p.device for p in gan.generator.parameters()), torch.device("cpu"))
    training = gan.generator.training
    gan.generator.eval()  # in training mode a forward pass would move the statistics of BatchNorm
    found = network_cost(gan.generator, _given(gan, 1, device))
    gan.generator.train(training)
    return found


def _given(gan: GAN, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    inputs, condition = gan.sample(batch_size, torch.Generator().manual_seed(0))
    return inputs.to(device), None if condition is None else condition.to(device)


def timed(run: Callable[[], object], device: torch.device, runs: int = 50) -> tuple[float, float]:
    """(median, interquartile range) of ``run`` in milliseconds, over ``runs`` calls after ten for warm-up."""
    times = []
    for i in range(runs + 10):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 10:
            times.append((time.perf_counter() - start) * 1e3)
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, high - low


@torch.no_grad()
def latency(gan: GAN, batch_size: int, device: torch.device) -> tuple[float, float]:
    """``timed`` of a forward pass."""
    args = _given(gan, batch_size, device)
    return timed(lambda: gan.generator(*args), device)


@torch.no_grad()
def peak_memory(gan: GAN, batch_size: int, device: torch.device) -> int:
    """Bytes: parameters and buffers, and the most that a forward pass holds besides, scratch space of its operations included.

    As torch's allocators tell it: on a GPU its own count, on a CPU through the profiler.
    """
    net, args = gan.generator, _given(gan, batch_size, device)
    stored = _stored(net)
    net(*args)  # what is set up once is no part of it
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        net(*args)
        return stored + torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes to the terminal that there is no GPU
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        net(*args)
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    return stored + max(held, default=0)


def device_name(device: torch.device) -> str:
    """The device in words, as results are reported with it."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
