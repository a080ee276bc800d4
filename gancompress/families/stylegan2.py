"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958) and its ADA variant (arXiv:2006.06676), configurations E and F.

Generator: z, normalised, -> mapping network -> w -> synthesis: a constant 4x4, then two modulated 3x3 convolutions for each doubling of the
resolution, images summed over all resolutions (``skip``), or residual blocks (``resnet``), or neither (``orig``).
Discriminator: its mirror with residual blocks (or ``skip``, ``orig``), the batch's standard deviation as a last channel, two dense layers.

Learning rates are equalised: weights are stored N(0, 1) and divided by the root of their fan-in at run time. Tensors have NVlabs' names
(``synthesis.b8.conv0.weight``); rosinality's and the TensorFlow pickles' are the same numbers under others (flipped where noted).

``truncation`` and ``noise`` mean the same in training and in evaluation. With ``const``, the stored noise, the network is a function of its
inputs alone, so that a student can match its teacher pixel by pixel; who trains on adversarial terms alone may want ``random``, as the paper has it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress import distributed as ranks
from gancompress.errors import UsageError
from gancompress.gan import Axes, Axis, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import sample_normal, scale_width, upfirdn, with_labels
from gancompress.speed import unreduced

Kind = Literal["skip", "resnet", "orig"]
#: the largest resolution, so that no file makes us build endless networks
MOST = 4096


@dataclass(frozen=True)
class Arch:
    """Every shape of a StyleGAN2, and the settings that change no tensor.

    ``g_widths``: channels of G at 4x4, 8x8, ...; ``d_widths``: of D at the full resolution, half of it, ..., 4x4; ``const_width``: of the
    constant. Mapping: ``map_layers`` of ``map_width`` (the last has ``w_dim``) at a learning rate of ``map_lr``; labels enter it
    as ``label_width`` numbers. ``g_clamp``, ``d_clamp``: bound of every activation, 0: none. ``d_std``: whether D sees the batch's standard
    deviation, over groups of ``d_std_group`` images (0: the whole batch). ``d_map_width``: size of D's label projection, 0: unconditional.
    """

    resolution: int = 256
    nz: int = 512
    nc: int = 3
    classes: int = 0
    w_dim: int = 512
    map_layers: int = 8
    map_width: int = 512
    map_lr: float = 0.01
    label_width: int = 0
    const_width: int = 512
    g_widths: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128)
    g_kind: Kind = "skip"
    g_clamp: float = 0.0
    d_widths: tuple[int, ...] = (128, 256, 512, 512, 512, 512, 512)
    d_kind: Kind = "resnet"
    d_clamp: float = 0.0
    d_std: bool = True
    d_std_group: int = 4
    d_map_layers: int = 8
    d_map_width: int = 0
    d_map_lr: float = 0.01
    #: share of the way from the mean w to w; 1: no truncation
    truncation: float = 1.0
    noise: Literal["const", "random", "none"] = "const"

    def __post_init__(self) -> None:
        blocks = self.resolution.bit_length() - 2
        if not 8 <= self.resolution <= MOST or self.resolution != 2 << blocks:
            raise UsageError(f"stylegan2 resolution {self.resolution}: it must be a power of 2 from 8 to {MOST}")
        for name, widths in (("g_widths", self.g_widths), ("d_widths", self.d_widths)):
            if len(widths) != blocks or min(widths) < 1:
                raise UsageError(f"stylegan2 {name}={widths}: resolution {self.resolution} has {blocks} positive widths")
        if min(self.nz, self.nc, self.w_dim, self.map_layers, self.map_width, self.const_width) < 1:
            raise UsageError(f"stylegan2 {self}: sizes must be at least 1")
        if min(self.classes, self.label_width, self.d_map_width, self.d_map_layers, self.d_std_group) < 0 or min(self.g_clamp, self.d_clamp) < 0:
            raise UsageError(f"stylegan2 {self}: no size or clamp is negative")
        if bool(self.classes) != bool(self.label_width) or (self.d_map_width and not self.classes):
            raise UsageError(f"stylegan2 classes={self.classes}, label_width={self.label_width}, d_map_width={self.d_map_width}: they do not go together")
        if not (self.map_lr > 0 and self.d_map_lr > 0 and math.isfinite(self.truncation)):
            raise UsageError(f"stylegan2 map_lr={self.map_lr}, d_map_lr={self.d_map_lr}, truncation={self.truncation}: out of range")

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ..., the full resolution."""
        return [4 << i for i in range(len(self.g_widths))]

    @property
    def num_ws(self) -> int:
        """How many w the synthesis takes: one for each convolution, and one for the last image."""
        return 2 * len(self.g_widths)


# ------------------------------------------------------------------------------------------------------------------- layers


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))  # _initialise fills it


def _activate(x: Tensor, bias: Tensor, gain: float = 1.0, clamp: float = 0.0) -> Tensor:
    """LeakyReLU(0.2) of x + bias over its channels, times sqrt(2) * gain, within clamp * gain where there is a clamp."""
    x = F.leaky_relu(x + bias.to(x.dtype).view(-1, *[1] * (x.ndim - 2)), 0.2) * (math.sqrt(2) * gain)
    return x.clamp(-clamp * gain, clamp * gain) if clamp else x


def _normalise(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def _filter(x: Tensor, padding: tuple[int, int, int, int], up: int = 1, down: int = 1, gain: float = 1.0) -> Tensor:
    """The low-pass filter [1, 3, 3, 1] in both directions, of sum ``gain``: 4 where zeros lie between the pixels."""
    taps = torch.arange(4, device=x.device, dtype=x.dtype)
    taps = 1 + taps * (3 - taps)  # made where x lies: a copy from the host would wait for the device
    return upfirdn(x, torch.outer(taps, taps), up, down, padding, gain / 64)


class Dense(nn.Module):
    """(N, n_in) -> (N, n_out) at an equalised learning rate, ``lr`` times that of the rest; LeakyReLU where ``active``."""

    def __init__(self, n_in: int, n_out: int, lr: float = 1.0, active: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = _empty(n_out, n_in), _empty(n_out)
        self.lr, self.active = lr, active

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * (self.lr / math.sqrt(self.weight.shape[1])), self.bias * self.lr
        return _activate(F.linear(x, weight), bias) if self.active else F.linear(x, weight, bias)


class Conv(nn.Module):
    """k x k convolution with bias and LeakyReLU, or a bare 1x1 one (``skip``) that keeps the size, halves or doubles it."""

    def __init__(self, n_in: int, n_out: int, k: int, scale: Literal["", "up", "down"] = "", skip: bool = False, clamp: float = 0.0) -> None:
        super().__init__()
        self.weight = _empty(n_out, n_in, k, k)
        self.bias = None if skip else _empty(n_out)
        self.scale, self.clamp = scale, clamp

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        k = self.weight.shape[-1]
        # a bare convolution has no activation to carry its gain
        weight = self.weight * ((1.0 if self.bias is not None else gain) / math.sqrt(self.weight[0].numel()))
        if self.scale == "down" and k == 1:
            x = F.conv2d(_filter(x, (1, 1, 1, 1), down=2), weight)
        elif self.scale == "down":
            x = F.conv2d(_filter(x, (2, 2, 2, 2)), weight, stride=2)
        elif self.scale == "up":
            x = _filter(F.conv2d(x, weight), (2, 1, 2, 1), up=2, gain=4)
        else:
            x = F.conv2d(x, weight, padding=k // 2)
        return x if self.bias is None else _activate(x, self.bias, gain, self.clamp)


class Styled(nn.Module):
    """3x3 convolution modulated by w and demodulated, noise, LeakyReLU (Karras et al. 2020, eqs. 1 to 3)."""

    def __init__(self, n_in: int, n_out: int, resolution: int, up: bool, arch: Arch) -> None:
        super().__init__()
        self.affine = Dense(arch.w_dim, n_in)
        self.weight, self.bias, self.noise_strength = _empty(n_out, n_in, 3, 3), _empty(n_out), _empty()
        self.register_buffer("noise_const", torch.empty(resolution, resolution))
        self.noise_const: Tensor
        self.up, self.clamp, self.noise = up, arch.g_clamp, arch.noise

    def forward(self, x: Tensor, w: Tensor, gain: float = 1.0) -> Tensor:
        style, weight = self.affine(w), self.weight / math.sqrt(self.weight[0].numel())
        # scaling the channels before and after is the same product as scaling the weights, without a set of weights for each image
        with unreduced(x):
            demodulate = (style.to(weight.dtype).square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt().to(style.dtype)
        x = x * style[:, :, None, None]
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2) if self.up else F.conv2d(x, weight, padding=1)
        if self.up:
            x = _filter(x, (1, 1, 1, 1), gain=4)
        x = x * demodulate[:, :, None, None]
        if self.noise != "none":
            noise = self.noise_const if self.noise == "const" else ranks.normal(x[:, :1])
            x = x + (noise * self.noise_strength).to(x.dtype)
        return _activate(x, self.bias, gain, self.clamp)


class ToImage(nn.Module):
    """1x1 convolution modulated by w, not demodulated."""

    def __init__(self, n_in: int, arch: Arch) -> None:
        super().__init__()
        self.affine = Dense(arch.w_dim, n_in)
        self.weight, self.bias, self.clamp = _empty(arch.nc, n_in, 1, 1), _empty(arch.nc), arch.g_clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) / math.sqrt(x.shape[1])
        x = F.conv2d(x * style[:, :, None, None], self.weight, self.bias)
        return x.clamp(-self.clamp, self.clamp) if self.clamp else x


class MappingNetwork(nn.Module):
    """z (N, nz) and labels as one-hot (N, classes), either of which may be absent -> (N, n_out)."""

    def __init__(self, nz: int, classes: int, label_width: int, width: int, n_out: int, layers: int, lr: float, average: bool) -> None:
        super().__init__()
        self.nz, self.layers = nz, layers
        if classes:
            self.embed = Dense(classes, label_width)
        n_in = nz + label_width
        for i in range(layers):
            last = i == layers - 1
            self.add_module(f"fc{i}", Dense(n_in, n_out if last else width, lr, active=True))
            n_in = width
        if average:
            self.register_buffer("w_avg", torch.empty(n_out))
            self.w_avg: Tensor

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        parts = ([_normalise(z)] if self.nz else []) + ([_normalise(self.embed(labels))] if labels.shape[1] else [])
        x = torch.cat(parts, 1)
        for i in range(self.layers):
            x = self.get_submodule(f"fc{i}")(x)
        return x


class SynthesisBlock(nn.Module):
    """The convolutions and the image of one resolution."""

    def __init__(self, n_in: int, width: int, resolution: int, arch: Arch) -> None:
        super().__init__()
        self.first, self.residual = resolution == 4, arch.g_kind == "resnet" and resolution > 4
        if self.first:
            self.const = _empty(n_in, 4, 4)
        else:
            self.conv0 = Styled(n_in, width, resolution, True, arch)
        self.conv1 = Styled(n_in if self.first else width, width, resolution, False, arch)
        self.torgb = ToImage(width, arch) if arch.g_kind == "skip" or resolution == arch.resolution else None
        if self.residual:
            self.skip = Conv(n_in, width, 1, "up", skip=True)

    def forward(self, x: Tensor | None, image: Tensor | None, ws: Tensor) -> tuple[Tensor, Tensor | None]:
        """ws: (N, 2 or 3, w_dim), in the order of use."""
        if x is None:
            x = self.conv1(self.const.repeat(ws.shape[0], 1, 1, 1), ws[:, 0])
        elif self.residual:
            half = math.sqrt(0.5)
            x = self.skip(x, half) + self.conv1(self.conv0(x, ws[:, 0]), ws[:, 1], half)
        else:
            x = self.conv1(self.conv0(x, ws[:, 0]), ws[:, 1])
        if image is not None:
            image = _filter(image, (2, 1, 2, 1), up=2, gain=4)
        if self.torgb is not None:
            new = self.torgb(x, ws[:, -1])
            image = new if image is None else image + new
        return x, image


# ----------------------------------------------------------------------------------------------------------------- networks


class Generator(nn.Module):
    """Latents and labels (N,) where classes -> images (N, nc, H, W), about [-1, 1], unbounded.

    Latents: z (N, nz), normal, or w (N, 1, w_dim), or w+ (N, num_ws, w_dim); the last two are taken as they are, without truncation and labels.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.mapping = MappingNetwork(arch.nz, arch.classes, arch.label_width, arch.map_width, arch.w_dim, arch.map_layers, arch.map_lr, average=True)
        widths = (arch.const_width, *arch.g_widths)
        self.synthesis = nn.ModuleDict({f"b{r}": SynthesisBlock(widths[i], widths[i + 1], r, arch) for i, r in enumerate(arch.resolutions)})
        _initialise(self)

    def styles(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        """w+ (N, num_ws, w_dim) of any kind of latents; ``forward`` makes images of it."""
        ws = inputs if inputs.ndim == 3 else self._map(inputs, condition)[:, None]
        if ws.shape[1] not in (1, self.arch.num_ws) or ws.shape[2] != self.arch.w_dim:
            raise ValueError(f"w has shape {tuple(ws.shape)}, expected (N, 1 or {self.arch.num_ws}, {self.arch.w_dim})")
        return ws.expand(-1, self.arch.num_ws, -1)

    def features(self, inputs: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations of each resolution (N, C, H, W), coarse to fine, then the images."""
        ws = self.styles(inputs, condition)
        x = image = None
        found = []
        for i, block in enumerate(self.synthesis.values()):
            # a block's image shares its w with the next block's first convolution
            x, image = block(x, image, ws[:, max(0, 2 * i - 1) : 2 * i + 2])
            found.append(x)
        return [*found, image]

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(inputs, condition)[-1]

    def _map(self, z: Tensor, condition: Tensor | None) -> Tensor:
        z, labels = with_labels(z.flatten(1), condition, self.arch.classes, self.arch.nz).split([self.arch.nz, self.arch.classes], 1)
        w: Tensor = self.mapping(z, labels)
        if self.training:
            with torch.no_grad():
                self.mapping.w_avg.lerp_(w.mean(0).to(self.mapping.w_avg.dtype), 0.005)  # the reference's beta of 0.995
        return w if self.arch.truncation == 1 else self.mapping.w_avg.lerp(w.to(self.mapping.w_avg.dtype), self.arch.truncation)


class CriticBlock(nn.Module):
    """The convolutions of D at one resolution, which they halve."""

    def __init__(self, width: int, n_out: int, resolution: int, arch: Arch) -> None:
        super().__init__()
        self.residual, self.images = arch.d_kind == "resnet", arch.d_kind == "skip"
        self.fromrgb = Conv(arch.nc, width, 1, clamp=arch.d_clamp) if arch.d_kind == "skip" or resolution == arch.resolution else None
        self.conv0 = Conv(width, width, 3, clamp=arch.d_clamp)
        self.conv1 = Conv(width, n_out, 3, "down", clamp=arch.d_clamp)
        if self.residual:
            self.skip = Conv(width, n_out, 1, "down", skip=True)

    def forward(self, x: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.fromrgb is not None:
            new = self.fromrgb(image)
            x = new if x is None else x + new
        if self.images:
            image = _filter(image, (1, 1, 1, 1), down=2)
        if self.residual:
            half = math.sqrt(0.5)
            return self.skip(x, half) + self.conv1(self.conv0(x), half), image
        return self.conv1(self.conv0(x)), image


class Epilogue(nn.Module):
    """D at 4x4: (N, C, 4, 4) -> (N, 1), or (N, d_map_width) where it is conditional."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = arch.d_widths[-1]
        self.std, self.group = arch.d_std, arch.d_std_group
        self.fromrgb = Conv(arch.nc, width, 1) if arch.d_kind == "skip" else None
        self.conv = Conv(width + arch.d_std, width, 3, clamp=arch.d_clamp)
        self.fc = Dense(16 * width, width, active=True)
        self.out = Dense(width, arch.d_map_width or 1)

    def forward(self, x: Tensor, image: Tensor) -> list[Tensor]:
        x = x if self.fromrgb is None else x + self.fromrgb(image)
        if self.std:
            x = torch.cat([x, self._deviation(x)], 1)
        hidden = self.fc(self.conv(x).flatten(1))
        return [hidden, self.out(hidden)]

    def _deviation(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W): standard deviation over a group, mean over channels and pixels (Karras et al. 2018, §3).

        Image i is in a group with those N / size apart. Where the group's size does not divide N it is the largest below that does.
        """
        n = len(x)
        size = next(s for s in range(min(self.group or n, n), 0, -1) if n % s == 0)
        spread = (x.float().unflatten(0, (size, -1)).var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3)).to(x.dtype)
        return spread.repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])


class Discriminator(nn.Module):
    """Images (N, nc, H, W), labels (N,) where d_map_width -> logits (N,) before any sigmoid."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        for i, r in enumerate(reversed(arch.resolutions[1:])):
            self.add_module(f"b{r}", CriticBlock(arch.d_widths[i], arch.d_widths[i + 1], r, arch))
        self.b4 = Epilogue(arch)
        if width := arch.d_map_width:
            self.mapping = MappingNetwork(0, arch.classes, width, width, width, arch.d_map_layers, arch.d_map_lr, average=False)
        _initialise(self)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations after each resolution (N, C, H, W) and after the first dense layer (N, C), then the logits (N,)."""
        x, found = None, []
        labels = with_labels(images.new_zeros(len(images), 0), condition, self.arch.classes, 0) if self.arch.d_map_width else None
        for r in reversed(self.arch.resolutions[1:]):
            x, images = self.get_submodule(f"b{r}")(x, images)
            found.append(x)
        hidden, out = self.b4(x, images)
        if labels is not None:
            out = (out * self.mapping(labels[:, :0], labels)).sum(1, keepdim=True) / math.sqrt(self.arch.d_map_width)
        return [*found, hidden, out.flatten()]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


def _initialise(net: nn.Module) -> None:
    """N(0, 1) weights (over lr, for it comes back at run time), constant and noise; biases and strengths of 0, styles of 1 (Karras et al. 2020, App. B)."""
    if next(net.parameters()).is_meta:
        return
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            if leaf in ("weight", "const", "noise_const"):
                module = net.get_submodule(owner)
                tensor.normal_(0, 1 / module.lr if isinstance(module, Dense) else 1)
            else:
                tensor.fill_(1 if name.endswith("affine.bias") else 0)


# ---------------------------------------------------------------------------------------------------------------- the reader

Project = Literal["nvlabs", "rosinality", "tensorflow"]
#: what the keys of a project's network begin with; a group is the resolution, or rosinality's count of doublings
MARKS: dict[tuple[Project, Part], str] = {
    ("nvlabs", "generator"): r"synthesis\.b(\d{1,5})\.|mapping\.",
    ("nvlabs", "discriminator"): r"b(\d{1,5})\.(?:fromrgb|conv|skip|fc|out|resample_filter)|mapping\.",
    ("rosinality", "generator"): r"to_rgbs\.(\d{1,2})\.|(?:style|convs|noises)\.|(?:input|conv1|to_rgb1)\.",
    ("rosinality", "discriminator"): r"convs\.(\d{1,2})\.(?:conv|skip)|convs\.0\.|final_",
    ("tensorflow", "generator"): r"synthesis/(\d{1,5})x\d+/|synthesis/noise|mapping/|dlatent_avg$|lod$",
    ("tensorflow", "discriminator"): r"(\d{1,5})x\d+/|Output/|LabelEmbed/|Mapping\d|lod$",
}
#: filters, which are checked, and a counter of progressive growing, which this network has not
ASIDE = r"(?:.+\.)?resample_filter|(?:convs|to_rgbs)\.\d+\..+\.kernel|lod"


def rosinality_name(key: str, part: Part, top: int) -> str:
    """rosinality's name of our tensor (stylegan2-pytorch)."""
    block, layer, leaf = _split(key)
    level = block.bit_length() - 4  # 8x8 is level 0
    if not block:
        return f"style.{int(layer[2:]) + 1}.{leaf}" if layer.startswith("fc") else key
    if part == "discriminator":
        j = top.bit_length() - block.bit_length() + 1
        if layer in ("fc", "out"):
            return f"final_linear.{int(layer == 'out')}.{leaf}"
        place = {"fromrgb": "convs.0", "conv0": f"convs.{j}.conv1", "conv1": f"convs.{j}.conv2", "skip": f"convs.{j}.skip", "conv": "final_conv"}[layer]
        # a blur comes before the convolutions that halve
        return f"{place}.{int(layer in ('conv1', 'skip')) + int(leaf == 'bias')}.{leaf}"
    number = 2 * level + int(layer == "conv1")
    if leaf == "noise_const":
        return f"noises.noise_{number + 1}"
    places = {"const": "input.input", "torgb": f"to_rgbs.{level}.", "conv0": f"convs.{number}.", "conv1": f"convs.{number}."}
    if block == 4:
        places |= {"torgb": "to_rgb1.", "conv1": "conv1."}
    inner = {"weight": "conv.weight", "noise_strength": "noise.weight", "bias": "bias" if layer == "torgb" else "activate.bias"}
    return places.get(layer, key) + inner.get(leaf, leaf.replace("affine", "conv.modulation"))


def _tensorflow(key: str, part: Part, top: int) -> str:
    """The variable's name in NVlabs' TensorFlow code (stylegan2, stylegan2-ada)."""
    block, layer, leaf = _split(key)
    leaf = leaf.replace("affine.", "mod_")
    if part == "generator":
        if leaf == "noise_const":
            return f"synthesis/noise{2 * block.bit_length() - 7 + int(layer == 'conv1')}"
        names = {"const": "Const/const", "conv0": "Conv0_up/", "conv1": "Conv1/" if block > 4 else "Conv/", "torgb": "ToRGB/", "skip": "Skip/"}
        outside = "dlatent_avg" if layer == "w_avg" else f"mapping/{'LabelEmbed' if layer == 'embed' else f'Dense{layer[2:]}'}/"
        return (f"synthesis/{block}x{block}/{names[layer]}" if block else outside) + leaf
    names = {"fromrgb": "FromRGB", "conv0": "Conv0", "conv1": "Conv1_down", "skip": "Skip", "conv": "Conv", "fc": "Dense0"}
    outside = "LabelEmbed" if layer == "embed" else f"Mapping{layer[2:]}"
    place = "Output" if layer == "out" else f"{block}x{block}/{names[layer]}" if block else outside
    return f"{place}/{leaf}"


def _split(key: str) -> tuple[int, str, str]:
    """synthesis.b8.conv0.affine.bias -> (8, conv0, affine.bias); mapping.fc1.weight -> (0, fc1, weight)."""
    match = re.fullmatch(r"(?:mapping|(?:synthesis\.)?b(\d+))\.(\w+)\.?(.*)", key)
    assert match, key
    return int(match[1] or 0), match[2], match[3]


class _File:
    """One network as a project wrote it: looks our tensors up under its names."""

    def __init__(self, state: StateDict) -> None:
        found = {which: [m for k in state if (m := re.match(mark, k))] for which, mark in MARKS.items()}
        self.state = state
        self.project, self.part = max(found, key=lambda which: len(found[which]))
        marks = found[self.project, self.part]
        share = len(marks) / len(state)
        self.score = 0.9 * share**2
        count = max((int(m[1]) for m in marks if m[1]), default=0)
        doublings = {"generator": 8, "discriminator": 4}[self.part]
        self.top = doublings << count if self.project == "rosinality" else count
        if share < 0.5 or not 8 <= self.top <= MOST or self.top & (self.top - 1):
            raise Mismatch("it has no blocks of doubling resolution as a StyleGAN2 has", self.score / 2)

    def name(self, key: str) -> str:
        return key if self.project == "nvlabs" else {"rosinality": rosinality_name, "tensorflow": _tensorflow}[self.project](key, self.part, self.top)

    def has(self, key: str) -> bool:
        return self.name(key) in self.state

    def count(self, key: str) -> int:
        """How many of ``key`` with 0, 1, ... in it are there."""
        return next(i for i in range(len(self.state) + 1) if not self.has(key.format(i)))

    def get(self, key: str, ndim: int) -> Tensor:
        """Our tensor of that name, in our layout."""
        name = self.name(key)
        if name not in self.state:
            raise Mismatch(f"{name} is missing", self.score)
        tensor = self.state[name]
        while self.project != "nvlabs" and tensor.ndim > ndim and 1 in (tensor.shape[0], tensor.shape[-1]):
            tensor = tensor[0] if tensor.shape[0] == 1 else tensor[..., 0]
        if tensor.ndim != ndim:
            raise Mismatch(f"{name} has shape {tuple(self.state[name].shape)}, expected {ndim} dimensions", self.score)
        if self.project == "tensorflow" and key.endswith("weight"):
            # (k, k, in, out), and what doubles is a true convolution there
            tensor = tensor.T if ndim == 2 else (tensor.flip(0, 1) if self.part == "generator" and ".conv0." in key else tensor).permute(3, 2, 0, 1)
        return tensor + 1 if self.project == "tensorflow" and key.endswith("affine.bias") else tensor

    def take(self, shapes: Mapping[str, torch.Size], absent: Callable[[str], bool]) -> StateDict:
        """Every tensor of those shapes, but those which may be absent and are; all else in the file must be filters."""
        found: StateDict = {}
        for key, shape in shapes.items():
            if absent(key) and not self.has(key):
                continue
            found[key] = tensor = self.get(key, len(shape))
            if tensor.shape != shape:
                raw = tuple(self.state[self.name(key)].shape)
                raise Mismatch(f"{self.name(key)} has shape {raw}, read as {tuple(tensor.shape)}, expected {tuple(shape)}", self.score)
        used = {self.name(key) for key in found}
        for key, tensor in self.state.items():
            if key in used or key == "lod":
                continue
            if not re.fullmatch(ASIDE, key):
                raise Mismatch(f"unexpected key {key}", self.score)
            if tensor.shape != (4, 4) or not torch.allclose(tensor.float() / tensor.float().sum(), _TAPS, atol=1e-4):
                raise Mismatch(f"{key} is another filter than [1, 3, 3, 1]", self.score)
        return found


_TAPS = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8])


def _generator_fields(file: _File) -> dict[str, Any]:
    resolutions = [4 << i for i in range(file.top.bit_length() - 2)]
    label_width, classes = file.get("mapping.embed.weight", 2).shape if file.has("mapping.embed.weight") else (0, 0)
    first = file.get("mapping.fc0.weight", 2)
    layers = file.count("mapping.fc{}.weight")
    w_dim = file.get("synthesis.b4.conv1.affine.weight", 2).shape[1]
    skips = [file.has(f"synthesis.b{r}.skip.weight") for r in resolutions]
    images = [file.has(f"synthesis.b{r}.torgb.weight") for r in resolutions[:-1]]
    return {
        "resolution": file.top,
        "nc": file.get(f"synthesis.b{file.top}.torgb.weight", 4).shape[0],
        "nz": first.shape[1] - label_width,
        "classes": classes,
        "label_width": label_width,
        "w_dim": w_dim,
        "map_layers": layers,
        "map_width": first.shape[0] if layers > 1 else w_dim,
        "const_width": file.get("synthesis.b4.const", 3).shape[0],
        "g_widths": tuple(file.get(f"synthesis.b{r}.conv1.weight", 4).shape[0] for r in resolutions),
        "g_kind": "resnet" if any(skips) else "skip" if any(images) else "orig",
    }


def _discriminator_fields(file: _File) -> dict[str, Any]:
    resolutions = [4 << i for i in range(file.top.bit_length() - 2)][:0:-1]
    final = file.get("b4.conv.weight", 4)
    fields = {
        "resolution": file.top,
        "nc": file.get(f"b{file.top}.fromrgb.weight", 4).shape[1],
        "d_widths": (*(file.get(f"b{r}.conv0.weight", 4).shape[0] for r in resolutions), final.shape[0]),
        "d_std": final.shape[1] > final.shape[0],
        "d_kind": "resnet" if any(file.has(f"b{r}.skip.weight") for r in resolutions) else "skip" if file.has("b4.fromrgb.weight") else "orig",
        "d_map_width": 0,
    }
    if file.has("mapping.embed.weight"):
        width, classes = file.get("mapping.embed.weight", 2).shape
        fields |= {"classes": classes, "d_map_width": width, "d_map_layers": file.count("mapping.fc{}.weight")}
    return fields


def _group(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _positive(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf else otherwise


def _settings(file: _File, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What no tensor tells: (fields, assumptions), from the settings saved in the file where there are any."""
    generator = file.part == "generator"
    if file.project == "rosinality":
        return {}, ["as rosinality's code has it: LeakyReLU 0.2, no clamp, " + ("a mapping rate of 0.01" if generator else "deviations over groups of 4")]
    if file.project == "tensorflow":
        groups = [dict(config)]
        rate, clamp = _positive(config.get("mapping_lrmul"), 0.01 if generator else 0.1), config.get("conv_clamp")
        std = config.get("mbstd_group_size", 4)
    else:
        synthesis, mapping = _group(config, "synthesis_kwargs"), _group(config, "mapping_kwargs")
        epilogue = _group(config, "epilogue_kwargs")
        groups = [dict(config), synthesis, mapping, epilogue, _group(config, "block_kwargs")]
        rate, std = _positive(mapping.get("lr_multiplier"), 0.01), epilogue.get("mbstd_group_size", 4)
        # stylegan3's code, which has no synthesis_kwargs, clamps where nothing is said; stylegan2-ada's does not
        clamp = synthesis.get("conv_clamp") if "synthesis_kwargs" in config else config.get("conv_clamp", 256)
    usual = {"activation": "'lrelu'", "nonlinearity": "'lrelu'", "mapping_nonlinearity": "'lrelu'", "normalize_latents": "True"}
    usual |= {"resample_filter": "[1, 3, 3, 1]", "resample_kernel": "[1, 3, 3, 1]"}
    for name, value in (item for group in groups for item in group.items()):
        if name in usual and repr(value) != usual[name]:
            raise Mismatch(f"its settings say {name} = {value!r}; we know {usual[name]}", file.score)
    said = [] if config.keys() & {"img_resolution", "resolution"} else [f"no settings in the file: clamp {clamp}, a mapping rate of {rate}"]
    if generator:
        return {"map_lr": rate, "g_clamp": _positive(clamp, 0.0)}, said
    return {"d_map_lr": rate, "d_clamp": _positive(clamp, 0.0), "d_std_group": int(_positive(std, 0))}, said


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """rosinality's ``.pt`` (trained or converted), NVlabs' pickles of stylegan2-ada-pytorch and stylegan3, and of TensorFlow.

    Settings come from ``options["config"]``: NVlabs' constructor arguments, and rosinality's ``latent_avg``. Without the mean w it is that
    of 4096 latents of a fixed seed; without stored noise, noise of a fixed seed.

    Raises:
        Mismatch: naming the first key, as the file has it, that is missing, unexpected or of a wrong shape.
    """
    if not state:
        raise Mismatch("no tensors")
    file = _File(state)
    hints = options.get("config")
    config = hints if isinstance(hints, Mapping) else {}
    fields, assumptions = _settings(file, config)
    generator = file.part == "generator"
    fields |= _generator_fields(file) if generator else _discriminator_fields(file)
    try:
        arch = build_arch(None, fields)
    except UsageError as error:
        raise Mismatch(str(error), file.score) from None
    with torch.device("meta"):
        net = Generator(arch) if generator else Discriminator(arch)
    out = file.take({k: t.shape for k, t in net.state_dict().items()}, lambda key: key.endswith(("w_avg", "noise_const")))
    if generator:
        assumptions += _complete(out, arch, config)
    return Reading(file.part, fields, out, tuple(assumptions))


def _complete(state: StateDict, arch: Arch, config: Mapping[str, Any]) -> list[str]:
    """Puts the stored noise and the mean w into a generator's state where the file has none; what it assumed."""
    said = []
    rng = torch.Generator().manual_seed(0)
    for r in arch.resolutions:
        for key in (f"synthesis.b{r}.conv0.noise_const", f"synthesis.b{r}.conv1.noise_const")[r == 4 :]:
            if key not in state:
                state[key] = torch.randn(r, r, generator=rng)
                said = ["no stored noise in the file: noise of a fixed seed"]
    if "mapping.w_avg" not in state:
        mean = config.get("latent_avg")
        if isinstance(mean, Tensor) and mean.numel() == arch.w_dim and mean.is_floating_point() and mean.isfinite().all():
            state["mapping.w_avg"] = mean.flatten()
        else:
            state["mapping.w_avg"] = _mean_w(state, arch, rng)
            said.append("no mean w (latent_avg, w_avg) in the file: that of 4096 latents of a fixed seed")
    return said


@torch.no_grad()
def _mean_w(state: StateDict, arch: Arch, rng: torch.Generator) -> Tensor:
    with torch.device("meta"):
        mapping = MappingNetwork(arch.nz, arch.classes, arch.label_width, arch.map_width, arch.w_dim, arch.map_layers, arch.map_lr, average=False)
    mapping = mapping.to_empty(device="cpu")
    mapping.load_state_dict({k.removeprefix("mapping."): t for k, t in state.items() if k.startswith("mapping.")})
    widest = max(arch.nz, arch.classes, arch.label_width, arch.map_width, arch.w_dim)
    n = max(1, min(4096, (1 << 26) // widest))  # whatever the sizes a file claims
    z, labels = sample_normal(arch, n, rng)
    return mapping(z, z.new_zeros(n, 0) if labels is None else F.one_hot(labels, arch.classes).to(z.dtype)).mean(0)


# ------------------------------------------------------------------------------------------------------------ the other functions


def canonical_widths(width: int, resolution: int) -> tuple[int, ...]:
    """``width`` channels from 4x4 to 64x64, half as many for each doubling beyond: 512 is configuration F."""
    return tuple(max(1, min(width, 64 * width // r)) for r in (4 << i for i in range(resolution.bit_length() - 2)))


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set canonical widths. Of a new one the sizes not given follow from the others."""
    values = dict(values)
    shorthand = {k: v for k in ("width", "d_width") if (v := values.pop(k, None)) is not None}
    fields = parse_arch(Arch, values)
    known = dataclasses.asdict(base) if base else {}
    resolution = fields.get("resolution", known.get("resolution", Arch.resolution))
    try:
        width = int(shorthand.get("width", 512))
        d_width = int(shorthand.get("d_width", width))
    except ValueError:
        raise UsageError(f"width={shorthand}: expected whole numbers") from None
    if min(width, d_width) < 1:
        raise UsageError(f"width={width}, d_width={d_width}: at least 1")
    fresh = base is None or resolution != base.resolution
    if "g_widths" not in fields and ("width" in shorthand or fresh):
        fields["g_widths"] = canonical_widths(width, resolution)
    if "d_widths" not in fields and (shorthand or fresh):
        mirror = "g_widths" in values and not shorthand
        fields["d_widths"] = fields["g_widths"][::-1] if mirror else canonical_widths(d_width, resolution)[::-1]
    if base is None and fields["g_widths"] and fields["d_widths"]:  # Arch refuses empty ones
        fields.setdefault("const_width", fields["g_widths"][0])
        fields.setdefault("map_width", fields.get("w_dim", Arch.w_dim))
        if fields.get("classes"):
            fields.setdefault("label_width", fields.get("w_dim", Arch.w_dim))
            fields.setdefault("d_map_width", fields["d_widths"][-1])
    return Arch(**{**known, **fields})


def scale(arch: Arch, ch_mul: float) -> Arch:
    """Every convolution of G and all of D but its label projection times ch_mul; the mapping network, w and the constant stay
    (DGL-GAN, Chang et al. 2022, arXiv:2209.08630)."""
    return dataclasses.replace(
        arch,
        g_widths=tuple(scale_width(w, ch_mul) for w in arch.g_widths),
        d_widths=tuple(scale_width(w, ch_mul) for w in arch.d_widths),
    )


def axes(arch: Arch, part: Part) -> Axes:
    """The outputs of each block's last convolution are one group, with those of its skip; those of the first another. The mapping network,
    w, labels, constant, noise and images are never sliced."""
    with torch.device("meta"):
        shapes = (Generator(arch) if part == "generator" else Discriminator(arch)).state_dict()
    found: Axes = {}
    for key, tensor in shapes.items():
        if key.startswith("mapping."):
            found[key] = (None,) * tensor.ndim
            continue
        block, layer, leaf = _split(key)
        n_in, n_out = (_groups_g(block) if part == "generator" else _groups_d(block, arch))[layer]
        if leaf.startswith("affine."):
            found[key] = (n_in, None)[: tensor.ndim]
        elif leaf == "weight":
            found[key] = (n_out, n_in, None, None)[: tensor.ndim]
        else:
            found[key] = (n_out,) if leaf == "bias" else (None,) * tensor.ndim
    return found


def _groups_g(block: int) -> dict[str, tuple[Axis, Axis]]:
    """{layer: (group of its inputs, of its outputs)}; b8 is the outputs of the block of 8x8, b8.0 those of its first convolution."""
    before, inner, here = (f"b{block // 2}", f"b{block}.0", f"b{block}") if block > 4 else (None, None, "b4")
    return {"const": (None, None), "conv0": (before, inner), "conv1": (inner, here), "skip": (before, here), "torgb": (here, None)}


def _groups_d(block: int, arch: Arch) -> dict[str, tuple[Axis, Axis]]:
    """As _groups_g; b8 is the inputs of the block of 8x8."""
    here, inner, after = f"b{block}", f"b{block}.0", f"b{block // 2}"
    found: dict[str, tuple[Axis, Axis]] = {"fromrgb": (None, here), "conv0": (here, inner), "conv1": (inner, after), "skip": (here, after)}
    return found | {"conv": (((here, 1), (None, 1)) if arch.d_std else here, "conv"), "fc": ((("conv", 16),), "fc"), "out": ("fc", None)}


FAMILY = Family(
    name="stylegan2",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample_normal,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    settings=frozenset({"truncation", "noise"}),
)
