"""Measures a generator: against its teacher on the same latents, against real images or the teacher's samples, and its cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gancompress.cost import device_name, gan_cost, latency
from gancompress.data import EVALUATION, Images, draw, positions, rng, to_float, to_uint8
from gancompress.errors import UsageError
from gancompress.extractors import Extractor
from gancompress.gan import GAN

BATCH = 64


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


def generated(gan: GAN, num: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Batches of ``num`` images in [-1, 1], a function of (seed, index of the batch) alone."""
    for start in range(0, num, BATCH):
        inputs, condition = gan.sample(min(BATCH, num - start), rng(seed, EVALUATION, start))
        yield draw(gan, inputs, condition, device)


@torch.no_grad()
def features_of(batches: Iterator[Tensor], extractor: Extractor) -> tuple[Tensor, Tensor, float]:
    """(features (N, F) float64, logits (N, K), mean variance of Laplacian) over batches of images in [-1, 1], as 8-bit images."""
    features, logits, sharpness = [], [], []
    for images in batches:
        rounded = to_uint8(images)
        found = extractor(rounded)
        features.append(found[0].double().cpu())
        logits.append(found[1].double().cpu())
        sharpness.append(variance_of_laplacian(to_float(rounded)).cpu())
    return torch.cat(features), torch.cat(logits), float(torch.cat(sharpness).mean())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two feature sets (N, F), as torch-fidelity computes it (Heusel et al. 2017, arXiv:1706.08500, Eq. 6)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    found = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    return float(found["frechet_inception_distance"])


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y|x) || p(y)) over ten splits (one an image where there are fewer), as torch-fidelity computes it (Salimans et al. 2016, arXiv:1606.03498)."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    return float(isc_features_to_metric(logits, splits=min(10, len(logits)))["inception_score_mean"])


@torch.no_grad()
def paired_fidelity(student: GAN, teacher: GAN, num: int, seed: int, device: torch.device) -> dict[str, float] | None:
    """MSE (images in [-1, 1]), PSNR in dB and SSIM of student and teacher on the same latents; None where they share no latents."""
    if any(getattr(student.arch, k) != getattr(teacher.arch, k) for k in ("nz", "classes", "resolution", "nc")):
        return None
    mse, peak, structure = [], [], []
    for start in range(0, num, BATCH):
        inputs, condition = teacher.sample(min(BATCH, num - start), rng(seed, EVALUATION, start))
        a, b = draw(student, inputs, condition, device), draw(teacher, inputs, condition, device)
        mse.append((a - b).square().flatten(1).mean(1).cpu())
        peak.append(psnr(a, b).cpu())
        structure.append(ssim(a, b).cpu())
    return {"mse": float(torch.cat(mse).mean()), "psnr": float(torch.cat(peak).mean()), "ssim": float(torch.cat(structure).mean())}


def evaluate(
    student: GAN,
    teacher: GAN | None = None,
    images: Images | None = None,
    *,
    num_images: int = 5000,
    extractor: Extractor | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Everything ``gancompress eval`` prints, as a JSON-able dict.

    Args:
        teacher: for paired fidelity and as a second column; its samples are the reference where there are no ``images``.
        images: real images to measure distances to.
        num_images: images generated, and real ones (or as many as there are) used.
        extractor: None leaves out the metrics that need features.

    Raises:
        UsageError: too few images for a distance, or images that are neither grey nor RGB.
    """
    if num_images < 2:
        raise UsageError(f"--num-images {num_images}: at least 2")
    device = device or torch.device("cpu")
    columns: dict[str, GAN] = {"student": student} | ({"teacher": teacher} if teacher else {})
    for gan in columns.values():
        if extractor is not None and gan.arch.nc not in (1, 3):
            raise UsageError(f"{gan.source}: it makes {gan.arch.nc} channels; features are taken of grey or RGB images")
    for gan in columns.values():
        gan.to(device)
    result: dict[str, Any] = {"protocol": {"num_images": num_images, "seed": seed, "device": device_name(device), "torch": torch.__version__}}
    reference: Tensor | None = None
    if extractor is not None:
        result["protocol"] |= {"extractor": extractor.name, "weights_sha256": extractor.weights_sha256, "quantisation": "round to 8 bits"}
        result["protocol"] |= {"distance": extractor.distance, "score": extractor.score}
        if images is not None:
            chosen = positions(0, min(num_images, len(images)), len(images), seed, EVALUATION)
            real = (to_float(images[part][0].to(device)) for part in chosen.split(BATCH))
            reference = features_of(real, extractor)[0]
            result["protocol"] |= {"reference": images.source, "reference_sha256": images.fingerprint, "reference_images": len(reference)}
        elif teacher is not None:
            reference = features_of(generated(teacher, num_images, seed + 1, device), extractor)[0]
            result["protocol"] |= {"reference": "the teacher's samples", "reference_sha256": teacher.sha256(), "reference_images": len(reference)}
    for name, gan in columns.items():
        result[name] = _costs(gan, device) | _quality(gan, extractor, reference, num_images, seed, device)
    if teacher is not None:
        result["paired"] = paired_fidelity(student, teacher, min(num_images, 1000), seed, device)
    return result


def _costs(gan: GAN, device: torch.device) -> dict[str, Any]:
    cost = gan_cost(gan)
    column: dict[str, Any] = {
        "family": gan.family.name,
        "parameters": cost.parameters,
        "macs_input_convention": cost.macs_in,
        "macs_output_convention": cost.macs_out,
        "bytes": cost.bytes,
    }
    for batch_size in (1, 32):
        middle, spread = latency(gan, batch_size, device)
        column[f"latency_ms_batch_{batch_size}"] = round(middle, 3)
        column[f"latency_iqr_ms_batch_{batch_size}"] = round(spread, 3)
    return column


def _quality(gan: GAN, extractor: Extractor | None, reference: Tensor | None, num_images: int, seed: int, device: torch.device) -> dict[str, float]:
    """Score, distance to ``reference`` and blur; without an extractor the last alone."""
    if extractor is None:
        blur = [variance_of_laplacian(b).cpu() for b in generated(gan, min(num_images, 1000), seed, device)]
        return {"variance_of_laplacian": float(torch.cat(blur).mean())}
    features, logits, sharpness = features_of(generated(gan, num_images, seed, device), extractor)
    found = {"inception_score": inception_score(logits), "variance_of_laplacian": sharpness}
    if reference is not None:
        found["fid" if extractor.name == "inception-v3" else "frechet_distance"] = frechet_distance(features, reference)
    return found
