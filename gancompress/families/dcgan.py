"""DCGAN (Radford et al. 2016, arXiv:1511.06434): a chain of 4x4 (transposed) convolutions.

Generator: z -> [ConvTranspose 4x4, BatchNorm, ReLU] x L -> ConvTranspose 4x4 -> tanh. The first layer makes 4x4 from 1x1
(stride 1, padding 0), each later one doubles (stride 2, padding 1): resolution 4 * 2^L for L hidden layers.
Discriminator: its mirror with LeakyReLU(0.2), no BatchNorm on the first layer, logits before any sigmoid.

One class covers pytorch/examples and huggan (no convolution biases), Aguinaldo et al. 2019 (biases, no BatchNorm parameters),
WassersteinGAN (Arjovsky et al. 2017, arXiv:1701.07875: extra 3x3 layers at the largest hidden map, before G's last layer and
after D's first), pytorch_GAN_zoo and the many nets derived from them. Class-conditional generators take a one-hot label beside z
(``classes``); a conditional discriminator takes it as constant image channels (``d_classes``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gancompress.errors import UsageError
from gancompress.gan import Axes, Family, Mismatch, Part, Reading, StateDict, parse_arch
from gancompress.layers import hint, natural_key, sample_normal, scale_width, with_labels

MAX_LAYERS = 80
Norm = Literal["batch", "batch-noaffine", "none"]


@dataclass(frozen=True)
class Arch:
    """Every shape of a DCGAN. ``g_widths``: channels after each hidden layer of G; ``d_widths``: of D, first layer first.

    ``g_extra``, ``d_extra``: 3x3 layers that keep the width, beside those.
    """

    resolution: int = 64
    nz: int = 100
    nc: int = 3
    classes: int = 0
    g_widths: tuple[int, ...] = (512, 256, 128, 64)
    d_widths: tuple[int, ...] = (64, 128, 256, 512)
    g_bias: bool = False
    d_bias: bool = False
    g_norm: Norm = "batch"
    d_norm: Norm = "batch"
    d_norm_first: bool = False
    d_classes: int = 0
    g_extra: int = 0
    d_extra: int = 0
    output: Literal["tanh", "linear"] = "tanh"

    def __post_init__(self) -> None:
        hidden = (self.resolution // 4).bit_length() - 1
        if self.resolution < 8 or self.resolution != 4 << hidden:
            raise UsageError(f"dcgan resolution {self.resolution}: it must be 4 * 2^k with k >= 1 (8, 16, 32, 64, ...)")
        # a resolution of 4 * 2^k has k + 1 convolutions of 4x4, k of them hidden
        for name, widths in (("g_widths", self.g_widths), ("d_widths", self.d_widths)):
            if len(widths) != hidden or min(widths) < 1:
                raise UsageError(f"dcgan {name}={widths}: resolution {self.resolution} has {hidden} positive widths")
        if min(self.nz, self.nc) < 1 or self.classes < 0 or self.d_classes not in (0, self.classes):
            raise UsageError(f"dcgan nz={self.nz}, nc={self.nc}, classes={self.classes}, d_classes={self.d_classes}: out of range")
        if not 0 <= min(self.g_extra, self.d_extra) <= max(self.g_extra, self.d_extra) < MAX_LAYERS:
            raise UsageError(f"dcgan g_extra={self.g_extra}, d_extra={self.d_extra}: 0 ... {MAX_LAYERS - 1}")

    def extras(self, part: Part) -> range:
        """Places of the 3x3 layers among all layers of a network."""
        return range(len(self.g_widths), len(self.g_widths) + self.g_extra) if part == "generator" else range(1, 1 + self.d_extra)


class Layer(nn.Module):
    """Convolution, optional BatchNorm, activation."""

    def __init__(self, conv: nn.Module, width: int, norm: Norm, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(width, affine=norm == "batch") if norm != "none" else nn.Identity()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


def _initialise(net: nn.Module) -> nn.Module:
    """N(0, 0.02) for convolutions, N(1, 0.02) for BatchNorm scales, as in Radford et al. §4."""
    if next(net.parameters()).is_meta:  # nothing to fill, and drawing there costs seconds of imports
        return net
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)
    return net


class Generator(nn.Module):
    """(N, nz) or (N, nz, 1, 1) normal latents, labels (N,) -> images (N, nc, H, W) in [-1, 1] (unbounded where output is linear)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        widths = (arch.nz + arch.classes, *arch.g_widths, *arch.g_widths[-1:] * arch.g_extra, arch.nc)
        self.layers = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            conv: nn.Module
            if i in arch.extras("generator"):
                conv = nn.Conv2d(n_in, n_out, 3, 1, 1, bias=arch.g_bias)
            else:
                stride, padding = (1, 0) if i == 0 else (2, 1)
                conv = nn.ConvTranspose2d(n_in, n_out, 4, stride, padding, bias=arch.g_bias)
            last = i == len(widths) - 2
            activation = nn.ReLU() if not last else nn.Tanh() if arch.output == "tanh" else nn.Identity()
            self.layers.append(Layer(conv, n_out, "none" if last else arch.g_norm, activation))
        _initialise(self)

    def features(self, inputs: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations after each hidden layer (N, C, H, W), then the images."""
        x = with_labels(inputs.flatten(1), condition, self.arch.classes, self.arch.nz)[:, :, None, None]
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(inputs, condition)[-1]


class Discriminator(nn.Module):
    """Images (N, nc, H, W) in [-1, 1], labels (N,) where d_classes -> logits (N,) before any sigmoid."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        widths = (arch.nc + arch.d_classes, arch.d_widths[0], *arch.d_widths[:1] * arch.d_extra, *arch.d_widths[1:], 1)
        self.layers = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            last = i == len(widths) - 2
            kernel, stride, padding = (3, 1, 1) if i in arch.extras("discriminator") else (4, 1, 0) if last else (4, 2, 1)
            norm: Norm = "none" if last or (i == 0 and not arch.d_norm_first) else arch.d_norm
            conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=arch.d_bias)
            self.layers.append(Layer(conv, n_out, norm, nn.Identity() if last else nn.LeakyReLU(0.2)))
        _initialise(self)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations after each hidden layer, then the logits (N,)."""
        x = images
        if self.arch.d_classes:
            maps = with_labels(images.new_zeros(len(images), 0), condition, self.arch.classes, 0)
            x = torch.cat([images, maps[:, :, None, None].expand(-1, -1, *images.shape[2:])], 1)
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        found[-1] = x.flatten()
        return found

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]


# ---------------------------------------------------------------------------------------------------------------- the reader


#: layers that their names place at one end, in WassersteinGAN and pytorch_GAN_zoo
_FIRST, _LAST = re.compile(r"(^|\.)(initial|format)"), re.compile(r"(^|\.)(final|decision|out)")


def _place(key: str) -> int:
    return 0 if _FIRST.search(key) else 2 if _LAST.search(key) else 1


def _orders(state: StateDict) -> Iterator[list[str]]:
    """The orders in which layers may follow one another: the file's own; where that was lost (safetensors sorts by bytes), of the
    names; where names count towards the latent (``pyramid:512-256``, then ``pyramid:256-128``; D's ``convTranspose3`` to 0), downwards."""
    natural = sorted(state, key=lambda key: natural_key(key.replace(":batchnorm", ":~")))  # WassersteinGAN's stand behind their convolutions
    yield list(state)
    yield sorted(natural, key=_place)
    if any(_place(key) != 1 for key in natural):
        extra = [key for key in natural if "extra" in key]  # these always count upwards, and in G stand behind the others
        yield sorted([*(key for key in reversed(natural) if "extra" not in key), *extra], key=_place)


def _modules(state: StateDict, keys: list[str]) -> dict[str, StateDict]:
    """{module prefix: {leaf: tensor}} in the order of ``keys``."""
    found: dict[str, StateDict] = {}
    for key in keys:
        prefix, _, leaf = key.rpartition(".")
        found.setdefault(prefix, {})[leaf] = state[key]
    return found


def _before(prefix: str) -> str:
    """The likely name of the convolution in front of a BatchNorm called ``prefix``."""
    head, _, last = prefix.rpartition(".")
    return f"{head}.{int(last) - 1}.weight" if last.isdigit() and int(last) else "its weight"


def _chain(modules: dict[str, StateDict], heads: set[int]) -> tuple[Part, list[str], list[str]]:
    """(part, convolutions in order, BatchNorms in order); raises Mismatch naming the first key that does not fit.

    ``heads``: how many outputs a discriminator may end in.
    """
    convs = [p for p, m in modules.items() if "weight" in m and m["weight"].ndim == 4]
    shapes = [tuple(modules[p]["weight"].shape) for p in convs]
    extra = [i for i, shape in enumerate(shapes) if shape[2:] == (3, 3) and shape[0] == shape[1]]
    large = len(convs) - len(extra)
    if not 2 <= large <= len(convs) <= MAX_LAYERS:
        raise Mismatch(f"a DCGAN is a chain of 2 to {MAX_LAYERS} convolutions of 4x4; {large} are here")
    norms = [p for p, m in modules.items() if p not in convs and all(t.ndim <= 1 for t in m.values())]
    others = [p for p, m in modules.items() if p not in convs and any(t.ndim > 1 for t in m.values())]
    score = sum(shape[2:] == (4, 4) for shape in shapes) / (large + len(others))
    if others:
        unexpected = [f"{p}.{leaf}" if p else leaf for p in others for leaf in modules[p]]
        raise Mismatch(f"unexpected keys for a DCGAN: {', '.join(f'{p}.*' for p in others[:3])}", score * 0.5, unexpected=unexpected)
    for prefix, shape in zip(convs, shapes, strict=True):
        if shape[2:] not in ((3, 3), (4, 4)) or (shape[2:] == (3, 3) and shape[0] != shape[1]):
            raise Mismatch(f"{prefix}.weight has shape {shape}: a DCGAN's kernels are 4x4, or 3x3 where they keep the width", score * 0.5)
    # a ConvTranspose weight is (in, out, 4, 4), a Conv weight (out, in, 4, 4)
    forward = [a[1] == b[0] for a, b in pairwise(shapes)]
    backward = [a[0] == b[1] for a, b in pairwise(shapes)]
    # two layers may fit both ways; what ends in one channel is then a discriminator, for no generator is one channel wide inside
    tie = sum(forward) == sum(backward) and shapes[-1][0] == 1
    part: Part = "generator" if sum(forward) >= sum(backward) and not tie else "discriminator"
    fits = forward if part == "generator" else backward
    if not all(fits):
        i = fits.index(False)
        orphan = _orphan(modules, convs, norms, 1 if part == "generator" else 0)
        raise Mismatch(
            f"{convs[i]}.weight {shapes[i]} does not feed {convs[i + 1]}.weight {shapes[i + 1]} in a DCGAN {part}"
            + (f"; no convolution leads to the BatchNorm {orphan}: is {_before(orphan)} missing?" if orphan else ""),
            score * (0.7 + 0.2 * sum(fits) / len(fits)),
            missing=[_before(orphan)] if orphan else [],
        )
    if _place(convs[0]) == 2:
        raise Mismatch(f"{convs[0]} comes first, while its name says that it is the last layer", 0.6 * score)
    at = range(len(convs) - 1 - len(extra), len(convs) - 1) if part == "generator" else range(1, 1 + len(extra))
    if wrong := [i for i in extra if i not in at]:
        where = "before a generator's last layer" if part == "generator" else "after a discriminator's first layer"
        raise Mismatch(f"{convs[wrong[0]]}.weight has shape {shapes[wrong[0]]}: a DCGAN has 3x3 kernels only {where}", 0.6 * score)
    if part == "discriminator" and shapes[-1][0] not in heads:
        ends = f"{convs[-1]}.weight {shapes[-1]}: a DCGAN discriminator ends in one output"
        raise Mismatch(f"{ends} (1 + N with an auxiliary classifier of N classes: --classes N)", 0.5 * score)
    return part, convs, norms


def _orphan(modules: dict[str, StateDict], convs: list[str], norms: list[str], axis: int) -> str | None:
    widths = [modules[p]["weight"].shape[axis] for p in convs]
    for prefix in norms:
        if next(iter(modules[prefix].values())).numel() not in widths and any(t.ndim for t in modules[prefix].values()):
            return prefix
    return None


def _match_norms(modules: dict[str, StateDict], part: Part, convs: list[str], norms: list[str]) -> dict[int, str]:
    """{index of convolution: prefix of its BatchNorm}, by order and size; raises Mismatch naming what does not fit."""
    axis = 1 if part == "generator" else 0
    widths = [modules[p]["weight"].shape[axis] for p in convs]
    order = {prefix: i for i, prefix in enumerate(modules)}
    # where each follows a convolution of its own in the file, that one is meant; else (conv1, conv2, bn1, bn2) sizes decide
    behind = [sum(order[c] < order[p] for c in convs) - 1 for p in norms]
    ordered = len(set(behind)) == len(norms) and all(
        0 <= i < len(convs) - 1 and "running_mean" in modules[p] and modules[p]["running_mean"].numel() == widths[i] for i, p in zip(behind, norms, strict=True)
    )
    matched: dict[int, str] = {}
    start = 1 if part == "discriminator" and len(norms) == len(convs) - 2 else 0
    for number, prefix in enumerate(norms):
        module = modules[prefix]
        needed = ["running_mean", "running_var"] + (["weight", "bias"] if {"weight", "bias"} & set(module) else [])
        if unknown := sorted(f"{prefix}.{leaf}" for leaf in set(module) - {*needed, "num_batches_tracked"}):
            raise Mismatch(f"unexpected key {unknown[0]} in a BatchNorm", 0.9, unexpected=unknown)
        if missing := [f"{prefix}.{leaf}" for leaf in needed if leaf not in module]:
            raise Mismatch(f"{missing[0]} is missing: the BatchNorm {prefix} has {', '.join(module)}", 0.9, missing=missing)
        size = module["running_mean"].numel()
        at = behind[number] if ordered else next((i for i in range(start, len(convs) - 1) if widths[i] == size), None)
        if at is None:
            raise Mismatch(
                f"{prefix}.running_mean has shape {tuple(module['running_mean'].shape)}: no convolution in front of it "
                f"has {size} outputs (widths here: {widths})",
                0.9,
            )
        for leaf in needed:
            if module[leaf].shape != (size,):
                raise Mismatch(f"{prefix}.{leaf} has shape {tuple(module[leaf].shape)}, expected ({size},)", 0.9)
        matched[at] = prefix
        start = at + 1
    return matched


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """Any DCGAN-shaped chain, whatever its keys are called: order, shapes and BatchNorms decide.

    Options: ``classes`` (int): how many of the first layer's inputs are a one-hot label, which no file tells; ``nc`` (int): image
    channels, where a discriminator's further inputs could be either. Of settings found beside the weights, pytorch_GAN_zoo's tell
    classes and the activation at the end.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
    """
    misses: list[Mismatch] = []
    for keys in _orders(state):
        try:
            return _read(_modules(state, keys), options)
        except Mismatch as miss:
            misses.append(miss)
    # where all orders fail, that of the names tells more than a file's that may be sorted
    raise max([*misses[1:], misses[0]], key=lambda miss: miss.score)


def _classes(options: Mapping[str, Any]) -> int:
    """Classes of the one-hot label: as asked for, else of pytorch_GAN_zoo's config where it has one attribute (AC-GAN)."""
    if asked := int(options.get("classes") or 0):
        return asked
    classes, attributes = hint(options, "categoryVectorDim", int) or 0, hint(options, "attribKeysOrder", dict) or {}
    if classes > 0 and len(attributes) > 1:
        raise Mismatch(f"its latent ends in the labels of {len(attributes)} attributes; a DCGAN of ours takes one", 1.0)
    return max(classes, 0)


def _read(modules: dict[str, StateDict], options: Mapping[str, Any]) -> Reading:
    classes = _classes(options)
    part, convs, norms = _chain(modules, {1, 1 + classes})
    matched = _match_norms(modules, part, convs, norms)
    shapes = [tuple(modules[p]["weight"].shape) for p in convs]
    extra = sum(shape[2:] == (3, 3) for shape in shapes)
    hidden = len(convs) - 1
    axis = 1 if part == "generator" else 0
    widths = tuple(shape[axis] for shape in shapes)
    first = 0 if part == "generator" or 0 in matched else 1
    missing = [i for i in range(first, hidden) if i not in matched]
    if matched and missing:
        raise Mismatch(f"{convs[missing[0]]} has no BatchNorm of {widths[missing[0]]} channels behind it, while {len(matched)} other layers have one", 0.9)
    affine = ["weight" in modules[p] for p in matched.values()]
    if any(affine) and not all(affine):
        raise Mismatch("some BatchNorms have weights and some have none", 0.8)
    norm: Norm = "none" if not matched else "batch" if affine[0] else "batch-noaffine"
    biased = ["bias" in modules[p] for p in convs]

    out: StateDict = {}
    for i, prefix in enumerate(convs):
        module = modules[prefix]
        if unknown := sorted(f"{prefix}.{leaf}" for leaf in set(module) - {"weight", "bias"}):
            raise Mismatch(f"unexpected key {unknown[0]} in a convolution", 0.8, unexpected=unknown)
        if "bias" in module and module["bias"].shape != (widths[i],):
            raise Mismatch(f"{prefix}.bias has shape {tuple(module['bias'].shape)}, expected ({widths[i]},)", 0.9)
        out[f"layers.{i}.conv.weight"] = module["weight"]
        if any(biased):
            out[f"layers.{i}.conv.bias"] = module.get("bias", torch.zeros(widths[i]))
        if i in matched:
            for leaf, tensor in modules[matched[i]].items():
                out[f"layers.{i}.norm.{leaf}"] = tensor
            out.setdefault(f"layers.{i}.norm.num_batches_tracked", torch.tensor(0))
    assumptions = ["BatchNorm with its running statistics, as in evaluation"] if matched else []
    if any(biased) != all(biased):
        assumptions.append("convolutions without a bias get one of zero, since others have one")

    fields: dict[str, Any] = {"resolution": 4 << (hidden - extra)}
    inputs = shapes[0][1 - axis]
    if part == "generator":
        if not options.get("classes") and classes >= inputs:  # a config of another network
            classes = 0
        if not 0 <= classes < inputs:
            raise UsageError(f"classes={classes}: {convs[0]}.weight has only {inputs} inputs for the latent and the one-hot label")
        # pytorch_GAN_zoo: its two losses without a sigmoid go with a generator without tanh
        loss = hint(options, "lossCriterion", str)
        output = options.get("output", "linear" if loss in ("WGANGP", "Logistic") else "tanh")
        fields |= {"nz": inputs - classes, "nc": widths[-1], "classes": classes, "g_widths": widths[: hidden - extra], "g_bias": any(biased)}
        fields |= {"g_norm": norm, "g_extra": extra, "output": output}
        assumptions.insert(0, f"strides 1 then 2, ReLU and {output} (else --reader output={'tanh' if output == 'linear' else 'linear'})")
        if not classes:
            assumptions.append(f"all {inputs} inputs are noise (with one-hot classes among them: --classes N)")
    else:
        # 1, 3 or 4 image channels are usual; more mean a one-hot label spread over the image
        nc = int(options.get("nc") or 0)
        labelled = classes if (inputs == nc + classes if nc else inputs > classes and inputs not in (1, 3, 4)) else 0
        fields |= {"nc": inputs - labelled, "d_widths": (widths[0], *widths[1 + extra : -1]), "d_bias": any(biased), "d_norm": norm}
        fields |= {"d_norm_first": 0 in matched, "d_classes": labelled, "d_extra": extra}
        if labelled:
            fields["classes"] = labelled
        assumptions.insert(0, "strides 2 then 1, LeakyReLU 0.2, logits before any sigmoid")
        if widths[-1] > 1:  # the first output judges, the others are trained to tell the class (Odena et al. 2017)
            out |= {key: tensor[:1] for key, tensor in out.items() if key.startswith(f"layers.{hidden}.conv.")}
            assumptions.append(f"the first of {widths[-1]} outputs is the logit; the others, an auxiliary classifier's, are left out")
    return Reading(part, fields, out, tuple(assumptions))


# ------------------------------------------------------------------------------------------------------------ the other functions


def canonical_widths(width: int, resolution: int) -> tuple[int, ...]:
    """(8w, 4w, 2w, w) at 64x64, one doubling more or less for each doubling of the resolution."""
    hidden = (resolution // 4).bit_length() - 1
    return tuple(width << i for i in reversed(range(hidden)))


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set canonical widths (pytorch's ngf and ndf, Aguinaldo's d)."""
    values = dict(values)
    shorthand = {k: v for k in ("width", "d_width") if (v := values.pop(k, None)) is not None}
    fields = parse_arch(Arch, values)
    known = dataclasses.asdict(base) if base else {}
    resolution = fields.get("resolution", known.get("resolution", 64))
    try:
        width = int(shorthand.get("width", 64))
        d_width = int(shorthand.get("d_width", width))
    except ValueError:
        raise UsageError(f"width={shorthand}: expected whole numbers") from None
    if min(width, d_width) < 1:
        raise UsageError(f"width={width}, d_width={d_width}: at least 1")
    fresh = base is None or resolution != base.resolution
    if "g_widths" not in fields and ("width" in shorthand or fresh):
        fields["g_widths"] = canonical_widths(width, resolution)
    if "d_widths" not in fields and (shorthand or fresh):
        mirror = "g_widths" in values and not shorthand  # a critic as wide as the generator
        fields["d_widths"] = fields["g_widths"][::-1] if mirror else canonical_widths(d_width, resolution)[::-1]
    return Arch(**{**known, **fields})


def scale(arch: Arch, ch_mul: float) -> Arch:
    """Every hidden width of G and D times ch_mul; latent, classes, image channels and resolution stay."""
    return dataclasses.replace(
        arch,
        g_widths=tuple(scale_width(w, ch_mul) for w in arch.g_widths),
        d_widths=tuple(scale_width(w, ch_mul) for w in arch.d_widths),
    )


def axes(arch: Arch, part: Part) -> Axes:
    """Layer i's output channels are group i of its network; z, label, image channels and the logit are never sliced."""
    net = FAMILY.generator(arch) if part == "generator" else FAMILY.discriminator(arch)
    last = max(int(key.split(".")[1]) for key in net.state_dict())
    found: Axes = {}
    for key, tensor in net.state_dict().items():
        i = int(key.split(".")[1])
        n_in, n_out = (str(i - 1) if i else None), (str(i) if i < last else None)
        if tensor.ndim == 4:
            transposed = part == "generator" and i not in arch.extras(part)
            found[key] = (n_in, n_out, None, None) if transposed else (n_out, n_in, None, None)
        else:
            found[key] = (n_out,) if tensor.ndim else ()
    return found


FAMILY = Family(
    name="dcgan",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample_normal,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=lambda arch: dataclasses.replace(arch, d_norm="none", d_bias=True, d_norm_first=False),
    options=frozenset({"classes", "nc"}),
    settings=frozenset({"output"}),
)
