"""What generated images are held against: real images, a teacher's samples, or a statistics file; and the cache of their features."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gancompress import distributed as ranks
from gancompress.checkpoint import atomic_write
from gancompress.data import EVALUATION, Images, positions, to_float
from gancompress.distances import Statistics
from gancompress.errors import GanCompressError, UsageError
from gancompress.extractors import Extractor
from gancompress.families import FAMILIES
from gancompress.fidelity import QUANTISATION, SAMPLING, collect, generated
from gancompress.gan import GAN

#: features of more than so many bytes are not kept on disk; their statistics are
LARGEST = 1 << 30


@dataclass
class Reference:
    """Statistics of a reference, its features (N, F) where they were asked for and are there, and what a protocol says of it."""

    statistics: Statistics
    features: Tensor | None
    protocol: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def cache_folder() -> Path:
    """Beside torch's own downloads."""
    return Path(torch.hub.get_dir()) / "gancompress"


def check_sizes(gan: GAN, images: Images | None, other: GAN | None) -> None:
    """Raises UsageError: images of another size or other channels than those they are to be compared with."""
    arch = gan.arch
    if images is not None and (images.resolution, images.nc) != (arch.resolution, arch.nc):
        raise UsageError(
            f"{images.source}: images of {images.nc} channels, {images.resolution} x {images.resolution}; {gan.source} makes {arch.nc} channels, "
            f"{arch.resolution} x {arch.resolution}",
            "Images(source, resolution, nc) reads them at the generator's size",
        )
    if other is not None and (other.arch.resolution, other.arch.nc) != (arch.resolution, arch.nc):
        raise UsageError(
            f"{other.source} makes {other.arch.nc} channels, {other.arch.resolution} x {other.arch.resolution}; {gan.source} {arch.nc} channels, "
            f"{arch.resolution} x {arch.resolution}: distances of images of different sizes are not comparable",
            "measure one of them at a time, without --against",
        )


def of_statistics(statistics: Statistics, gan: GAN, extractor: Extractor, device: torch.device) -> Reference:
    """A statistics file as a reference.

    Raises:
        UsageError: of another dimension than the extractor's features, or made with other weights.
    """
    source = str(statistics.facts.get("file"))
    blank = torch.zeros(1, gan.arch.nc, gan.arch.resolution, gan.arch.resolution, dtype=torch.uint8, device=device)
    have = extractor(blank)[0].shape[1]
    if len(statistics.mu) != have:
        raise UsageError(
            f"{source}: statistics of {len(statistics.mu)} features, and {extractor.name} has {have}", "--feature-extractor of the kind it was made with"
        )
    for key, mine in (("extractor", extractor.name), ("weights_sha256", extractor.weights_sha256), ("resize", extractor.resize)):
        if (theirs := statistics.facts.get(key, mine)) != mine:
            raise UsageError(f"{source}: statistics made with {key} {theirs}, not {mine}", "--feature-extractor of the kind it was made with")
    said = {"reference": source, "reference_sha256": statistics.facts.get("reference_sha256", statistics.facts.get("file_sha256"))}
    said |= {"reference_images": statistics.count, "reference_resize": statistics.facts.get("reference_resize")}
    return Reference(statistics, None, said)


def of_images(
    images: Images, num: int, extractor: Extractor, seed: int, device: torch.device, batch_size: int, *, features: bool, cache: Path | None
) -> Reference:
    """``num`` real images (or as many as there are), chosen by the seed."""
    chosen = positions(0, min(num, len(images)), len(images), seed, EVALUATION)
    said = {"reference": images.source, "reference_sha256": images.fingerprint, "reference_images": len(chosen)}
    said["reference_resize"] = f"central square, Lanczos to {images.resolution} x {images.resolution}"
    notes = []
    stored = images.size(0)
    if stored is not None and stored != (images.resolution, images.resolution):
        notes.append(f"reference images are {stored[0]} x {stored[1]}: {said['reference_resize']}")
    batches = (to_float(images[part][0].to(device)) for part in ranks.dealt(chosen.split(batch_size)))
    key = said | {"reference": None, "seed": seed if num < len(images) else None, "channels": images.nc, "files": _stamps(images)}
    return _cached(key, said, batches, extractor, features, cache, notes)


def _stamps(images: Images) -> str | None:
    """Of a folder, whose fingerprint holds names and sizes alone: a hash of when its files were last written."""
    folder = Path(images.source).expanduser()
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def of_teacher(
    teacher: GAN, num: int, extractor: Extractor, seed: int, device: torch.device, batch_size: int, *, features: bool, cache: Path | None
) -> Reference:
    """``num`` samples of a teacher, of other latents than those of ``seed``, so that its distance to itself is a floor and not zero."""
    said = {"reference": "the teacher's samples", "reference_sha256": teacher.sha256(), "reference_images": num}
    if teacher.inputs is not None or FAMILIES.get(teacher.family.name) is not teacher.family:
        cache = None  # what it makes depends on more than its weights
    key = said | {"seed": seed + 1, "sampling": SAMPLING, "family": teacher.family.name, "arch": dataclasses.asdict(teacher.arch)}
    return _cached(key, said, generated(teacher, num, seed + 1, device, batch_size, dealt=True), extractor, features, cache, [])


def _cached(key: dict[str, Any], said: dict[str, Any], batches: Any, extractor: Extractor, features: bool, cache: Path | None, notes: list[str]) -> Reference:
    facts = {"extractor": extractor.name, "weights": extractor.weights_sha256, "resize": extractor.resize, "quantisation": QUANTISATION, "features": features}
    path = cache / f"{hashlib.sha256(json.dumps([1, facts, key], sort_keys=True).encode()).hexdigest()}.safetensors" if cache else None
    if path is not None and (known := ranks.on_first(lambda: _load(path, features))) is not None:
        return Reference(*known, said, notes)
    found = collect(batches, extractor, features=features, moments=True, dealt=True)
    assert found.moments is not None
    fresh, statistics = found.features, found.moments.statistics()
    reference = Reference(statistics, fresh, said, notes)
    if ranks.rank():
        return reference
    if path is not None and (fresh is None or fresh.numel() * 4 <= LARGEST):
        kept = {"mu": statistics.mu, "sigma": statistics.sigma} | ({} if fresh is None else {"features": fresh})
        try:
            atomic_write(path, save({name: t.contiguous() for name, t in kept.items()}, {"count": str(statistics.count)}))
        except GanCompressError as error:
            reference.notes.append(f"the reference's features are not kept for the next time: {error}")
    return reference


def _load(path: Path, features: bool) -> tuple[Statistics, Tensor | None] | None:
    """What a cache file holds; None where there is none, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            count = int(file.metadata()["count"])
            statistics = Statistics(file.get_tensor("mu"), file.get_tensor("sigma"), count)
            return statistics, file.get_tensor("features") if features else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
