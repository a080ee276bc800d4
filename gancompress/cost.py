"""What a network costs: parameters, multiply-accumulates in both conventions, bytes, milliseconds."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gancompress.gan import GAN, Family


@dataclass(frozen=True)
class Cost:
    """``macs_in``: transposed convolutions counted at their input positions, the products really formed (torch's own count);
    ``macs_out``: at their output positions, as most papers print. ``bytes``: of the parameters and buffers as stored in float32."""

    parameters: int
    macs_in: int
    macs_out: int
    bytes: int


def _conv_at_output(_x: Any, w: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of a convolution with every kind counted at its output positions."""
    positions = 1
    for n in out_shape[2:]:
        positions *= n
    per_position = 2
    for n in w:
        per_position *= n
    return int(out_shape[0] * positions * per_position)


def macs(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int]:
    """(input convention, output convention) of one forward pass; works on the meta device."""
    counts = []
    for mapping in (None, {torch.ops.aten.convolution: _conv_at_output}):
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            net(*inputs)
        counts.append(counter.get_total_flops() // 2)
    return counts[0], counts[1]


def generator_cost(family: Family, arch: Any) -> Cost:
    """Cost of a family's generator at one image, from its shapes alone."""
    with torch.device("meta"):
        net = family.generator(arch).eval()
    inputs, condition = family.sample(arch, 1, torch.Generator().manual_seed(0))
    return network_cost(net, (inputs.to("meta"), None if condition is None else condition.to("meta")))


def network_cost(net: nn.Module, inputs: tuple[Any, ...]) -> Cost:
    """Cost of a network at the given inputs."""
    at_input, at_output = macs(net, inputs)
    stored = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    return Cost(sum(p.numel() for p in net.parameters()), at_input, at_output, stored)


def gan_cost(gan: GAN) -> Cost:
    """Cost of a built generator, on its own device."""
    device = next((p.device for p in gan.generator.parameters()), torch.device("cpu"))
    inputs, condition = gan.sample(1, torch.Generator().manual_seed(0))
    training = gan.generator.training
    gan.generator.eval()  # in training mode a forward pass would move the statistics of BatchNorm
    found = network_cost(gan.generator, (inputs.to(device), None if condition is None else condition.to(device)))
    gan.generator.train(training)
    return found


@torch.no_grad()
def latency(gan: GAN, batch_size: int, device: torch.device, runs: int = 50) -> tuple[float, float]:
    """(median, interquartile range) of a forward pass in milliseconds over ``runs`` runs after ten for warm-up."""
    inputs, condition = gan.sample(batch_size, torch.Generator().manual_seed(0))
    args = (inputs.to(device), None if condition is None else condition.to(device))
    times = []
    for i in range(runs + 10):
        start = time.perf_counter()
        gan.generator(*args)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 10:
            times.append((time.perf_counter() - start) * 1e3)
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, high - low


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
