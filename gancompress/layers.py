"""What two families or more use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gancompress import distributed as ranks
from gancompress.gan import Mismatch, StateDict
from gancompress.speed import unreduced

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
    n = z.shape[0]  # not len(z), here and in every generator: a whole number would fix the batch size of what is exported
    if condition.shape != (n,):
        raise ValueError(f"labels have shape {tuple(condition.shape)}, expected ({n},)")
    return torch.cat([z, F.one_hot(condition, classes).to(z.dtype)], 1)


def sample_normal(arch: Any, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """z ~ N(0, I) (n, nz); labels uniform over the classes (n,) or None: what most families are fed with."""
    z = torch.randn(n, arch.nz, generator=rng)
    return z, torch.randint(arch.classes, (n,), generator=rng) if arch.classes else None


def dropout(x: Tensor, share: float) -> Tensor:
    """(N, ...) with that share of its values at 0 and the others raised; each of several processes has its rows of the batch's pattern."""
    if ranks.world() == 1:
        return F.dropout(x, share)
    return x * ranks.rows(len(x), lambda n: F.dropout(x.new_ones(n, *x.shape[1:]), share))


def hint(options: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """A setting found beside the weights (``options["config"]``, which may hold anything), or None where it is not of that type."""
    config = options.get("config")
    value = config.get(name) if isinstance(config, Mapping) else None
    return value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None


def embedding(rows: int, columns: int) -> nn.Embedding:
    """An nn.Embedding that is yet to be initialised: torch's own draw costs seconds of imports on the meta device."""
    return nn.Embedding(rows, columns, _weight=torch.empty(rows, columns))


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key under which main.10 follows main.9."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", text) if p]


def nearest_multiple(size: int, step: int, least: int) -> int:
    """The multiple of ``step`` from ``least`` on that is nearest to ``size``."""
    return max(least, (size + step // 2) // step * step)


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
    """Up-sample by zero insertion, pad, filter, keep every ``down``-th pixel, each channel for itself (Karras et al. 2019, App. B).

    Args:
        x: (N, C, H, W).
        kernel: (kh, kw), or (k,) for a separable filter; a true convolution, so it is flipped on the way.
        padding: (left, right, top, bottom) of the up-sampled image, whose width is W * up; negative values crop.

    Returns:
        (N, C, H', W') with W' = ceil((W * up + left + right - kw + 1) / down), H' alike.
    """
    if kernel.ndim == 1:
        left, right, top, bottom = padding
        x = _filter(x, (kernel * gain)[None], (1, up), (1, down), (left, right, 0, 0))
        return _filter(x, kernel[:, None], (up, 1), (down, 1), (0, 0, top, bottom))
    return _filter(x, kernel * gain, (up, up), (down, down), padding)


def _filter(x: Tensor, kernel: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]) -> Tensor:
    """One pass of ``upfirdn`` as a grouped convolution; ``up`` and ``down`` are (vertical, horizontal)."""
    channels, (height, width) = x.shape[1], kernel.shape
    left, right, top, bottom = padding
    kernel = kernel.to(x.dtype)
    if up == (1, 1):
        even = left == right and top == bottom and min(left, top) >= 0  # then the convolution pads for itself
        x = x if even else F.pad(x, padding)
        return F.conv2d(x, kernel.flip(0, 1).expand(channels, 1, -1, -1), stride=down, padding=(top, left) if even else 0, groups=channels)
    # a transposed convolution visits the pixels alone and none of the zeros between them (polyphase); it gives the full convolution,
    # which the padding asked for extends or cuts at each end
    left, right, top, bottom = left - width + 1, right - width + up[1], top - height + 1, bottom - height + up[0]
    cut = (max(0, min(-top, -bottom)), max(0, min(-left, -right)))
    x = F.conv_transpose2d(x, kernel.expand(channels, 1, -1, -1), stride=up, padding=cut, groups=channels)
    rest = (left + cut[1], right + cut[1], top + cut[0], bottom + cut[0])
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
        with unreduced(weight):  # a norm from rounded products would be one of another matrix
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
            raise Mismatch(f"{prefix}: a singular vector of shape {tuple(u.shape)} for the spectral norm of a weight of shape {tuple(weight.shape)}", 0.7)
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
