"""CycleGAN (Zhu et al. 2017, arXiv:1703.10593, after Johnson et al. 2016, arXiv:1603.08155): a ResNet that translates images, and a PatchGAN.

Generator: a 7x7 convolution, 3x3 convolutions of stride 2, residual blocks of two 3x3 convolutions, as many upsamplings, a 7x7
convolution and tanh; a norm behind each convolution but the last. Reflection padding around blocks and the 7x7 convolutions. Ways up (``up``):
    transposed   3x3 transposed convolution of stride 2 (junyanz)
    nearest      nearest-neighbour upsampling and a zero-padded 3x3 convolution (eriklindernoren's PyTorch-GAN, huggan)
    bilinear     bilinear upsampling and a reflection-padded 3x3 convolution (forks of junyanz against checkerboards)
``separable``: the convolutions of the blocks are depthwise 3x3, norm, pointwise 1x1 (the "mobile" teachers of GAN Compression, Li et al. 2020,
arXiv:2003.08936).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress.errors import UsageError
from gancompress.gan import Axes, Axis, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import dropout, nearest_multiple
from gancompress.patchgan import (
    SETTINGS,
    SURE,
    Discriminator,
    Layer,
    Norm,
    TranslatorArch,
    batch_free,
    built,
    checked_images,
    conv_shape,
    discriminator_axes,
    follow,
    initialise,
    norm_layer,
    norm_of,
    read_discriminator,
    renamed,
    sample,
    scale,
    shorthands,
    tensor_axes,
)

Up = Literal["transposed", "nearest", "bilinear"]


@dataclass(frozen=True)
class Arch(TranslatorArch):
    """Every shape of a ResNet generator. ``g_widths``: after the first layer and after each halving, the last one of the blocks too.
    ``edge``: padding of the two 7x7 convolutions; with 3 an image keeps its size."""

    g_widths: tuple[int, ...] = (64, 128, 256)
    blocks: int = 9
    g_norm: Norm = "instance"
    g_bias: bool = True
    up: Up = "transposed"
    separable: bool = False
    edge: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= len(self.g_widths) <= 12 or min(self.g_widths) < 1:
            raise UsageError(f"resnet g_widths={self.g_widths}: from 2 to 12 positive widths")
        if self.blocks < 1 or self.edge < 0:
            raise UsageError(f"resnet blocks={self.blocks}, edge={self.edge}: one block at least, an edge from 0")
        step = 1 << (len(self.g_widths) - 1)
        if self.resolution < 2 * step or self.resolution % step:  # the blocks' reflection needs two positions
            near = nearest_multiple(self.resolution, step, 2 * step)
            raise UsageError(f"resnet resolution {self.resolution}: multiples of {step} from {2 * step}", f"the nearest that works: {near}")


class Separable(nn.Module):
    """Depthwise 3x3, norm, pointwise 1x1."""

    def __init__(self, width: int, out: int, arch: Arch) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", groups=width, bias=arch.g_bias)
        self.norm = norm_layer(arch.g_norm, width, arch.statistics)
        self.pointwise = nn.Conv2d(width, out, 1, bias=arch.g_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.norm(self.depthwise(x)))


class Block(nn.Module):
    """x + norm(conv(dropout(relu(norm(conv(x))))))."""

    def __init__(self, width: int, arch: Arch) -> None:
        super().__init__()

        def layer() -> Layer:
            conv = Separable(width, width, arch) if arch.separable else nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=arch.g_bias)
            return Layer(conv, norm_layer(arch.g_norm, width, arch.statistics))

        self.first, self.second = layer(), layer()
        self.dropout = 0.5 if arch.dropout else 0.0

    def forward(self, x: Tensor) -> Tensor:
        between = F.relu(self.first(x))
        return x + self.second(dropout(between, self.dropout) if self.dropout and self.training else between)


class Generator(nn.Module):
    """Images (N, nc_in, H, W) in [-1, 1], H and W multiples of 2^halvings -> images (N, nc, H, W) in [-1, 1].

    Raises (forward):
        ValueError: other channels or sizes.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        w, bias = arch.g_widths, arch.g_bias

        def layer(conv: nn.Module, width: int) -> Layer:
            return Layer(conv, norm_layer(arch.g_norm, width, arch.statistics))

        self.down = nn.ModuleList([layer(nn.Conv2d(arch.nc_in, w[0], 7, padding=arch.edge, padding_mode="reflect", bias=bias), w[0])])
        for i in range(1, len(w)):
            self.down.append(layer(nn.Conv2d(w[i - 1], w[i], 3, 2, 1, bias=bias), w[i]))
        self.blocks = nn.ModuleList([Block(w[-1], arch) for _ in range(arch.blocks)])
        self.up = nn.ModuleList()
        for i in reversed(range(1, len(w))):
            if arch.up == "transposed":
                conv: nn.Module = nn.ConvTranspose2d(w[i], w[i - 1], 3, 2, 1, output_padding=1, bias=bias)
            else:
                conv = nn.Conv2d(w[i], w[i - 1], 3, padding=1, padding_mode="zeros" if arch.up == "nearest" else "reflect", bias=bias)
            self.up.append(layer(conv, w[i - 1]))
        self.last = nn.Conv2d(w[0], arch.nc, 7, padding=arch.edge, padding_mode="reflect")
        initialise(self)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        x = checked_images(inputs, self.arch.nc_in, 1 << (len(self.down) - 1))
        for layer in self.down:
            x = F.relu(layer(x))
        for block in self.blocks:
            x = block(x)
        for layer in self.up:
            if self.arch.up != "transposed":
                x = F.interpolate(x, scale_factor=2.0, mode=self.arch.up)
            x = F.relu(layer(x))
        return torch.tanh(self.last(x))


# ---------------------------------------------------------------------------------------------------------------- the reader


def _convs(state: StateDict, pattern: str) -> list[int]:
    """The numbers that ``pattern`` finds in the names of 4-dimensional weights, each once, in order."""
    return sorted({int(m.group(1)) for key, t in state.items() if t.ndim == 4 and (m := re.fullmatch(pattern, key))})


#: modules that go before a convolution of each way up
GAPS: dict[Up, int] = {"transposed": 0, "nearest": 1, "bilinear": 2}


def _rise(up: Up, blocks: int, halvings: int) -> list[int]:
    """Numbers of the convolutions behind the blocks: each way up, then the last one."""
    behind, gap = 4 + 3 * halvings + blocks, GAPS[up]
    return [behind + gap + i * (3 + gap) for i in range(halvings)] + [behind + halvings * (3 + gap) + 1]


def places_of(name: str, blocks: int, halvings: int, up: Up, second: int, separable: bool) -> dict[str, str]:
    """{our module: the file's}. ``name``: of what is in a block; ``second``: number of its second convolution, 6 with dropout between."""
    rise, first = _rise(up, blocks, halvings), 4 + 3 * halvings
    places = {"last": f"model.{rise[-1]}"}
    for i in range(halvings + 1):
        places |= {f"down.{i}.conv": f"model.{1 + 3 * i}", f"down.{i}.norm": f"model.{2 + 3 * i}"}
    for i, at in enumerate(rise[:-1]):
        places |= {f"up.{i}.conv": f"model.{at}", f"up.{i}.norm": f"model.{at + 1}"}
    for i in range(blocks):
        for ours, number in (("first", 1), ("second", second)):
            block = f"model.{first + i}.{name}"
            places[f"blocks.{i}.{ours}.norm"] = f"{block}.{number + 1}"
            inside = {"conv": ""} if not separable else {"conv.depthwise": ".conv.0", "conv.norm": ".conv.1", "conv.pointwise": ".conv.2"}
            places |= {f"blocks.{i}.{ours}.{k}": f"{block}.{number}{v}" for k, v in inside.items()}
    return places


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """A ResNet generator as junyanz, GAN Compression, eriklindernoren (huggan) or their forks name it, or a PatchGAN.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
    """
    if (critic := read_discriminator(state)) is not None:
        return critic
    names = {m.group(1) for key in state if (m := re.match(r"model\.\d+\.(conv_block|block)\.\d+\.", key))}
    if not names:
        raise Mismatch("model.10.conv_block.1.weight is missing, and model.10.block.1.weight: a ResNet generator has one of them")
    name = min(names)
    inner = rf"model\.\d{{1,4}}\.{name}"
    numbers = _convs(state, rf"model\.(\d{{1,4}})\.{name}\..*weight")
    convs = _convs(state, r"model\.(\d{1,4})\.weight")
    if not numbers:
        raise Mismatch(f"no convolution in model.*.{name}", SURE)
    first, blocks = numbers[0], len(numbers)
    if gone := set(range(first, numbers[-1])) - set(numbers):
        raise Mismatch(f"model.{min(gone)}.{name}.1.weight is missing", SURE)
    halvings = (first - 4) // 3  # (conv, norm, ReLU) each, behind the padding
    if first != 4 + 3 * halvings or halvings < 1:
        raise Mismatch(f"model.{first}.{name} is the first block: padding, 7x7 and halvings before it are 7, 10, 13 ... modules", SURE)
    up = max(GAPS, key=lambda way: len(set(_rise(way, blocks, halvings)) & set(convs)))
    down, rise = [1 + 3 * i for i in range(halvings + 1)], _rise(up, blocks, halvings)
    shapes = {i: conv_shape(state, f"model.{i}.weight") for i in down + rise}
    separable = any(re.fullmatch(rf"{inner}\.\d\.conv\.\d\.weight", key) for key in state)
    seconds = _convs(state, rf"{inner}\.(\d)\.{'conv.0.' if separable else ''}weight")
    if seconds not in ([1, 5], [1, 6]):
        raise Mismatch(f"convolutions at model.{first}.{name}.{{{','.join(map(str, seconds))}}}: expected 1 and 5, or 1 and 6 with dropout between", SURE)

    places = places_of(name, blocks, halvings, up, seconds[1], separable)
    norms = [theirs for ours, theirs in places.items() if ours.endswith("norm")]
    bias = any(f"{theirs}.bias" in state for ours, theirs in places.items() if theirs not in norms and ours != "last")
    norm = norm_of(state, norms, bias)
    fields: dict[str, Any] = {"g_widths": tuple(shapes[i][0] for i in down), "blocks": blocks, "g_norm": norm, "g_bias": bias}
    fields |= {"up": up, "separable": separable, "nc_in": shapes[1][1], "nc": shapes[rise[-1]][0]}
    # GAN Compression puts a dropout module into every block and trains at rate 0
    fields["dropout"] = seconds[1] == 6 and not separable
    fields["edge"] = fields["nc_in"] if name == "block" and up == "nearest" else 3
    out, assumptions = renamed(state, built(Arch, fields, Generator), places)
    assumptions.append(f"images of 256 x 256; any multiple of {1 << halvings} runs: --reader resolution=N")
    if fields["dropout"]:
        assumptions.append("a student trains with dropout, as there is one in each block; at rate 0, as in GAN Compression: --reader dropout=false")
    if fields["edge"] != 3:
        assumptions.append(f"the 7x7 convolutions are padded by {fields['edge']}, the number of channels, as eriklindernoren's: else --reader edge=3")
    if norm == "batch":
        assumptions.append("BatchNorm on its stored statistics; on each image's own, as pix2pix tests: --reader statistics=image")
    return Reading("generator", fields, out, tuple(assumptions))


# ------------------------------------------------------------------------------------------------------------ the other functions


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set canonical widths (ngf and ndf). A fresh one has six blocks up to 128 x 128 and nine
    above (Zhu et al. 2017, §7.1)."""
    values, width, d_width = shorthands(values)
    fields = follow(parse_arch(Arch, values), base, d_width)
    if width:
        fields.setdefault("g_widths", tuple(width << i for i in range(len(base.g_widths) if base else 3)))
    if base is None:
        fields.setdefault("blocks", 6 if fields.get("resolution", 256) <= 128 else 9)
    return Arch(**{**(dataclasses.asdict(base) if base else {}), **fields})


def axes(arch: Arch, part: Part) -> Axes:
    """Groups: "down0", ... and "up0", ... of each layer; "stream" is what all blocks add to, "block0", ... what they hold inside."""
    if part == "discriminator":
        return discriminator_axes(arch)
    with torch.device("meta"):
        net = Generator(arch)
    n = len(arch.g_widths) - 1
    channels: dict[str, tuple[Axis, Axis]] = {"last": (None, f"up{n - 1}")}
    for i in range(n + 1):
        out = f"down{i}" if i < n else "stream"
        channels |= {f"down.{i}.conv": (out, f"down{i - 1}" if i else None), f"down.{i}.norm": (out, None)}
    for i in range(arch.blocks):
        for layer, out, into in (("first", f"block{i}", "stream"), ("second", "stream", f"block{i}")):
            at = f"blocks.{i}.{layer}"
            channels |= {f"{at}.conv": (out, into), f"{at}.norm": (out, None)}
            channels |= {f"{at}.conv.depthwise": (into, None), f"{at}.conv.norm": (into, None), f"{at}.conv.pointwise": (out, into)}
    for i in range(n):
        channels |= {f"up.{i}.conv": (f"up{i}", f"up{i - 1}" if i else "stream"), f"up.{i}.norm": (f"up{i}", None)}
    return tensor_axes(net, channels)


FAMILY = Family(
    name="resnet",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=batch_free,
    settings=SETTINGS | {"edge"},
    game="lsgan",
)
