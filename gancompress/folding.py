"""A generator as runtimes take it: spectral norm divided out, BatchNorm inside the convolutions, tensors in and images out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gancompress import distributed as ranks
from gancompress.families import FAMILIES
from gancompress.gan import GAN


class _Watch(TorchFunctionMode):
    """Notes during one forward pass how often each tensor is used and what each BatchNorm takes."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.normed: dict[int, Tensor] = {}  # id of the running mean -> what is normalised
        self.kept: list[Any] = []  # so that no two tensors have one id

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("__get__", "dim", "size"):  # to ask for a shape is no use
            self.uses.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if func is F.batch_norm:
            self.normed[id(args[1])] = args[0]
        out = func(*args, **kwargs)
        self.kept.append(out)
        return out


def fold_spectral_norm(net: nn.Module) -> None:
    """Each weight as its norm leaves it in evaluation: the same numbers."""
    for module in net.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


@torch.no_grad()
def fold_batch_norm(net: nn.Module, *inputs: Tensor | None) -> int:
    """Put every BatchNorm on stored statistics that alone reads a convolution's output into that convolution; how many there were.

    w' = w g / sqrt(var + eps), b' = (b - mean) g / sqrt(var + eps) + beta, worked out in float64. ``inputs``: of one forward pass, from which
    it is seen what reads what.
    """
    norms = {id(m.running_mean): (name, m) for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None}
    if not norms:
        return 0
    made: list[tuple[str, Tensor]] = []
    convs = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    handles = [m.register_forward_hook(lambda _m, _i, out, name=name: made.append((name, out))) for name, m in convs]
    with _Watch() as watch:
        net(*inputs)
    for handle in handles:
        handle.remove()
    calls = Counter(name for name, _ in made)
    makers = {id(out): name for name, out in made if calls[name] == 1 and watch.uses[id(out)] == 1}
    count = 0
    for mean, taken in watch.normed.items():
        if mean not in norms or id(taken) not in makers:
            continue
        name, norm = norms[mean]
        _fuse(net.get_submodule(makers[id(taken)]), norm)
        net.set_submodule(name, nn.Identity())
        count += 1
    return count


def _fuse(conv: nn.Module, norm: nn.BatchNorm2d) -> None:
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var)
    weight, bias, mean, var = (None if t is None else t.double() for t in tensors)
    gain, beta = (None if t is None else t.double() for t in (norm.weight, norm.bias))
    assert weight is not None
    assert mean is not None
    assert var is not None
    fused = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, gain, beta, transpose=isinstance(conv, nn.ConvTranspose2d))
    conv.weight, conv.bias = (nn.Parameter(t.float(), requires_grad=False) for t in fused)


class Deployed(nn.Module):
    """A folded copy of a generator: float32 latents or images, labels (N,) int64 where there are classes, then noise maps (N, 1, H, W) where
    ``noise_inputs`` -> images (N, C, H, W), float32 whatever the precision inside.

    ``names``: of the inputs in their order.
    """

    def __init__(self, gan: GAN, dtype: torch.dtype = torch.float32, noise_inputs: bool = False) -> None:
        super().__init__()
        net = unfolded(gan)
        fold_spectral_norm(net)
        fold_batch_norm(net, *gan.sample(2, torch.Generator().manual_seed(0)))
        self.conditional, self.dtype = bool(gan.arch.classes), dtype
        self.noise = [name for name in noise_buffers(net) if noise_inputs]
        self.net = net.to(dtype)
        self.names = ["latents" if gan.arch.nz else "inputs", *["labels"] * self.conditional, *(f"noise_{i}" for i in range(len(self.noise)))]

    def forward(self, *tensors: Tensor) -> Tensor:
        given = [t.to(self.dtype) if t.is_floating_point() else t for t in tensors]
        inputs, condition = given[0], given[1] if self.conditional else None
        maps = dict(zip(self.noise, given[1 + self.conditional :], strict=True))
        images: Tensor = torch.func.functional_call(self.net, maps, (inputs, condition)) if maps else self.net(inputs, condition)
        return images.float()


def unfolded(gan: GAN) -> nn.Module:
    """A copy of the generator, on its stored noise where it draws noise anew."""
    arch = dataclasses.replace(gan.arch, noise="const") if getattr(gan.arch, "noise", "") == "random" else gan.arch
    return _anew(gan, arch)


def _anew(gan: GAN, arch: Any) -> nn.Module:
    """The generator built anew, not copied: copies share the class that torch makes for a parametrized module, and to fold one would break the other."""
    with torch.device("meta"):
        net = gan.family.generator(arch)
    net = net.to_empty(device="cpu")
    net.load_state_dict(gan.generator.state_dict())
    return net.eval().requires_grad_(False)


@ranks.alone()
def folded(gan: GAN) -> GAN:
    """A frozen GAN whose generator is another one with its norms folded away, for forward passes alone: the same images but for rounding (about
    1e-6). The GAN itself where there is nothing to fold, or where its family is not ours to build."""
    norms = any(isinstance(m, nn.BatchNorm2d) or parametrize.is_parametrized(m, "weight") for m in gan.generator.modules())
    if FAMILIES.get(gan.family.name) is not gan.family or not norms:
        return gan
    device = next(gan.generator.parameters()).device
    net = _anew(gan, gan.arch)
    fold_spectral_norm(net)
    fold_batch_norm(net, *gan.sample(2, torch.Generator().manual_seed(0)))
    return dataclasses.replace(gan, generator=net.to(device))


def noise_buffers(net: nn.Module) -> list[str]:
    """Names of the stored noise of a StyleGAN2, in the order of use; none of any other network, nor where its noise is turned off."""
    return [f"{name}.noise_const" for name, m in net.named_modules() if hasattr(m, "noise_const") and getattr(m, "noise", "") != "none"]
