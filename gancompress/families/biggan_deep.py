"""BigGAN-deep (Brock et al. 2018, arXiv:1809.11096, app. B): bottleneck blocks, and skips that only drop or add channels.

Generator: (class embedding, z) -> Linear -> 4x4 -> [block: four times BatchNorm, ReLU, Conv (1x1, 3x3, 3x3, 1x1 over a quarter of the
channels), beside the input's first channels] x g_depth for each stage, whose last block doubles the image after its second ReLU ->
BatchNorm, ReLU, Conv 3x3 -> tanh. All gains and biases are linear in (class embedding, z). Discriminator: Conv 3x3, stages of d_depth
blocks of which the first halves the image, with 1x1 convolutions that add channels to the skip; ReLU, sum over positions, then
linear(h) + embedding(label) . h. Self-attention follows the blocks named in ``g_attn`` and ``d_attn``.
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
from torch.nn import functional as F

from gancompress.brock import (
    Attention,
    ConditionalNorm,
    Stage,
    attention_roles,
    axes_of,
    brock_name,
    channels_first,
    check_blocks,
    checked_labels,
    counted,
    eps_of,
    fit,
    labels_last,
    norm_roles,
    on_meta,
    orthogonal,
    paper_fields,
    projected,
    read_brock,
    scaled_multiples,
    settings_beside,
    shape_of,
    truncated_normal,
)
from gancompress.errors import UsageError
from gancompress.gan import Axes, Axis, Family, Mismatch, Part, Reading, StateDict
from gancompress.layers import embedding, read_spectral


@dataclass(frozen=True)
class Arch:
    """Every shape of a BigGAN-deep. ``g_widths``: channels at 4x4, then after each stage of G; ``d_widths``: after D's first convolution,
    then after each stage, of which the first ``d_down`` halve the image; ``g_depth``, ``d_depth``: blocks of a stage. ``g_attn``: blocks
    that attention follows, counted through all stages; ``d_attn``: stages. ``truncation`` and ``latents``, when sampling: "normal" draws
    N(0, 1) with values beyond the truncation (0: none) drawn again; "scaled" draws N(0, 1) within 2 and multiplies by it.
    """

    resolution: int = 128
    nz: int = 128
    nc: int = 3
    classes: int = 1000
    shared_dim: int = 128
    g_widths: tuple[int, ...] = (2048, 2048, 1024, 512, 256, 128)
    g_depth: int = 2
    g_attn: tuple[int, ...] = (7,)
    d_widths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 2048)
    d_depth: int = 2
    d_down: int = 5
    d_attn: tuple[int, ...] = (0,)
    bn_eps: float = 1e-5
    out_eps: float = 1e-5  # of the last BatchNorm, which no setting of the reference reaches
    sn_eps: float = 1e-6
    truncation: float = 0.0
    latents: Literal["normal", "scaled"] = "normal"

    def __post_init__(self) -> None:
        stages = len(self.g_widths) - 1
        if stages < 1 or self.resolution != 4 << stages:
            raise UsageError(f"biggan_deep resolution {self.resolution}, g_widths {self.g_widths}: 4 * 2^k has k + 1 widths, k >= 1")
        if min(self.nz, self.nc, self.classes, self.shared_dim, self.g_depth, self.d_depth, *self.g_widths, *self.d_widths) < 1:
            raise UsageError(f"biggan_deep {self}: every size must be at least 1")
        if list(self.g_widths) != sorted(self.g_widths, reverse=True) or list(self.d_widths) != sorted(self.d_widths):
            raise UsageError(f"biggan_deep g_widths {self.g_widths} never grow and d_widths {self.d_widths} never shrink, for the skips to fit")
        if not 0 <= self.d_down < len(self.d_widths) or self.resolution >> self.d_down < 1:
            raise UsageError(f"biggan_deep d_down={self.d_down}: D has {len(self.d_widths) - 1} stages for {self.resolution} pixels")
        check_blocks("g_attn", self.g_attn, stages * self.g_depth)
        check_blocks("d_attn", self.d_attn, len(self.d_widths) - 1)
        if not all(0 < e < 1 for e in (self.bn_eps, self.out_eps, self.sn_eps)):
            raise UsageError(f"biggan_deep eps {self.bn_eps}, {self.out_eps}, {self.sn_eps}: between 0 and 1")
        if not (0 < self.truncation <= 1 if self.latents == "scaled" else 0 <= self.truncation < math.inf):
            raise UsageError(f"biggan_deep truncation={self.truncation}: at least 0 (none); in (0, 1] where it scales the latents")

    @property
    def g_blocks(self) -> list[tuple[int, int, bool]]:
        """(channels in, out, whether it doubles the image) of each block of G."""
        found = []
        for n_in, n_out in pairwise(self.g_widths):
            found += [(n_in, n_in, False)] * (self.g_depth - 1) + [(n_in, n_out, True)]
        return found


class GBlock(nn.Module):
    """(N, n_in, H, W), condition (N, shared_dim + nz) -> (N, n_out, H, W), or doubled."""

    def __init__(self, arch: Arch, n_in: int, n_out: int, up: bool) -> None:
        super().__init__()
        self.n_out, self.up = n_out, up
        hidden = max(1, n_in // 4)

        def make(width: int) -> nn.Module:
            return orthogonal(nn.Linear(arch.shared_dim + arch.nz, width, bias=False), arch.sn_eps)

        self.bn1, self.bn2 = ConditionalNorm(n_in, make, arch.bn_eps), ConditionalNorm(hidden, make, arch.bn_eps)
        self.bn3, self.bn4 = ConditionalNorm(hidden, make, arch.bn_eps), ConditionalNorm(hidden, make, arch.bn_eps)
        self.conv1 = orthogonal(nn.Conv2d(n_in, hidden, 1), arch.sn_eps)
        self.conv2 = orthogonal(nn.Conv2d(hidden, hidden, 3, padding=1), arch.sn_eps)
        self.conv3 = orthogonal(nn.Conv2d(hidden, hidden, 3, padding=1), arch.sn_eps)
        self.conv4 = orthogonal(nn.Conv2d(hidden, n_out, 1), arch.sn_eps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x, y))), y))
        x = x[:, : self.n_out]
        if self.up:
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = torch.relu(self.bn3(self.conv2(h), y))
        out: Tensor = self.conv4(torch.relu(self.bn4(self.conv3(h), y))) + x
        return out


class Generator(nn.Module):
    """(N, nz) normal latents, labels (N,) -> images (N, nc, H, W) in [-1, 1]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.shared = orthogonal(embedding(arch.classes, arch.shared_dim))
        self.linear = orthogonal(nn.Linear(arch.shared_dim + arch.nz, 16 * arch.g_widths[0]), arch.sn_eps)
        self.blocks = nn.ModuleList()
        for i, (n_in, n_out, up) in enumerate(arch.g_blocks):
            attention = [Attention(n_out, arch.sn_eps)] if i in arch.g_attn else []
            self.blocks.append(Stage([GBlock(arch, n_in, n_out, up), *attention]))
        width = arch.g_widths[-1]
        last = orthogonal(nn.Conv2d(width, arch.nc, 3, padding=1), arch.sn_eps)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(width, eps=arch.out_eps), nn.ReLU(), last)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        z = inputs.flatten(1)
        if z.shape[1] != self.arch.nz:
            raise ValueError(f"latents have {z.shape[1]} values each, this network takes {self.arch.nz}")
        y = torch.cat([self.shared(checked_labels(condition, z.shape[0], self.arch.classes)), z], 1)
        x = self.linear(y).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.output_layer(x))


class DBlock(nn.Module):
    """(N, n_in, H, W) -> (N, n_out, H, W), or halved."""

    def __init__(self, arch: Arch, n_in: int, n_out: int, down: bool) -> None:
        super().__init__()
        self.down, hidden = down, max(1, n_out // 4)
        self.conv1 = orthogonal(nn.Conv2d(n_in, hidden, 1), arch.sn_eps)
        self.conv2 = orthogonal(nn.Conv2d(hidden, hidden, 3, padding=1), arch.sn_eps)
        self.conv3 = orthogonal(nn.Conv2d(hidden, hidden, 3, padding=1), arch.sn_eps)
        self.conv4 = orthogonal(nn.Conv2d(hidden, n_out, 1), arch.sn_eps)
        self.conv_sc = orthogonal(nn.Conv2d(n_in, n_out - n_in, 1), arch.sn_eps) if n_out > n_in else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv2(torch.relu(self.conv1(torch.relu(x)))))
        h = torch.relu(self.conv3(h))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        out: Tensor = self.conv4(h) + (torch.cat([x, self.conv_sc(x)], 1) if self.conv_sc is not None else x)
        return out


class Discriminator(nn.Module):
    """Images (N, nc, H, W) in [-1, 1], labels (N,) -> logits (N,)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.input_conv = orthogonal(nn.Conv2d(arch.nc, arch.d_widths[0], 3, padding=1), arch.sn_eps)
        self.blocks = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise(arch.d_widths)):
            stage: list[nn.Module] = [DBlock(arch, n_out if j else n_in, n_out, j == 0 and i < arch.d_down) for j in range(arch.d_depth)]
            self.blocks.append(nn.Sequential(*stage, *([Attention(n_out, arch.sn_eps)] if i in arch.d_attn else [])))
        self.linear = orthogonal(nn.Linear(arch.d_widths[-1], 1), arch.sn_eps)
        self.embed = orthogonal(embedding(arch.classes, arch.d_widths[-1]), arch.sn_eps)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations after each stage and its attention, then the logits (N,)."""
        y = checked_labels(condition, len(images), self.arch.classes)
        found, x = [], self.input_conv(images)
        for stage in self.blocks:
            x = stage(x)
            found.append(x)
        return [*found, projected(x, y, self.linear, self.embed)]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


# ---------------------------------------------------------------------------------------------------------------- the readers


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """G, G_ema or D of ajbrock/BigGAN-PyTorch (BigGANdeep.py), or pytorch_model.bin of huggingface/pytorch-pretrained-BigGAN.

    Options: ``truncation`` (float): of the latter, which row of its BatchNorm statistics is taken; 1 where nothing is said.
    Hints: ``BN_eps``, ``SN_eps`` and ``G_depth`` of the config in state_dict.pth, ``eps`` and ``layers`` of config.json.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
        UsageError: a truncation that the file has no statistics for.
    """
    config = options.get("config") or {}
    if any(k.startswith("generator.layers.0.") for k in state) and any(k.startswith("generator.gen_z.") for k in state):
        return _read_hugging_face(state, config, options.get("truncation"))
    if "blocks.0.0.conv4.weight" not in state or "linear.weight" not in state:
        raise Mismatch("a BigGAN-deep has blocks.0.0.conv4.weight and linear.weight, or generator.gen_z and generator.layers")
    eps, told = settings_beside(state, config, 1e-5, 1e-6)
    found = read_brock(state, eps["sn_eps"])
    if any(k.startswith("output_layer.") for k in state):
        blocks = list(range(counted(found, "blocks.{}.0.conv1.")))
        depth = config.get("G_depth")
        depth = depth if isinstance(depth, int) and 0 < depth <= len(blocks) and len(blocks) % depth == 0 else 2
        told.append(f"stages of {depth} blocks")
        fields = _generator_fields(found, "blocks.{}.0.conv{}.weight", blocks, depth) | {
            "nz": shape_of(found, "linear.weight", 2)[1] - shape_of(found, "shared.weight", 2)[1],
            "nc": shape_of(found, "output_layer.2.weight", 4)[0],
            "classes": shape_of(found, "shared.weight", 2)[0],
            "shared_dim": shape_of(found, "shared.weight", 2)[1],
            "g_attn": tuple(i for i in blocks if f"blocks.{i}.1.gamma" in found),
        }
        fields |= eps
        net = on_meta(Generator, lambda: build_arch(None, fields))
        return Reading("generator", fields, fit(net, found, brock_name), tuple(told))
    fields = _discriminator_fields(found) | eps
    net = on_meta(Discriminator, lambda: build_arch(None, fields))
    return Reading("discriminator", fields, fit(net, found, brock_name), tuple(told[1:]))


def _generator_fields(state: StateDict, name: str, blocks: list[int], depth: int, first: int = 1) -> dict[str, Any]:
    """What the blocks tell; ``name`` of a block's and convolution's weight, of which the first convolution is called ``first``."""
    if not blocks or len(blocks) % depth:
        raise Mismatch(f"{len(blocks)} blocks are no stages of {depth}", 0.9)
    ends = blocks[depth - 1 :: depth]
    widths = (shape_of(state, name.format(blocks[0], first), 4)[1], *(shape_of(state, name.format(i, first + 3), 4)[0] for i in ends))
    return {"resolution": 4 << len(ends), "g_widths": widths, "g_depth": depth}


def _discriminator_fields(state: StateDict) -> dict[str, Any]:
    stages, depth = counted(state, "blocks.{}.0.conv1."), counted(state, "blocks.0.{}.conv1.")
    widths = (shape_of(state, "input_conv.weight", 4)[0], *(shape_of(state, f"blocks.{i}.0.conv4.weight", 4)[0] for i in range(stages)))
    # sums over positions hide the size: every table ends at 4x4, but that of 32x32 (of one width), whose last stage does not halve
    even = stages > 1 and len(set(widths)) == 1
    down = stages - 1 if even else stages
    return {
        "resolution": (8 if even else 4) << down,
        "nc": shape_of(state, "input_conv.weight", 4)[1],
        "classes": shape_of(state, "embed.weight", 2)[0],
        "d_widths": widths,
        "d_depth": depth,
        "d_down": down,
        "d_attn": tuple(i for i in range(stages) if f"blocks.{i}.{depth}.gamma" in state),
    }


def _read_hugging_face(state: StateDict, config: Mapping[str, Any], truncation: Any) -> Reading:
    """G of pytorch-pretrained-BigGAN: TensorFlow's order of values (latent before label, height and width before channels), a row of
    BatchNorm statistics for each truncation, and a last convolution of which three channels are used.
    """
    eps = eps_of(config, "eps", 1e-4)
    found = read_spectral({k: t.float() for k, t in state.items()}, eps)
    layers = range(counted(found, "generator.layers.{}."))
    after = [i for i in layers if f"generator.layers.{i}.gamma" in found]
    blocks = [i for i in layers if i not in after]
    attention = {sum(b < i for b in blocks) - 1: i for i in after}  # our block -> the layer behind it
    if isinstance(said := config.get("layers"), list) and [bool(s[0]) if isinstance(s, list) and s else None for s in said] != [
        i % 2 == 1 for i in range(len(blocks))
    ]:
        raise Mismatch("config.json: layers double the image elsewhere than in every second block of those in the file", 0.9)
    row, rows, truncation = _row(shape_of(found, "generator.bn.running_means", 2)[0], truncation)
    shared, classes = shape_of(found, "embeddings.weight", 2)
    for key, tensor in found.items():
        leaf = key.rpartition(".")[2]
        if leaf in ("running_means", "running_vars"):
            if tensor.ndim != 2 or len(tensor) != rows:
                raise Mismatch(f"{key} has shape {tuple(tensor.shape)}, expected ({rows}, channels)", 0.9)
            found[key] = tensor[row]
        elif leaf == "gamma":
            found[key] = tensor.squeeze()
        if ".scale." in key or ".offset." in key or ".gen_z." in key:
            found[key] = tensor = labels_last(tensor, shared) if key.endswith((".original", ".0.v")) else tensor
        if ".gen_z." in key and not key.endswith(".0.v"):
            found[key] = channels_first(tensor)
    found["embeddings.weight"] = found["embeddings.weight"].T
    _keep_rgb(found)
    fields = _generator_fields(found, "generator.layers.{}.conv_{}.weight", blocks, 2, first=0) | {
        "nz": shape_of(found, "generator.gen_z.weight", 2)[1] - shared,
        "nc": RGB,
        "classes": classes,
        "shared_dim": shared,
        "g_attn": tuple(attention),
    }
    fields |= {"bn_eps": eps, "out_eps": eps, "sn_eps": eps, "truncation": truncation, "latents": "scaled"}
    net = on_meta(Generator, lambda: build_arch(None, fields))
    told = f"BatchNorm statistics and latents of truncation {truncation:g} (row {row} of {rows}; else --reader truncation=T)"
    return Reading("generator", fields, fit(net, found, lambda key: _hugging_face_name(key, blocks, attention)), (told, f"eps {eps:g}"))


RGB = 3


def _row(rows: int, truncation: Any) -> tuple[int, int, float]:
    """(row of the statistics, rows, truncation): row i holds those of i / (rows - 1)."""
    try:
        value = 1.0 if truncation is None else float(truncation)
    except (TypeError, ValueError):
        raise UsageError(f"truncation={truncation!r}: expected a number") from None
    row = round(value * (rows - 1)) if 0 < value <= 1 else 0
    if not 0 < row < rows or abs(value * (rows - 1) - row) > 1e-6:
        raise UsageError(f"truncation={value:g}: this file has BatchNorm statistics for multiples of {1 / max(1, rows - 1):g} up to 1")
    return row, rows, row / (rows - 1)


def _keep_rgb(state: StateDict) -> None:
    """The first three channels of the last convolution, divided by the norm of all of them: u carries it, u . W v stays what it was."""
    prefix = "generator.conv_to_rgb.parametrizations.weight."
    rows, columns = shape_of(state, "generator.conv_to_rgb.weight", 4)[:2]
    u, v, bias = (state.get(k, torch.empty(0)) for k in (f"{prefix}0.u", f"{prefix}0.v", "generator.conv_to_rgb.bias"))
    weight = state[f"{prefix}original"] if f"{prefix}original" in state else torch.empty(rows, 0)
    if rows < RGB or u.shape != (rows,) or v.shape != weight[0].flatten().shape or bias.shape != (rows,):
        raise Mismatch(f"generator.conv_to_rgb: weight, weight_u, weight_v or bias is missing or not of {rows} and {columns} channels", 0.9)
    norm = u @ weight.flatten(1) @ v
    left, sizes, right = torch.linalg.svd(weight[:RGB].flatten(1), full_matrices=False)
    state[f"{prefix}original"], state["generator.conv_to_rgb.bias"] = weight[:RGB], bias[:RGB]
    state[f"{prefix}0.u"], state[f"{prefix}0.v"] = left[:, 0] * norm / sizes[0], right[0]


def _hugging_face_name(key: str, blocks: list[int], attention: Mapping[int, int]) -> str:
    """Our key as pytorch-pretrained-BigGAN has it, each side's spectral norm aside."""
    head, _, rest = key.partition(".")
    if head != "blocks":
        tops = {"shared": "embeddings.", "linear": "generator.gen_z.", "0": "generator.bn.", "2": "generator.conv_to_rgb."}
        if head == "output_layer":
            head, _, rest = rest.partition(".")
        return (tops[head] + rest).replace("running_mean", "running_means").replace("running_var", "running_vars")
    i, kind, module, leaf = rest.split(".", 3) if rest.count(".") > 2 else [*rest.split("."), ""]
    if kind == "1":
        layer = f"generator.layers.{attention[int(i)]}."
        return f"{layer}gamma" if module == "gamma" else f"{layer}snconv1x1_{'o_conv' if module == 'o' else module}.{leaf}"
    layer = f"generator.layers.{blocks[int(i)]}.{module[:-1]}_{int(module[-1]) - 1}."
    for ours, theirs in (("gain.", "scale."), ("bias.", "offset."), ("bn.running_mean", "running_means"), ("bn.running_var", "running_vars")):
        if leaf.startswith(ours) and module.startswith("bn"):
            leaf = theirs + leaf.removeprefix(ours)
    return layer + leaf


# ------------------------------------------------------------------------------------------------------------ the other functions


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set the paper's widths."""
    fields, fresh = paper_fields(Arch, base, values, 128)
    known = dataclasses.asdict(base or Arch())
    if base and base.latents == "scaled" and fields.get("truncation", base.truncation) != base.truncation:
        raise UsageError(f"truncation={fields['truncation']}: the BatchNorm statistics here are those of {base.truncation:g}", "read the original file with it")
    if fresh and "g_attn" not in values:  # from stages to the last of their blocks
        fields["g_attn"] = tuple((i + 1) * fields.get("g_depth", known["g_depth"]) - 1 for i in fields["g_attn"])
    return Arch(**{**known, **fields})


def scale(arch: Arch, ch_mul: float) -> Arch:
    """The channel multiplier ch of G and of D times ch_mul; latent, class embedding and blocks stay."""
    return dataclasses.replace(arch, g_widths=scaled_multiples(arch.g_widths, ch_mul), d_widths=scaled_multiples(arch.d_widths, ch_mul))


def _nested(widths: tuple[int, ...]) -> dict[int, tuple[tuple[str, int], ...]]:
    """{width: its groups}. A skip hands on a layer's first channels, so the channels of the narrowest layer are group t0 of all,
    those by which the next wider one exceeds it are t1, and so on.
    """
    distinct = sorted(set(widths))
    return {width: tuple((f"t{j}", 1) for j in range(k + 1)) for k, width in enumerate(distinct)}


def axes(arch: Arch, part: Part) -> Axes:
    """Groups t0, t1, ... are the channels that run through all blocks, "i a", "i b" and "i c" those inside block i; latent, label and
    image are never sliced.
    """
    widths = arch.g_widths if part == "generator" else arch.d_widths
    trunk = _nested(widths)
    first, last = trunk[widths[0]], trunk[widths[-1]]
    roles: dict[str, tuple[Axis, Axis]] = {}

    def bottleneck(block: str, given: Axis, made: Axis) -> None:
        a, b, c = (f"{block} {x}" for x in "abc")
        roles.update({f"{block}.conv1": (a, given), f"{block}.conv2": (b, a), f"{block}.conv3": (c, b), f"{block}.conv4": (made, c)})
        for norm, group in zip(("bn1", "bn2", "bn3", "bn4"), (given, a, b, c), strict=True):
            roles.update(norm_roles(f"{block}.{norm}", group))

    if part == "generator":
        roles |= {"shared": (None, None), "linear": (tuple((group, 16) for group, _ in first), None)}
        roles |= {"output_layer.0": (last, None), "output_layer.2": (None, last)}
        for i, (n_in, n_out, _) in enumerate(arch.g_blocks):
            bottleneck(f"blocks.{i}.0", trunk[n_in], trunk[n_out])
            roles |= attention_roles(f"blocks.{i}.1", trunk[n_out])
        return axes_of(on_meta(Generator, lambda: arch), roles)
    roles |= {"input_conv": (first, None), "linear": (None, last), "embed": (None, last)}
    for i, (n_in, n_out) in enumerate(pairwise(arch.d_widths)):
        for j in range(arch.d_depth):
            bottleneck(f"blocks.{i}.{j}", trunk[n_out if j else n_in], trunk[n_out])
        roles[f"blocks.{i}.0.conv_sc"] = (trunk[n_out][len(trunk[n_in]) :], trunk[n_in])
        roles |= attention_roles(f"blocks.{i}.{arch.d_depth}", trunk[n_out])
    return axes_of(on_meta(Discriminator, lambda: arch), roles)


def sample(arch: Arch, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """z (n, nz) as ``latents`` says (Brock et al. §3.1; "scaled" is the law of the TFHub models); labels uniform (n,)."""
    scaled = arch.latents == "scaled"
    z = truncated_normal((n, arch.nz), 2.0 if scaled else arch.truncation, rng)
    return z * arch.truncation if scaled else z, torch.randint(arch.classes, (n,), generator=rng)


FAMILY = Family(
    name="biggan_deep",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    options=frozenset({"truncation"}),
    settings=frozenset({"truncation"}),
    game="hinge",
)
