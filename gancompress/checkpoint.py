"""Writes what a run leaves: networks as self-describing safetensors, and its own state. Every write is whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from gancompress.errors import CheckpointError, GanCompressError
from gancompress.gan import Family, Part

METADATA_KEY = "gancompress"
FORMAT_VERSION = 1
#: bytes of sha256 behind a state: torch itself reads most flipped bits without a word
DIGEST = 32


def unused(wanted: Path) -> Path:
    """``wanted``, or wanted-2, wanted-3 ... (before the suffix) where there is something already."""
    path, n = wanted, 1
    while path.exists():
        n += 1
        path = wanted.with_name(f"{wanted.stem}-{n}{wanted.suffix}")
    return path


def atomic_write(path: Path, data: bytes, keep: Path | None = None) -> None:
    """Write a file so that at every moment it is either the old one or the new one, whole.

    Args:
        keep: where the old one goes; a process killed between the two renames leaves it there alone.

    Raises:
        GanCompressError: disk full or not writable; the old file is intact and no partial file is left.
    """
    _atomically(path, len(data), lambda partial: _write(partial, data), keep)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def _atomically(path: Path, size: int, write: Callable[[Path], None], keep: Path | None = None) -> None:
    """``write`` a file of ``size`` bytes beside ``path``, bring it to the disk and put it in its place."""
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(partial)
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)  # safetensors keeps its files to their owner
        for place in (partial, path.parent):
            handle = os.open(place, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            if place == partial:
                if keep and path.is_file():
                    path.replace(keep)
                partial.replace(path)
    except BaseException as error:  # a signal too: nothing half-written is left
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, (OSError, SafetensorError)):
            raise write_failure(path, size, error) from None
        raise


def write_failure(path: Path, size: int, error: Exception) -> GanCompressError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "os error 28" in str(error):  # safetensors gives the number in words
        return GanCompressError(f"{path}: disk full while writing {size:,} bytes; what was there before is intact", "free some space and run it again")
    return GanCompressError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})", "choose another directory with --out")


def read_json(path: Path, most: int = 1 << 26) -> Any:
    """What a JSON file holds that anybody may have written.

    Raises:
        ValueError: no file of its own (a pipe, a device), of more than ``most`` bytes, or no JSON. OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file of its own")
    if path.stat().st_size > most:
        raise ValueError(f"more than {most:,} bytes")
    try:
        return json.loads(path.read_text())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_json(path: Path, content: Any) -> None:
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def save_networks(path: Path, family: Family, arch: Any, networks: dict[Part, nn.Module], facts: dict[str, Any], dtype: torch.dtype | None = None) -> None:
    """One safetensors file with the networks' weights and, in its metadata, all it takes to rebuild them. Tied weights are written apart.

    Args:
        facts: further JSON-able entries of the metadata (recipe, teacher's hash).
        dtype: of floating-point tensors; None keeps them.
    """
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for part, net in networks.items():
        for key, tensor in net.state_dict().items():
            tensor = tensor.detach().cpu()
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            tensor = tensor.contiguous()
            if (address := tensor.untyped_storage().data_ptr()) in memory:  # safetensors takes no tensor twice
                tensor = tensor.clone()
            memory.add(address)
            tensors[f"{part}.{key}"] = tensor
    described = {"format": FORMAT_VERSION, "family": family.name, "arch": dataclasses.asdict(arch), "output_range": [-1, 1], **facts}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(described, sort_keys=True)}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    _atomically(path, size, lambda partial: save_file(tensors, partial, metadata))


def previous(path: Path) -> Path:
    """Where the state before the newest lies."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """The run's state and its hash, atomically; the one before it is kept. It is held to types that torch.load(weights_only=True) takes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    atomic_write(path, data + hashlib.sha256(data).digest(), keep=previous(path))


def has_state(path: Path) -> bool:
    return path.is_file() or previous(path).is_file()


def load_state(path: Path) -> dict[str, Any]:
    """One state as it was saved.

    Raises:
        CheckpointError: it is damaged, be it by one bit.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
            raise ValueError("its hash is another")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: the run's state is damaged ({str(error)[:100]})", "start it anew in another --out") from None
    return state


def newest_state(path: Path) -> tuple[dict[str, Any], str]:
    """(the newest whole state of a run, what is worth telling). A damaged one is put aside, so that the next save does not keep it.

    Raises:
        CheckpointError: neither the newest nor the one before it is whole.
    """
    said = ""
    if path.is_file():
        try:
            return load_state(path), ""
        except CheckpointError as error:
            if not previous(path).is_file():
                raise
            said = f"{error}; the one before it is taken"
    state = load_state(previous(path))
    if said:
        path.replace(path.with_name(f"{path.stem}.damaged{path.suffix}"))
    return state, said
