"""What BigGAN and BigGAN-deep share (Brock et al. 2018, arXiv:1809.11096): blocks, widths by a table, and the spellings of their files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress.errors import UsageError
from gancompress.gan import Axes, Axis, Mismatch, StateDict, parse_arch
from gancompress.layers import read_spectral, scale_width, spectral_norm


def orthogonal(module: nn.Module, eps: float | None = None) -> nn.Module:
    """``module`` with the orthogonal start of BigGAN (Brock et al. 2018, app. C); spectrally normalised where ``eps`` is given."""
    assert isinstance(module.weight, Tensor)
    if not module.weight.is_meta:
        nn.init.orthogonal_(module.weight)
    return module if eps is None else spectral_norm(module, eps)


class ConditionalNorm(nn.Module):
    """BatchNorm whose gain 1 + gain(y) and bias(y) follow a condition: (N, C, H, W), y -> (N, C, H, W).

    ``gain`` and ``bias`` map y to (N, C): linear in a shared embedding, or an embedding of the labels themselves.
    """

    def __init__(self, width: int, make: Callable[[int], nn.Module], eps: float) -> None:
        super().__init__()
        self.gain, self.bias = make(width), make(width)
        self.bn = nn.BatchNorm2d(width, eps=eps, affine=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.bn(x) * (1 + self.gain(y))[:, :, None, None] + self.bias(y)[:, :, None, None]
        return out


class Attention(nn.Module):
    """Non-local block (N, C, H, W) -> same: keys and values at half the resolution (Zhang et al. 2019, arXiv:1805.08318)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        keys, values = max(1, width // 8), max(1, width // 2)
        self.theta = orthogonal(nn.Conv2d(width, keys, 1, bias=False), eps)
        self.phi = orthogonal(nn.Conv2d(width, keys, 1, bias=False), eps)
        self.g = orthogonal(nn.Conv2d(width, values, 1, bias=False), eps)
        self.o = orthogonal(nn.Conv2d(values, width, 1, bias=False), eps)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """``y`` is not used: blocks of a generator are called alike."""
        queries = self.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2)
        values = F.max_pool2d(self.g(x), 2).flatten(2)
        weights = torch.softmax(queries @ keys, -1)
        out: Tensor = self.gamma * self.o((values @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])) + x
        return out


class Stage(nn.ModuleList):
    """Blocks and attention one after the other: (N, C, H, W), condition -> (N, C', H', W')."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, y)
        return x


def projected(x: Tensor, y: Tensor, linear: nn.Module, embed: nn.Module) -> Tensor:
    """Logits (N,) of a projection discriminator from its last features: linear(h) + embed(y) . h (Miyato & Koyama 2018, eq. 4)."""
    h = torch.relu(x).sum([2, 3])
    out: Tensor = linear(h).flatten() + (embed(y) * h).sum(1)
    return out


def checked_labels(condition: Tensor | None, n: int, classes: int) -> Tensor:
    """The labels (n,) of a conditional network.

    Raises:
        ValueError: there are none, or of another shape.
    """
    if condition is None:
        raise ValueError(f"this network is conditional: give labels (N,) in 0 ... {classes - 1} as condition")
    if condition.shape != (n,):
        raise ValueError(f"labels have shape {tuple(condition.shape)}, expected ({n},)")
    return condition


def truncated_normal(shape: tuple[int, ...], bound: float, rng: torch.Generator) -> Tensor:
    """N(0, 1) with what lies outside [-bound, bound] drawn again (bound 0: nothing is), by the inverse of its distribution."""
    if not bound:
        return torch.randn(shape, generator=rng)
    u = torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1
    return (math.sqrt(2) * torch.erfinv(u * math.erf(bound / math.sqrt(2)))).clamp(-bound, bound).float()


#: BigGAN's widths as multiples of ch (tables 4 to 9; SAGAN's for CIFAR), for each resolution: of the 4x4 input of G, then after each stage
G_MULTIPLES = {32: (4, 4, 4, 4), 64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1), 512: (16, 16, 8, 8, 4, 2, 1, 1)}
#: of D: after each block of BigGAN, after the first convolution and each stage of BigGAN-deep
D_MULTIPLES = {r: m[::-1] for r, m in G_MULTIPLES.items()} | {64: (1, 2, 4, 8, 16)}


def _multiples(table: Mapping[int, tuple[int, ...]], resolution: int) -> tuple[int, ...]:
    if resolution >= 32 and resolution not in table:
        raise UsageError(f"resolution {resolution}: no widths are known for it", f"there are {', '.join(map(str, table))}; or give g_widths and d_widths")
    return table.get(resolution, (4,) * (resolution.bit_length() - 2))


def paper_fields(arch_type: type[Any], base: Any, values: Mapping[str, Any], ch: int) -> tuple[dict[str, Any], bool]:
    """(fields of a BigGAN's or BigGAN-deep's Arch, whether they begin another network than ``base``).

    ``width`` and ``d_width`` among the values set the paper's widths (G_ch and D_ch of the reference; ``ch`` where a new network is told
    nothing). A new network has attention at 64x64, at half its size for 64x64, and none below, counted in stages.
    """
    values = dict(values)
    shorthand = {k: v for k in ("width", "d_width") if (v := values.pop(k, None)) is not None}
    fields = parse_arch(arch_type, values)
    resolution = fields.get("resolution", (base or arch_type()).resolution)
    fresh = base is None or resolution != base.resolution
    try:
        width = int(shorthand.get("width", ch))
        d_width = int(shorthand.get("d_width", width))
    except ValueError:
        raise UsageError(f"width={shorthand}: expected whole numbers") from None
    if min(width, d_width) < 1:
        raise UsageError(f"width={width}, d_width={d_width}: at least 1")
    if "g_widths" not in fields and ("width" in shorthand or fresh):
        fields["g_widths"] = tuple(m * width for m in _multiples(G_MULTIPLES, resolution))
    if "d_widths" not in fields and (shorthand or fresh):
        if "g_widths" in values and not shorthand:  # a critic as wide as the generator
            d_width = max(1, math.gcd(*fields["g_widths"]) // math.gcd(*_multiples(G_MULTIPLES, resolution)))
        fields["d_widths"] = tuple(m * d_width for m in _multiples(D_MULTIPLES, resolution))
    if fresh:
        size = min(64, resolution // 2) if resolution >= 64 else 0
        fields.setdefault("g_attn", (size.bit_length() - 4,) if size else ())
        fields.setdefault("d_attn", ((resolution // size).bit_length() - 2,) if size else ())
    if "d_widths" in fields and (fresh or len(fields["d_widths"]) != len(base.d_widths)):
        halvings = len(fields["d_widths"]) - (2 if resolution <= 32 and len(fields["d_widths"]) > 2 else 1)
        fields.setdefault("d_down", halvings)
    return fields, fresh


def scaled_multiples(widths: tuple[int, ...], ch_mul: float) -> tuple[int, ...]:
    """Widths that are multiples of one number with that number times ch_mul."""
    ch = math.gcd(*widths)
    return tuple(w // ch * scale_width(ch, ch_mul) for w in widths)


def check_blocks(name: str, attention: tuple[int, ...], blocks: int) -> None:
    """Raises UsageError unless they are increasing numbers of blocks."""
    if list(attention) != sorted(set(attention)) or not all(0 <= i < blocks for i in attention):
        raise UsageError(f"{name}={attention}: increasing numbers in 0 ... {blocks - 1}")


def axes_of(net: nn.Module, roles: Mapping[str, tuple[Axis, Axis]]) -> Axes:
    """The axes of every tensor of a network from {module: (its rows or channels, its columns)}."""
    state, found = net.state_dict(), Axes()
    for key, tensor in state.items():
        module, _, leaf = key.partition(".parametrizations.weight.")
        module, leaf = (module, leaf) if leaf else key.rsplit(".", 1) if "." in key else ("", key)
        if tensor.ndim == 0:
            found[key] = ()
            continue
        rows, columns = roles[module]
        if leaf == "0.v":  # flattened kernels: each column of the weight is height * width places
            kernel = state[key.removesuffix("0.v") + "original"].shape[2:].numel()
            stretches = ((columns, 1),) if isinstance(columns, str) else columns
            found[key] = (None if stretches is None else tuple((group, each * kernel) for group, each in stretches),)
        else:
            found[key] = (rows, columns, None, None)[: tensor.ndim]
    return found


def attention_roles(prefix: str, width: Axis) -> dict[str, tuple[Axis, Axis]]:
    """Rows and columns of an Attention; keys and values are groups of their own."""
    keys, values = f"{prefix} keys", f"{prefix} values"
    return {f"{prefix}.theta": (keys, width), f"{prefix}.phi": (keys, width), f"{prefix}.g": (values, width), f"{prefix}.o": (width, values)}


def norm_roles(prefix: str, width: Axis, embedded: bool = False) -> dict[str, tuple[Axis, Axis]]:
    """Rows and columns of a ConditionalNorm; ``embedded``: its gain and bias are embeddings (classes, C)."""
    linear: tuple[Axis, Axis] = (None, width) if embedded else (width, None)
    return {f"{prefix}.bn": (width, None), f"{prefix}.gain": linear, f"{prefix}.bias": linear}


# ................................................................................................................. their files


def read_brock(state: StateDict, eps: float) -> StateDict:
    """A state dict of ajbrock/BigGAN-PyTorch with spectral norm and all three kinds of BatchNorm turned into ours.

    ``mybn`` with standing statistics stores sums and how many; before any were accumulated the counter is 0. cross_replica names
    its statistics as torch does.
    """
    out: StateDict = {}
    for key, tensor in state.items():
        prefix, _, leaf = key.rpartition(".")
        if leaf in ("stored_mean", "stored_var"):
            count = state.get(f"{prefix}.accumulation_counter", torch.zeros(1)).float()
            counted = count.shape == (1,) and math.isfinite(float(count)) and float(count) > 0
            out[f"{prefix.removesuffix('.bn')}.bn.{leaf.replace('stored', 'running')}"] = tensor.float() / count if counted else tensor.float()
        elif leaf == "num_batches_tracked":
            out[key] = torch.tensor(0)
        elif leaf != "accumulation_counter":
            out[key] = tensor.float()
    return read_spectral(out, eps)


def fit(net: nn.Module, state: StateDict, name: Callable[[str], str], score: float = 0.9) -> StateDict:
    """The tensors of ``state`` under the names of ``net``, whose own ``name`` turns into those of the file.

    Raises:
        Mismatch: naming the first that is missing, of another shape, or too many.
    """
    out: StateDict = {}
    used = set()
    for key, tensor in net.state_dict().items():
        theirs = name(key)
        used.add(theirs)
        if key.endswith("num_batches_tracked"):
            out[key] = torch.tensor(0)
            continue
        if theirs not in state:
            plain = theirs.replace("parametrizations.weight.original", "weight")
            raise Mismatch(f"{_spelled(theirs)} " + ("is there without spectral norm (no u beside it)" if plain in state else "is missing"), score)
        if state[theirs].shape != tensor.shape:
            raise Mismatch(f"{_spelled(theirs)} has shape {tuple(state[theirs].shape)}, expected {tuple(tensor.shape)}", score)
        out[key] = state[theirs]
    if unexpected := [k for k in state if k not in used]:
        raise Mismatch(f"unexpected key {_spelled(unexpected[0])}", score)
    return out


def _spelled(key: str) -> str:
    """A key as a file has it, which spells spectral norm in a way of its own."""
    for ours, theirs in (("original", "weight"), ("0.u", "weight's singular vector u"), ("0.v", "weight's singular vector v")):
        key = key.replace(f"parametrizations.weight.{ours}", theirs)
    return re.sub(r"\.bn\.running_(mean|var)$", r".stored_\1", key)


def brock_name(key: str) -> str:
    """Our key as ``read_brock`` leaves it: their last BatchNorm calls its weight gain."""
    head, last, leaf = key.partition("output_layer.0.")
    return f"{head}{last}{ {'weight': 'gain', 'bias': 'bias'}.get(leaf, f'bn.{leaf}') }" if last else key


def shape_of(state: StateDict, key: str, ndim: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there with so many axes; raises Mismatch."""
    spectral = key.removesuffix("weight") + "parametrizations.weight.original"
    tensor = state.get(spectral if spectral in state else key)
    if tensor is None:
        raise Mismatch(f"{key} is missing", 0.9)
    # sizes that a file can claim without holding the values would overflow in what is worked out from them
    if tensor.ndim != ndim or not 0 < min(tensor.shape, default=1) <= max(tensor.shape, default=1) <= 1 << 20:
        raise Mismatch(f"{key} has shape {tuple(tensor.shape)}, expected {ndim} axes", 0.9)
    return tuple(tensor.shape)


def eps_of(config: Mapping[str, Any], key: str, default: float) -> float:
    """A small positive number that was saved beside the weights, else the default."""
    value = config.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 0.1 else default


def labels_last(weight: Tensor, labels: int) -> Tensor:
    """(..., latent + label) columns -> (..., label + latent): TensorFlow's BigGANs put the latent first. Too few stay as they are."""
    latent = weight.shape[-1] - labels if weight.ndim else 0
    return torch.cat([weight[..., latent:], weight[..., :latent]], -1) if latent > 0 else weight


def channels_first(rows: Tensor) -> Tensor:
    """Rows of the first linear layer for 4x4 positions by channels (TensorFlow) -> channels by positions. Others stay as they are."""
    return rows.unflatten(0, (16, -1)).transpose(0, 1).flatten(0, 1) if rows.ndim and len(rows) and len(rows) % 16 == 0 else rows


def on_meta(build: Callable[[Any], nn.Module], make_arch: Callable[[], Any]) -> nn.Module:
    """A network without values; raises Mismatch where no architecture has what ``make_arch`` puts together."""
    try:
        arch = make_arch()
    except UsageError as error:
        raise Mismatch(str(error), 0.8) from None
    with torch.device("meta"):
        return build(arch)


def counted(state: StateDict, name: str) -> int:
    """How many of ``name`` with 0, 1, 2, ... in its place begin a key, in a row; no network has more than 256."""
    return next((i for i in range(256) if not any(k.startswith(name.format(i)) for k in state)), 256)


def settings_beside(state: StateDict, config: Mapping[str, Any], bn_eps: float, sn_eps: float) -> tuple[dict[str, Any], list[str]]:
    """({field: eps}, assumptions) from the arguments that BigGAN-PyTorch saves beside the weights, else as given."""
    fields = {"bn_eps": eps_of(config, "BN_eps", bn_eps), "sn_eps": eps_of(config, "SN_eps", sn_eps)}
    names = {"bn_eps": "BN_eps", "sn_eps": "SN_eps"}
    told = [f"{names[f]} {v:g}, {'as the config beside it says' if names[f] in config else 'the usual one'}" for f, v in fields.items()]
    if "blocks.0.0.bn1.bn.running_mean" in state:
        told.append("cross-replica BatchNorm: gains multiply, as when it was trained in parallel (evaluated by its own code they are added)")
    return fields, told
