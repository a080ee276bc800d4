"""What the image-to-image families share: their norms and initialisation, how their files are read, and the discriminators that judge patches.

The PatchGAN of Isola et al. 2017 (arXiv:1611.07004, §3.2.2 and appendix): convolutions and LeakyReLU(0.2) without a fully connected
end; each logit sees one patch. Three forms (``d_form``), first layer and last without a norm:
    patch        4x4, stride 2, the last two of stride 1; four widths see 70x70 (n_layers = len(d_widths) - 1)
    pixel        1x1, stride 1: the PixelGAN
    lindernoren  4x4, all of stride 2 but the last, which is padded by one more at the top and left (eriklindernoren's PyTorch-GAN)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gancompress.errors import UsageError
from gancompress.gan import Axes, Axis, Mismatch, Reading, StateDict
from gancompress.layers import scale_width

Norm = Literal["batch", "instance", "instance-affine", "none"]
Statistics = Literal["stored", "image"]
Form = Literal["patch", "pixel", "lindernoren"]
#: score of a file whose names leave no doubt what it is, where something in it does not fit
SURE = 0.95


# ---------------------------------------------------------------------------------------------------------------------- layers


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose evaluation takes the stored statistics, or each image's own (``statistics="image"``)."""

    def __init__(self, width: int, statistics: Statistics) -> None:
        super().__init__(width)
        self.statistics = statistics

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.statistics == "stored":
            return super().forward(x)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def norm_layer(norm: Norm, width: int, statistics: Statistics = "stored") -> nn.Module:
    """(N, width, H, W) -> the same shape. InstanceNorm takes the image's own statistics in evaluation too."""
    if norm == "batch":
        return BatchNorm(width, statistics)
    return nn.Identity() if norm == "none" else nn.InstanceNorm2d(width, affine=norm == "instance-affine")


class Layer(nn.Module):
    """Convolution and norm; the activation is its owner's."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def initialise(net: nn.Module) -> None:
    """N(0, 0.02) for convolutions, N(1, 0.02) for BatchNorm scales, biases 0 (Isola et al. 2017, appendix; Zhu et al. 2017, §7.1)."""
    if next(net.parameters()).is_meta:  # nothing to fill, and drawing there costs seconds of imports
        return
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def checked_images(inputs: Tensor, channels: int, step: int) -> Tensor:
    """The (N, channels, H, W) inputs of a translator.

    Raises:
        ValueError: another number of channels, or a size that is no multiple of ``step``, below which the network cannot halve.
    """
    if inputs.ndim != 4 or inputs.shape[1] != channels:
        raise ValueError(f"this network translates images (N, {channels}, H, W) and was given {tuple(inputs.shape)}")
    if any(size < step or size % step for size in inputs.shape[2:]):
        raise ValueError(f"images of {inputs.shape[2]} x {inputs.shape[3]}: this network takes multiples of {step}, {step} at least")
    return inputs


# --------------------------------------------------------------------------------------------------------------- architectures


@dataclass(frozen=True)
class TranslatorArch:
    """What the Arch of every translator has. ``d_nc``: channels the discriminator takes: nc, or nc_in + nc where it is shown input
    and output; ``d_widths``: its hidden widths, first layer first; ``d_bias``: of its hidden layers but the first, which has one.
    ``resolution``, ``dropout`` and ``statistics`` change no tensor."""

    resolution: int = 256
    nc: int = 3
    nz: int = 0
    classes: int = 0
    nc_in: int = 3
    dropout: bool = False
    statistics: Statistics = "stored"
    d_form: Form = "patch"
    d_nc: int = 3
    d_widths: tuple[int, ...] = (64, 128, 256, 512)
    d_norm: Norm = "instance"
    d_bias: bool = True
    d_last_bias: bool = True

    def __post_init__(self) -> None:
        if self.nz or self.classes:
            raise UsageError(f"nz={self.nz}, classes={self.classes}: a translator takes images, neither latents nor labels")
        if self.resolution > 1 << 14:
            raise UsageError(f"resolution={self.resolution}: at most {1 << 14}")
        if min(self.nc, self.nc_in, self.d_nc) < 1:
            raise UsageError(f"nc={self.nc}, nc_in={self.nc_in}, d_nc={self.d_nc}: at least 1")
        if len(self.d_widths) < 2 or min(self.d_widths) < 1:
            raise UsageError(f"d_widths={self.d_widths}: two positive widths or more")


SETTINGS = frozenset({"resolution", "dropout", "statistics"})
A = TypeVar("A", bound=TranslatorArch)


def shorthands(values: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
    """({field: value}, width, d_width): the two shorthands taken out, 0 where they are not given.

    Raises:
        UsageError: a width that is no whole number from 1.
    """
    values = dict(values)
    given = {k: v for k in ("width", "d_width") if (v := values.pop(k, None)) is not None}
    if not all(re.fullmatch(r"0*[1-9]\d{0,8}", str(v)) for v in given.values()):
        raise UsageError(f"{given}: expected whole numbers from 1")
    return values, int(given.get("width", 0)), int(given.get("d_width", 0))


def follow(fields: dict[str, Any], base: TranslatorArch | None, d_width: int) -> dict[str, Any]:
    """``fields`` and those that follow from them where they are not given: the discriminator's channels and widths, and biases: a
    convolution before BatchNorm or no norm has none."""
    out = dict(fields)
    for part in ("g", "d"):
        if f"{part}_norm" in out:
            out.setdefault(f"{part}_bias", out[f"{part}_norm"].startswith("instance"))
    if out.get("d_form") == "pixel" and "d_bias" in out:
        out.setdefault("d_last_bias", out["d_bias"])
    if "nc" in out:
        out.setdefault("d_nc", out["nc"] + (base.d_nc - base.nc if base else 0))
    if d_width or "d_form" in out:
        w = d_width or (base.d_widths[0] if base else 64)
        out.setdefault("d_widths", (w, 2 * w) if out.get("d_form", base and base.d_form) == "pixel" else (w, 2 * w, 4 * w, 8 * w))
    return out


def scale(arch: A, ch_mul: float) -> A:
    """Every hidden width of G and D times ch_mul (Chen et al. 2020: ngf 64 to 32 and 16)."""
    widths = {k: tuple(scale_width(w, ch_mul) for w in getattr(arch, k)) for k in ("g_widths", "d_widths")}
    return dataclasses.replace(arch, **widths)  # type: ignore[arg-type]


def batch_free(arch: A) -> A:
    """InstanceNorm, a function of one image, where the discriminator has BatchNorm."""
    return dataclasses.replace(arch, d_norm="instance", d_bias=True) if arch.d_norm == "batch" else arch


def sample(arch: TranslatorArch, n: int, rng: torch.Generator) -> tuple[Tensor, None]:
    """Uniform noise in place of input images: (n, nc_in, resolution, resolution) in [-1, 1], and no condition."""
    return torch.rand(n, arch.nc_in, arch.resolution, arch.resolution, generator=rng) * 2 - 1, None


def tensor_axes(net: nn.Module, channels: Mapping[str, tuple[Axis, Axis]]) -> Axes:
    """Axes of every tensor of ``net``, given {module: (its output channels, its input channels)}."""
    found: Axes = {}
    for key, tensor in net.state_dict().items():
        prefix = key.rpartition(".")[0]
        out, into = channels[prefix]
        if tensor.ndim < 2:
            found[key] = (out,) * tensor.ndim
        else:
            found[key] = ((into, out) if isinstance(net.get_submodule(prefix), nn.ConvTranspose2d) else (out, into)) + (None, None)
    return found


# -------------------------------------------------------------------------------------------------------------- discriminators


class Discriminator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] -> logits (N, patches), row by row, before any sigmoid.

    ``condition``: the generator's input images (N, nc_in, H, W), where the discriminator judges both side by side (d_nc channels);
    images that hold both already need none.
    """

    def __init__(self, arch: TranslatorArch) -> None:
        super().__init__()
        self.arch = arch
        last = len(arch.d_widths)
        widths = (arch.d_nc, *arch.d_widths, 1)
        self.layers = nn.ModuleList()
        for i in range(last + 1):
            kernel, padding = (1, 0) if arch.d_form == "pixel" else (4, 1)
            strided = {"patch": last - 1, "pixel": 0, "lindernoren": last}[arch.d_form]
            bias = True if i == 0 else arch.d_last_bias if i == last else arch.d_bias
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, 2 if i < strided else 1, padding, bias=bias)
            self.layers.append(Layer(conv, norm_layer(arch.d_norm if 0 < i < last else "none", widths[i + 1])))
        initialise(self)

    def features(self, images: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Activations after each hidden layer, then the logits (N, patches).

        Raises:
            ValueError: images and condition do not make d_nc channels of one size.
        """
        x = self._side_by_side(images, condition)
        found: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            if last and self.arch.d_form == "lindernoren":
                x = F.pad(x, (1, 0, 1, 0))
            x = layer(x) if last else F.leaky_relu(layer(x), 0.2)
            found.append(x)
        found[-1] = x.flatten(1)
        return found

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features(images, condition)[-1]

    def _side_by_side(self, images: Tensor, condition: Tensor | None) -> Tensor:
        want = self.arch.d_nc
        if condition is None:
            if more := want - images.shape[1]:
                hint = f": give the generator's input images (N, {more}, H, W) as condition" if more > 0 else ""
                raise ValueError(f"this discriminator takes {want} channels, the images have {images.shape[1]}{hint}")
            return images
        expected = (len(images), want - images.shape[1], *images.shape[2:])
        if condition.shape != expected:
            raise ValueError(f"condition has shape {tuple(condition.shape)}, expected input images {expected}")
        # pix2pix shows the input first; eriklindernoren's D is called with the output first
        return torch.cat([images, condition] if self.arch.d_form == "lindernoren" else [condition, images], 1)


def discriminator_axes(arch: TranslatorArch) -> Axes:
    """Hidden layer i's channels are group i; images and logits are never sliced."""
    with torch.device("meta"):
        net = Discriminator(arch)
    last = len(arch.d_widths)
    channels: dict[str, tuple[Axis, Axis]] = {}
    for i in range(last + 1):
        channels[f"layers.{i}.conv"] = (str(i) if i < last else None, str(i - 1) if i else None)
        channels[f"layers.{i}.norm"] = (str(i), None)
    return tensor_axes(net, channels)


# --------------------------------------------------------------------------------------------------------------------- readers


def conv_shape(state: StateDict, key: str) -> tuple[int, ...]:
    """Shape of a convolution's weight; Mismatch naming the key where there is none."""
    if key not in state:
        raise Mismatch(f"{key} is missing", SURE)
    if state[key].ndim != 4:
        raise Mismatch(f"{key} has shape {tuple(state[key].shape)}, expected a convolution's", SURE)
    return tuple(state[key].shape)


def norm_of(state: StateDict, norms: Iterable[str], bias: bool) -> Norm:
    """The norm at these places of a file, where its convolutions have biases (``bias``) or not.

    BatchNorm has scales and statistics, InstanceNorm scales or nothing; old files hold statistics of InstanceNorm too, which
    nobody uses. A convolution has a bias before InstanceNorm and none before BatchNorm or no norm at all.
    """
    norms = list(norms)
    scales, statistics = (any(f"{p}.{leaf}" in state for p in norms) for leaf in ("weight", "running_mean"))
    if scales:
        return "batch" if statistics else "instance-affine"
    return "instance" if statistics or bias else "none"


def renamed(state: StateDict, net: nn.Module, places: Mapping[str, str]) -> tuple[StateDict, list[str]]:
    """(the tensors of ``net`` from a foreign file, what was assumed), given {our module: its name there}.

    Statistics of InstanceNorm are dropped, as their own code does (junyanz issues 461 and 529): used, they give other images.

    Raises:
        Mismatch: naming the first key that is missing, unexpected or of another shape.
    """
    out: StateDict = {}
    used: set[str] = set()
    for key, want in net.state_dict().items():
        prefix, _, leaf = key.rpartition(".")
        theirs = f"{places[prefix]}.{leaf}"
        tensor = state.get(theirs, torch.tensor(0) if leaf == "num_batches_tracked" else None)  # absent before torch 0.4.1
        if tensor is None:
            raise Mismatch(f"{theirs} is missing", SURE)
        if tensor.shape != want.shape:
            raise Mismatch(f"{theirs} has shape {tuple(tensor.shape)}, expected {tuple(want.shape)}", SURE)
        out[key] = tensor
        used.add(theirs)
    norms = [theirs for ours, theirs in places.items() if ours.endswith("norm")]
    unused = {f"{p}.{leaf}" for p in norms for leaf in ("running_mean", "running_var", "num_batches_tracked")} - used
    if unexpected := [k for k in state if k not in used and k not in unused]:
        raise Mismatch(f"unexpected key {unexpected[0]}" + (f" and {len(unexpected) - 1} more" if unexpected[1:] else ""), SURE)
    return out, ["the file's InstanceNorm statistics are not used, as by its own code"] if unused & set(state) else []


def built(arch_type: type[A], fields: Mapping[str, Any], net: type[nn.Module]) -> nn.Module:
    """The network of these fields on the meta device; Mismatch where no such network can be."""
    try:
        with torch.device("meta"):
            return net(arch_type(**fields))
    except UsageError as error:
        raise Mismatch(str(error), SURE) from None


def read_discriminator(state: StateDict) -> Reading | None:
    """A PatchGAN or PixelGAN by the names junyanz and eriklindernoren give (``model.{0,2,5,8,11}``, ``net.{0,2,5}``), or None.

    None too for what looks alike and is a DCGAN's: no bias in first and last layer, or BatchNorm behind convolutions with biases.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
    """
    names = [re.fullmatch(r"(model|net)\.(\d{1,3})\.\w+", key) for key in state]
    head = names[0].group(1) if names and names[0] else ""
    if not all(n and n.group(1) == head for n in names):
        return None
    convs = sorted(int(n.group(2)) for n in names if n and n.group(0).endswith(".weight") and state[n.group(0)].ndim == 4)
    if len(convs) < 2 or state[f"{head}.{convs[-1]}.weight"].shape[0] != 1 or not any(f"{head}.{i}.bias" in state for i in (0, convs[-1])):
        return None
    # (conv, activation), then (conv, norm, activation) each; eriklindernoren has a padding before the last
    last = convs[-1]
    form: Form = "lindernoren" if last % 3 == 0 else "pixel" if state[f"{head}.{last}.weight"].shape[2] == 1 else "patch"
    places = [0, *range(2, last - 2, 3), last]
    bias = any(f"{head}.{i}.bias" in state for i in (places[1:] if form == "pixel" else places[1:-1]))
    norm = norm_of(state, (f"{head}.{i + 1}" for i in places[1:-1]), bias)
    if len(places) < 3 or last % 3 == 1 or not set(convs) <= set(places) or (form == "patch" and norm == "batch" and bias):
        return None
    shapes = [conv_shape(state, f"{head}.{i}.weight") for i in places]
    fields = {"d_form": form, "d_nc": shapes[0][1], "d_widths": tuple(s[0] for s in shapes[:-1]), "d_norm": norm, "d_bias": bias}
    fields["d_last_bias"] = {"patch": True, "pixel": bias, "lindernoren": f"{head}.{last}.bias" in state}[form]
    theirs = {f"layers.{i}.conv": f"{head}.{at}" for i, at in enumerate(places)}
    theirs |= {f"layers.{i}.norm": f"{head}.{at + 1}" for i, at in enumerate(places[1:-1], 1)}
    out, assumptions = renamed(state, built(TranslatorArch, fields, Discriminator), theirs)
    judged = ["logits before any sigmoid, LeakyReLU 0.2; the loss it was trained with is in no file"]
    return Reading("discriminator", fields, out, tuple(judged + assumptions))
