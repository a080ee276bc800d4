"""A network as files that load anywhere, checked against the source: a student's model.safetensors and config.json, a whole teacher's one file."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from gancompress.checkpoint import FORMAT_VERSION, save_networks, write_failure, write_json
from gancompress.data import EVALUATION, draw, rng
from gancompress.errors import CheckpointError, ParityError, UsageError
from gancompress.gan import GAN
from gancompress.loading import load_gan

#: largest difference of a pixel in [-1, 1] that an export may show
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def fixed_images(gan: GAN) -> torch.Tensor:
    """Images of 16 fixed latents."""
    return draw(gan, *gan.sample(16, rng(0, EVALUATION)), torch.device("cpu"))


def convert(source: str, out: str | Path, *, discriminator: str | None = None, reader_options: dict[str, Any] | None = None) -> Path:
    """Write any source's generator (the averaged one where there is one) and discriminator into one self-describing safetensors file.

    Its metadata names the source and its sha256 (over names, shapes and values of all tensors as they are loaded, ``GAN.sha256``).

    Raises:
        UsageError: ``out`` exists or does not end in .safetensors. ParityError: what was written does not load as what was read;
            nothing is left. GanCompressError: the source cannot be loaded or the file not written.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: the name of a converted file ends in .safetensors")
    if target.exists():
        raise UsageError(f"{target} exists already", "choose another name")
    gan = load_gan(source, discriminator=discriminator, options=reader_options)
    if gan.family.name == "module":
        raise UsageError(f"{source}: a module of your own is saved by your own code")
    name, sha256 = Path(source).name if Path(source).exists() else source, gan.sha256()
    save_networks(target, gan.family, gan.arch, gan.networks, {"source": name, "source_sha256": sha256})
    again = load_gan(str(target))
    if again.arch != gan.arch or again.sha256() != sha256:
        target.unlink()
        raise ParityError(f"{source}: what was written does not load as what was read; nothing was written")
    return target


def export(source: str, out: str | Path, dtype: str = "float32", reader_options: dict[str, Any] | None = None) -> Path:
    """Write ``out``/model.safetensors and ``out``/config.json of any source's generator; returns the directory.

    Raises:
        UsageError: an unknown dtype or a directory with other files in it. ParityError: the written file does not give the
            source's images; nothing is left.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: expected {' or '.join(DTYPES)}")
    gan, folder = load_gan(source, options=reader_options), Path(out)
    if gan.family.name == "module":
        raise UsageError(f"{source}: a module of your own is exported by your own code")
    ours = {"model.safetensors", "config.json"}
    if folder.exists() and (not folder.is_dir() or any(p.name not in ours for p in folder.iterdir())):
        raise UsageError(f"{folder} is not an empty directory", "choose another --out")
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))  # a name nobody has
    except OSError as error:
        raise write_failure(folder, 0, error) from None
    try:
        save_networks(partial / "model.safetensors", gan.family, gan.arch, {"generator": gan.generator}, {}, DTYPES[dtype])
        family, arch, expected = gan.family.name, gan.arch, fixed_images(gan)
        del gan  # one of the two networks in memory is enough
        try:
            difference = float((fixed_images(load_gan(str(partial / "model.safetensors"))) - expected).abs().max())
        except CheckpointError as error:  # a number too large for float16 became infinite
            raise ParityError(f"{source} as {dtype}: it cannot be loaded again ({error}); nothing was written") from None
        if not difference <= TOLERANCE[DTYPES[dtype]]:
            raise ParityError(f"{source} as {dtype}: pixels differ by up to {difference:.2g}, more than {TOLERANCE[DTYPES[dtype]]:g}; nothing was written")
        config = {
            "library": "gancompress",
            "format": FORMAT_VERSION,
            "family": family,
            "arch": dataclasses.asdict(arch),
            "dtype": dtype,
            "output_range": [-1, 1],
            "latent": "standard normal",
            "parity_max_difference": difference,
        }
        write_json(partial / "config.json", config)
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(ours):
            (partial / name).replace(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
