"""StyleGAN3 (Karras et al. 2021, arXiv:2106.12423), the alias-free generator: configs T and R. A teacher only: it has no critic here.

Mapping: z (and an embedded label), each normalised -> [Linear, LeakyReLU(0.2) * sqrt 2] x 2 -> w. Synthesis: Fourier features of a
grid that w turns and shifts, a 1x1 map, then N layers of the same make, each with a band of its own (cutoff, stopband, sampling
rate, size; §3.2 and Fig. 4): input gain 1 / sqrt(running mean square), modulated convolution, bias, up, LeakyReLU(0.2) * sqrt 2,
clamp, down; ToRGB is a modulated 1x1 convolution without demodulation or filters. Sizes hold a margin of 10 pixels on each side.
T: 3x3 convolutions, separable Kaiser filters. R: 1x1 convolutions of twice the width, radially symmetric filters on the way down.

Weights are stored unscaled (equalised learning rate); filters are buffers. Reads NVlabs' stylegan3 pickles
(``synthesis.L{index}_{size}_{width}.*``), whose discriminator is that of StyleGAN2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress import distributed as ranks
from gancompress.errors import UsageError
from gancompress.gan import Axes, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import sample_normal, scale_width, upfirdn, with_labels
from gancompress.speed import unreduced

#: what a step of training leaves of the old running means: of w (for truncation), and of each layer's input power
W_AVG_BETA, MAGNITUDE_BETA = 0.998, 0.999


@dataclass(frozen=True)
class Arch:
    """Every shape of a StyleGAN3 generator. ``widths``: channels after each layer but ToRGB; the first is that of the input too.

    ``kernel``, ``radial``: 3 and False for config T, 1 and True for R. ``critical``: layers at the end without room above their
    cutoff; ``last_stopband`` is relative to the cutoff; ``taps``: of a filter, at its lower rate; ``lrelu_up``: how far above its
    rate a layer's nonlinearity works; ``clamp``: bound of the activations (0: none).
    """

    resolution: int = 256
    nz: int = 512
    nc: int = 3
    classes: int = 0
    w_dim: int = 512
    map_layers: int = 2
    map_lr: float = 0.01
    widths: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512, 512, 512, 362, 256, 181, 128, 128)
    kernel: int = 3
    radial: bool = False
    critical: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband: float = 2**0.3
    margin: int = 10
    taps: int = 6
    lrelu_up: int = 2
    clamp: float = 256.0
    output_scale: float = 0.25
    truncation: float = 1.0

    def __post_init__(self) -> None:
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise UsageError(f"stylegan3 resolution {self.resolution}: it must be a power of 2 from 4 up")
        floats = (self.map_lr, self.first_cutoff, self.first_stopband, self.last_stopband, self.clamp, self.output_scale, self.truncation)
        sizes = (self.nz, self.nc, self.w_dim, self.map_layers, self.kernel, self.taps, *self.widths)
        if min(sizes) < 1 or self.classes < 0 or not all(map(math.isfinite, floats)) or min(self.map_lr, self.output_scale) <= 0 or self.clamp < 0:
            raise UsageError(f"stylegan3 {self}: out of range")
        if not 1 <= self.critical < len(self.widths) or self.taps > 64 or not 2 <= self.lrelu_up <= 8 or not 0 <= self.margin <= 256:
            raise UsageError(f"stylegan3 {self}: 1 <= critical < {len(self.widths)} layers, taps up to 64, lrelu_up from 2 to 8, margin up to 256")
        if not 0 < self.first_cutoff <= self.resolution / 2 or min(self.first_stopband, self.last_stopband) <= 0:
            raise UsageError(f"stylegan3 {self}: the first cutoff lies above 0 and up to {self.resolution / 2:g}, stopbands above 0")
        found = bands(self)
        if any(b.rate < a.rate for a, b in pairwise(found)) or min(b.half_width for b in found) <= 0 or found[0].rate < 1:
            raise UsageError(f"stylegan3 {self}: sampling rates must not fall from layer to layer, and each stopband lies above its cutoff")


@dataclass(frozen=True)
class Band:
    """What a layer's output may hold: frequencies up to ``cutoff``, none past ``cutoff + half_width``; ``rate`` samples to the side of
    the image, ``size`` pixels with the margins."""

    cutoff: float
    half_width: float
    rate: int
    size: int


def bands(arch: Arch) -> list[Band]:
    """Of every layer and ToRGB: cutoffs and stopbands in geometric progression up to the critically sampled layers (§3.2)."""
    layers = len(arch.widths)
    done = np.minimum(np.arange(layers + 1) / (layers - arch.critical), 1)
    last = arch.resolution / 2
    cutoffs = arch.first_cutoff * (last / arch.first_cutoff) ** done
    stopbands = arch.first_stopband * (last * arch.last_stopband / arch.first_stopband) ** done
    rates = np.exp2(np.ceil(np.log2(np.minimum(2 * stopbands, arch.resolution))))
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = rates + 2 * arch.margin
    sizes[-2:] = arch.resolution
    return [Band(float(c), float(h), int(r), int(s)) for c, h, r, s in zip(cutoffs, half_widths, rates, sizes, strict=True)]


def lowpass(taps: int, cutoff: float, half_width: float, rate: float, radial: bool = False) -> np.ndarray:
    """A Kaiser-windowed low-pass filter (taps,), or (taps, taps) where radial: a jinc seen from its centre (appendix C.3, D).

    The sum is 1. The window's shape follows from taps and transition width by Kaiser's formulas (1974).
    """
    attenuation = 2.285 * (taps - 1) * math.pi * (4 * half_width / rate) + 7.95
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else 0.5842 * max(attenuation - 21, 0) ** 0.4 + 0.07886 * max(attenuation - 21, 0)
    window = np.kaiser(taps, beta)
    at = (np.arange(taps) - (taps - 1) / 2) / rate
    if radial:
        radius = np.pi * np.maximum(np.hypot(at[:, None], at), 1e-12)
        ideal = torch.special.bessel_j1(torch.from_numpy(2 * cutoff * radius)).numpy() / radius * np.outer(window, window)
    else:
        ideal = np.sinc(2 * cutoff * at) * window
    return ideal / ideal.sum()


# --------------------------------------------------------------------------------------------------------------- the generator


class Dense(nn.Module):
    """(N, n_in) -> (N, n_out); weights are stored unscaled, the gain lr / sqrt(n_in) is applied here."""

    def __init__(self, n_in: int, n_out: int, lr: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (self.lr / math.sqrt(self.weight.shape[1])), self.bias * self.lr)


def _normalised(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """(N, nz) latents, labels (N,) -> w (N, w_dim), drawn towards their mean by ``truncation``."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        if arch.classes:
            self.embed = Dense(arch.classes, arch.w_dim)
        first = arch.nz + (arch.w_dim if arch.classes else 0)
        self.fc = nn.ModuleList(Dense(arch.w_dim if i else first, arch.w_dim, arch.map_lr) for i in range(arch.map_layers))
        self.register_buffer("w_avg", torch.zeros(arch.w_dim))
        self.w_avg: Tensor

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        nz, psi = self.arch.nz, self.arch.truncation
        z = with_labels(z, condition, self.arch.classes, nz)
        x = _normalised(z[:, :nz])
        if self.arch.classes:
            x = torch.cat([x, _normalised(self.embed(z[:, nz:]))], 1)
        for layer in self.fc:
            x = F.leaky_relu(layer(x), 0.2) * math.sqrt(2)
        if self.training:
            self.w_avg.copy_(x.detach().float().mean(0).lerp(self.w_avg, W_AVG_BETA))
        return x if psi == 1 else self.w_avg.lerp(x.to(self.w_avg.dtype), psi)


class SynthesisInput(nn.Module):
    """w (N, w_dim) -> Fourier features, turned and shifted by what w says, through a 1x1 map (N, C, size, size) (appendix F).

    ``transform`` (3, 3): a user's own inverse transform of the image.
    """

    def __init__(self, arch: Arch, band: Band) -> None:
        super().__init__()
        self.band = band
        channels = arch.widths[0]
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.affine = Dense(arch.w_dim, 4)
        self.register_buffer("transform", torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]))  # torch.eye imports the compiler on the meta device
        self.register_buffer("freqs", torch.empty(channels, 2))
        self.register_buffer("phases", torch.empty(channels))
        self.transform: Tensor
        self.freqs: Tensor
        self.phases: Tensor

    def forward(self, w: Tensor) -> Tensor:
        size, rate, cutoff = self.band.size, self.band.rate, self.band.cutoff
        with unreduced(w):  # a rounded phase is another place
            waves = self._waves(self.affine(w.to(self.affine.weight.dtype)), size, rate, cutoff)
        return F.conv2d(waves, (self.weight / math.sqrt(len(self.weight)))[:, :, None, None])

    def _waves(self, t: Tensor, size: int, rate: float, cutoff: float) -> Tensor:
        cos, sin, x, y = (t / t[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        turned = torch.stack([cos, -sin, sin * y - cos * x, sin, cos, -sin * x - cos * y], 1).unflatten(1, (2, 3)) @ self.transform
        phases = self.phases + turned[:, :, 2] @ self.freqs.T  # (N, C)
        freqs = self.freqs @ turned[:, :, :2]  # (N, C, 2)
        # a transform that shrinks the image brings frequencies past the band: they fade out up to half the sampling rate
        amplitudes = (1 - (freqs.norm(dim=2) - cutoff) / (rate / 2 - cutoff)).clamp(0, 1)
        grid = (torch.arange(size, device=t.device, dtype=t.dtype) + (0.5 - size / 2)) / rate
        angle = freqs[:, :, :1, None] * grid + freqs[:, :, 1:, None] * grid[:, None] + phases[:, :, None, None]
        return torch.sin(angle * (2 * math.pi)) * amplitudes[:, :, None, None]


class SynthesisLayer(nn.Module):
    """Images (N, n_in, size, size) of one band, w (N, w_dim) -> (N, n_out, size, size) of the next."""

    def __init__(self, arch: Arch, index: int, before: Band, after: Band) -> None:
        super().__init__()
        self.rgb = index == len(arch.widths)
        n_in, n_out = arch.widths[max(index - 1, 0)], arch.nc if self.rgb else arch.widths[index]
        self.kernel, self.clamp = 1 if self.rgb else arch.kernel, arch.clamp
        self.affine = Dense(arch.w_dim, n_in)
        self.weight = nn.Parameter(torch.empty(n_out, n_in, self.kernel, self.kernel))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.register_buffer("magnitude_ema", torch.ones(()))
        self.magnitude_ema: Tensor
        if self.rgb:  # its input is at its own rate
            return
        rate = after.rate * arch.lrelu_up
        self.up, self.down = rate // before.rate, arch.lrelu_up
        taps_up, taps_down = arch.taps * self.up, arch.taps * self.down
        radial = arch.radial and index < len(arch.widths) - arch.critical
        filters = (
            ("up_filter", lowpass(taps_up, before.cutoff, before.half_width, rate)),
            ("down_filter", lowpass(taps_down, after.cutoff, after.half_width, rate, radial)),
        )
        for name, values in filters:
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))
        self.up_filter: Tensor
        self.down_filter: Tensor
        total = (after.size - 1) * self.down + 1 - (before.size + self.kernel - 1) * self.up + taps_up + taps_down - 2
        low = (total + self.up) // 2  # samples lie in the middle of their pixels (appendix C.3)
        self.padding = (low, total - low) * 2

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        if self.training:
            self.magnitude_ema.copy_(ranks.mean(x.detach().float().square().mean()).lerp(self.magnitude_ema, MAGNITUDE_BETA))
        gain = self.magnitude_ema.rsqrt()
        styles = self.affine(w)
        if self.rgb:
            weight = self.weight / math.sqrt(styles.shape[1])
            return self._clamped(F.conv2d(x * (styles * gain)[:, :, None, None], weight, self.bias))
        # NVlabs normalises styles over the whole batch; demodulation takes every factor of them back, so over each image is the same
        styles = styles * styles.square().mean(1, keepdim=True).rsqrt()
        weight = self.weight * self.weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        with unreduced(x):
            demodulation = (styles.to(weight.dtype).square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt().to(styles.dtype)
        x = F.conv2d(x * (styles * gain)[:, :, None, None], weight, padding=self.kernel - 1)
        x = torch.addcmul(self.bias[:, None, None], x, demodulation[:, :, None, None])
        # the gain sqrt 2 of the nonlinearity is that of the filter before it
        x = upfirdn(x, self.up_filter, up=self.up, padding=self.padding, gain=self.up**2 * math.sqrt(2))
        return upfirdn(self._clamped(F.leaky_relu(x, 0.2)), self.down_filter, down=self.down)

    def _clamped(self, x: Tensor) -> Tensor:
        return x.clamp(-self.clamp, self.clamp) if self.clamp else x


def _initialise(net: Generator) -> None:
    """N(0, 1) for weights, 1 for the biases of styles, no turn and no shift; frequencies uniform-like in a disc (appendix F)."""
    if next(net.parameters()).is_meta:
        return
    for module in net.modules():
        if isinstance(module, Dense):
            nn.init.normal_(module.weight, 0, 1 / module.lr)
            nn.init.zeros_(module.bias)
        elif isinstance(module, SynthesisLayer):
            nn.init.normal_(module.weight)
            nn.init.zeros_(module.bias)
    for name, bias in net.layers.named_parameters():
        if name.endswith("affine.bias"):
            nn.init.ones_(bias)
    entry = net.input
    nn.init.normal_(entry.weight)
    nn.init.zeros_(entry.affine.weight)
    with torch.no_grad():
        entry.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        entry.freqs.normal_()
        radii = entry.freqs.norm(dim=1, keepdim=True)
        entry.freqs.mul_(entry.band.cutoff / (radii * (radii.square() / 4).exp()))
        entry.phases.uniform_(-0.5, 0.5)


class Generator(nn.Module):
    """(N, nz) normal latents, labels (N,) where classes -> images (N, nc, H, W), about [-1, 1] and not bounded.

    In training mode the running means of w and of the layers' input power follow each batch.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.mapping = MappingNetwork(arch)
        found = bands(arch)
        self.input = SynthesisInput(arch, found[0])
        self.layers = nn.ModuleList(SynthesisLayer(arch, i, found[max(i - 1, 0)], band) for i, band in enumerate(found))
        _initialise(self)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        w = self.mapping(inputs.flatten(1), condition)
        x = self.input(w)
        for layer in self.layers:
            x = layer(x, w)
        return x * self.arch.output_scale


def discriminator(_arch: Arch) -> NoReturn:
    """There is none: NVlabs train StyleGAN3 against the discriminator of StyleGAN2.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        "stylegan3 is a teacher only: it has no discriminator of its own to play against",
        "name a student family such as --student stylegan2, or a recipe without a critic: --recipe mse",
    )


# ---------------------------------------------------------------------------------------------------------------- the reader

_LAYER = re.compile(r"synthesis\.L(\d{1,3})_(\d{1,5})_\d+")
#: our fields <- NVlabs' constructor arguments, where no tensor tells them
_HINTS = {
    "critical": "num_critical",
    "first_cutoff": "first_cutoff",
    "first_stopband": "first_stopband",
    "last_stopband": "last_stopband_rel",
    "margin": "margin_size",
    "lrelu_up": "lrelu_upsampling",
    "clamp": "conv_clamp",
    "output_scale": "output_scale",
}


def _hints(config: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(fields that the constructor's arguments give, what is assumed without them). A value of another kind says nothing."""
    config = config if isinstance(config, Mapping) else {}
    mapping = config.get("mapping_kwargs")
    given = {ours: config[theirs] for ours, theirs in _HINTS.items() if theirs in config}
    if isinstance(mapping, Mapping) and "lr_multiplier" in mapping:
        given["map_lr"] = mapping["lr_multiplier"]
    if "clamp" in given and given["clamp"] is None:
        given["clamp"] = 0
    found = {}
    for name, value in given.items():
        kind = type(getattr(Arch, name))
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6 and kind(value) == value:
            found[name] = kind(value)
    told = "img_resolution" in config
    return found, () if told else ("no constructor arguments here: bands, clamp 256, output scale 0.25 and mapping rate 0.01 as NVlabs' defaults",)


def _layer_names(state: StateDict) -> tuple[list[str], list[int]]:
    """(prefix, size in pixels) of each layer by its index; the width in a name says nothing."""
    found = {m.group(): (int(m.group(1)), int(m.group(2))) for m in map(_LAYER.match, state) if m}
    if "synthesis.input.freqs" not in state:
        raise Mismatch("synthesis.input.freqs is missing", 0.7 if len(found) > 2 else 0.0)
    names = sorted(found, key=found.__getitem__)
    for i, name in enumerate(names):
        if found[name][0] != i:
            raise Mismatch(f"synthesis.L{i}_* is missing" if found[name][0] > i else f"{name} and {names[i - 1]} are one layer", 0.9)
    if len(names) < 3:
        raise Mismatch(f"{len(names)} layers synthesis.L*; a StyleGAN3 has 3 or more", 0.5)
    return names, [found[n][1] for n in names]


def _shape(state: StateDict, key: str, *ndims: int) -> tuple[int, ...]:
    if key not in state:
        raise Mismatch(f"{key} is missing", 0.9)
    if state[key].ndim not in ndims or 0 in state[key].shape:
        raise Mismatch(f"{key} has shape {tuple(state[key].shape)}, expected {' or '.join(map(str, ndims))} dimensions", 0.9)
    return tuple(state[key].shape)


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """The generator of NVlabs' stylegan3; what no tensor tells comes from the constructor's arguments in the file.

    Raises:
        Mismatch: naming the first key that is missing, unexpected or of a wrong shape.
    """
    names, sizes = _layer_names(state)
    fields, assumptions = _hints(options.get("config"))
    shapes = [_shape(state, f"{name}.weight", 4) for name in names]
    (w_dim,) = _shape(state, "mapping.w_avg", 1)
    classes = _shape(state, "mapping.embed.weight", 2)[1] if "mapping.embed.weight" in state else 0
    fields |= {
        "resolution": sizes[-1],
        "nc": shapes[-1][0],
        "nz": _shape(state, "mapping.fc0.weight", 2)[1] - (w_dim if classes else 0),
        "classes": classes,
        "w_dim": w_dim,
        "map_layers": sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", k)) for k in state),
        "widths": tuple(s[0] for s in shapes[:-1]),
        "kernel": shapes[0][2],
        "radial": len(_shape(state, f"{names[0]}.down_filter", 1, 2)) == 2,
        "taps": _shape(state, f"{names[0]}.up_filter", 1)[0] // max(1, fields.get("lrelu_up", Arch.lrelu_up)),
    }
    try:
        arch = Arch(**fields)
    except UsageError as error:
        raise Mismatch(str(error), 0.9) from None
    for name, size, band in zip(names, sizes, bands(arch), strict=True):
        if size != band.size:
            raise Mismatch(f"{name}: its size is {band.size} with the bands this reader knows; the constructor's arguments would tell others", 0.9)
    with torch.device("meta"):
        expected = Generator(arch).state_dict()
    out: StateDict = {}
    taken = set()
    for ours, tensor in expected.items():
        head, _, rest = ours.partition(".")
        index, _, leaf = rest.partition(".")
        theirs = f"{names[int(index)]}.{leaf}" if head == "layers" else f"synthesis.{ours}" if head == "input" else ours.replace("mapping.fc.", "mapping.fc")
        if _shape(state, theirs, tensor.ndim) != tensor.shape:
            raise Mismatch(f"{theirs} has shape {tuple(state[theirs].shape)}, expected {tuple(tensor.shape)}", 0.95)
        out[ours] = state[theirs]
        taken.add(theirs)
    if unexpected := [k for k in state if k not in taken]:
        raise Mismatch(f"unexpected keys for a StyleGAN3: {', '.join(unexpected[:3])}", 0.8)
    return Reading("generator", fields, out, assumptions)


# ------------------------------------------------------------------------------------------------------------ the other functions


def canonical_widths(arch: Arch, width: int) -> tuple[int, ...]:
    """At most ``width`` channels, falling with the cutoff from 32 on; 512 for config T and 1024 for R in the paper."""
    return tuple(int(np.rint(min(32 * width / band.cutoff, width))) for band in bands(arch)[:-1])


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``config`` (T or R) sets kernel and filters, ``width`` the canonical widths."""
    values = dict(values)
    config, width = values.pop("config", None), values.pop("width", None)
    fields = parse_arch(Arch, values)
    if config is not None:
        if str(config).upper() not in ("T", "R"):
            raise UsageError(f"config={config!r}: expected T or R")
        fields = {"kernel": 1, "radial": True} | fields if str(config).upper() == "R" else {"kernel": 3, "radial": False} | fields
    arch = dataclasses.replace(base or Arch(), **fields)
    if "widths" in fields or (base is not None and arch.resolution == base.resolution and config is width is None):
        return arch
    try:
        width = int(width) if width is not None else 1024 if arch.kernel == 1 else 512
    except ValueError:
        raise UsageError(f"width={width!r}: expected a whole number") from None
    return dataclasses.replace(arch, widths=canonical_widths(arch, width))


def scale(arch: Arch, ch_mul: float) -> Arch:
    """Every layer's width, and the number of Fourier features, times ch_mul; mapping, w, bands and filters stay."""
    return dataclasses.replace(arch, widths=tuple(scale_width(w, ch_mul) for w in arch.widths))


def axes(arch: Arch, part: Part) -> Axes:
    """Groups: "waves" the Fourier features, "input" what their map makes of them, and each layer's outputs; mapping, w and RGB stay."""
    if part == "discriminator":
        discriminator(arch)
    with torch.device("meta"):
        state = Generator(arch).state_dict()
    found: Axes = {key: (None,) * tensor.ndim for key, tensor in state.items()}
    found |= {"input.weight": ("input", "waves"), "input.freqs": ("waves", None), "input.phases": ("waves",)}
    for i in range(len(arch.widths) + 1):
        n_in, n_out = str(i - 1) if i else "input", str(i) if i < len(arch.widths) else None
        found[f"layers.{i}.weight"], found[f"layers.{i}.bias"] = (n_out, n_in, None, None), (n_out,)
        found[f"layers.{i}.affine.weight"], found[f"layers.{i}.affine.bias"] = (n_in, None), (n_in,)
    return found


FAMILY = Family(
    name="stylegan3",
    Arch=Arch,
    generator=Generator,
    discriminator=discriminator,
    read=read,
    sample=sample_normal,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    has_discriminator=False,
    settings=frozenset({"truncation"}),
)
