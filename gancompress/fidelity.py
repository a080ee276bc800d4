"""Images and what is measured of them one by one or in pairs: generation by (seed, index), features as they stream by, fidelity, blur, diversity."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gancompress import distributed as ranks
from gancompress.cost import device_name
from gancompress.data import EVALUATION, draw, rng, seed_for, to_float, to_uint8
from gancompress.distances import Moments, spread
from gancompress.extractors import Extractor
from gancompress.gan import GAN, shares_latents
from gancompress.runs import versions

BATCH = 64
#: what makes the latents of a seed; numbers of another rule are of other images
SAMPLING = "an own generator for each (seed, index)"
QUANTISATION = "round to 8 bits"
#: latents whose images' distances are the diversity
DIVERSE = 128


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB of images (N, C, H, W) in [-1, 1] (peak to peak 2)."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(1).clamp_min(1e-12))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(N,) structural similarity of images (N, C, H, W) in [-1, 1] (Wang et al. 2004, Eq. 13: 11x11 Gaussian window of sigma 1.5,
    K1 0.01, K2 0.03; channels apart, windows inside the image). Computed on [0, 1]: its luminance term is of intensities, never negative."""
    a, b = (a + 1) / 2, (b + 1) / 2
    size = min(11, a.shape[2])
    taps = torch.exp(-(torch.arange(size, device=a.device, dtype=a.dtype) - (size - 1) / 2).square() / (2 * 1.5**2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, x.shape[:2])

    c1, c2 = 0.01**2, 0.03**2
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).flatten(1).mean(1)


def variance_of_laplacian(images: Tensor) -> Tensor:
    """(N,) variance of the 4-neighbour Laplacian of the grey image on the scale 0 ... 255; low means blurred (Aguinaldo et al. 2019, §4)."""
    grey = (images.float().mean(1, keepdim=True) + 1) * 127.5
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=images.device)
    return F.conv2d(grey, kernel[None, None]).flatten(1).var(1, correction=0)


# -------------------------------------------------------------------------------------------------------------------- generation


def default_batch_size(resolution: int, device: torch.device) -> int:
    """Images generated at a time: what a CPU's memory likes, or enough to keep a GPU busy without filling it."""
    return BATCH if device.type == "cpu" else max(8, min(256, 2**24 // resolution**2))


def latents(gan: GAN, start: int, count: int, *seed: int) -> tuple[Tensor, Tensor | None]:
    """Inputs (count, ...) and labels (count,) or None of images start ...; each a function of (seed, its index) alone."""
    drawn = [gan.sample(1, rng(*seed, EVALUATION, i)) for i in range(start, start + count)]
    labels = [label for _, label in drawn if label is not None]
    return torch.cat([inputs for inputs, _ in drawn]), torch.cat(labels) if labels else None


def generated(
    gan: GAN, num: int, seed: int, device: torch.device, batch_size: int = BATCH, label: int | None = None, *, dealt: bool = False
) -> Iterator[Tensor]:
    """Batches of ``num`` images in [-1, 1] (all of one class, where ``label`` is given), each image a function of (seed, label, index) alone.

    ``dealt``: of several processes each makes its share of the batches, as ``collect`` expects.
    """
    noisy = getattr(gan.arch, "noise", "") == "random"  # drawn inside the network, from torch's own generator: one image at a time
    step = 1 if noisy else batch_size
    parts = (seed,) if label is None else (seed, label)
    for start in ranks.dealt(range(0, num, step)) if dealt else range(0, num, step):
        inputs, condition = latents(gan, start, min(step, num - start), *parts)
        if label is not None:
            condition = torch.full((len(inputs),), label)
        if device.type == "cuda":
            inputs = inputs.pin_memory()  # its copy need not be waited for
        with torch.random.fork_rng(enabled=noisy):
            if noisy:
                torch.manual_seed(seed_for(*parts, EVALUATION, start, 1))
            images = draw(gan, inputs, condition, device)
        yield images


# ---------------------------------------------------------------------------------------------------------------------- features


@dataclass
class Collected:
    """Of a stream of images: features (N, F), logits (N, K) and moments where they were asked for, the mean variance of Laplacian."""

    features: Tensor | None
    logits: Tensor | None
    moments: Moments | None
    sharpness: float


@torch.no_grad()
def collect(
    batches: Iterable[Tensor], extractor: Extractor, *, features: bool = False, logits: bool = False, moments: bool = False, dealt: bool = False
) -> Collected:
    """Features of batches of images in [-1, 1], as 8-bit images; on a GPU nothing is waited for before the last of them.

    ``dealt``: the batches are this process's share (``distributed.dealt``), and what is found is of those of all, in their order.
    """
    kept: list[tuple[Tensor | None, Tensor | None, Tensor]] = []
    sums = Moments()
    for images in batches:
        rounded = to_uint8(images)
        found, scores = extractor(rounded)
        kept.append((found if features else None, scores if logits else None, variance_of_laplacian(to_float(rounded))))
        if moments:
            sums.add(found)
    if dealt and ranks.world() > 1:
        each = ranks.everyones([(None if f is None else f.cpu(), None if s is None else s.cpu(), blur.cpu()) for f, s, blur in kept])
        kept = [batch for turn in itertools.zip_longest(*each) for batch in turn if batch is not None]
        sums = Moments.of_all(ranks.everyones(Moments.of_all([sums])))
    return Collected(
        torch.cat([f for f, _, _ in kept if f is not None]).float().cpu() if features else None,
        torch.cat([s for _, s, _ in kept if s is not None]).float().cpu() if logits else None,
        sums if moments else None,
        float(torch.cat([blur for _, _, blur in kept]).mean()),
    )


def features_of(batches: Iterable[Tensor], extractor: Extractor, *, dealt: bool = False) -> tuple[Tensor, Tensor, float]:
    """(features (N, F), logits (N, K), mean variance of Laplacian) over batches of images in [-1, 1], as 8-bit images; ``dealt``: as ``collect``."""
    found = collect(batches, extractor, features=True, logits=True, dealt=dealt)
    assert found.features is not None
    assert found.logits is not None
    return found.features, found.logits, found.sharpness


def setting(gan: GAN, extractor: Extractor | None, seed: int, device: torch.device) -> dict[str, Any]:
    """The fields of a protocol that every measurement has."""
    found: dict[str, Any] = {"seed": seed, "sampling": SAMPLING, "truncation": getattr(gan.arch, "truncation", None), "device": device_name(device)}
    if extractor is not None:
        found |= {"extractor": extractor.name, "weights_sha256": extractor.weights_sha256, "resize": extractor.resize, "dtype": "float32"}
        found |= {"quantisation": QUANTISATION, "distance": extractor.distance, "score": extractor.score}
    return found | versions()


# ------------------------------------------------------------------------------------------------------------- pairs and diversity


@torch.no_grad()
def paired_fidelity(
    student: GAN, teacher: GAN, num: int, seed: int, device: torch.device, batch_size: int = BATCH, lpips: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, float] | None:
    """MSE (images in [-1, 1]), PSNR in dB, SSIM and, where it is given, LPIPS of student and teacher on the same latents; None where they
    share no latents."""
    if not shares_latents(student, teacher):
        return None
    found: dict[str, list[Tensor]] = {}
    for start in range(0, num, batch_size):
        inputs, condition = latents(teacher, start, min(batch_size, num - start), seed)
        a, b = draw(student, inputs, condition, device), draw(teacher, inputs, condition, device)
        each = {"mse": (a - b).square().flatten(1).mean(1), "psnr": psnr(a, b), "ssim": ssim(a, b)}
        if lpips is not None:
            each["lpips"] = lpips(a, b)
        for name, values in each.items():
            found.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


@torch.no_grad()
def diversity(gan: GAN, seed: int, device: torch.device, batch_size: int = BATCH) -> float:
    """``spread`` of the images in [-1, 1] of 128 fixed latents. A student far below its teacher has collapsed."""
    return spread(torch.cat(list(generated(gan, DIVERSE, seed, device, batch_size))))
