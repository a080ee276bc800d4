"""What two families or more use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gancompress.gan import Mismatch, StateDict

T = TypeVar("T")


def with_labels(z: Tensor, condition: Tensor | None, classes: int, nz: int) -> Tensor:
    """(N, nz) -> (N, nz + classes): a one-hot label beside the latent, as conditional DCGANs and MLPs take it.

    Raises:
        ValueError: a latent of another size, labels missing, or labels outside 0 ... classes - 1.
    """
    if z.shape[1] != nz:
        raise ValueError(f"latents have {z.shape[1]} values each, this network takes {nz}")
    if not classes:
        return z
    if condition is None:
        raise ValueError(f"this network is conditional: give labels (N,) in 0 ... {classes - 1} as condition")
    if condition.shape != (len(z),):
        raise ValueError(f"labels have shape {tuple(condition.shape)}, expected ({len(z)},)")
    return torch.cat([z, F.one_hot(condition, classes).to(z.dtype)], 1)


def hint(options: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """A setting found beside the weights (``options["config"]``, which may hold anything), or None where it is not of that type."""
    config = options.get("config")
    value = config.get(name) if isinstance(config, Mapping) else None
    return value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key under which main.10 follows main.9."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", text) if p]


def scale_width(width: int, ch_mul: float) -> int:
    """``width * ch_mul`` as a whole number of channels, at least 1.

    Rounded to a multiple of 8 from 64 up and of 4 from 16 up, as convolution kernels like them; ch_mul 1 changes nothing.
    """
    if ch_mul == 1:
        return width
    scaled = width * ch_mul
    step = 8 if scaled >= 64 else 4 if scaled >= 16 else 1
    return max(1, step * round(scaled / step))


def upfirdn(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, padding: tuple[int, int, int, int] = (0, 0, 0, 0), gain: float = 1.0) -> Tensor:
    """Each channel of x (N, C, H, W) upsampled with zeros, padded, convolved with a kernel and downsampled.

    Args:
        kernel: (h, w), or (taps,) for one that is applied down and then across. A true convolution: it is flipped.
        up: zeros to a sample are up - 1, behind each. down: every down-th sample is kept.
        padding: left, right, top, bottom, in upsampled pixels; negative ones crop.
        gain: of the whole.
    """
    left, right, top, bottom = padding
    if kernel.ndim == 1:
        kernel = kernel * gain**0.5
        x = _upfirdn(x, kernel[:, None], (up, 1), (down, 1), (0, 0, top, bottom))
        return _upfirdn(x, kernel[None], (1, up), (1, down), (left, right, 0, 0))
    return _upfirdn(x, kernel * gain, (up, up), (down, down), padding)


def _upfirdn(x: Tensor, kernel: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]) -> Tensor:
    # a depthwise transposed convolution never meets the zeros: of the ways plain PyTorch has it was the fastest on CPUs
    weight = kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
    if up == (1, 1):
        x = F.pad(x, padding) if any(padding) else x
        return F.conv2d(x, weight.flip(2, 3), stride=down, groups=x.shape[1])
    # that is the convolution at every place the kernel touches: crop it to where the kernel lies inside, as far as both sides agree for free
    (rows, columns), (left, right, top, bottom) = kernel.shape, padding
    crop = (columns - 1 - left, columns - up[1] - right, rows - 1 - top, rows - up[0] - bottom)
    both = (max(0, min(crop[2:])), max(0, min(crop[:2])))
    x = F.conv_transpose2d(x, weight, stride=up, padding=both, groups=x.shape[1])
    rest = [both[1] - c for c in crop[:2]] + [both[0] - c for c in crop[2:]]
    return (F.pad(x, rest) if any(rest) else x)[:, :, :: down[0], :: down[1]]


# --------------------------------------------------------------------------------------------------------------- spectral norm


class SpectralNorm(nn.Module):
    """W -> W / (u . W v), W flattened to (out, rest); u and v follow its largest singular value by one power step for each
    forward pass in training (Miyato et al. 2018, arXiv:1802.05957, Alg. 1).

    torch's own draws its vectors on creation, which on the meta device costs seconds of imports.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.eps = eps
        rows, columns = weight.shape[0], weight[0].numel()
        self.register_buffer("u", torch.empty(rows, device=weight.device))
        self.register_buffer("v", torch.empty(columns, device=weight.device))
        self.u: Tensor
        self.v: Tensor
        if not weight.is_meta:
            self.u.normal_()
            for _ in range(15):
                self.step(weight.detach())

    @torch.no_grad()
    def step(self, weight: Tensor) -> None:
        matrix = weight.flatten(1)
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=self.eps))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=self.eps))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.step(weight)
        # copies: the next power step must not change what the backward pass needs
        return weight / torch.dot(self.u.clone(), weight.flatten(1) @ self.v.clone())


def spectral_norm(module: nn.Module, eps: float = 1e-12) -> nn.Module:
    """``module`` with its ``weight`` divided by its spectral norm. Keys: ``parametrizations.weight.{original,0.u,0.v}``."""
    assert isinstance(module.weight, Tensor)
    parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight, eps), unsafe=True)
    return module


def read_spectral(state: StateDict, eps: float = 1e-12) -> StateDict:
    """A foreign state dict with every spelling of spectral norm turned into ours; all else as it was.

    What is read, and the norm each takes in evaluation: torch's hook (``weight_orig, weight_u, weight_v``) and parametrization
    (``parametrizations.weight.original, .0._u, .0._v``): u . W v as stored. The hook of torch 0.4 (``weight_orig, weight, weight_u``):
    ``weight`` is divided already. BigGAN (``weight, u0, sv0``), mimicry (``weight, sn_u, sn_sigma``) and the SAGAN wrapper
    (``module.weight_bar, .weight_u, .weight_v``): one more power step from u.

    Raises:
        Mismatch: a vector that is not of its weight's size.
    """
    out = dict(state)
    prefix = ""

    def put(prefix: str, weight: Tensor, u: Tensor, v: Tensor) -> None:
        out[f"{prefix}parametrizations.weight.original"] = weight
        out[f"{prefix}parametrizations.weight.0.u"], out[f"{prefix}parametrizations.weight.0.v"] = u, v

    def stepped(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if weight.ndim < 2 or u.numel() != len(weight):
            raise Mismatch(f"{prefix}: a singular vector of shape {tuple(u.shape)} beside a weight of shape {tuple(weight.shape)}", 0.7)
        matrix = weight.flatten(1).float()
        v = F.normalize(u.flatten().float() @ matrix, dim=0, eps=eps)
        return F.normalize(matrix @ v, dim=0, eps=eps), v

    for key in state:
        prefix, _, leaf = key.rpartition(".")
        prefix += "." if prefix else ""

        def take(*names: str, at: str = prefix) -> list[Tensor] | None:
            return [out.pop(at + n) for n in names] if all(at + n in out for n in names) else None

        if leaf == "weight_orig":
            if found := take("weight_orig", "weight_u", "weight_v"):
                put(prefix, *found)
            elif found := take("weight_orig", "weight", "weight_u"):
                u, v = stepped(found[1], found[2])
                put(prefix, found[1], u / torch.dot(u, found[1].flatten(1).float() @ v), v)  # u . W v = 1: divided already
        elif leaf in ("u0", "sn_u") and (found := take("weight", leaf)):
            put(prefix, found[0], *stepped(*found))
            for log_only in ("sv0", "sn_sigma"):
                out.pop(prefix + log_only, None)
        elif leaf == "weight_bar" and (found := take("weight_bar", "weight_u")):
            out.pop(prefix + "weight_v", None)
            outer = prefix.removesuffix("module.")
            put(outer, found[0], *stepped(*found))
            if (bias := take("bias")) and outer != prefix:
                out[outer + "bias"] = bias[0]
        elif leaf == "original" and (found := take("original", "0._u", "0._v")):
            put(prefix.removesuffix("parametrizations.weight."), *found)
    return out
