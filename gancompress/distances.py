"""Arithmetic on features: Frechet and kernel distances, precision and recall, inception score; moments while features stream by; how far images lie apart."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gancompress.checkpoint import atomic_write
from gancompress.errors import CheckpointError, UsageError
from gancompress.weights import file_sha256

KID_SUBSETS, KID_SUBSET_SIZE, NEIGHBOURS, SPLITS = 100, 1000, 3, 10
#: a student whose images lie less than this share of its teacher's (or of real ones) apart has collapsed
COLLAPSED = 0.1


@dataclass(frozen=True)
class Statistics:
    """Mean (F,) and covariance (F, F), divided by n - 1, of ``count`` features, in float64 on the CPU; count None: not known."""

    mu: Tensor
    sigma: Tensor
    count: int | None
    #: how they came about, as far as their file says: a protocol, the file's path and its hash
    facts: dict[str, Any] = field(default_factory=dict)


class Moments:
    """Sums of features (N, F) and of their products in float64, on the device of the features; nothing else of them is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None
        self._origin: Tensor | None = None

    def add(self, features: Tensor) -> None:
        x = features.double()
        if self._origin is None or self._sum is None or self._products is None:
            self._origin = x[0].clone()  # near the mean: what is summed stays small, and so does what rounding takes
            self._sum, self._products = torch.zeros_like(x[0]), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._origin
        self._sum += x.sum(0)
        self._products.addmm_(x.T, x)
        self.count += len(x)

    @staticmethod
    def of_all(parts: list[Moments]) -> Moments:
        """Those of all features that ``parts`` were given, on the CPU."""
        found = Moments()
        for other in parts:
            if other._origin is None or other._sum is None or other._products is None:
                continue
            origin, total, products = other._origin.cpu(), other._sum.cpu(), other._products.cpu()
            if found._origin is None or found._sum is None or found._products is None:
                found._origin, found._sum, found._products = origin, torch.zeros_like(total), torch.zeros_like(products)
            shift = origin - found._origin  # the same sums, about the first one's origin
            cross = torch.outer(total, shift)
            found._products += products + cross + cross.T + other.count * torch.outer(shift, shift)
            found._sum += total + other.count * shift
            found.count += other.count
        return found

    def statistics(self) -> Statistics:
        """Raises UsageError: of fewer than two features."""
        if self._origin is None or self._sum is None or self._products is None or self.count < 2:
            raise UsageError(f"a distance of {self.count} images: it takes at least 2", "--num-images")
        mean = self._sum / self.count
        sigma = (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Statistics((mean + self._origin).cpu(), ((sigma + sigma.T) / 2).cpu(), self.count)


def statistics_of(features: Tensor) -> Statistics:
    """Of features (N, F), N >= 2."""
    moments = Moments()
    moments.add(features)
    return moments.statistics()


def _root(sigma: Tensor) -> Tensor:
    """(F, rank) with root @ root.T = sigma; eigenvalues that are nothing but rounding are left out."""
    values, vectors = torch.linalg.eigh(sigma)
    kept = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def frechet(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

    The last trace is the sum of the singular values of root_a.T root_b: symmetric problems only, no matrix root and no complex numbers.
    """
    common = torch.linalg.svdvals(_root(a.sigma).T @ _root(b.sigma)).sum()
    return float((a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * common)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The same of two feature sets (N, F), N >= 2. With fewer images than features their centred products (N, N) take the covariances' place."""
    if max(len(a), len(b)) > a.shape[1]:
        return frechet(statistics_of(a), statistics_of(b))
    a, b = a.double().cpu(), b.double().cpu()
    da, db = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    common = torch.linalg.svdvals(da @ db.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + da.square().sum() + db.square().sum() - 2 * common)


def kernel_distance(a: Tensor, b: Tensor, seed: int, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE) -> tuple[float, float | None]:
    """(mean, standard deviation) over subsets of the unbiased squared MMD of features (N, F) under the kernel (x.y / F + 1)^3, KID
    (Binkowski et al. 2018, arXiv:1801.01401, §4; Gretton et al. 2012, Eq. 3). It may be a little below zero.
    The deviation is None where all subsets are the same: a single one, or one that takes every image of both.

    Raises:
        UsageError: fewer images than a subset takes.
    """
    if min(len(a), len(b)) < size:
        raise UsageError(f"KID takes subsets of {size:,} images, and there are {len(a):,} and {len(b):,}", f"--num-images {size} or more, or leave kid out")
    draws = np.random.RandomState(seed % 2**32)  # the subsets torch-fidelity draws
    found = []
    for _ in range(subsets):
        x = a[torch.from_numpy(draws.choice(len(a), size, replace=False)).to(a.device)]
        y = b[torch.from_numpy(draws.choice(len(b), size, replace=False)).to(b.device)]
        xx, yy, xy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = sum((k.sum(dtype=torch.float64) - k.diagonal().sum(dtype=torch.float64)) / (size * (size - 1)) for k in (xx, yy))
        found.append(within - 2 * xy.sum(dtype=torch.float64) / size**2)
    each = torch.stack([torch.as_tensor(f) for f in found])
    alike = subsets == 1 or size == len(a) == len(b)
    return float(each.mean()), None if alike else float(each.std(correction=0))


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = NEIGHBOURS, chunk: int = 1000) -> tuple[float, float]:
    """(share of generated features (N, F) inside the manifold of real ones (M, F), share of real ones inside the generated ones'), each manifold
    the union of balls that reach to a point's k-th neighbour (Kynkaanniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2, k = 3).

    Raises:
        UsageError: fewer images than a ball needs.
    """
    if min(len(generated), len(real)) <= neighbours:
        raise UsageError(f"precision and recall take at least {neighbours + 1} images, and there are {len(generated)} and {len(real)}")

    def radii(x: Tensor) -> Tensor:
        return torch.cat([torch.cdist(part, x).kthvalue(neighbours + 1).values for part in x.split(chunk)])  # the first is the point itself

    def covered(x: Tensor, by: Tensor) -> float:
        reach = radii(by)
        return float(torch.cat([(torch.cdist(part, by) <= reach).any(1) for part in x.split(chunk)]).double().mean())

    return covered(generated, real), covered(real, generated)


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y|x) || p(y)) over ten splits (one an image where there are fewer), as torch-fidelity computes it (Salimans et al. 2016, arXiv:1606.03498)."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    return float(isc_features_to_metric(logits.cpu(), splits=min(SPLITS, len(logits)))["inception_score_mean"])


def spread(images: Tensor) -> float:
    """Mean over pairs of the root mean square difference of images (N, C, H, W), their diversity; 0 of a single one."""
    flat = images.flatten(1).float()
    return float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5 if len(flat) > 1 else 0.0


# -------------------------------------------------------------------------------------------------------------- statistics files


def read_statistics(path: Path) -> Statistics | None:
    """The mu and sigma of an .npz as pytorch-fid writes it; None where it is no .npz or holds no mu and sigma.

    Raises:
        CheckpointError: they are no mean and covariance.
    """
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if not {"mu.npy", "sigma.npy"} <= set(archive.namelist()):
            return None
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = file["mu"], file["sigma"]
            facts = json.loads(str(file["protocol"])) if "protocol" in file.files else {}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged statistics ({error})", "write it again with --save-stats") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise CheckpointError(f"{path}: mu of shape {mu.shape} and sigma of shape {sigma.shape}; expected floats (F,) and (F, F)")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise CheckpointError(f"{path}: its mu or sigma is not finite")
    facts = facts if isinstance(facts, dict) else {}
    count = facts.get("reference_images")
    found = Statistics(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)), count if isinstance(count, int) else None)
    return Statistics(found.mu, found.sigma, found.count, facts | {"file": str(path), "file_sha256": file_sha256(path)})


def write_statistics(path: Path, statistics: Statistics, protocol: dict[str, Any]) -> None:
    """An .npz with mu and sigma in float64, which pytorch-fid reads, and the protocol as a JSON text.

    Raises:
        GanCompressError: it cannot be written.
    """
    buffer = BytesIO()
    np.savez_compressed(buffer, mu=statistics.mu.numpy(), sigma=statistics.sigma.numpy(), protocol=np.array(json.dumps(protocol)))
    atomic_write(path, buffer.getvalue())
