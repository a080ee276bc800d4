"""What an exported network is, in words and numbers that need no code of ours: the content of config.json and of every file's metadata."""

from __future__ import annotations

import dataclasses
from typing import Any

from gancompress.checkpoint import FORMAT_VERSION
from gancompress.gan import GAN

#: entries of a student's own metadata that its exports carry on
CARRIED = ("recipe", "loss", "kimg", "seed", "teacher_sha256", "source", "source_sha256", "licence", "class_names")


def latent_words(arch: Any) -> str:
    """The distribution that inputs are drawn from, in words."""
    if not arch.nz:
        return "images in [-1, 1]"
    bound = getattr(arch, "truncation", 0.0)
    if hasattr(arch, "w_dim") or not bound:  # a StyleGAN's truncation is of w, inside the network
        return "standard normal"
    if getattr(arch, "latents", "normal") == "scaled":
        return f"{bound:g} times a standard normal whose values beyond [-2, 2] are drawn again"
    return f"standard normal whose values beyond [-{bound:g}, {bound:g}] are drawn again"


def _inputs(arch: Any) -> list[dict[str, Any]]:
    images = not arch.nz
    shape = ["batch", arch.nc_in, arch.resolution, arch.resolution] if images else ["batch", arch.nz]
    first = {"name": "inputs" if images else "latents", "shape": shape, "dtype": "float32", "distribution": latent_words(arch)}
    labels = {"name": "labels", "shape": ["batch"], "dtype": "int64", "range": [0, arch.classes - 1]}
    return [first, *([labels] if arch.classes else [])]


def describe(gan: GAN, metadata: dict[str, Any]) -> dict[str, Any]:
    """Family, architecture, inputs, output, where it is from and under which licence; what is not known is null.

    Args:
        metadata: of the file that the network was read from.
    """
    arch = gan.arch
    bounded = not hasattr(arch, "w_dim") and getattr(arch, "output", "tanh") == "tanh"
    facts: dict[str, Any] = {
        "library": "gancompress",
        "format": FORMAT_VERSION,
        "family": gan.family.name,
        "arch": dataclasses.asdict(arch),
        "inputs": _inputs(arch),
        "latent": latent_words(arch),
        "output": {"name": "images", "shape": ["batch", arch.nc, arch.resolution, arch.resolution], "dtype": "float32", "bounded": bounded},
        "output_range": [-1, 1],
        "classes": arch.classes,
        "mean_w": {"tensor": "generator.mapping.w_avg", "truncation": arch.truncation} if hasattr(arch, "w_dim") else None,
        "sha256": gan.sha256(),
    }
    return facts | {name: metadata.get(name) for name in CARRIED}
