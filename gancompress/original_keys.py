"""Generators under the names and in the layout of the projects they come from, so that the code people have loads a student unchanged.

The inverse of the readers in families/: what is written here reads back as what it was, bit by bit, but for BigGAN's singular vectors
(``_power_start``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gancompress.brock import brock_name
from gancompress.contents import contents
from gancompress.errors import CheckpointError, UsageError
from gancompress.families import resnet, sngan, stylegan2, tinygan, unet
from gancompress.gan import GAN, Mismatch, StateDict
from gancompress.unpickle import open_checkpoint

SPECTRAL = ".parametrizations.weight."


@dataclass(frozen=True)
class Original:
    """What ``torch.save`` is to write.

    ``project``: whose names these are; ``load``: how its code takes the file; ``settings``: what its constructor has to be told that is
    not its default.
    """

    content: dict[str, Any]
    project: str
    load: str
    settings: dict[str, Any] = field(default_factory=dict)


PLAIN = 'netG.load_state_dict(torch.load("original.pth"))'


def _chain(net: nn.Module, numbers: dict[str, int], prefix: str) -> StateDict:
    """The tensors of modules that are numbered members of one nn.Sequential."""
    return {f"{prefix}{numbers[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": t for key, t in net.state_dict().items()}


def _dcgan(gan: GAN) -> Original:
    arch, layers = gan.arch, gan.generator.layers
    assert isinstance(layers, nn.ModuleList)
    settings = {"nz": arch.nz + arch.classes, "nc": arch.nc, "widths": list(arch.g_widths), "bias": arch.g_bias, "norm": arch.g_norm, "output": arch.output}
    if arch.g_extra:
        return Original(_wassersteingan(gan), "WassersteinGAN (DCGAN_G)", PLAIN, settings | {"n_extra_layers": arch.g_extra})
    numbers, at = {}, 0
    for i in range(len(layers)):
        numbers[f"layers.{i}.conv"] = at
        if arch.g_norm != "none":
            numbers[f"layers.{i}.norm"] = at + 1
        at += 2 + (arch.g_norm != "none")  # an activation stands behind each
    return Original(_chain(gan.generator, numbers, "main."), "pytorch/examples (dcgan)", PLAIN, settings)


def _wassersteingan(gan: GAN) -> StateDict:
    """Its names tell place, widths and kind of each layer."""
    state, extra = {}, gan.arch.extras("generator")
    last = max(int(key.split(".")[1]) for key in gan.generator.state_dict())
    role, width = "", 0
    for key, tensor in gan.generator.state_dict().items():
        _, number, kind, leaf = key.split(".")
        i = int(number)
        if (kind, leaf) == ("conv", "weight"):
            width = tensor.shape[0 if i in extra else 1]
            role = f"extra-layers-{i - extra.start}" if i in extra else {0: "initial", last: "final"}.get(i, "pyramid")
            shape = f"{width}:conv" if i in extra else f"{tensor.shape[0]}-{width}:convt"
        state[f"main.{role}:{shape}.{leaf}" if kind == "conv" else f"main.{role}:{width}:batchnorm.{leaf}"] = tensor
    return state


def _mlp(gan: GAN) -> Original:
    numbers = {f"layers.{i}": 2 * i for i in range(len(gan.arch.g_widths) + 1)}
    settings = {"nz": gan.arch.nz + gan.arch.classes, "widths": list(gan.arch.g_widths), "output": gan.arch.output}
    return Original(_chain(gan.generator, numbers, "main."), "WassersteinGAN (MLP_G)", PLAIN, settings)


def _sngan24(gan: GAN) -> Original:
    numbers = {f"convs.{i}": 3 * i for i in range(4)} | {f"norms.{i}": 3 * i + 1 for i in range(3)}
    return Original(_chain(gan.generator, numbers, "network."), "huggan (pytorch/sngan)", PLAIN, {"widths": list(gan.arch.g_widths)})


def _moved(state: StateDict, places: dict[str, str]) -> StateDict:
    """``state`` with its modules called by ``places``."""
    return {f"{places[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": t for key, t in state.items()}


def _unet(gan: GAN) -> Original:
    arch, state = gan.arch, dict(gan.generator.state_dict())
    settings = {"input_nc": arch.nc_in, "output_nc": arch.nc, "widths": list(arch.g_widths), "norm": arch.g_norm}
    if arch.form == "lindernoren":
        unet.skips_first(state, arch.g_widths, back=True)
        return Original(_moved(state, unet.lindernoren_places(len(arch.g_widths))), "eriklindernoren/PyTorch-GAN, huggan (pix2pix)", PLAIN, settings)
    content = _moved(state, unet.pix2pix_places(len(arch.g_widths)))
    return Original(content, "junyanz/pytorch-CycleGAN-and-pix2pix", PLAIN + ", or as checkpoints/NAME/latest_net_G.pth", settings)


def _resnet(gan: GAN) -> Original:
    arch = gan.arch
    name = "block" if arch.up == "nearest" else "conv_block"
    second = 6 if arch.dropout and not arch.separable else 5
    places = resnet.places_of(name, arch.blocks, len(arch.g_widths) - 1, arch.up, second, arch.separable)
    settings = {"input_nc": arch.nc_in, "output_nc": arch.nc, "widths": list(arch.g_widths), "n_blocks": arch.blocks, "norm": arch.g_norm}
    project = "junyanz/pytorch-CycleGAN-and-pix2pix" if arch.up == "transposed" else "eriklindernoren/PyTorch-GAN" if name == "block" else "junyanz' forks"
    project = "mit-han-lab/gan-compression (mobile)" if arch.separable else project
    return Original(_moved(dict(gan.generator.state_dict()), places), project, PLAIN, settings | {"use_dropout": arch.dropout})


def _sngan(gan: GAN) -> Original:
    arch, blocks = gan.arch, len(gan.arch.g_widths) - 1
    ours = {name: theirs for theirs, name in sngan.generator_modules(blocks).items()}
    ours |= {f"blocks.{i}.{name}": f"block{i + 2}.{theirs}" for i in range(blocks) for theirs, name in sngan.INNER.items()}
    state = {}
    for key, tensor in gan.generator.state_dict().items():
        module = next(m for m in ours if key.startswith(f"{m}."))
        hooked = re.sub(r"parametrizations\.weight\.(original$|0\.)", lambda m: "weight_orig" if m[1] == "original" else "weight_", key.removeprefix(module))
        state[ours[module] + hooked] = tensor
    content = {"model_state_dict": state, "optimizer_state_dict": None, "global_step": 0}
    settings = {"nz": arch.nz, "widths": list(arch.g_widths), "bottom_width": arch.bottom}
    return Original(content, "mimicry", 'netG.restore_checkpoint("original.pth")', settings | ({"num_classes": arch.classes} if arch.classes else {}))


def _tinygan(gan: GAN) -> Original:
    if gan.arch.convolution != "depthwise" or not gan.arch.classes:
        raise UsageError(f"--keys original: TinyGAN's code has no {gan.arch.convolution} generator of {gan.arch.classes} classes")
    state = {tinygan.their_name(key, "generator"): t for key, t in gan.generator.state_dict().items()}
    return Original(
        {"G": state}, "terarachang/ACCV_TinyGAN", 'G.load_state_dict(torch.load("original.pth")["G"])', {"ch": gan.arch.ch, "embedding": gan.arch.embedding}
    )


def _stylegan2(gan: GAN) -> Original:
    arch = gan.arch
    odd = {"g_kind": arch.g_kind != "skip", "classes": bool(arch.classes), "g_clamp": bool(arch.g_clamp), "map_lr": arch.map_lr != 0.01}
    odd |= {"nz": arch.nz != arch.w_dim, "map_width": arch.map_width != arch.w_dim, "const_width": arch.const_width != arch.g_widths[0], "nc": arch.nc != 3}
    if other := [f"{name}={getattr(arch, name)}" for name, is_odd in odd.items() if is_odd]:
        raise UsageError(f"--keys original: rosinality's StyleGAN2 has no {' and '.join(other)}", "--format safetensors, onnx or pt2 hold it")
    state: StateDict = {}
    for key, tensor in gan.generator.state_dict().items():
        if key != "mapping.w_avg":
            state[stylegan2.rosinality_name(key, "generator", arch.resolution)] = _rosinality_shape(key, tensor)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 16  # of sum 4: pixels are interleaved with zeros
    for i in range(len(arch.g_widths) - 1):
        state |= {f"convs.{2 * i}.conv.blur.kernel": kernel.clone(), f"to_rgbs.{i}.upsample.kernel": kernel.clone()}
    content = {"g_ema": state, "latent_avg": gan.generator.state_dict()["mapping.w_avg"]}
    settings = {"size": arch.resolution, "style_dim": arch.w_dim, "n_mlp": arch.map_layers, "channels": dict(zip(arch.resolutions, arch.g_widths, strict=True))}
    return Original(content, "rosinality/stylegan2-pytorch", 'g_ema.load_state_dict(torch.load("original.pth")["g_ema"])', settings)


def _rosinality_shape(key: str, tensor: Tensor) -> Tensor:
    """Its tensors have an axis for the batch, and strengths and biases those of an image."""
    if key.endswith("noise_const"):
        return tensor[None, None]
    if key.endswith("noise_strength"):
        return tensor.reshape(1)
    if key.endswith("torgb.bias"):
        return tensor[None, :, None, None]
    return tensor[None] if tensor.ndim == 4 or key.endswith("const") else tensor


def _biggan(gan: GAN) -> Original:
    state: StateDict = {}
    ours = gan.generator.state_dict()
    for key, tensor in ours.items():
        module, spectral, leaf = key.partition(SPECTRAL)
        if not spectral and not key.endswith("num_batches_tracked"):
            state[re.sub(r"\.bn\.running_(mean|var)$", r".stored_\1", brock_name(key))] = tensor
        elif leaf == "original":
            u, v = (ours[f"{module}{SPECTRAL}0.{name}"] for name in "uv")
            norm = torch.dot(u.double(), tensor.flatten(1).double() @ v.double())
            theirs = brock_name(f"{module}.weight").removesuffix("weight")
            state |= {f"{theirs}weight": tensor, f"{theirs}u0": _power_start(tensor, float(norm))[None], f"{theirs}sv0": norm.float().reshape(1)}
    arch = gan.arch
    settings: dict[str, Any] = {"resolution": arch.resolution, "dim_z": arch.nz, "n_classes": arch.classes, "shared_dim": arch.shared_dim}
    settings |= {"widths": list(arch.g_widths), "BN_eps": arch.bn_eps, "SN_eps": arch.sn_eps, "hier": getattr(arch, "hier", True)}
    settings |= {"G_depth": arch.g_depth} if gan.family.name == "biggan_deep" else {}
    deep = "BigGANdeep" if gan.family.name == "biggan_deep" else "BigGAN"
    return Original(state, f"ajbrock/BigGAN-PyTorch ({deep}.py)", 'G.load_state_dict(torch.load("original.pth"))', settings)


@torch.no_grad()
def _power_start(weight: Tensor, norm: float) -> Tensor:
    """u0 (rows,) from which one power step finds the spectral norm ``norm``, for BigGAN's code takes a step in evaluation too.

    That step gives |W v| with v = W'u0 / |W'u0|. A student's norm lies a little below the largest singular value: averaged (EMA) or not
    converged vectors. With v = a v1 + b vr of unit length, |W v|^2 = a^2 s1^2 + b^2 sr^2, and u0 = a u1 / s1 + b ur / sr gives that v; r is
    the next smaller singular value.
    """
    matrix = weight.flatten(1).double()
    rows, columns = matrix.shape
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if rows <= columns else matrix.T @ matrix)
    below = int((squares <= norm**2).sum()) - 1
    top, below = len(squares) - 1, max(below, 0)
    share = 1.0 if below == top else float(((norm**2 - squares[below]) / (squares[top] - squares[below])).clamp(0, 1))
    start = torch.zeros(rows, dtype=torch.float64)
    for i, part in ((top, share), (below, 1 - share)):
        if part > 0 and squares[i] > 0:
            left = vectors[:, i] / squares[i].sqrt() if rows <= columns else matrix @ vectors[:, i] / squares[i]
            start += part**0.5 * left
    return (start / start.norm()).float()


WRITERS: dict[str, Callable[[GAN], Original]] = {
    "dcgan": _dcgan,
    "mlp": _mlp,
    "unet": _unet,
    "resnet": _resnet,
    "sngan": _sngan,
    "sngan24": _sngan24,
    "tinygan": _tinygan,
    "stylegan2": _stylegan2,
    "biggan": _biggan,
    "biggan_deep": _biggan,
}


def original(gan: GAN) -> Original:
    """The generator as its family's own code has it; every tensor plain, contiguous and on the CPU.

    Raises:
        UsageError: nobody's code has this family, or this architecture of it.
    """
    if gan.family.name not in WRITERS:
        raise UsageError(f"--keys original: not there for {gan.family.name}", f"there for {', '.join(WRITERS)}; --format safetensors, onnx or pt2 hold it")
    return WRITERS[gan.family.name](gan)


def reader_options(gan: GAN) -> dict[str, Any]:
    """What our reader has to be told to read such a file as the same architecture: what no tensor tells."""
    options: dict[str, Any] = {"family": gan.family.name} | {name: getattr(gan.arch, name) for name in gan.family.settings}
    asked = {"classes": gan.arch.classes, "nc": gan.arch.nc}
    return options | {name: value for name, value in asked.items() if name in gan.family.options and value}


def read_back(gan: GAN, path: Path, settings: dict[str, Any]) -> nn.Module:
    """The network of a written file, read by its family's reader with the settings its own code has to be told.

    Raises:
        CheckpointError: it is not what was written: a number became infinite in half precision, or the reader does not know it.
    """
    found = contents(open_checkpoint(path).content)[0][0]
    try:
        reading = gan.family.read(found.state, {**reader_options(gan), "config": {**found.config, **settings}})
    except Mismatch as miss:
        raise CheckpointError(str(miss)) from None
    with torch.device("meta"):
        net = gan.family.generator(gan.arch)
    if not all(tensor.isfinite().all() for tensor in reading.state.values()):
        raise CheckpointError("it has infinite values")
    net = net.to_empty(device="cpu")
    net.load_state_dict(reading.state)
    return net.eval().requires_grad_(False)
