"""pix2pix (Isola et al. 2017, arXiv:1611.07004): a U-Net that translates images, and a PatchGAN.

Generator: n 4x4 convolutions of stride 2 halve the image n times, n transposed ones double it again; each takes the output of the one
inside beside the skip of its own resolution. No norm on the outermost and innermost down layers and on the last. Two forms (``form``):
    pix2pix      junyanz: a skip carries the value before its activation, the last layer is a transposed convolution
    lindernoren  eriklindernoren's PyTorch-GAN, huggan: a skip carries the value after LeakyReLU, the last layer is a nearest-neighbour
                 upsampling and a 4x4 convolution, and no convolution but the last has a bias
unet_256 has eight widths, unet_128 seven; n is the number of widths.
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

#: halvings beyond which no image in use reaches: 4096 x 4096
MOST_DOWNS = 12


@dataclass(frozen=True)
class Arch(TranslatorArch):
    """Every shape of a U-Net. ``g_widths``: channels after each down layer, the outermost first; as many come back up."""

    form: Literal["pix2pix", "lindernoren"] = "pix2pix"
    g_widths: tuple[int, ...] = (64, 128, 256, 512, 512, 512, 512, 512)
    g_norm: Norm = "batch"
    g_bias: bool = False
    d_norm: Norm = "batch"
    d_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        downs = len(self.g_widths)
        if not 2 <= downs <= MOST_DOWNS or min(self.g_widths) < 1:
            raise UsageError(f"unet g_widths={self.g_widths}: from 2 to {MOST_DOWNS} positive widths")
        if self.resolution < 1 or self.resolution % (1 << downs):
            near = nearest_multiple(self.resolution, 1 << downs, 1 << downs)
            raise UsageError(f"unet resolution {self.resolution}: {downs} down layers take multiples of {1 << downs}", f"the nearest that works: {near}")


class Generator(nn.Module):
    """Images (N, nc_in, H, W) in [-1, 1], H and W multiples of 2^n -> images (N, nc, H, W) in [-1, 1].

    Raises (forward):
        ValueError: other channels or sizes.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        w, n = arch.g_widths, len(arch.g_widths)

        def norm(width: int) -> nn.Module:
            return norm_layer(arch.g_norm, width, arch.statistics)

        self.down = nn.ModuleList()
        for i in range(n):
            conv = nn.Conv2d(w[i - 1] if i else arch.nc_in, w[i], 4, 2, 1, bias=arch.g_bias)
            self.down.append(Layer(conv, norm(w[i]) if 0 < i < n - 1 else nn.Identity()))
        self.up = nn.ModuleList()  # up[i] undoes down[i + 1]
        for i in range(1, n):
            up = nn.ConvTranspose2d(w[i] if i == n - 1 else 2 * w[i], w[i - 1], 4, 2, 1, bias=arch.g_bias)
            self.up.append(Layer(up, norm(w[i - 1])))
        last = nn.ConvTranspose2d(2 * w[0], arch.nc, 4, 2, 1) if arch.form == "pix2pix" else nn.Conv2d(2 * w[0], arch.nc, 4, padding=1)
        self.last = last
        initialise(self)

    def _drop(self, x: Tensor, here: bool) -> Tensor:
        return dropout(x, 0.5) if here and self.arch.dropout and self.training else x

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        n, x = len(self.down), checked_images(inputs, self.arch.nc_in, 1 << len(self.down))
        theirs = self.arch.form == "lindernoren"
        skips: list[Tensor] = []
        for i, layer in enumerate(self.down):
            x = self._drop(F.leaky_relu(layer(x), 0.2), i >= 3) if theirs else layer(F.leaky_relu(x, 0.2) if i else x)
            skips.append(x)
        x = skips.pop()
        for i in reversed(range(1, n)):
            # the innermost ones drop (Isola et al. 2017, appendix: CD512); in junyanz's code not the very innermost
            x = self._drop(F.relu(self.up[i - 1](x)), i >= 4) if theirs else self._drop(self.up[i - 1](F.relu(x)), 4 <= i < n - 1)
            x = torch.cat([skips.pop(), x], 1)
        if theirs:
            x = F.pad(F.interpolate(x, scale_factor=2.0), (1, 0, 1, 0))
        return torch.tanh(self.last(x if theirs else F.relu(x)))


# ---------------------------------------------------------------------------------------------------------------- the reader


def _downs(state: StateDict) -> int:
    """How often junyanz's nested modules halve the image."""
    nested = [re.match(r"model\.model\.1\.((?:model\.3\.)*)model\.\d+\.\w+$", key) for key in state]
    depth = max((len(m.group(1)) // len("model.3.") for m in nested if m), default=0)
    return min(depth, MOST_DOWNS) + 2


def pix2pix_places(n: int) -> dict[str, str]:
    """{our module: junyanz's} of a U-Net that halves n times; each level but the outermost is a module inside the one before."""
    levels = ["model.model.1." + "model.3." * i for i in range(n - 1)]
    places = {"down.0.conv": "model.model.0", "last": "model.model.3"}
    for i, prefix in enumerate(levels, 1):
        up = 3 if i == n - 1 else 5  # the innermost has neither a norm on its way down nor a level inside
        places |= {f"down.{i}.conv": f"{prefix}model.1", f"up.{i - 1}.conv": f"{prefix}model.{up}", f"up.{i - 1}.norm": f"{prefix}model.{up + 1}"}
        if i < n - 1:
            places[f"down.{i}.norm"] = f"{prefix}model.2"
    return places


#: the layers of eriklindernoren's U-Net
LINDERNOREN = re.compile(r"(down|up)(\d{1,2})\.model\.0\.weight")


def lindernoren_places(n: int) -> dict[str, str]:
    """{our module: eriklindernoren's} of a U-Net that halves n times."""
    places = {"last": "final.2"}
    for i in range(n):
        places |= {f"down.{i}.conv": f"down{i + 1}.model.0"} | ({f"down.{i}.norm": f"down{i + 1}.model.1"} if 0 < i < n - 1 else {})
    for i in range(1, n):
        places |= {f"up.{i - 1}.conv": f"up{n - i}.model.0", f"up.{i - 1}.norm": f"up{n - i}.model.1"}
    return places


def skips_first(state: StateDict, widths: tuple[int, ...], back: bool = False) -> None:
    """eriklindernoren puts the skip behind what comes up, we in front: exchange them in every layer that takes both."""
    for i, width in enumerate(widths[:-1]):
        key, axis = ("last.weight", 1) if i == 0 else (f"up.{i - 1}.conv.weight", 0)
        state[key] = state[key].roll(-width if back else width, axis)


def read(state: StateDict, options: Mapping[str, Any]) -> Reading:
    """pix2pix's U-Net by junyanz or eriklindernoren (huggan), or a PatchGAN.

    Raises:
        Mismatch: naming the first key that is missing or does not fit.
    """
    if (critic := read_discriminator(state)) is not None:
        return critic
    fields: dict[str, Any]
    if any(key.startswith("model.model.1.model.") for key in state):
        n, form = _downs(state), "pix2pix"
    elif any(LINDERNOREN.fullmatch(key) for key in state):
        n, form = max(int(m.group(2)) + (m.group(1) == "up") for key in state if (m := LINDERNOREN.fullmatch(key))), "lindernoren"
    else:
        raise Mismatch("model.model.0.weight is missing, and down1.model.0.weight: a U-Net has one of them")
    theirs = form == "lindernoren"
    places = lindernoren_places(n) if theirs else pix2pix_places(n)
    shapes: list[tuple[int, ...]] = []
    for module in [*(f"down.{i}.conv" for i in range(n)), "last"]:
        key = f"{places[module]}.weight"
        shapes.append(conv_shape(state, key))
        if shapes[-1][2:] != (4, 4):
            raise Mismatch(f"{key} has shape {shapes[-1]}: a U-Net's kernels are 4x4", SURE)
    bias = any(f"{name}.bias" in state for ours, name in places.items() if ours.endswith("conv"))
    norm = norm_of(state, [name for ours, name in places.items() if ours.endswith("norm")], bias or theirs)
    fields = {"form": form, "g_widths": tuple(s[0] for s in shapes[:-1]), "g_norm": norm, "g_bias": bias}
    fields |= {"nc_in": shapes[0][1], "nc": shapes[-1][0 if theirs else 1], "resolution": 1 << n if n >= 7 else 256}
    out, assumptions = renamed(state, built(Arch, fields, Generator), places)
    if theirs:
        skips_first(out, fields["g_widths"])
    assumptions.append(f"images of {fields['resolution']} x {fields['resolution']}; any multiple of {1 << n} runs: --reader resolution=N")
    assumptions.append("no dropout while a student trains, which leaves no trace in a file: --reader dropout=true")
    if norm == "batch":
        assumptions.append("BatchNorm on its stored statistics; on each image's own, as pix2pix tests: --reader statistics=image")
    return Reading("generator", fields, out, tuple(assumptions))


# ------------------------------------------------------------------------------------------------------------ the other functions


def canonical_widths(width: int, downs: int) -> tuple[int, ...]:
    """(w, 2w, 4w, 8w, 8w, ...): ngf in pix2pix."""
    return tuple(width << min(i, 3) for i in range(downs))


def build_arch(base: Arch | None, values: Mapping[str, Any]) -> Arch:
    """An Arch from fields; ``width`` and ``d_width`` set canonical widths (ngf and ndf). A fresh one halves as often as its resolution
    allows, eight times at most."""
    values, width, d_width = shorthands(values)
    fields = follow(parse_arch(Arch, values), base, d_width)
    if "g_widths" not in fields and (width or base is None):
        resolution = fields.get("resolution", 256)
        downs = len(base.g_widths) if base else min(8, max(2, (resolution & -resolution).bit_length() - 1))
        fields["g_widths"] = canonical_widths(width or 64, downs)
    return Arch(**{**(dataclasses.asdict(base) if base else {}), **fields})


def axes(arch: Arch, part: Part) -> Axes:
    """Groups "down0", "up1", ...: what each layer puts out; an up layer takes a skip and the layer inside, one after the other."""
    if part == "discriminator":
        return discriminator_axes(arch)
    with torch.device("meta"):
        net = Generator(arch)
    n = len(arch.g_widths)
    channels: dict[str, tuple[Axis, Axis]] = {"last": (None, (("down0", 1), ("up1", 1)))}
    for i in range(n):
        channels[f"down.{i}.conv"] = (f"down{i}", f"down{i - 1}" if i else None)
        channels[f"down.{i}.norm"] = (f"down{i}", None)
    for i in range(1, n):
        channels[f"up.{i - 1}.conv"] = (f"up{i}", f"down{i}" if i == n - 1 else ((f"down{i}", 1), (f"up{i + 1}", 1)))
        channels[f"up.{i - 1}.norm"] = (f"up{i}", None)
    return tensor_axes(net, channels)


FAMILY = Family(
    name="unet",
    Arch=Arch,
    generator=Generator,
    discriminator=Discriminator,
    read=read,
    sample=sample,
    scale=scale,
    build_arch=build_arch,
    axes=axes,
    batch_free=batch_free,
    settings=SETTINGS,
)
