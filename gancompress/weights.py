"""Weights that measuring needs and no package ships: where they lie, what they must hash to, and how they are got."""

from __future__ import annotations

import hashlib
import os
import urllib.error
from dataclasses import dataclass
from pathlib import Path

import torch

from gancompress.errors import CheckpointError, MissingError


@dataclass(frozen=True)
class Weights:
    """A published file. ``sha256``: as many of its first digits as were published; ``needed_by``: what cannot be measured without it."""

    url: str
    sha256: str
    megabytes: int
    needed_by: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def cached(self) -> Path:
        """Its place in torch's cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


_RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
INCEPTION = Weights(_RELEASE + "weights-inception-2015-12-05-6726825d.pth", "6726825d", 91, "FID")
LPIPS = Weights(_RELEASE + "weights-vgg16-lpips.pth", "a78928a0af1e5f0f", 1, "LPIPS")
VGG16 = Weights("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af", 528, "LPIPS")


def file_sha256(path: Path) -> str:
    """sha256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check(path: Path, weights: Weights) -> str:
    """The sha256 of a file that is to be ``weights``.

    Raises:
        CheckpointError: it is another file.
    """
    found = file_sha256(path)
    if not found.startswith(weights.sha256):
        digits = len(weights.sha256)
        raise CheckpointError(f"{path}: its sha256 begins {found[:digits]}, that of {weights.file} with {weights.sha256}", "delete it and get it again")
    return found


def fetch(weights: Weights, remedy: str = "") -> Path:
    """The file in torch's cache, downloaded into it where it is not there.

    Raises:
        MissingError: not there and not to be had; the message says which file, its hash and where to put it. ``remedy`` is said besides.
    """
    cached = weights.cached
    if cached.is_file():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(cached), hash_prefix=weights.sha256, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise MissingError(
            f"{weights.needed_by} needs {weights.file} ({weights.megabytes} MB, sha256 {weights.sha256}...), which cannot be downloaded here ({error})",
            f"get it from {weights.url} and put it into {cached.parent}{os.sep}" + (f", or {remedy}" if remedy else ""),
        ) from None
    return cached


def fetch_all() -> list[Path]:
    """Every file, downloaded where it is not there and checked.

    Raises:
        MissingError: one that is not to be had. CheckpointError: one that is there and is another file.
    """
    paths = []
    for weights in (INCEPTION, LPIPS, VGG16):
        paths.append(fetch(weights))
        check(paths[-1], weights)
    return paths
