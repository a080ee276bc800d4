"""MLP GAN: fully connected generator and discriminator (Goodfellow et al. 2014, arXiv:1406.2661; the MLP_G and MLP_D of Arjovsky
et al. 2017, arXiv:1701.07875).

Generator: z -> [Linear, ReLU] x L -> Linear -> image (tanh, or linear as in WassersteinGAN). Discriminator: flattened image ->
[Linear, LeakyReLU(0.2), or ReLU as in WassersteinGAN] x L -> Linear -> logit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gancompress.errors import UsageError
from gancompress.gan import Axes, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import hint, natural_key, sample_normal, scale_width, with_labels


@dataclass(frozen=True)
class Arch:
    """Every shape of an MLP GAN. ``g_widths``, ``d_widths``: sizes of the hidden layers, first to last."""

    resolution: int = 32
    nz: int = 100
    nc: int = 3
    classes: int = 0
    g_widths: tuple[int, ...] = (512, 512, 512)
    d_widths: tuple[int, ...] = (512, 512, 512)
    output: Literal["tanh", "linear"] = "tanh"
    d_activation: Literal["leaky_relu", "relu"] = "leaky_relu"

    def __post_init__(self) -> None:
        if min(self.resolution, self.nz, self.nc, *self.g_widths, *self.d_widths) < 1 or self.classes < 0:
            raise UsageError(f"mlp {self}: every size must be at least 1")

    @property
    def pixels(self) -> int:
        return self.nc * self.resolution**2


def _chain(widths: tuple[int, ...]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))


class Generator(nn.Module):
    """(N, nz) normal latents, labels (N,) -> images (N, nc, H, W) in [-1, 1] (unbounded where output is linear)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.layers = _chain((arch.nz + arch.classes, *arch.g_widths, arch.pixels))

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        x = with_labels(inputs.flatten(1), condition, self.arch.classes, self.arch.nz)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        x = self.layers[-1](x)
        x = torch.tanh(x) if self.arch.output == "tanh" else x
        return x.unflatten(1, (self.arch.nc, self.arch.resolution, self.arch.resolution))


class Discriminator(nn.Module):
    """Images (N, nc, H, W) in [-1, 1] -> logits (N,) before any sigmoid."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.layers = _chain((arch.pixels, *arch.d_widths, 1))

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations (N, width) of each hidden layer, then the logits (N,)."""
        x = images.flatten(1)
        found = []
        for layer in self.layers[:-1]:
            x = nn.functional.leaky_relu(layer(x), 0.2 if self.arch.d_activation == "leaky_relu" else 0.0)
            found.append(x)
        return [*found, self.layers[-1](x).flatten()]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """A chain of Linear layers with biases, whatever its keys are called.

    Options: ``nc`` (int): image channels, where nc * side^2 allows several; ``classes`` (int) as for dcgan. WassersteinGAN's
    generator_config.json, where it lies beside the file, tells channels, side and activations; so do its names alone the activations.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
    """
    last: Mismatch | None = None
    for keys in (list(state), sorted(state, key=natural_key)):
        try:
            return _read(state, keys, options)
        except Mismatch as error:
            last = last or error
    assert last is not None
    raise last


def _read(state: StateDict, keys: list[str], options: Mapping[str, Any]) -> Reading:
    weights = [k for k in keys if state[k].ndim == 2]
    score = len(weights) / max(1, len([k for k in keys if not k.endswith("bias")]))
    if len(weights) < 2 or score < 1:
        unexpected = [k for k in keys if state[k].ndim > 2]
        raise Mismatch(f"an MLP is a chain of Linear layers; {len(weights)} 2-dimensional weights are here", score * 0.4, unexpected=unexpected)
    out: StateDict = {}
    for i, key in enumerate(weights):
        rows, bias = state[key].shape[0], key.removesuffix("weight") + "bias"
        if bias not in state:
            missing = [b for k in weights if (b := k.removesuffix("weight") + "bias") not in state]
            raise Mismatch(f"{bias} is missing", 0.8, missing=missing)
        if state[bias].shape != (rows,):
            raise Mismatch(f"{bias} has shape {tuple(state[bias].shape)}, expected ({rows},)", 0.8)
        if i and state[key].shape[1] != state[weights[i - 1]].shape[0]:
            raise Mismatch(f"{weights[i - 1]} {tuple(state[weights[i - 1]].shape)} does not feed {key} {tuple(state[key].shape)}", 0.7)
        out[f"layers.{i}.weight"], out[f"layers.{i}.bias"] = state[key], state[bias]
    if len(out) != len(state):
        unexpected = [k for k in keys if k not in weights and k.removesuffix("bias") + "weight" not in weights]
        raise Mismatch(f"unexpected keys for an MLP: {', '.join(unexpected[:3])}", 0.4, unexpected=unexpected)
    widths = tuple(state[k].shape[0] for k in weights[:-1])
    n_in, n_out = state[weights[0]].shape[1], state[weights[-1]].shape[0]
    wgan = _of_wassersteingan(weights, widths, options)
    if n_out == 1:
        nc, side = _image(n_in, options)
        slope = options.get("d_activation", "relu" if wgan else "leaky_relu")
        assumed = (f"{slope} inside (else --reader d_activation={'leaky_relu' if slope == 'relu' else 'relu'}), logits",)
        return Reading("discriminator", {"resolution": side, "nc": nc, "d_widths": widths, "d_activation": slope}, out, assumed)
    nc, side = _image(n_out, options)
    classes = int(options.get("classes") or 0)
    if not 0 <= classes < n_in:
        raise UsageError(f"classes={classes}: {weights[0]} has only {n_in} inputs for the latent and the one-hot label")
    output = options.get("output", "linear" if wgan else "tanh")
    fields = {"resolution": side, "nc": nc, "nz": n_in - classes, "classes": classes, "g_widths": widths, "output": output}
    said = (
        f"{nc} image channels of {side}x{side} (else --reader nc=N)",
        f"ReLU, {output} at the end (else --reader output={'tanh' if output == 'linear' else 'linear'})",
    )
    return Reading("generator", fields, out, said)


def _of_wassersteingan(weights: list[str], widths: tuple[int, ...], options: Mapping[str, Any]) -> bool:
    """Whether WassersteinGAN's settings lie beside the file, or its names and sizes are just theirs: four layers, three of one size."""
    if hint(options, "mlp_G", bool) is not None:
        return True
    return weights == [f"main.{i}.weight" for i in (0, 2, 4, 6)] and len(set(widths)) == 1


def _image(pixels: int, options: Mapping[str, Any]) -> tuple[int, int]:
    """(channels, side) of an image of so many values: as asked for, as WassersteinGAN's config says, else 3, 1 or 4 channels."""
    asked = options.get("nc")
    told = (hint(options, "nc", int), hint(options, "imageSize", int))
    candidates = [int(asked)] if asked else [*([told[0]] if told[0] and told[1] and told[0] * told[1] ** 2 == pixels else []), 3, 1, 4]
    for nc in candidates:
        side = math.isqrt(pixels // nc) if nc > 0 else 0
        if side > 1 and nc * side * side == pixels:
            return nc, side
    raise Mismatch(f"{pixels} values are no square image of {asked or '1, 3 or 4'} channels", 0.5)


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set every hidden layer of G and of D."""
    values = dict(values)
    shorthand = {k: v for k in ("width", "d_width") if (v := values.pop(k, None)) is not None}
    fields = parse_arch(Arch, values)
    known = base or Arch()
    if shorthand:
        try:
            width = int(shorthand.get("width", known.g_widths[0]))
            d_width = int(shorthand.get("d_width", width))
        except ValueError:
            raise UsageError(f"width={shorthand}: expected whole numbers") from None
        fields.setdefault("g_widths", (width,) * len(known.g_widths))
        fields.setdefault("d_widths", (d_width,) * len(known.d_widths))
    return dataclasses.replace(known, **fields)


def scale(arch: Arch, ch_mul: float) -> Arch:
    """Every hidden layer of G and D times ch_mul."""
    return dataclasses.replace(
        arch,
        g_widths=tuple(scale_width(w, ch_mul) for w in arch.g_widths),
        d_widths=tuple(scale_width(w, ch_mul) for w in arch.d_widths),
    )


def axes(arch: Arch, part: Part) -> Axes:
    """Layer i's outputs are group i; latent, label and pixels are never sliced."""
    last = len(arch.g_widths if part == "generator" else arch.d_widths)
    found: Axes = {}
    for i in range(last + 1):
        n_out = str(i) if i < last else None
        found[f"layers.{i}.weight"] = (n_out, str(i - 1) if i else None)
        found[f"layers.{i}.bias"] = (n_out,)
    return found


FAMILY = Family(
    name="mlp",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample_normal,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    options=frozenset({"classes", "nc"}),
    settings=frozenset({"output", "d_activation"}),
)
