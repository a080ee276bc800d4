"""Progressive GAN (Karras et al. 2018, arXiv:1710.10196) at full growth.

Generator: z -> pixel norm -> Linear to 4x4 -> conv 3x3 -> [nearest x2, conv 3x3, conv 3x3] x L -> conv 1x1 to the image; leaky ReLU
and pixel norm follow each layer but the last. Discriminator: conv 1x1 from the image -> [conv 3x3, conv 3x3, average pool] x L ->
minibatch standard deviation -> conv 3x3 -> Linear -> Linear. Labels of an AC-GAN stand one-hot behind the latent; the class scores
that its discriminator gives beside the logit are kept, nothing reads them.

Every weight is stored at unit variance and multiplied at runtime by gain / sqrt(fan in) (equalized learning rate, §4.1). The gains
are those of the paper's code: sqrt(2)/4 behind the latent, 1 for the image and the logit, else sqrt(2). A file that does it otherwise
(pytorch_GAN_zoo: sqrt(2) everywhere, biases too; or none at all) is turned into this on reading.
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

from gancompress.errors import CheckpointError, UsageError
from gancompress.gan import Axes, Axis, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import sample_normal, scale_width, with_labels

#: layer -> gain, where it is not sqrt(2)
GAINS = {"latent": math.sqrt(2) / 4, "to_rgb": 1.0, "out": 1.0}
EPSILON = 1e-8


@dataclass(frozen=True)
class Arch:
    """Every shape of a progressive GAN.

    ``g_widths``: channels of G at 4x4, 8x8, ... ``resolution``; ``d_widths``: of D from ``resolution`` down to 4x4; ``d_hidden``: of its
    Linear; ``d_outputs``: the logit and the class scores. ``g_bias``: behind the latent one bias for each channel (the paper) or for each
    position too (pytorch_GAN_zoo). ``d_stddev``: the minibatch statistic, over ``d_group`` images, of the paper's code or of the zoo.
    ``d_fused``: average before the activation, not after it.
    """

    resolution: int = 128
    nz: int = 512
    nc: int = 3
    classes: int = 0
    g_widths: tuple[int, ...] = (512, 512, 512, 512, 256, 128)
    d_widths: tuple[int, ...] = (128, 256, 512, 512, 512, 512)
    d_hidden: int = 512
    d_outputs: int = 1
    g_bias: Literal["channel", "position"] = "channel"
    g_latent_norm: bool = True
    g_pixel_norm: bool = True
    g_leak: float = 0.2
    output: Literal["linear", "tanh"] = "linear"
    d_leak: float = 0.2
    d_stddev: Literal["paper", "zoo", "none"] = "paper"
    d_group: int = 4
    d_fused: bool = False

    def __post_init__(self) -> None:
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise UsageError(f"pggan resolution {self.resolution}: it must be a power of two from 4 up")
        levels = self.resolution.bit_length() - 2
        for name, widths in (("g_widths", self.g_widths), ("d_widths", self.d_widths)):
            if len(widths) != levels or min(widths) < 1:
                raise UsageError(f"pggan {name}={widths}: resolution {self.resolution} has {levels} positive widths")
        if min(self.nz, self.nc, self.d_hidden, self.d_outputs, self.d_group) < 1 or self.classes < 0:
            raise UsageError(f"pggan {self}: every size must be at least 1")


class Layer(nn.Module):
    """x -> gain / sqrt(fan in) * weight x + bias, of a weight (out, in) or (out, in, k, k) drawn from N(0, 1)."""

    def __init__(self, shape: tuple[int, ...], gain: float = math.sqrt(2), biases: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(biases or shape[0]))
        self.scale = gain / math.sqrt(math.prod(shape[1:]))
        if not self.weight.is_meta:
            nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if weight.ndim == 4:
            return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)
        # one bias for as many outputs in a row as it takes
        return (F.linear(x, weight).unflatten(1, (len(self.bias), -1)) + self.bias[:, None]).flatten(1)


def _convs(widths: tuple[int, ...]) -> nn.ModuleList:
    return nn.ModuleList(Layer((b, a, 3, 3)) for a, b in pairwise(widths))


def pixel_norm(x: Tensor) -> Tensor:
    """(N, C, ...) -> every position divided by the root mean square of its channels (§4.2)."""
    return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


def minibatch_stddev(x: Tensor, group: int, kind: Literal["paper", "zoo"]) -> Tensor:
    """(N, C, H, W) -> (N, C + 1, H, W): beside each image the mean deviation of a group of images (§3).

    paper: population variance of images N/group apart; zoo: sample variance of neighbours. A batch of no whole groups is one group.
    """
    n = len(x)
    size = min(group, n)
    size = size if n % size == 0 else n
    if size == 1 and kind == "zoo":
        return torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    full = x.float()  # a statistic, whatever the precision of what it is taken of
    grouped = full.unflatten(0, (size, -1)) if kind == "paper" else full.unflatten(0, (-1, size)).transpose(0, 1)  # (size, groups, C, H, W)
    deviation = (grouped.var(0, correction=int(kind == "zoo")) + EPSILON).sqrt().mean((1, 2, 3))  # (groups,)
    each = deviation.repeat(size) if kind == "paper" else deviation.repeat_interleave(size)
    return torch.cat([x, each.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


class Generator(nn.Module):
    """(N, nz) or (N, nz, 1, 1) normal latents, labels (N,) -> images (N, nc, H, W), about [-1, 1] (within it where output is tanh)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        first, last = arch.g_widths[0], arch.g_widths[-1]
        self.latent = Layer((16 * first, arch.nz + arch.classes), GAINS["latent"], first if arch.g_bias == "channel" else None)
        self.conv = Layer((first, first, 3, 3))
        self.convs = _convs((first, *(w for w in arch.g_widths[1:] for _ in range(2))))  # two for each resolution
        self.to_rgb = Layer((arch.nc, last, 1, 1), GAINS["to_rgb"])

    def _activate(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(x, self.arch.g_leak)
        return pixel_norm(x) if self.arch.g_pixel_norm else x

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        x = with_labels(inputs.flatten(1), condition, self.arch.classes, self.arch.nz)
        x = self.latent(pixel_norm(x) if self.arch.g_latent_norm else x).unflatten(1, (-1, 4, 4))
        x = self._activate(self.conv(self._activate(x)))
        for i, conv in enumerate(self.convs):
            x = x if i % 2 else F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self._activate(conv(x))
        x = self.to_rgb(x)
        return torch.tanh(x) if self.arch.output == "tanh" else x


class Discriminator(nn.Module):
    """Images (N, nc, H, W) in [-1, 1] -> logits (N,) before any sigmoid. Labels are not looked at: an AC-GAN guesses them."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        first, last = arch.d_widths[0], arch.d_widths[-1]
        self.from_rgb = Layer((first, arch.nc, 1, 1))
        self.convs = _convs((*(w for w in arch.d_widths[:-1] for _ in range(2)), last))  # two for each resolution
        self.conv = Layer((last, last + (arch.d_stddev != "none"), 3, 3))
        self.dense = Layer((arch.d_hidden, 16 * last))
        self.out = Layer((arch.d_outputs, arch.d_hidden), GAINS["out"])

    def _activate(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.arch.d_leak)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations (N, C, H, W) of the first layer, of each pair of convolutions and of the last one, (N, C) of the Linear, then the logits (N,)."""
        found = [self._activate(self.from_rgb(images))]
        for wide, narrow in zip(self.convs[::2], self.convs[1::2], strict=True):
            x = narrow(self._activate(wide(found[-1])))
            found.append(self._activate(F.avg_pool2d(x, 2)) if self.arch.d_fused else F.avg_pool2d(self._activate(x), 2))
        x = found[-1]
        if self.arch.d_stddev != "none":
            x = minibatch_stddev(x, self.arch.d_group, self.arch.d_stddev)
        found.append(self._activate(self.conv(x)))
        found.append(self._activate(self.dense(found[-1].flatten(1))))
        return [*found, self.out(found[-1])[:, 0]]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


# ---------------------------------------------------------------------------------------------------------------- the reader

#: (part, of the TensorFlow code) -> what its tensors are called
NAMES: dict[tuple[Part, bool], re.Pattern[str]] = {
    ("generator", False): re.compile(r"(formatLayer|groupScale0\.0|scaleLayers\.\d+\.[01]|toRGBLayers\.\d+)\.(weight|bias)"),
    ("discriminator", False): re.compile(r"(fromRGBLayers\.\d+|scaleLayers\.\d+\.[01]|groupScaleZero\.[01]|decisionLayer)\.(weight|bias)"),
    ("generator", True): re.compile(r"lod|(4x4/Dense|4x4/Conv|\d+x\d+/(Conv0|Conv0_up|Conv1)|ToRGB_lod\d+)/(weight|bias)"),
    ("discriminator", True): re.compile(r"lod|(FromRGB_lod\d+|\d+x\d+/(Conv0|Conv1|Conv1_down)|4x4/(Conv|Dense0|Dense1))/(weight|bias)"),
}
MAX_BLOCKS = 16


def _layers_of(part: Part, tf: bool, blocks: int, fused: bool) -> dict[str, str]:
    """Our layer names -> the file's."""
    found: dict[str, str] = {}
    for i in range(blocks):
        if tf:
            side = 8 << (i if part == "generator" else blocks - 1 - i)
            names = ("Conv0_up" if fused else "Conv0", "Conv1") if part == "generator" else ("Conv0", "Conv1_down" if fused else "Conv1")
            found |= {f"convs.{2 * i}": f"{side}x{side}/{names[0]}", f"convs.{2 * i + 1}": f"{side}x{side}/{names[1]}"}
        else:
            scale = i if part == "generator" else blocks - 1 - i
            found |= {f"convs.{2 * i}": f"scaleLayers.{scale}.0", f"convs.{2 * i + 1}": f"scaleLayers.{scale}.1"}
    if part == "generator":
        ends = ("4x4/Dense", "4x4/Conv", "ToRGB_lod0") if tf else ("formatLayer", "groupScale0.0", f"toRGBLayers.{blocks}")
        return found | dict(zip(("latent", "conv", "to_rgb"), ends, strict=True))
    if tf:
        return found | {"from_rgb": "FromRGB_lod0", "conv": "4x4/Conv", "dense": "4x4/Dense0", "out": "4x4/Dense1"}
    return found | {"from_rgb": f"fromRGBLayers.{blocks}", "conv": "groupScaleZero.0", "dense": "groupScaleZero.1", "out": "decisionLayer"}


def _plain(key: str) -> str:
    """Without the inner ".module." that older pytorch_GAN_zoo keys lack."""
    return re.sub(r"\.module\.(weight|bias)$", r".\1", key)


class _File:
    """A foreign state dict whose layers are taken one by one into ours; what does not fit raises Mismatch with the file's name of it."""

    def __init__(self, state: StateDict, score: float, layers: dict[str, str], tf: bool, equalized: bool) -> None:
        self.keys = {_plain(key): key for key in state}
        self.rest, self.score, self.layers, self.tf, self.equalized = dict(state), score, layers, tf, equalized
        self.state: StateDict = {}

    def _tensor(self, name: str) -> tuple[str, Tensor]:
        key = self.keys.get(name, name)
        if key not in self.rest:
            raise Mismatch(f"{key} is missing", self.score)
        return key, self.rest.pop(key).float()

    def take(self, layer: str, *shape: int | None, per_bias: int = 1) -> int:
        """Put a layer into ``state`` and return its outputs; None in its shape (out, in, ...) is any size."""
        name = self.layers[layer]
        key, weight = self._tensor(f"{name}/weight" if self.tf else f"{name}.weight")
        if self.tf and weight.ndim == len(shape):
            weight = weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight.T
            if name.endswith("Conv0_up"):  # the kernel of a transposed convolution: outputs before inputs, and mirrored
                weight = weight.transpose(0, 1).flip(2, 3)
        if weight.ndim != len(shape) or not weight.numel() or any(want not in (None, have) for want, have in zip(shape, weight.shape, strict=True)):
            expected = ", ".join("any" if n is None else str(n) for n in shape)
            raise Mismatch(f"{key} has shape {tuple(weight.shape)} as (out, in, height, width), expected ({expected})", self.score)
        outputs = weight.shape[0]
        key, bias = self._tensor(f"{name}/bias" if self.tf else f"{name}.bias")
        if bias.shape != (outputs // per_bias,):
            raise Mismatch(f"{key} has shape {tuple(bias.shape)}, expected ({outputs // per_bias},)", self.score)
        root, gain = math.sqrt(weight[0].numel()), GAINS.get(layer, math.sqrt(2))
        if not self.equalized:
            weight = weight * (root / gain)
        elif not self.tf:  # sqrt(2) / root multiplied the whole output
            weight, bias = weight * (math.sqrt(2) / gain), bias * (math.sqrt(2) / root)
        self.state[f"{layer}.weight"], self.state[f"{layer}.bias"] = weight.contiguous(), bias
        return outputs


def _hint(config: Mapping[str, Any], key: str, default: Any) -> Any:
    """A setting found beside the weights, if it is of the default's type; a whole number may stand for a flag or a real one."""
    value: Any = config.get(key)
    if isinstance(default, bool):
        return bool(value) if isinstance(value, bool | int) else default
    if isinstance(default, str):
        return value if isinstance(value, str) else default
    fits = isinstance(value, int | float if isinstance(default, float) else int) and not isinstance(value, bool)
    return value if fits and 0 <= value < 1 << 16 else default


def _refuse_unfinished(config: Mapping[str, Any], lod: Tensor | None) -> None:
    """A network that was saved while a layer faded in has no one resolution."""
    alpha = _hint(config, "alpha", 0.0)
    if alpha > 1e-6:
        raise CheckpointError(f"a progressive GAN saved while it grew: alpha is {alpha:g}, 0 when fully grown", "take a file from the end of its scale")
    if lod is not None and (lod.numel() != 1 or float(lod) > 1e-6):
        raise CheckpointError(f"a progressive GAN saved while it grew: lod is {lod.flatten()[:1].tolist()}, 0 when fully grown", "take network-final.pkl")
    if (epsilon := _hint(config, "pixelnorm_epsilon", EPSILON)) != EPSILON:
        raise CheckpointError(f"pixelnorm_epsilon is {epsilon:g}; only {EPSILON:g} is known here")


def _read_generator(file: _File, blocks: int, config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    rows = file.take("latent", None, None, per_bias=16 if file.tf else 1)
    inputs, first = file.state["latent.weight"].shape[1], rows // 16
    if rows % 16:
        raise Mismatch(f"{file.layers['latent']} has {rows} outputs, not 4x4 for each channel", file.score)
    widths = [file.take("conv", first, first, 3, 3)]
    for i in range(blocks):
        widths.append(file.take(f"convs.{2 * i}", None, widths[-1], 3, 3))
        file.take(f"convs.{2 * i + 1}", widths[-1], widths[-1], 3, 3)
    nc = file.take("to_rgb", None, widths[-1], 1, 1)
    fields: dict[str, Any] = {"inputs": inputs, "nc": nc, "g_widths": tuple(widths), "g_bias": "channel" if file.tf else "position"}
    told = int(options["classes"] or 0) if "classes" in options else _hint(config, "label_size" if file.tf else "categoryVectorDim", -1)
    if told >= inputs:
        raise UsageError(f"classes={told}: {file.layers['latent']} has only {inputs} inputs for the latent and the one-hot label")
    fields |= {"classes": told} if told >= 0 else {}
    if file.tf:
        normal, leaky = _hint(config, "use_pixelnorm", True), _hint(config, "use_leakyrelu", True)
        return fields | {"g_latent_norm": _hint(config, "normalize_latents", True), "g_pixel_norm": normal, "g_leak": 0.2 if leaky else 0.0}
    attributes = config.get("attribKeysOrder")
    if isinstance(attributes, dict) and len(attributes) > 1:
        raise CheckpointError(f"its labels are {len(attributes)} attributes ({', '.join(map(str, attributes))[:80]}); only one can be given as a class")
    output = "tanh" if _hint(config, "lossCriterion", "") in ("DCGAN", "MSE") else "linear"
    return fields | {"g_leak": _hint(config, "leakyReluLeak", 0.2), "output": output}


def _read_discriminator(file: _File, blocks: int, config: Mapping[str, Any]) -> dict[str, Any]:
    widths = [file.take("from_rgb", None, None, 1, 1)]
    nc = file.state["from_rgb.weight"].shape[1]
    for i in range(blocks):
        file.take(f"convs.{2 * i}", widths[-1], widths[-1], 3, 3)
        widths.append(file.take(f"convs.{2 * i + 1}", None, widths[-1], 3, 3))
    last = widths[-1]
    file.take("conv", last, None, 3, 3)
    extra = file.state["conv.weight"].shape[1] - last
    if extra not in (0, 1):
        raise Mismatch(f"{file.layers['conv']} has {last + extra} inputs, expected {last}, or {last + 1} with the minibatch deviation", file.score)
    hidden = file.take("dense", None, 16 * last)
    outputs = file.take("out", None, hidden)
    fields: dict[str, Any] = {"nc": nc, "d_widths": tuple(widths), "d_hidden": hidden, "d_outputs": outputs}
    if outputs > 1:
        fields["classes"] = outputs - 1
    if file.tf:
        return fields | {"d_stddev": "paper" if extra else "none", "d_group": max(2, _hint(config, "mbstd_group_size", 4))}
    return fields | {"d_stddev": "zoo" if extra else "none", "d_leak": _hint(config, "leakyReluLeak", 0.2)}


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """A generator or discriminator of pytorch_GAN_zoo or of the paper's TensorFlow code.

    Options: ``classes`` (int): how many of the generator's inputs are a one-hot label, where neither the settings in the file nor
    its discriminator tell.

    Raises:
        Mismatch: naming the first key that is missing or does not fit. CheckpointError: a network that was still growing.
    """
    config = options.get("config") or {}
    kinds: list[tuple[Part, bool]] = list(NAMES)
    shares = [sum(bool(NAMES[kind].fullmatch(_plain(key))) for key in state) / max(1, len(state)) for kind in kinds]
    share = max(shares)
    part, tf = kinds[shares.index(share)]
    score = 0.9 * share
    if share <= 0.5:
        raise Mismatch(f"{share:.0%} of the keys are those of a progressive GAN", score / 2)
    if tf and (function := _hint(config, "build_func_name", "G_paper")) not in ("G_paper", "D_paper"):
        raise Mismatch(f"a network of the function {function}, not of a progressive GAN", score / 2)
    named = [name for name in map(_plain, state) if NAMES[part, tf].fullmatch(name)]
    blocks = len({m[0] for name in named if (m := re.match(r"scaleLayers\.\d+\.|(?!4x4/)\d+x\d+/", name))})
    if blocks > MAX_BLOCKS:
        raise Mismatch(f"{blocks} resolutions are here, more than any image has", score / 2)
    fused = any("/Conv0_up/" in key or "/Conv1_down/" in key for key in state)
    file = _File(state, score, _layers_of(part, tf, blocks, fused), tf, _hint(config, "use_wscale" if tf else "equalizedlR", True))
    fields = _read_generator(file, blocks, config, options) if part == "generator" else _read_discriminator(file, blocks, config) | {"d_fused": fused}
    lod = file.rest.pop("lod", None)
    # the image layers of lower resolutions have no effect at full growth
    rgb = re.sub(r"\d+$", "", file.layers["to_rgb" if part == "generator" else "from_rgb"])
    outgrown = {f"{rgb}{i}{'/' if tf else '.'}{leaf}" for i in range(blocks + 1) for leaf in ("weight", "bias")}
    if unknown := [key for key in file.rest if _plain(key) not in outgrown or file.keys[_plain(key)] != key]:
        raise Mismatch(f"unexpected key {unknown[0]}", score)
    _refuse_unfinished(config, lod)
    assumed = "equalized learning rate, leaky ReLU 0.2, a linear output and full growth, as no settings lie beside the weights"
    return Reading(part, {"resolution": 4 << blocks, **fields}, file.state, () if tf or "equalizedlR" in config else (assumed,))


# ------------------------------------------------------------------------------------------------------------ the other functions


def canonical_widths(width: int, resolution: int) -> tuple[int, ...]:
    """The paper's channels at 4x4, 8x8, ... (its Table 2 has width 512): ``width`` up to 32x32, then half as many for each doubling."""
    return tuple(max(1, min(width, 32 * width // (4 << i))) for i in range(resolution.bit_length() - 2))


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set the paper's widths; ``inputs``: latent and classes together, instead of nz."""
    values = dict(values)
    try:
        inputs, width, d_width = (None if (v := values.pop(k, None)) is None else int(v) for k in ("inputs", "width", "d_width"))
    except (TypeError, ValueError):
        raise UsageError("inputs, width and d_width are whole numbers") from None
    for name, value in (("width", width), ("d_width", d_width)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: at least 1")
    fields = parse_arch(Arch, values)
    known = dataclasses.asdict(base or Arch())
    resolution = fields.get("resolution", known["resolution"])
    fresh = base is None or resolution != base.resolution
    if inputs is not None:
        fields["nz"] = inputs - fields.get("classes", known["classes"])
    if "g_widths" not in fields and (width or fresh):
        fields["g_widths"] = canonical_widths(width or 512, resolution)
    if width or d_width or fresh:
        fields.setdefault("d_widths", canonical_widths(d_width or width or 512, resolution)[::-1])
        fields.setdefault("d_hidden", d_width or width or 512)
    return Arch(**{**known, **fields})


def scale(arch: Arch, ch_mul: float) -> Arch:
    """Every hidden width of G and D times ch_mul; latent, classes, image channels and resolution stay."""
    return dataclasses.replace(
        arch,
        g_widths=tuple(scale_width(w, ch_mul) for w in arch.g_widths),
        d_widths=tuple(scale_width(w, ch_mul) for w in arch.d_widths),
        d_hidden=scale_width(arch.d_hidden, ch_mul),
    )


def axes(arch: Arch, part: Part) -> Axes:
    """Each layer's outputs are a group of its name; latent, label, image channels, the deviation and the logit are never sliced."""
    found: Axes = {}

    def layer(name: str, n_in: Axis, n_out: Axis = None, bias: Axis = None) -> None:
        found[f"{name}.weight"] = (n_out, n_in) if name in ("latent", "dense", "out") else (n_out, n_in, None, None)
        found[f"{name}.bias"] = (bias or n_out,)

    if part == "generator":
        layer("latent", None, (("latent", 16),), "latent" if arch.g_bias == "channel" else None)
        layer("conv", "latent", "conv")
        before = "conv"
    else:
        layer("from_rgb", None, "from_rgb")
        before = "from_rgb"
    for i in range(2 * len(arch.g_widths) - 2):
        layer(f"convs.{i}", before, f"convs.{i}")
        before = f"convs.{i}"
    if part == "generator":
        layer("to_rgb", before)
    else:
        layer("conv", before if arch.d_stddev == "none" else ((before, 1), (None, 1)), "conv")
        layer("dense", (("conv", 16),), "dense")
        layer("out", "dense")
    return found


FAMILY = Family(
    name="pggan",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample_normal,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    options=frozenset({"classes"}),
    settings=frozenset({"output"}),
)
