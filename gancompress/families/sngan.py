"""SNGAN (Miyato et al. 2018, arXiv:1802.05957), cGAN-PD (Miyato and Koyama 2018, arXiv:1802.05637), SAGAN (Zhang et al. 2018, arXiv:1805.08318).

Generator: z -> Linear -> residual blocks, each doubling the side (BatchNorm, ReLU, up, 3x3, BatchNorm, ReLU, 3x3 beside up, 1x1) ->
BatchNorm, ReLU, 3x3, tanh. Discriminator: residual blocks (ReLU, 3x3, ReLU, 3x3), the first ``d_down`` of which halve the side -> ReLU ->
global sum -> Linear. With labels, the generator's BatchNorms take scale and shift by class, and the discriminator adds the inner product of
an embedding of the class and its features (cGAN-PD, Eq. 3). SAGAN normalises the generator's weights too, and has an attention block in each network.

Read are the files of mimicry (Lee and Town 2020, arXiv:2005.02494), whose networks these are: its bilinear upsampling, and the rectified input
of the discriminator's shortcuts, which come from a ReLU in place there, are what its weights were trained with.
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
from gancompress.layers import embedding, read_spectral, sample_normal, scale_width, spectral_norm, with_labels

#: blocks of mimicry's discriminators -> the resolutions they are for, and resolution -> how many of their blocks halve the side
D_RESOLUTIONS = {4: (32,), 5: (64, 48), 6: (128,)}
D_DOWN = {32: 2, 48: 4, 64: 5, 128: 5}


@dataclass(frozen=True)
class Arch:
    """Every shape of an SNGAN.

    ``g_widths``: channels at the start of G and after each of its blocks; ``d_widths``: after each block of D; ``d_down``: how many of these
    halve the side, from the first; ``*_identity``: the blocks (from 0) whose shortcut has no convolution; ``*_attention``: the number of blocks
    before the attention (0: none); ``d_classes``: 0, or ``classes`` where D judges labels. ``unit_pixels``: the original makes and judges images
    in [0, 1] (a sigmoid at its end); here they are in [-1, 1] all the same.
    """

    resolution: int = 32
    nz: int = 128
    nc: int = 3
    classes: int = 0
    g_widths: tuple[int, ...] = (256, 256, 256, 256)
    g_identity: tuple[int, ...] = ()
    g_spectral: bool = False
    g_attention: int = 0
    d_widths: tuple[int, ...] = (128, 128, 128, 128)
    d_identity: tuple[int, ...] = (2, 3)
    d_down: int = 2
    d_spectral: bool = True
    d_attention: int = 0
    d_classes: int = 0
    d_pooling: Literal["sum", "mean"] = "sum"
    unit_pixels: bool = False

    def __post_init__(self) -> None:
        blocks = len(self.g_widths) - 1
        if min(self.nz, self.nc, self.resolution, *self.g_widths, *self.d_widths) < 1 or self.classes < 0 or self.d_classes not in (0, self.classes):
            raise UsageError(f"sngan {self}: out of range")
        if not 1 <= blocks <= 16 or self.resolution % (1 << blocks):
            raise UsageError(f"sngan g_widths={self.g_widths}: {blocks} blocks double a side, and resolution {self.resolution} is no multiple of 2^{blocks}")
        if not 1 <= self.d_down <= len(self.d_widths) or self.resolution % (1 << self.d_down):
            raise UsageError(
                f"sngan d_down={self.d_down}: of {len(self.d_widths)} blocks at least one halves the side, and all of it evenly ({self.resolution})"
            )
        for name, widths, identity, first in (("g", self.g_widths, self.g_identity, 0), ("d", (0, *self.d_widths), self.d_identity, 1)):
            if any(not first <= i < len(widths) - 1 or widths[i] != widths[i + 1] for i in identity):
                raise UsageError(f"sngan {name}_identity={identity}: a block that changes its width {widths} needs a convolution in its shortcut")
        side = self.resolution >> min(self.d_attention, self.d_down)
        if not 0 <= self.g_attention <= blocks or not 0 <= self.d_attention <= len(self.d_widths) or (self.d_attention and side % 2):
            raise UsageError(f"sngan g_attention={self.g_attention}, d_attention={self.d_attention}: after a block of even side")

    @property
    def bottom(self) -> int:
        """Side of G's first map."""
        return self.resolution >> (len(self.g_widths) - 1)


# ------------------------------------------------------------------------------------------------------------------ the networks


def _normed(module: nn.Module, spectral: bool, gain: float = 1.0) -> nn.Module:
    """A layer with Glorot's uniform weights, as in Miyato's code, and no bias at the start."""
    assert isinstance(module.weight, Tensor)
    if not module.weight.is_meta:
        nn.init.xavier_uniform_(module.weight, gain)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
    return spectral_norm(module) if spectral else module


def _check_labels(condition: Tensor | None, n: int, classes: int) -> Tensor:
    if condition is None:
        raise ValueError(f"this network is conditional: give labels (N,) in 0 ... {classes - 1} as condition")
    if condition.shape != (n,):
        raise ValueError(f"labels have shape {tuple(condition.shape)}, expected ({n},)")
    return condition


class ConditionalBatchNorm(nn.Module):
    """BatchNorm whose scale (the first half of an embedding) and shift (the second) depend on the class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width, affine=False)
        self.embed = embedding(classes, 2 * width)
        with torch.no_grad():
            self.embed.weight[:, :width].fill_(1.0)
            self.embed.weight[:, width:].zero_()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.embed(condition)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, scale, self.bn(x))


class Attention(nn.Module):
    """x + gamma * o(softmax(theta(x) . phi(x)) g(x)) over positions, keys and values pooled to a quarter (SAGAN, Eqs. 1 to 3)."""

    def __init__(self, width: int, spectral: bool) -> None:
        super().__init__()
        inner, value = max(1, width // 8), max(1, width // 2)
        self.theta = _normed(nn.Conv2d(width, inner, 1, bias=False), spectral)
        self.phi = _normed(nn.Conv2d(width, inner, 1, bias=False), spectral)
        self.g = _normed(nn.Conv2d(width, value, 1, bias=False), spectral)
        self.o = _normed(nn.Conv2d(value, width, 1, bias=False), spectral)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.theta(x).flatten(2).transpose(1, 2)  # (N, HW, C / 8)
        key, value = (F.max_pool2d(m(x), 2).flatten(2) for m in (self.phi, self.g))  # (N, C / 8, HW / 4), (N, C / 2, HW / 4)
        weights = torch.bmm(query, key).softmax(-1)
        return x + self.gamma * self.o(torch.bmm(value, weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class GBlock(nn.Module):
    """(N, n_in, H, W), labels or None -> (N, n_out, 2H, 2W)."""

    def __init__(self, n_in: int, n_out: int, classes: int, identity: bool, spectral: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (ConditionalBatchNorm(n, classes) if classes else nn.BatchNorm2d(n) for n in (n_in, n_out))
        self.conv1 = _normed(nn.Conv2d(n_in, n_out, 3, padding=1), spectral, math.sqrt(2))
        self.conv2 = _normed(nn.Conv2d(n_out, n_out, 3, padding=1), spectral, math.sqrt(2))
        self.shortcut = nn.Identity() if identity else _normed(nn.Conv2d(n_in, n_out, 1), spectral)

    def forward(self, x: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
        h = self.conv1(_up(F.relu(self.norm1(x, *labels))))
        h = self.conv2(F.relu(self.norm2(h, *labels)))
        return h + _up(self.shortcut(x))  # a 1x1 convolution and bilinear weights, which sum to one, may change places


class Generator(nn.Module):
    """(N, nz) normal latents, labels (N,) -> images (N, nc, H, W) in [-1, 1]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        widths, spectral = arch.g_widths, arch.g_spectral
        self.linear = _normed(nn.Linear(arch.nz, widths[0] * arch.bottom**2), spectral)
        self.blocks = nn.ModuleList(GBlock(a, b, arch.classes, i in arch.g_identity, spectral) for i, (a, b) in enumerate(pairwise(widths)))
        if arch.g_attention:
            self.attention = Attention(widths[arch.g_attention], spectral)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.conv = _normed(nn.Conv2d(widths[-1], arch.nc, 3, padding=1), spectral)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        arch = self.arch
        labels = (_check_labels(condition, inputs.shape[0], arch.classes),) if arch.classes else ()
        x = self.linear(with_labels(inputs.flatten(1), None, 0, arch.nz)).unflatten(1, (-1, arch.bottom, arch.bottom))
        for i, block in enumerate(self.blocks):
            x = block(x, labels)
            if i + 1 == arch.g_attention:
                x = self.attention(x)
        x = self.conv(F.relu(self.norm(x)))
        return torch.tanh(x / 2 if arch.unit_pixels else x)  # 2 sigmoid(x) - 1 = tanh(x / 2)


class DBlock(nn.Module):
    """(N, n_in, H, W) -> (N, n_out, H, W), or half the side; ``first``: the input is an image and is not rectified."""

    def __init__(self, n_in: int, n_out: int, first: bool, down: bool, identity: bool, spectral: bool) -> None:
        super().__init__()
        self.first, self.down = first, down
        hidden = n_out if first else n_in
        self.conv1 = _normed(nn.Conv2d(n_in, hidden, 3, padding=1), spectral, math.sqrt(2))
        self.conv2 = _normed(nn.Conv2d(hidden, n_out, 3, padding=1), spectral, math.sqrt(2))
        self.shortcut = nn.Identity() if identity else _normed(nn.Conv2d(n_in, n_out, 1), spectral)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else F.relu(x)  # of both branches
        h = self.conv2(F.relu(self.conv1(x)))
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2)) if self.down else h + self.shortcut(x)


class Discriminator(nn.Module):
    """Images (N, nc, H, W) in [-1, 1], labels (N,) where d_classes -> logits (N,)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        pairs = enumerate(pairwise((arch.nc, *arch.d_widths)))
        self.blocks = nn.ModuleList(DBlock(a, b, i == 0, i < arch.d_down, i in arch.d_identity, arch.d_spectral) for i, (a, b) in pairs)
        if arch.d_attention:
            self.attention = Attention(arch.d_widths[arch.d_attention - 1], arch.d_spectral)
        self.linear = _normed(nn.Linear(arch.d_widths[-1], 1), arch.d_spectral)
        if arch.d_classes:
            self.embed = _normed(embedding(arch.d_classes, arch.d_widths[-1]), arch.d_spectral)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """The output of each block (after the attention, where it has one), then the logits (N,)."""
        arch, found = self.arch, []
        x = (images + 1) / 2 if arch.unit_pixels else images
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i + 1 == arch.d_attention:
                x = self.attention(x)
            found.append(x)
        pooled = F.relu(x).sum((2, 3)) if arch.d_pooling == "sum" else F.relu(x).mean((2, 3))
        logits = self.linear(pooled).flatten()
        if arch.d_classes:
            logits = logits + (self.embed(_check_labels(condition, len(images), arch.d_classes)) * pooled).sum(1)
        return [*found, logits]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


# ---------------------------------------------------------------------------------------------------------------- the reader

BLOCK = re.compile(r"(block|local_feat_blocks\.|global_feat_blocks\.)(\d{1,2})\.(?:c1|c2|c_sc|b1|b2)\.")
INNER = {"c1": "conv1", "c2": "conv2", "c_sc": "shortcut", "b1": "norm1", "b2": "norm2"}
ORIGINAL = "parametrizations.weight.original"


def _weight(state: StateDict, name: str, ndim: int) -> Tensor:
    for leaf in ("weight", ORIGINAL):
        if (tensor := state.get(f"{name}.{leaf}")) is not None:
            if tensor.ndim != ndim:
                raise Mismatch(f"{name}.weight has shape {tuple(tensor.shape)}, expected {ndim} dimensions", 0.6)
            return tensor
    raise Mismatch(f"{name}.weight is missing", 0.6)


def _has(state: StateDict, name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in state)


def _blocks(state: StateDict) -> dict[str, list[str]]:
    """{stem: its modules from the first number to the last}, those that are missing in between too."""
    numbers: dict[str, list[int]] = {}
    for match in filter(None, map(BLOCK.match, state)):
        numbers.setdefault(match[1], []).append(int(match[2]))
    return {stem: [f"{stem}{i}" for i in range(min(there), max(there) + 1)] for stem, there in numbers.items()}


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """mimicry's ``netG_*_steps.pth`` and ``netD_*_steps.pth``: SNGAN, SSGAN, InfoMax-GAN, cGAN-PD, SAGAN, WGAN-GP and its ResNet DCGAN.

    Options: ``resolution`` (48 or 64): of a discriminator of five blocks, where its keys cannot tell.

    Raises:
        Mismatch: naming the first key that is missing, unexpected or of a wrong shape.
    """
    share = sum(map(bool, map(BLOCK.match, state))) / max(1, len(state))
    if share < 0.5:  # in the smallest of them 5 of 7 keys
        raise Mismatch("an SNGAN has residual blocks called block2.c1, block2.c2 ...", 0.5 * share)
    try:
        state = read_spectral(state)
    except (RuntimeError, IndexError) as error:
        raise Mismatch(f"vectors of a spectral norm do not fit their weight ({error})", 0.6) from None
    blocks = _blocks(state)
    if blocks.get("block", ["block1"])[0] in ("block0", "block1"):
        return _read_discriminator(state, blocks.get("block") or [name for stem in sorted(blocks, reverse=True) for name in blocks[stem]], options)
    return _read_generator(state, blocks["block"])


def generator_modules(blocks: int) -> dict[str, str]:
    """{mimicry's module: ours} outside a generator's blocks, which are called block2, block3, ..."""
    return {"l1": "linear", f"b{blocks + 2}": "norm", f"c{blocks + 2}": "conv", "attn_block": "attention"}


def _read_generator(state: StateDict, names: list[str]) -> Reading:
    first, last = _weight(state, "l1", 2), len(names) + 2
    starts = [_weight(state, f"{name}.c1", 4).shape[1] for name in names]
    widths = (starts[0], *(_weight(state, f"{name}.c2", 4).shape[0] for name in names))
    bottom = math.isqrt(first.shape[0] // max(1, widths[0]))
    if bottom**2 * widths[0] != first.shape[0] or not bottom:
        raise Mismatch(f"l1.weight has shape {tuple(first.shape)}: its outputs are no square map of the {widths[0]} channels of block2.c1.weight", 0.8)
    table = state.get("block2.b1.embed.weight")
    attention, side = 0, bottom << len(names)
    if _has(state, "attn_block"):
        width, usual = _weight(state, "attn_block.o", 4).shape[0], 3 if len(names) > 3 else 2  # at 32 and at 128 pixels
        places = [i for i in range(1, len(widths)) if widths[i] == width]
        if not places:
            raise Mismatch(f"attn_block.o.weight has {width} outputs: no block has as many ({widths[1:]})", 0.8)
        attention = usual if usual in places else places[0]
    fields: dict[str, Any] = {"resolution": side, "nz": first.shape[1], "nc": _weight(state, f"c{last}", 4).shape[0]}
    fields |= {"classes": table.shape[0] if table is not None and table.ndim == 2 else 0, "g_widths": widths, "g_attention": attention}
    fields |= {"g_identity": tuple(i for i, name in enumerate(names) if not _has(state, f"{name}.c_sc") and widths[i] == widths[i + 1])}
    fields |= {"g_spectral": f"l1.{ORIGINAL}" in state}
    modules = generator_modules(len(names))
    said = ["bilinear upsampling, ReLU, tanh"]
    if side == 32 and not fields["classes"]:
        said.append("images in [-1, 1] (mimicry's DCGAN for CIFAR-10, which makes them in [0, 1], has the same keys: --reader unit_pixels=true)")
    if attention:
        said.append(f"attention after {attention} of {len(names)} blocks")
    return _fit("generator", fields, state, modules, names, said)


def _read_discriminator(state: StateDict, names: list[str], options: Mapping[str, Any]) -> Reading:
    count = len(names)
    if count not in D_RESOLUTIONS:
        raise Mismatch(f"{count} residual blocks: discriminators of 32, 48, 64 and 128 pixels have 4, 5, 5 and 6", 0.6)
    heads = [h for h in (f"l{count + 1}", f"l{count}", "linear") if _has(state, h)]
    head = heads[0] if heads else f"l{count + 1}"
    spectral = f"{names[0]}.c1.{ORIGINAL}" in state
    # of five blocks, the head tells 48 from 64 but in InfoMax-GAN (linear) and WGAN-GP (l6 in both, no spectral norm)
    choices = {(5, "l5"): (48,), (5, "l6"): (64,) if spectral else (64, 48)}.get((count, head), D_RESOLUTIONS[count])
    resolution = _asked(options, choices)
    down = D_DOWN[resolution]
    widths = tuple(_weight(state, f"{name}.c2", 4).shape[0] for name in names)
    fields: dict[str, Any] = {"resolution": resolution, "nc": _weight(state, f"{names[0]}.c1", 4).shape[1], "d_widths": widths, "d_down": down}
    # a block that halves the side always has a convolution in its shortcut
    fields |= {"d_identity": tuple(i for i in range(down, count) if not _has(state, f"{names[i]}.c_sc") and widths[i - 1] == widths[i])}
    fields |= {"d_spectral": spectral, "d_attention": 2 if _has(state, "attn_block") else 0, "d_classes": 0}
    said = [f"ReLU also before the shortcut of every block but the first; {down} of {count} blocks halve the side"]
    if len(choices) > 1 and not options.get("resolution"):
        said.append(f"{resolution} pixels (some discriminators of {choices[1]} have the same keys: --reader resolution={choices[1]})")
    if not spectral:
        said.append("global sum pooling (WGAN-GP takes the mean: --reader d_pooling=mean)")
    modules = {head: "linear", "attn_block": "attention"}
    if _has(state, "l_y") and "l_y.bias" not in state:
        modules["l_y"] = "embed"
        fields["classes"] = fields["d_classes"] = _weight(state, "l_y", 2).shape[0]
    # what SSGAN (rotations) and InfoMax-GAN (mutual information) train beside the logit
    others = {"l_y"} - modules.keys() | {f"{a}_nrkhs_{b}" for a in ("local", "global") for b in ("a", "b", "sc")}
    if aside := sorted(name for name in others if _has(state, name)):
        said.append(f"left aside, for it is not part of the logit: {', '.join(aside)}")
    kept = {key: tensor for key, tensor in state.items() if key.split(".")[0] not in aside}
    return _fit("discriminator", fields, kept, modules, names, said)


def _asked(options: Mapping[str, Any], choices: tuple[int, ...]) -> int:
    asked = str(options.get("resolution") or choices[0])
    if asked not in map(str, choices):
        raise UsageError(f"resolution={asked}: this discriminator is for {' or '.join(map(str, choices))} pixels")
    return int(asked)


def _fit(part: Part, fields: dict[str, Any], state: StateDict, modules: dict[str, str], names: list[str], said: list[str]) -> Reading:
    """The reading, once every key and shape is what these fields ask for. ``modules``: their name -> ours; ``names``: their blocks."""
    modules = modules | {f"{name}.{theirs}": f"blocks.{i}.{ours}" for i, name in enumerate(names) for theirs, ours in INNER.items()}
    try:
        arch = build_arch(None, fields)
    except UsageError as error:  # sizes of zero and the like
        raise Mismatch(f"no such network can be: {error}", 0.5) from None
    with torch.device("meta"):
        expected = (Generator(arch) if part == "generator" else Discriminator(arch)).state_dict()
    out: StateDict = {}
    for theirs, ours in modules.items():
        for key in [k for k in expected if k.startswith(f"{ours}.")]:
            there = theirs + key.removeprefix(ours)
            tensor = state.get(there, torch.tensor(0) if key.endswith("num_batches_tracked") else None)  # absent before torch 0.4.1
            if tensor is None:
                raise Mismatch(f"{_spelt(there)} is missing", 0.9)
            if tensor.shape != expected[key].shape:
                raise Mismatch(f"{_spelt(there)} has shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}", 0.9)
            out[key] = tensor
    known = {theirs + key.removeprefix(ours) for theirs, ours in modules.items() for key in out if key.startswith(f"{ours}.")}
    if unknown := [_spelt(key) for key in state if key not in known]:
        raise Mismatch(f"unexpected keys: {', '.join(unknown[:3])}", 0.8)
    return Reading(part, fields, out, tuple(said))


def _spelt(key: str) -> str:
    """The key as torch's hook spells it, which is what mimicry writes."""
    return key.replace(ORIGINAL, "weight_orig").replace("parametrizations.weight.0.", "weight_")


# ------------------------------------------------------------------------------------------------------------ the other functions


def canonical_widths(resolution: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(g_widths, d_widths) of mimicry: constant at 32 pixels, else 64 beside the image, doubling up to 1024 away from it."""
    if resolution == 32:
        return (256,) * 4, (128,) * 4
    blocks = max(1, (resolution // 4).bit_length() - 1)
    doubling = tuple(min(1024, 64 << i) for i in range(blocks + 1))
    return doubling[::-1], (*doubling, 1024) if resolution == 48 else doubling


def _times(widths: tuple[int, ...], widest: Any) -> tuple[int, ...]:
    try:
        return tuple(w * int(widest) // max(widths) for w in widths) if widest is not None else widths
    except ValueError:
        raise UsageError(f"width={widest!r}: expected a whole number") from None


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` are mimicry's ngf and ndf: the widest layer of its G and D. What is conditional has D judge labels."""
    values = dict(values)
    width, d_width = values.pop("width", None), values.pop("d_width", None)
    fields = parse_arch(Arch, values)
    known = dataclasses.asdict(base) if base else {}
    resolution = fields.get("resolution", known.get("resolution", Arch.resolution))
    fresh = base is None or resolution != base.resolution
    g_widths, d_widths = canonical_widths(resolution)
    if fresh or width is not None:
        fields.setdefault("g_widths", _times(g_widths, width))
    if fresh or d_width is not None:
        fields.setdefault("d_widths", _times(d_widths, d_width))
    if "d_widths" in fields:
        usual = D_DOWN.get(resolution, len(g_widths) - 1) if fresh else known["d_down"]
        down = fields.setdefault("d_down", min(usual, len(fields["d_widths"])))
        fields.setdefault("d_identity", tuple(i for i, (a, b) in enumerate(pairwise(fields["d_widths"]), 1) if a == b and i >= down))
    if "classes" in fields:
        fields.setdefault("d_classes", fields["classes"])
    return Arch(**{**known, **fields})


def scale(arch: Arch, ch_mul: float) -> Arch:
    """Every width of G and D times ch_mul (the attention's follow); latent, classes, image channels and resolution stay."""
    return dataclasses.replace(
        arch,
        g_widths=tuple(scale_width(w, ch_mul) for w in arch.g_widths),
        d_widths=tuple(scale_width(w, ch_mul) for w in arch.d_widths),
    )


def axes(arch: Arch, part: Part) -> Axes:
    """Group i is what enters block i, where the last block is followed by the head, and inner i what is between its convolutions; blocks whose
    shortcut is the identity have one group before and behind them. Latent, labels, image channels and the logit are never sliced."""
    generator = part == "generator"
    widths, identity, after = (arch.g_widths[1:], arch.g_identity, arch.g_attention) if generator else (arch.d_widths, arch.d_identity, arch.d_attention)
    stream: list[str | None] = ["0" if generator else None]
    for i in range(len(widths)):
        stream.append(stream[-1] if i in identity else str(i + 1))
    # module -> (its outputs, its inputs)
    modules: dict[str, tuple[Axis, str | None]] = {"norm": (stream[-1], None), "conv": (None, stream[-1]), "embed": (None, stream[-1])}
    modules["linear"] = ((("0", arch.bottom**2),), None) if generator else (None, stream[-1])
    for i, (before, behind) in enumerate(pairwise(stream)):
        inner = f"inner {i}"
        modules |= {f"blocks.{i}.{name}": place for name, place in {
            "conv1": (inner, before), "conv2": (behind, inner), "shortcut": (behind, before), "norm1": (before, None), "norm2": (inner, None)
        }.items()}  # fmt: skip
    around = stream[after]
    modules |= {"attention.theta": ("key", around), "attention.phi": ("key", around), "attention.g": ("value", around), "attention.o": (around, "value")}
    net = Generator if generator else Discriminator
    with torch.device("meta"):
        state = net(arch).state_dict()
    return {key: _axes_of(key, tensor, modules) for key, tensor in state.items()}


def _axes_of(key: str, tensor: Tensor, modules: Mapping[str, tuple[Axis, str | None]]) -> tuple[Axis, ...]:
    if not tensor.ndim:
        return ()
    name = next(n for n in modules if key.startswith(f"{n}."))
    n_out, n_in = modules[name]
    if ".norm" in key and key.endswith("embed.weight"):
        assert isinstance(n_out, str)
        return (None, ((n_out, 1), (n_out, 1)))  # scales, then shifts
    if key.endswith("0.v"):
        square = 9 if name.split(".")[-1] in ("conv", "conv1", "conv2") else 1
        return (((n_in, square),) if n_in else None,)
    return (n_out, n_in, None, None)[: tensor.ndim]


FAMILY = Family(
    name="sngan",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample_normal,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    options=frozenset({"resolution"}),
    settings=frozenset({"unit_pixels", "d_pooling"}),
    game="hinge",
)
