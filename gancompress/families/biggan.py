"""BigGAN (Brock et al. 2018, arXiv:1809.11096, app. B): a class-conditional residual generator and its projection discriminator.

Generator: the first chunk of z -> Linear -> 4x4 -> [block: BatchNorm, ReLU, up x2, Conv 3x3, BatchNorm, ReLU, Conv 3x3, beside a
1x1 shortcut] x L -> BatchNorm, ReLU, Conv 3x3 -> tanh. Gains and biases of a block's BatchNorms are linear in (class embedding shared
by all blocks, the block's own chunk of z); without ``shared_dim`` (SAGAN, CIFAR) they are embeddings of the label and z enters at
the bottom alone. Discriminator: L + 1 blocks, ReLU, sum over positions, then linear(h) + embedding(label) . h.
Self-attention follows the blocks named in ``g_attn`` and ``d_attn``. Every weight is spectrally normalised, but not the shared embedding.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

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
from gancompress.layers import embedding


@dataclass(frozen=True)
class Arch:
    """Every shape of a BigGAN. ``g_widths``: channels at 4x4, then after each block of G; ``d_widths``: after each block of D, of which
    the first ``d_down`` halve the image. ``g_attn``, ``d_attn``: blocks that attention follows. ``shared_dim``: size of the shared class
    embedding, 0 where each norm has its own. ``d_wide``: D's first convolution of a block has the block's width, not its input's.
    ``truncation``: of z when sampling, 0 for none.
    """

    resolution: int = 128
    nz: int = 120
    nc: int = 3
    classes: int = 1000
    shared_dim: int = 128
    hier: bool = True
    g_widths: tuple[int, ...] = (1536, 1536, 768, 384, 192, 96)
    g_attn: tuple[int, ...] = (3,)
    d_widths: tuple[int, ...] = (96, 192, 384, 768, 1536, 1536)
    d_down: int = 5
    d_attn: tuple[int, ...] = (0,)
    d_wide: bool = True
    bn_eps: float = 1e-5
    out_eps: float = 1e-5  # of the last BatchNorm, which no setting of the reference reaches
    sn_eps: float = 1e-6
    truncation: float = 0.0

    def __post_init__(self) -> None:
        blocks = len(self.g_widths) - 1
        if blocks < 1 or self.resolution != 4 << blocks:
            raise UsageError(f"biggan resolution {self.resolution}, g_widths {self.g_widths}: 4 * 2^k has k + 1 widths, k >= 1")
        if not 0 <= self.d_down < len(self.d_widths) or self.resolution >> self.d_down < 1:
            raise UsageError(f"biggan d_down={self.d_down}: D has {len(self.d_widths)} blocks, of which all but the last may halve {self.resolution} pixels")
        if min(self.nz, self.nc, self.classes, *self.g_widths, *self.d_widths) < 1 or self.shared_dim < 0:
            raise UsageError(f"biggan {self}: every size must be at least 1")
        if self.hier and (self.nz % (blocks + 1) or not self.shared_dim):
            raise UsageError(f"biggan nz={self.nz}, shared_dim={self.shared_dim}: a hierarchical z has {blocks + 1} equal chunks beside a shared embedding")
        check_blocks("g_attn", self.g_attn, blocks)
        check_blocks("d_attn", self.d_attn, len(self.d_widths))
        if not all(0 < e < 1 for e in (self.bn_eps, self.out_eps, self.sn_eps)) or not 0 <= self.truncation < math.inf:
            raise UsageError(f"biggan eps {self.bn_eps}, {self.out_eps}, {self.sn_eps}, truncation {self.truncation}: out of range")

    @property
    def chunk(self) -> int:
        """Latent values of each place that z enters at."""
        return self.nz // len(self.g_widths) if self.hier else self.nz


class GBlock(nn.Module):
    """(N, n_in, H, W), condition -> (N, n_out, 2H, 2W)."""

    def __init__(self, arch: Arch, n_in: int, n_out: int) -> None:
        super().__init__()
        n_condition = arch.shared_dim + (arch.chunk if arch.hier else 0)

        def make(width: int) -> nn.Module:
            if arch.shared_dim:
                return orthogonal(nn.Linear(n_condition, width, bias=False), arch.sn_eps)
            return orthogonal(embedding(arch.classes, width))

        self.bn1, self.bn2 = ConditionalNorm(n_in, make, arch.bn_eps), ConditionalNorm(n_out, make, arch.bn_eps)
        self.conv1 = orthogonal(nn.Conv2d(n_in, n_out, 3, padding=1), arch.sn_eps)
        self.conv2 = orthogonal(nn.Conv2d(n_out, n_out, 3, padding=1), arch.sn_eps)
        self.conv_sc = orthogonal(nn.Conv2d(n_in, n_out, 1), arch.sn_eps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        up = partial(F.interpolate, scale_factor=2)
        h = self.conv1(up(torch.relu(self.bn1(x, y))))
        out: Tensor = self.conv2(torch.relu(self.bn2(h, y))) + self.conv_sc(up(x))
        return out


class Generator(nn.Module):
    """(N, nz) normal latents, labels (N,) -> images (N, nc, H, W) in [-1, 1]."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        if arch.shared_dim:
            self.shared = orthogonal(embedding(arch.classes, arch.shared_dim))
        self.linear = orthogonal(nn.Linear(arch.chunk, 16 * arch.g_widths[0]), arch.sn_eps)
        self.blocks = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise(arch.g_widths)):
            attention = [Attention(n_out, arch.sn_eps)] if i in arch.g_attn else []
            self.blocks.append(Stage([GBlock(arch, n_in, n_out), *attention]))
        width = arch.g_widths[-1]
        last = orthogonal(nn.Conv2d(width, arch.nc, 3, padding=1), arch.sn_eps)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(width, eps=arch.out_eps), nn.ReLU(), last)

    def features(self, inputs: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations of each resolution (N, C, H, W), coarse to fine, then the images."""
        z = inputs.flatten(1)
        if z.shape[1] != self.arch.nz:
            raise ValueError(f"latents have {z.shape[1]} values each, this network takes {self.arch.nz}")
        y = checked_labels(condition, z.shape[0], self.arch.classes)
        if self.arch.shared_dim:
            y = self.shared(y)
        conditions = [y] * len(self.blocks)
        if self.arch.hier:
            z, *chunks = z.split(self.arch.chunk, 1)
            conditions = [torch.cat([y, chunk], 1) for chunk in chunks]
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        found = []
        for block, y in zip(self.blocks, conditions, strict=True):
            x = block(x, y)
            found.append(x)
        return [*found, torch.tanh(self.output_layer(x))]

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(inputs, condition)[-1]


class DBlock(nn.Module):
    """(N, n_in, H, W) -> (N, n_out, H/2, W/2), or of the same size."""

    def __init__(self, arch: Arch, i: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first, self.down = i == 0, i < arch.d_down
        hidden = n_out if arch.d_wide else n_in
        self.conv1 = orthogonal(nn.Conv2d(n_in, hidden, 3, padding=1), arch.sn_eps)
        self.conv2 = orthogonal(nn.Conv2d(hidden, n_out, 3, padding=1), arch.sn_eps)
        shortcut = self.down or n_in != n_out
        self.conv_sc = orthogonal(nn.Conv2d(n_in, n_out, 1), arch.sn_eps) if shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(torch.relu(self.conv1(x if self.first else torch.relu(x))))
        if not self.down:
            return h + self.conv_sc(x)
        # a 1x1 convolution and a mean over pixels can change places; the image's few channels are averaged first
        return F.avg_pool2d(h, 2) + (self.conv_sc(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.conv_sc(x), 2))


class Discriminator(nn.Module):
    """Images (N, nc, H, W) in [-1, 1], labels (N,) -> logits (N,)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.blocks = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise((arch.nc, *arch.d_widths))):
            attention = [Attention(n_out, arch.sn_eps)] if i in arch.d_attn else []
            self.blocks.append(nn.Sequential(DBlock(arch, i, n_in, n_out), *attention))
        self.linear = orthogonal(nn.Linear(arch.d_widths[-1], 1), arch.sn_eps)
        self.embed = orthogonal(embedding(arch.classes, arch.d_widths[-1]), arch.sn_eps)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations after each block and its attention, then the logits (N,)."""
        y = checked_labels(condition, len(images), self.arch.classes)
        found, x = [], images
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return [*found, projected(x, y, self.linear, self.embed)]

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


# ---------------------------------------------------------------------------------------------------------------- the reader


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """G, G_ema or D of ajbrock/BigGAN-PyTorch, its TFHub conversions, and the first TFHub port (``GBlock.0.conv0.module.weight_bar``).

    Hints: ``BN_eps`` and ``SN_eps`` of the config in state_dict.pth.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
    """
    if "GBlock.0.conv0.module.weight_bar" in state:
        return _read_port(state)
    if "blocks.0.0.conv1.weight" not in state or "linear.weight" not in state:
        raise Mismatch("a BigGAN has blocks.0.0.conv1.weight and linear.weight")
    if "blocks.0.0.conv4.weight" in state:
        raise Mismatch("unexpected key blocks.0.0.conv4.weight: four convolutions in a block are BigGAN-deep's", 0.5)
    config = options.get("config") or {}
    # conversions from TFHub have no singular values to log, and TensorFlow's eps
    converted = not any(k.endswith("sv0") for k in state)
    eps, told = settings_beside(state, config, *((1e-4, 1e-4) if converted else (1e-5, 1e-6)))
    found = read_brock(state, eps["sn_eps"])
    if any(k.startswith("output_layer.") for k in state):
        fields = _generator_fields(found) | eps
        net = on_meta(Generator, lambda: build_arch(None, fields))
        return Reading("generator", fields, fit(net, found, brock_name), tuple(told))
    fields = _discriminator_fields(found) | eps
    net = on_meta(Discriminator, lambda: build_arch(None, fields))
    return Reading("discriminator", fields, fit(net, found, brock_name), tuple(told[1:]))


def _attention(state: StateDict, blocks: int) -> tuple[int, ...]:
    return tuple(i for i in range(blocks) if f"blocks.{i}.1.gamma" in state)


def _generator_fields(state: StateDict) -> dict[str, Any]:
    n = counted(state, "blocks.{}.0.conv1.")
    widths = [shape_of(state, f"blocks.{i}.0.conv1.weight", 4)[:2] for i in range(n)]
    gain = shape_of(state, "blocks.0.0.bn1.gain.weight", 2)
    classes, shared = shape_of(state, "shared.weight", 2) if "shared.weight" in state else (gain[0], 0)
    hier = 0 < shared < gain[1]
    latent = shape_of(state, "linear.weight", 2)[1]
    return {
        "resolution": 4 << n,
        "nz": latent * (n + 1) if hier else latent,
        "nc": shape_of(state, "output_layer.2.weight", 4)[0],
        "classes": classes,
        "shared_dim": shared,
        "hier": hier,
        "g_widths": (widths[0][1], *(w[0] for w in widths)),
        "g_attn": _attention(state, n),
    }


def _discriminator_fields(state: StateDict) -> dict[str, Any]:
    n = counted(state, "blocks.{}.0.conv1.")
    first, second = (shape_of(state, f"blocks.0.0.conv{i}.weight", 4) for i in (1, 2))
    shortcuts = [any(k.startswith(f"blocks.{i}.0.conv_sc.") for k in state) for i in range(n)]
    down = min([*shortcuts, False].index(False), n - 1)  # a shortcut means a halving or another width; the last block never halves
    return {
        # sums over positions hide the size: every table ends at 4x4, but that of 32x32, where two blocks do not halve
        "resolution": (8 if n - down > 1 else 4) << down,
        "nc": first[1],
        "classes": shape_of(state, "embed.weight", 2)[0],
        "d_widths": tuple(shape_of(state, f"blocks.{i}.0.conv2.weight", 4)[0] for i in range(n)),
        "d_down": down,
        "d_attn": _attention(state, n),
        "d_wide": first[0] == second[0],
    }


# ------------------------------------------------------------------------------------------------------- the first TFHub port

#: its names -> those of ajbrock/BigGAN-PyTorch
PORT = (
    (r"^linear\.", "shared."),
    (r"^G_linear\.", "linear."),
    (r"^colorize\.", "output_layer.2."),
    (r"^ScaledCrossReplicaBN\.", "output_layer.0."),
    (r"^attention\.o_conv\.", "attention.o."),
    (r"^GBlock\.(\d+)\.conv0\.", r"blocks.\1.0.conv1."),
    (r"^GBlock\.(\d+)\.conv1\.", r"blocks.\1.0.conv2."),
    (r"^GBlock\.(\d+)\.conv_sc\.", r"blocks.\1.0.conv_sc."),
    (r"^GBlock\.(\d+)\.HyperBN\.", r"blocks.\1.0.bn1."),
    (r"^GBlock\.(\d+)\.HyperBN_1\.", r"blocks.\1.0.bn2."),
    (r"\.gamma_embed\.", ".gain."),
    (r"\.beta_embed\.", ".bias."),
)
PORT_EPS = 1e-4


def _read_port(state: StateDict) -> Reading:
    """TFHub/biggan_v1.py of the same repository: latent before label in every condition, height and width before channels."""
    found: StateDict = {}
    for key, tensor in state.items():
        for pattern, name in PORT:
            key = re.sub(pattern, name, key)
        found[key] = tensor.float()
    for key in [k for k in found if k.endswith("module.weight_bar")]:
        prefix = key.removesuffix("module.weight_bar")
        weight, u = found.pop(key), found.pop(f"{prefix}module.weight_u", torch.empty(0))
        found.pop(f"{prefix}module.weight_v", None)
        if weight.ndim < 2 or u.shape != weight.shape[:1]:
            raise Mismatch(f"{prefix}module.weight_u is missing or does not fit weight_bar of shape {tuple(weight.shape)}", 0.9)
        matrix = weight.flatten(1)
        v = matrix.T @ u
        v = v / (v.norm() + PORT_EPS)  # one step of its own kind: eps is added, not a floor
        u = matrix @ v
        u = u / (u.norm() + PORT_EPS)
        ours = {"original": weight, "0.u": u, "0.v": v}
        found |= {f"{prefix}parametrizations.weight.{k}": t for k, t in ours.items()}
        if f"{prefix}module.bias" in found:
            found[f"{prefix}bias"] = found.pop(f"{prefix}module.bias")
    n, labels = counted(found, "blocks.{}.0.conv1."), shape_of(found, "shared.weight", 2)[0]
    found["shared.weight"] = found["shared.weight"].T
    for key in [k for k in found if k.startswith("linear.") and not k.endswith("0.v")]:
        found[key] = channels_first(found[key])
    for key in [k for k in found if re.search(r"\.(gain|bias)\.parametrizations\.weight\.(original|0\.v)$", k)]:
        found[key] = labels_last(found[key], labels)
    if "attention.gamma" in found:
        width = shape_of(found, "attention.theta.weight", 4)[1]
        after = [i for i in range(n) if shape_of(found, f"blocks.{i}.0.conv1.weight", 4)[0] == width]
        if not after:
            raise Mismatch(f"attention.theta takes {width} channels, which no GBlock gives", 0.9)
        found = {re.sub(r"^attention\.", f"blocks.{after[0]}.1.", k): t for k, t in found.items()}
        found[f"blocks.{after[0]}.1.gamma"] = found[f"blocks.{after[0]}.1.gamma"].squeeze()
    # its generator of 512x512 leaves the last BatchNorm at torch's own eps
    eps = {"bn_eps": PORT_EPS, "out_eps": 1e-5 if n == 7 else PORT_EPS, "sn_eps": PORT_EPS}
    fields = _generator_fields(found) | eps
    net = on_meta(Generator, lambda: build_arch(None, fields))
    return Reading("generator", fields, fit(net, found, str), ("every eps is 1e-4, as in the port's code",))


# ------------------------------------------------------------------------------------------------------------ the other functions


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set the paper's widths. A new one has 20 latent values a chunk, at 512x512 16."""
    fields, fresh = paper_fields(Arch, base, values, 96)
    known = dataclasses.asdict(base or Arch())
    if fresh and fields.get("hier", known["hier"]):
        fields.setdefault("nz", (16 if fields.get("resolution") == 512 else 20) * len(fields["g_widths"]))
    return Arch(**{**known, **fields})


def scale(arch: Arch, ch_mul: float) -> Arch:
    """The channel multiplier ch of G and of D times ch_mul; latent, class embedding and blocks stay."""
    return dataclasses.replace(arch, g_widths=scaled_multiples(arch.g_widths, ch_mul), d_widths=scaled_multiples(arch.d_widths, ch_mul))


def axes(arch: Arch, part: Part) -> Axes:
    """Group i holds the channels that block i takes (G) or gives (D), "ih" those inside it; latent, label and image are never sliced."""
    roles: dict[str, tuple[Axis, Axis]] = {}
    if part == "generator":
        last = str(len(arch.g_widths) - 1)
        roles |= {"shared": (None, None), "linear": ((("0", 16),), None), "output_layer.0": (last, None), "output_layer.2": (None, last)}
        for i in range(len(arch.g_widths) - 1):
            block, given, hidden, made = f"blocks.{i}.0", str(i), f"{i}h", str(i + 1)
            roles |= {f"{block}.conv1": (hidden, given), f"{block}.conv2": (made, hidden), f"{block}.conv_sc": (made, given)}
            roles |= norm_roles(f"{block}.bn1", given, not arch.shared_dim) | norm_roles(f"{block}.bn2", hidden, not arch.shared_dim)
            roles |= attention_roles(f"blocks.{i}.1", made)
        return axes_of(on_meta(Generator, lambda: arch), roles)
    before: Axis = None
    for i, (n_in, n_out) in enumerate(pairwise((arch.nc, *arch.d_widths))):
        shortcut = i < arch.d_down or n_in != n_out
        after = str(i) if shortcut else before  # what is added as it is has the same channels
        hidden_group = f"{i}h" if arch.d_wide or i else None
        block = f"blocks.{i}.0"
        roles |= {f"{block}.conv1": (hidden_group, before), f"{block}.conv2": (after, hidden_group), f"{block}.conv_sc": (after, before)}
        roles |= attention_roles(f"blocks.{i}.1", after)
        before = after
    roles |= {"linear": (None, before), "embed": (None, before)}
    return axes_of(on_meta(Discriminator, lambda: arch), roles)


def sample(arch: Arch, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """z ~ N(0, I) (n, nz), values beyond ``truncation`` drawn again where it is set (Brock et al. §3.1); labels uniform (n,)."""
    return truncated_normal((n, arch.nz), arch.truncation, rng), torch.randint(arch.classes, (n,), generator=rng)


FAMILY = Family(
    name="biggan",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: arch,
    settings=frozenset({"truncation"}),
    game="hinge",
)
