"""TinyGAN (Chang & Lu 2020, arXiv:2009.13829): the student of a class-conditional GAN, and its small projection discriminator.

Generator: z -> Linear to 4x4 -> [residual block with bilinear x2] x L -> BatchNorm, ReLU, conv 3x3, tanh. A block is conditional
BatchNorm, ReLU, x2, conv, conditional BatchNorm, ReLU, conv, beside x2 and conv 1x1; its convolutions are 3x3, either depthwise and
followed by a 1x1 (the paper's TinyGAN-dw) or standard (TinyGAN-std). Channels start at ch * 2^(L-1), stay so in the first block and
halve in each later one. Labels enter as a shared embedding, of which each BatchNorm takes its scale and shift.
Discriminator: [conv 4x4 of stride 2, LeakyReLU(0.01)] x L -> sum over positions -> Linear plus the product with the label's embedding,
all under spectral norm.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress.errors import UsageError
from gancompress.gan import Axes, Axis, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import sample_normal, scale_width, spectral_norm, with_labels

Convolution = Literal["depthwise", "standard"]


@dataclass(frozen=True)
class Arch:
    """Every shape of a TinyGAN. ``ch``: channels of G's last block; ``d_ch``: of D's first layer; ``embedding``: size of G's class embedding."""

    resolution: int = 128
    nz: int = 128
    nc: int = 3
    classes: int = 1000
    ch: int = 32
    d_ch: int = 32
    embedding: int = 128
    convolution: Convolution = "depthwise"

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            below = max(8, 1 << max(0, self.resolution.bit_length() - 1))
            raise UsageError(f"tinygan resolution {self.resolution}: it must be a power of two from 8 up, such as {below} or {2 * below}")
        if min(self.nz, self.nc, self.ch, self.d_ch, self.embedding) < 1 or self.classes < 0:
            raise UsageError(f"tinygan {self}: every size must be at least 1")

    @property
    def depth(self) -> int:
        """Blocks of G and layers of D: doublings from 4x4."""
        return self.resolution.bit_length() - 3

    @property
    def d_classes(self) -> int:
        """What D must be told beside an image."""
        return self.classes

    @property
    def g_widths(self) -> tuple[int, ...]:
        """Channels at 4x4 and after each block."""
        return (self.ch << (self.depth - 1), *(self.ch << i for i in reversed(range(self.depth))))

    @property
    def d_widths(self) -> tuple[int, ...]:
        """Channels after each layer of D."""
        return tuple(self.d_ch << i for i in range(self.depth))


def _embedding(classes: int, size: int) -> nn.Embedding:
    """Rows of length about 1, as those are that the paper's code starts from (components of its teacher's classes)."""
    weight = torch.empty(classes, size)
    # not drawn by nn.Embedding itself: on the meta device that costs seconds of imports
    return nn.Embedding.from_pretrained(weight if weight.is_meta else nn.init.normal_(weight, 0.0, size**-0.5), freeze=False)


class Norm(nn.Module):
    """BatchNorm whose scale and shift are a linear function of the class embedding (N, embedding), or its own where there is none.

    Starts at scale 1 and shift 0 for every class. (The authors' code sets columns of the weight where it means rows.)
    """

    def __init__(self, arch: Arch, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width, affine=not arch.classes)
        if arch.classes:
            self.affine = nn.Linear(arch.embedding, 2 * width)
            nn.init.zeros_(self.affine.weight)
            nn.init.zeros_(self.affine.bias)
            nn.init.ones_(self.affine.bias[:width])

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        x = self.bn(x)
        if label is None:
            return x
        scale, shift = self.affine(label)[:, :, None, None].chunk(2, 1)
        return x * scale + shift


def _xavier(conv: nn.Conv2d, gain: float) -> nn.Conv2d:
    nn.init.xavier_uniform_(conv.weight, gain)
    return conv


def _conv(n_in: int, n_out: int, kind: Convolution) -> nn.Module:
    """A 3x3 convolution, in two steps where it is depthwise."""
    if kind == "standard":
        return _xavier(nn.Conv2d(n_in, n_out, 3, padding=1), math.sqrt(2))
    return nn.Sequential(_xavier(nn.Conv2d(n_in, n_in, 3, padding=1, groups=n_in), math.sqrt(2)), _xavier(nn.Conv2d(n_in, n_out, 1), 1.0))


class Block(nn.Module):
    """(N, n_in, H, W), embedded labels -> (N, n_out, 2H, 2W)."""

    def __init__(self, arch: Arch, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm0, self.norm1 = Norm(arch, n_in), Norm(arch, n_out)
        self.conv0, self.conv1 = _conv(n_in, n_out, arch.convolution), _conv(n_out, n_out, arch.convolution)
        self.shortcut = _xavier(nn.Conv2d(n_in, n_out, 1), 1.0)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.conv0(_double(F.relu(self.norm0(x, label))))
        return self.conv1(F.relu(self.norm1(h, label))) + self.shortcut(_double(x))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """(N, nz) normal latents, labels (N,) -> images (N, nc, H, W) in [-1, 1]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        widths = arch.g_widths
        if arch.classes:
            self.embedding = _embedding(arch.classes, arch.embedding)
        self.fc = nn.Linear(arch.nz, 16 * widths[0])
        self.blocks = nn.ModuleList(Block(arch, a, b) for a, b in pairwise(widths))
        self.norm = nn.BatchNorm2d(arch.ch)
        self.to_rgb = nn.Conv2d(arch.ch, arch.nc, 3, padding=1)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        z = inputs.flatten(1)
        with_labels(z, condition, self.arch.classes, self.arch.nz)  # refuses what does not fit
        label = self.embedding(condition) if self.arch.classes else None
        x = self.fc(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, label)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x))))


class Discriminator(nn.Module):
    """Images (N, nc, H, W) in [-1, 1], labels (N,) -> logits (N,) before any sigmoid."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        widths = (arch.nc, *arch.d_widths)
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise(widths))
        self.fc = spectral_norm(nn.Linear(widths[-1], 1))
        if arch.classes:
            self.embedding = spectral_norm(_embedding(arch.classes, widths[-1]))

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations (N, C, H, W) of each layer, then the logits (N,)."""
        with_labels(images.new_zeros(len(images), 0), condition, self.arch.classes, 0)  # refuses what does not fit
        found = [images]
        for layer in self.layers:
            found.append(F.leaky_relu(layer(found[-1]), 0.01))
        pooled = found[-1].sum((2, 3))
        logits = self.fc(pooled)[:, 0]
        if self.arch.classes:
            logits = logits + (pooled * self.embedding(condition)).sum(1)
        return [*found[1:], logits]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


# ---------------------------------------------------------------------------------------------------------------- the reader

#: our names -> those of the authors' code, where they differ
THEIRS = (
    (r"^embedding\.", "embeding."),
    (r"^norm\.", "bn."),
    (r"^to_rgb\.", "colorize."),
    (r"\.norm(\d)\.bn\.", r".cbn\1.bn."),
    (r"\.norm(\d)\.affine\.", r".cbn\1.embed."),
    (r"\.conv0\.0\.", ".dw_conv1."),
    (r"\.conv0\.1\.", ".pw_conv1."),
    (r"\.conv1\.0\.", ".dw_conv2."),
    (r"\.conv1\.1\.", ".pw_conv2."),
    (r"\.shortcut\.", ".c_sc."),
    (r"parametrizations\.weight\.original$", "weight_orig"),
    (r"parametrizations\.weight\.0\.", "weight_"),
)
MAX_DEPTH = 10


def their_name(name: str, part: Part) -> str:
    """The authors' name of our tensor."""
    for pattern, new in THEIRS:
        name = re.sub(pattern, new, name)
    if part == "generator":
        return name
    # behind each layer there is an activation of its own number
    return re.sub(r"^layers\.(\d+)", lambda m: f"layers.{2 * int(m[1])}", name).replace("fc.", "fc_src.", 1)


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """The authors' own checkpoints (terarachang/ACCV_TinyGAN, ``model_N.tar``: a dict with G and D); all theirs are depthwise and conditional.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
    """
    part: Part = "generator" if any(key.startswith("blocks.") for key in state) else "discriminator"
    score = 0.8 if {"embeding.weight", "embeding.weight_orig", "colorize.weight", "fc_src.weight_orig"} & set(state) else 0.0
    telling = {"colorize.weight": 4, "embeding.weight": 2, "fc.weight": 2} if part == "generator" else {"layers.0.weight_orig": 4, "embeding.weight_orig": 2}
    for key, dimensions in telling.items():
        if key not in state:
            raise Mismatch(f"{key} is missing", score)
        if state[key].ndim != dimensions or not state[key].numel():
            raise Mismatch(f"{key} has shape {tuple(state[key].shape)}, expected {dimensions} dimensions", score)
    found = [state[key] for key in telling]
    depth = len({m[0] for key in state if (m := re.match(r"(blocks|layers)\.\d+\.", key))})
    if not 1 <= depth <= MAX_DEPTH:
        raise Mismatch(f"{depth} blocks are here, expected 1 to {MAX_DEPTH}", score)
    fields: dict[str, Any] = {"resolution": 4 << depth, "classes": found[1].shape[0]}
    if part == "generator":
        fields |= {"nc": found[0].shape[0], "ch": found[0].shape[1], "embedding": found[1].shape[1], "nz": found[2].shape[1], "convolution": "depthwise"}
    else:
        fields |= {"nc": found[0].shape[1], "d_ch": found[0].shape[0]}
    with torch.device("meta"):
        net = Generator(Arch(**fields)) if part == "generator" else Discriminator(Arch(**fields))
    out, rest = {}, dict(state)
    for name, expected in net.state_dict().items():
        key = their_name(name, part)
        if key not in rest:
            raise Mismatch(f"{key} is missing", 0.9)
        out[name] = rest.pop(key)
        if out[name].shape != expected.shape:
            raise Mismatch(f"{key} has shape {tuple(out[name].shape)}, expected {tuple(expected.shape)}", 0.9)
    if rest:
        raise Mismatch(f"unexpected key {next(iter(rest))}", 0.9)
    return Reading(part, fields, out)


# ------------------------------------------------------------------------------------------------------------ the other functions


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` is G's ``ch``, ``d_width`` is ``d_ch``, which each leave the other as it is."""
    values = dict(values)
    for short, name in (("width", "ch"), ("d_width", "d_ch")):
        if (value := values.pop(short, None)) is not None:
            values.setdefault(name, value)
    return dataclasses.replace(base or Arch(), **parse_arch(Arch, values))


def scale(arch: Arch, ch_mul: float) -> Arch:
    """ch and d_ch times ch_mul; latent, class embedding and image stay."""
    return dataclasses.replace(arch, ch=scale_width(arch.ch, ch_mul), d_ch=scale_width(arch.d_ch, ch_mul))


def axes(arch: Arch, part: Part) -> Axes:
    """Block i makes group i of the residual path from group i - 1, with "inner i" between its convolutions; D's layer i makes group i."""
    found: Axes = {}

    def conv(name: str, n_in: Axis, n_out: Axis) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (n_out, n_in, None, None), (n_out,)

    def norm(name: str, group: str, conditional: bool) -> None:
        found[f"{name}.running_mean"] = found[f"{name}.running_var"] = (group,)
        found[f"{name}.num_batches_tracked"] = ()
        if not conditional:
            found[f"{name}.weight"] = found[f"{name}.bias"] = (group,)

    def spectral(name: str, n_out: Axis, *rest: Axis, v: Axis) -> None:
        stem = f"{name}.parametrizations.weight"
        found[f"{stem}.original"], found[f"{stem}.0.u"], found[f"{stem}.0.v"] = (n_out, *rest), (n_out,), (v,)

    if part == "discriminator":
        before: str | None = None
        for i in range(arch.depth):
            spectral(f"layers.{i}", str(i), before, None, None, v=((before, 16),) if before else None)
            found[f"layers.{i}.bias"] = (str(i),)
            before = str(i)
        spectral("fc", None, before, v=before)
        found["fc.bias"] = (None,)
        if arch.classes:
            spectral("embedding", None, before, v=before)
        return found
    conditional = bool(arch.classes)
    if conditional:
        found["embedding.weight"] = (None, None)
    found["fc.weight"], found["fc.bias"] = ((("0", 16),), None), ((("0", 16),),)
    for i in range(arch.depth):
        stem, n_in, inner, n_out = f"blocks.{i}", str(i), f"inner {i}", str(i + 1)
        for which, source, target in ((0, n_in, inner), (1, inner, n_out)):
            norm(f"{stem}.norm{which}.bn", source, conditional)
            if conditional:  # scales, then shifts
                found[f"{stem}.norm{which}.affine.weight"] = (((source, 1), (source, 1)), None)
                found[f"{stem}.norm{which}.affine.bias"] = (((source, 1), (source, 1)),)
            if arch.convolution == "standard":
                conv(f"{stem}.conv{which}", source, target)
            else:
                conv(f"{stem}.conv{which}.0", None, source)
                conv(f"{stem}.conv{which}.1", source, target)
        conv(f"{stem}.shortcut", n_in, n_out)
    norm("norm", str(arch.depth), False)
    conv("to_rgb", str(arch.depth), None)
    return found


FAMILY = Family(
    name="tinygan",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample_normal,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    game="hinge",
)
