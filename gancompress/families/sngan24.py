"""The 24x24 "SNGAN" of Hugging Face's HugGAN sprint: a chain of convolutions as DCGAN's, with spectral norm (arXiv:1802.05957) in its critic.

Generator: z -> ConvTranspose 3x3 (to 3x3), 3x3 (to 5x5), 4x4 (to 12x12), each with BatchNorm and ReLU -> ConvTranspose 4x4 (to 24x24) -> tanh.
Discriminator: Conv 4x4, 4x4, 3x3, each halving the side, LeakyReLU(0.2) -> Conv 3x3, to one logit before its sigmoid. No convolution has a
bias. Its images have an alpha channel. It has no residual blocks, so it is a family apart from ``sngan``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress.errors import UsageError
from gancompress.gan import Axes, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import scale_width, spectral_norm, with_labels

#: (kernel, stride, padding) of each convolution
G_GEOMETRY = ((3, 1, 0), (3, 2, 1), (4, 2, 0), (4, 2, 1))
D_GEOMETRY = ((4, 2, 1), (4, 2, 1), (3, 2, 1), (3, 1, 0))


@dataclass(frozen=True)
class Arch:
    """Every shape. ``g_widths``, ``d_widths``: channels after the three hidden layers of G and of D, first to last."""

    resolution: int = 24
    nz: int = 100
    nc: int = 4
    classes: int = 0
    g_widths: tuple[int, ...] = (256, 128, 64)
    d_widths: tuple[int, ...] = (64, 128, 256)

    def __post_init__(self) -> None:
        if self.resolution != 24 or self.classes:
            raise UsageError(f"sngan24 resolution={self.resolution}, classes={self.classes}: it makes 24x24 images without labels")
        if len(self.g_widths) != 3 or len(self.d_widths) != 3 or min(self.nz, self.nc, *self.g_widths, *self.d_widths) < 1:
            raise UsageError(f"sngan24 {self}: three widths each, and every size at least 1")


def _initialise(module: nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d) -> nn.Module:
    """N(0, 0.02) for convolutions, N(1, 0.02) for BatchNorm scales, as DCGAN's."""
    if not module.weight.is_meta:
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
    return module


class Generator(nn.Module):
    """(N, nz) or (N, nz, 1, 1) normal latents -> images (N, nc, 24, 24) in [-1, 1]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        pairs = zip(pairwise((arch.nz, *arch.g_widths, arch.nc)), G_GEOMETRY, strict=True)
        self.convs = nn.ModuleList(_initialise(nn.ConvTranspose2d(a, b, *geometry, bias=False)) for (a, b), geometry in pairs)
        self.norms = nn.ModuleList(_initialise(nn.BatchNorm2d(width)) for width in arch.g_widths)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        x = with_labels(inputs.flatten(1), None, 0, self.arch.nz)[:, :, None, None]
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.relu(norm(conv(x)))
        return torch.tanh(self.convs[-1](x))


class Discriminator(nn.Module):
    """Images (N, nc, 24, 24) in [-1, 1] -> logits (N,) before any sigmoid."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        pairs = zip(pairwise((arch.nc, *arch.d_widths, 1)), D_GEOMETRY, strict=True)
        self.convs = nn.ModuleList(spectral_norm(_initialise(nn.Conv2d(a, b, *geometry, bias=False))) for (a, b), geometry in pairs)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations after each hidden layer, then the logits (N,)."""
        found = []
        for conv in self.convs[:-1]:
            images = F.leaky_relu(conv(images), 0.2)
            found.append(images)
        return [*found, self.convs[-1](images).flatten()]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """``network.*`` of huggan/pytorch/sngan: G's convolutions are 0, 3, 6, 9 with BatchNorms behind the first three, D's 0, 2, 4, 6.

    Raises:
        Mismatch: naming the first key that is missing, unexpected or of a wrong shape.
    """
    share = sum(key.startswith("network.") for key in state) / max(1, len(state))
    if share < 0.5:
        raise Mismatch("its keys start with network.", 0.2 * share)
    part: Part = "discriminator" if any(".parametrizations." in key for key in state) else "generator"
    if part == "discriminator":
        modules, axis = {f"network.{2 * i}": f"convs.{i}" for i in range(4)}, 0
    else:
        modules, axis = {f"network.{3 * i}": f"convs.{i}" for i in range(4)} | {f"network.{3 * i + 1}": f"norms.{i}" for i in range(3)}, 1
    leaf = "weight" if part == "generator" else "parametrizations.weight.original"
    weights = []
    for name in list(modules)[:4]:
        weight = state.get(f"{name}.{leaf}")
        if weight is None or weight.ndim != 4:
            shape = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
            raise Mismatch(f"{name}.{leaf} is {shape}: it is a convolution", 0.3)
        weights.append(weight)
    widths = tuple(w.shape[axis] for w in weights)
    first, hidden = weights[0].shape[1 - axis], widths[:-1]
    fields: dict[str, Any] = {"nz": first, "nc": widths[-1], "g_widths": hidden} if part == "generator" else {"nc": first, "d_widths": hidden}
    try:
        arch = build_arch(None, fields)
    except UsageError as error:  # sizes of zero
        raise Mismatch(f"no such network can be: {error}", 0.3) from None
    with torch.device("meta"):
        expected = (Generator(arch) if part == "generator" else Discriminator(arch)).state_dict()
    names = {theirs + key.removeprefix(ours).replace(".0.", ".0._"): key for theirs, ours in modules.items() for key in expected if key.startswith(f"{ours}.")}
    state = {**{k: torch.tensor(0) for k in names if k.endswith("num_batches_tracked")}, **state}
    for there, key in names.items():
        if there not in state:
            raise Mismatch(f"{there} is missing", 0.6)
        if state[there].shape != expected[key].shape:
            raise Mismatch(f"{there} has shape {tuple(state[there].shape)}, expected {tuple(expected[key].shape)}", 0.6)
    if unknown := [key for key in state if key not in names]:
        raise Mismatch(f"unexpected keys: {', '.join(unknown[:3])}", 0.6)
    said = "ReLU and tanh" if part == "generator" else "LeakyReLU 0.2, the logit before its sigmoid"
    return Reading(part, {"resolution": 24, **fields}, {key: state[there] for there, key in names.items()}, (said,))


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` (the same, where it is not given) are the narrowest layers: ngf and ndf."""
    values = dict(values)
    shorthand = {k: v for k in ("width", "d_width") if (v := values.pop(k, None)) is not None}
    fields = parse_arch(Arch, values)
    try:
        width = int(shorthand.get("width", 64))
        d_width = int(shorthand.get("d_width", width))
    except ValueError:
        raise UsageError(f"{shorthand}: expected whole numbers") from None
    if "width" in shorthand:
        fields.setdefault("g_widths", (4 * width, 2 * width, width))
    if shorthand:
        fields.setdefault("d_widths", (d_width, 2 * d_width, 4 * d_width))
    return dataclasses.replace(base or Arch(), **fields)


def scale(arch: Arch, ch_mul: float) -> Arch:
    """Every hidden width of G and D times ch_mul."""
    return dataclasses.replace(
        arch,
        g_widths=tuple(scale_width(w, ch_mul) for w in arch.g_widths),
        d_widths=tuple(scale_width(w, ch_mul) for w in arch.d_widths),
    )


def axes(arch: Arch, part: Part) -> Axes:
    """Layer i's output channels are group i of its network; latent, image channels and the logit are never sliced."""
    found: Axes = {}
    groups = (None, "0", "1", "2", None)
    for i, (n_in, n_out) in enumerate(pairwise(groups)):
        if part == "generator":
            found[f"convs.{i}.weight"] = (n_in, n_out, None, None)
            if n_out:
                found |= {f"norms.{i}.{leaf}": (n_out,) for leaf in ("weight", "bias", "running_mean", "running_var")}
                found[f"norms.{i}.num_batches_tracked"] = ()
        else:
            norm = f"convs.{i}.parametrizations.weight"
            found[f"{norm}.original"] = (n_out, n_in, None, None)
            found |= {f"{norm}.0.u": (n_out,), f"{norm}.0.v": (((n_in, D_GEOMETRY[i][0] ** 2),) if n_in else None,)}
    return found


def sample(arch: Arch, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """z ~ N(0, I) (n, nz)."""
    return torch.randn(n, arch.nz, generator=rng), None


FAMILY = Family(
    name="sngan24",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
)
