"""LPIPS, torch-fidelity's network on files that are checked, and the perceptual path length made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gancompress import weights as files
from gancompress.data import EVALUATION, draw, rng
from gancompress.errors import CheckpointError, MissingError, UsageError
from gancompress.gan import GAN
from gancompress.unpickle import open_checkpoint

EPSILON = 1e-4
#: images are shrunk to this before LPIPS, as StyleGAN does
LARGEST, SMALLEST = 256, 16
#: shares of the distances that are left out at either end, in percent, as StyleGAN does
TRIM = (1, 99)


class Lpips:
    """LPIPS with VGG16 (Zhang et al. 2018, arXiv:1801.03924), from two files in torch's cache; nothing is downloaded.

    Raises:
        MissingError: a file is not there; the message says which, its hash and its place. CheckpointError: it is another file.
    """

    def __init__(self, device: torch.device) -> None:
        from torch_fidelity import sample_similarity_lpips as module
        from torchvision.models import vgg16

        lacking = [w for w in (files.LPIPS, files.VGG16) if not w.cached.is_file()]
        if lacking:
            first = lacking[0]
            raise MissingError(
                f"LPIPS needs {' and '.join(f'{w.file} ({w.megabytes} MB, sha256 {w.sha256}...)' for w in lacking)}",
                f"gancompress env --fetch-weights, or get it from {first.url} and put it into {first.cached.parent}",
            )
        self.sha256 = files.check(files.LPIPS.cached, files.LPIPS)
        files.check(files.VGG16.cached, files.VGG16)
        linear, trunk = (open_checkpoint(w.cached).content for w in (files.LPIPS, files.VGG16))
        with torch.device("meta"):
            vgg = vgg16(weights=None)
        try:
            vgg.features.load_state_dict({k.removeprefix("features."): v for k, v in trunk.items() if k.startswith("features.")}, assign=True)
            # in place of its own two downloads, which would unpickle whatever they find
            with (
                patch.object(module, "load_state_dict_from_url", lambda *a, **k: linear),
                patch.object(module, "torchvision_load_pretrained_vgg16", lambda: vgg),
            ):
                self.net = module.SampleSimilarityLPIPS("lpips-vgg16").to(device)
        except (RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{files.LPIPS.cached.parent}: not the weights of LPIPS ({str(error).splitlines()[-1].strip()})") from None

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(N,) distances of images (N, C, H, W) in [-1, 1]; not rounded to 8 bits."""
        if min(a.shape[2:]) < SMALLEST:
            raise UsageError(f"LPIPS of images of {a.shape[3]} x {a.shape[2]}: at least {SMALLEST} x {SMALLEST}")
        found: Tensor = self.net(*((x.expand(-1, 3, -1, -1) + 1) * 127.5 for x in (a, b)))
        return found.flatten()


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From a (share 0) to b (share 1) along the sphere, (N, nz) with share (N, 1); their norms are interpolated linearly."""
    na, nb = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    ua, ub = a / na, b / nb
    cosine = (ua * ub).sum(1, keepdim=True).clamp(-1, 1)
    angle = share * cosine.acos()
    across = F.normalize(ub - cosine * ua, dim=1)
    return (ua * angle.cos() + across * angle.sin()) * torch.lerp(na, nb, share)


def _steps(gan: GAN, num: int, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Batches of two latents (N, nz) each, places between them (N, 1) and labels; each a function of (seed, index)."""
    for start in range(0, num, batch_size):
        ends, places, labels = [], [], []
        for i in range(start, min(start + batch_size, num)):
            own = rng(seed, EVALUATION, i, 2)
            z, label = gan.sample(2, own)
            ends.append(z)
            places.append(torch.rand(1, 1, generator=own))
            labels += [label[:1]] if label is not None else []
        z = torch.stack(ends)
        yield z[:, 0], z[:, 1], torch.cat(places), torch.cat(labels) if labels else None


def _shown(images: Tensor, cropped: bool) -> Tensor:
    """As LPIPS is to see them; ``cropped``: the middle of a face, rows 3/8 to 7/8 and columns 1/4 to 3/4, as StyleGAN crops FFHQ."""
    if cropped:
        part = images.shape[2] // 8
        images = images[:, :, 3 * part : 7 * part, 2 * part : 6 * part]
    if (factor := images.shape[2] // LARGEST) > 1:
        images = F.avg_pool2d(images, factor)
    return images


@torch.no_grad()
def path_length(
    gan: GAN, space: str, distance: Callable[[Tensor, Tensor], Tensor], num: int, seed: int, device: torch.device, batch_size: int = 64
) -> tuple[float, float | None]:
    """Perceptual path length over whole paths (Karras et al. 2019, arXiv:1812.04948, §4.1, Eq. 2 and 3): the mean of distance / epsilon^2 between
    images an epsilon apart, of whole images and of their middles (None where these are too small). Distances below the 1st and above
    the 99th percentile are left out.

    Args:
        space: "z", along the sphere; "w", straight, of a network that makes w itself (``styles``).

    Raises:
        UsageError: a network without w, or a translator.
    """
    if not gan.arch.nz:
        raise UsageError(f"{gan.source}: a path between latents, and a translator has none", "leave ppl out of --metrics")
    styles = getattr(gan.generator, "styles", None)
    if space == "w" and styles is None:
        raise UsageError(f"{gan.source}: family {gan.family.name} has no w", "--metrics ppl measures z alone there")
    whole: list[Tensor] = []
    middle: list[Tensor] = []
    for a, b, place, label in _steps(gan, num, seed, batch_size):
        a, b, place = a.to(device), b.to(device), place.to(device)
        label = None if label is None else label.to(device)
        if styles is not None and space == "w":
            first, second = styles(a, label), styles(b, label)
            near, far = (torch.lerp(first, second, place[..., None] + e) for e in (0, EPSILON))
        else:
            near, far = (slerp(a, b, place + e) for e in (0, EPSILON))
        pair = []
        for end in (near, far):
            with torch.random.fork_rng():  # the same noise for both, where the network draws its own
                torch.manual_seed(seed)
                pair.append(draw(gan, end, label, device))
        for found, cropped in ((whole, False), (middle, True)):
            if not cropped or gan.arch.resolution // 8 * 4 >= SMALLEST:
                found.append((distance(*(_shown(images, cropped) for images in pair)) / EPSILON**2).cpu())
    return _trimmed(torch.cat(whole)), _trimmed(torch.cat(middle)) if middle else None


def _trimmed(values: Tensor) -> float:
    each = values.double().numpy()
    low, high = np.percentile(each, TRIM[0], method="lower"), np.percentile(each, TRIM[1], method="higher")
    return float(each[(each >= low) & (each <= high)].mean())
