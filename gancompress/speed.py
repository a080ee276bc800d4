"""How the networks of a run are run: in which precision, and compiled or not. What they hold and what leaves them stays float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gancompress.errors import MissingError, UsageError

#: what the networks' own arithmetic is done in
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: how a network is called: for its output, its activations, a StyleGAN2 for its w+
METHODS = ("forward", "features", "styles")
#: versions of one method that a run may need: generators and critics in their modes, of both directions of a CycleGAN
VERSIONS = 64

_twice = False


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Within, networks are run in float32 and uncompiled: for terms whose gradient goes through a gradient.

    Rounded second derivatives are useless, and torch's compiler has none (aot_autograd: once differentiable).
    """
    global _twice
    before, _twice = _twice, True
    try:
        yield
    finally:
        _twice = before


def unreduced(near: Tensor) -> AbstractContextManager[Any]:
    """Within, a network that is run in a reduced precision computes in float32 on the device of ``near``; elsewhere nothing is changed, so that
    an export sees nothing of it."""
    kind = near.device.type
    reduced = kind != "meta" and torch.is_autocast_enabled(kind)  # it is not defined where nothing is computed
    return torch.autocast(kind, enabled=False) if reduced else nullcontext()


@contextmanager
def applied(networks: Iterable[nn.Module], precision: str = "fp32", backend: str | None = None) -> Iterator[None]:
    """Within, these networks are run in that precision and compiled by that backend of torch.compile (None: not at all).

    Their class is changed for one that differs in METHODS alone, so that names, states and copies stay as they are. All arithmetic outside of
    them is float32; under tf32 that of every matrix product and convolution is TF32.
    """
    nets = list(networks)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    changed = nets if precision in REDUCED or backend else []
    try:
        for net in changed:
            net.__class__ = _faster(type(net), REDUCED.get(precision), backend)  # type: ignore[arg-type]
        with torch._dynamo.config.patch(recompile_limit=VERSIONS) if backend else nullcontext():
            yield
    finally:
        for net in changed:
            net.__class__ = type(net).__bases__[0]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@functools.cache
def _faster(kind: type[nn.Module], dtype: torch.dtype | None, backend: str | None) -> type[nn.Module]:
    methods = {name: _method(getattr(kind, name), dtype, backend) for name in METHODS if hasattr(kind, name)}
    return type(kind.__name__, (kind,), methods)


def _method(method: Callable[..., Any], dtype: torch.dtype | None, backend: str | None) -> Callable[..., Any]:
    """``method`` under autocast to ``dtype``, whose tensors leave as float32, and compiled as one graph; as it is where it is differentiated
    twice, or called from within such a one."""

    def reduced(self: nn.Module, *args: Any) -> Any:
        with torch.autocast(args[0].device.type, dtype=dtype):
            found: Tensor | list[Tensor] = method(self, *args)
        return [x.float() for x in found] if isinstance(found, list) else found.float()

    fast = reduced if dtype else method
    if backend:
        fast = torch.compile(fast, backend=backend, fullgraph=True, dynamic=False)

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any) -> Any:
        if _twice or torch.compiler.is_compiling() or (dtype and torch.is_autocast_enabled(args[0].device.type)):
            return method(self, *args)
        if not backend:
            return fast(self, *args)
        try:
            return fast(self, *args)
        except torch._dynamo.exc.TorchDynamoException as error:
            what = f"{type(self).__name__}.{method.__name__}"
            raise MissingError(f"--compile: {what} cannot be compiled ({_first_line(error)})", "leave out --compile") from None

    return run


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the device; a copy to a GPU goes through pinned memory, so that neither waits for the other."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def check(precision: str, compiled: bool, device: torch.device) -> None:
    """Whether this device and this machine can do as asked.

    Raises:
        UsageError: there is no such precision on the device. MissingError: nothing can be compiled here.
    """
    if device.type == "cpu" and precision in ("tf32", "fp16"):
        why = "there is none on a CPU" if precision == "tf32" else "a CPU gains nothing from it that bf16 would not give without overflows"
        raise UsageError(f"--precision {precision}: {why}", "--precision fp32 or bf16; or --device cuda")
    if device.type == "cuda" and precision in ("tf32", "bf16") and (have := torch.cuda.get_device_capability(device)) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise UsageError(f"--precision {precision}: {name} has none (compute capability {have[0]}.{have[1]}, from 8.0 on)", "--precision fp16")
    if compiled:
        try:
            torch.compile(_trial, dynamic=False)(torch.ones(2, device=device))
        except Exception as error:  # whatever is absent: a C++ compiler, Python's headers, Triton
            hint = "install a C++ compiler (for CUDA also Triton), or leave out --compile"
            raise MissingError(f"--compile: nothing can be compiled here ({_first_line(error)})", hint) from None


def _trial(x: Tensor) -> Tensor:
    return x * 2 + 1


def _first_line(error: Exception) -> str:
    return next((line.strip()[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)
