"""A teacher seen only through its outputs: a recording of ours (``shards.py``) or somebody else's folder, read as shuffled batches."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gancompress import user_module
from gancompress.checkpoint import read_json
from gancompress.data import EXTENSIONS, RECORDED, WHOLE, positions, to_float
from gancompress.errors import MissingError, UsageError
from gancompress.families import FAMILIES
from gancompress.gan import GAN
from gancompress.shards import AGAIN, INDEX, MANIFEST, Array, Pair, Shard, open_shard, read_settings, shard_path
from gancompress.speed import sent

Pairs = tuple[Tensor, Tensor | None, Tensor]


class _Store(Protocol):
    """Where pairs lie. ``fields``: what it tells of an architecture, at least resolution, nc, nz and classes."""

    family: str | None
    fields: dict[str, Any]
    teacher_sha256: str | None
    fingerprint: str
    latents: str

    def __len__(self) -> int: ...

    def drawn(self, i: int) -> tuple[Array, int | None]: ...

    def pair(self, i: int) -> Pair: ...


class _Shards:
    """What ``gancompress collect`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.settings = read_settings(folder)
        self.folder = folder
        self.family: str | None = self.settings.family
        self.fields: dict[str, Any] = self.settings.arch
        self.teacher_sha256: str | None = self.settings.teacher_sha256
        self.latents = self.settings.latents
        here = {p.name for p in folder.glob("shard-*.safetensors")}
        absent = next((name for k in range(self.settings.shards) if (name := shard_path(folder, k).name) not in here), None)
        if absent is not None:
            raise MissingError(f"{folder}: {len(here)} of its {self.settings.shards} shards are there, and {absent} is not", AGAIN)
        try:
            listed = {str(entry["file"]): int(entry["bytes"]) for entry in read_json(folder / INDEX)["shards"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise MissingError(f"{folder / INDEX}: missing or damaged ({error})", AGAIN) from None
        for k in range(self.settings.shards):
            path = shard_path(folder, k)
            if (size := path.stat().st_size) != listed.get(path.name):
                raise MissingError(
                    f"{path}: {size:,} bytes, while {INDEX} says {listed.get(path.name, 0):,}: truncated or changed", f"delete this file and {AGAIN}"
                )
        self.fingerprint = hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        return self.settings.num

    def _place(self, i: int) -> tuple[Shard, int]:
        k, j = divmod(i, self.settings.shard)
        if k not in self._open:
            self._open[k] = open_shard(self.folder, self.settings, k)
        return self._open[k], j

    def drawn(self, i: int) -> tuple[Array, int | None]:
        shard, j = self._place(i)
        return shard.drawn(j)

    def pair(self, i: int) -> Pair:
        shard, j = self._place(i)
        return shard.pair(j)


class _Folder:
    """Images beside noises.npy and labels.npy (or all_noises.npy, all_labels.npy), row for row.

    Images that are called by whole numbers belong to the row of that number (TinyGAN's layout), others to the rows in the order of their names.
    """

    family: str | None = None
    teacher_sha256: str | None = None
    latents = "as somebody else drew them"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        noises = _array(folder, "noises")
        if noises is None:
            raise MissingError(
                f"{folder}: neither a recording ({MANIFEST}) nor images with their latents (noises.npy)",
                "gancompress collect TEACHER --out DIR records a teacher",
            )
        if noises.ndim < 2 or noises.dtype.kind != "f" or not noises.size or noises.size != len(noises) * noises.shape[1]:
            raise UsageError(f"{folder}: noises.npy of shape {noises.shape} and type {noises.dtype}; expected floats (N, nz)")
        self.noises = noises.reshape(len(noises), -1)
        found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
        if found and all(Path(name).stem.isdecimal() for name in found):
            found.sort(key=lambda name: int(Path(name).stem))
            if wrong := next(((i, name) for i, name in enumerate(found) if int(Path(name).stem) != i), None):
                raise UsageError(f"{folder}: images are called by their row, from 0; in the place of {wrong[0]} there is {wrong[1]}")
        self.names = np.array([os.fsencode(name) for name in found])  # a quarter of what a list of str takes
        self._check_rows("noises.npy", len(self.noises))
        self.labels = self._labels()
        first = self._picture(0)
        self.fields: dict[str, Any] = {"resolution": first.shape[1], "nc": first.shape[0], "nz": self.noises.shape[1]}
        self.fields["classes"] = 0 if self.labels is None else int(self.labels.max()) + 1
        digest = hashlib.sha256(np.ascontiguousarray(self.noises).data)
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        for name in found:
            digest.update(f"{name}:{(folder / name).stat().st_size}\n".encode(errors="surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def _check_rows(self, name: str, rows: int) -> None:
        if rows != len(self):
            first = f"row {len(self)} has no image" if rows > len(self) else f"{os.fsdecode(self.names[rows])} has no row"
            raise UsageError(f"{self.folder}: {len(self):,} images and {rows:,} rows in {name}; {first}")

    def _labels(self) -> Array | None:
        labels = _array(self.folder, "labels")
        if labels is None:
            return None
        if labels.dtype.kind not in "iu" or labels.size != len(labels) or int(labels.min()) < 0:
            raise UsageError(f"{self.folder}: labels.npy of shape {labels.shape} and type {labels.dtype}; expected whole numbers (N,) from 0")
        self._check_rows("labels.npy", len(labels))
        return labels.reshape(-1).astype(np.int64)

    def _picture(self, i: int) -> Array:
        name = os.fsdecode(self.names[i])
        try:
            with Image.open(self.folder / name) as picture:
                grey = self.fields["nc"] == 1 if i else picture.mode in ("1", "L", "LA")
                pixels = np.asarray(picture.convert("L" if grey else "RGB"))
        except Exception as error:  # what a damaged file makes of a decoder is beyond listing
            raise MissingError(f"{self.folder / name}: not a readable image ({error})", "its latents have no other; replace it") from None
        return pixels[None] if grey else pixels.transpose(2, 0, 1)

    def pair(self, i: int) -> Pair:
        image, side = self._picture(i), self.fields["resolution"]
        if image.shape[1:] != (side, side):
            name = os.fsdecode(self.names[i])
            raise UsageError(f"{self.folder / name}: {image.shape[2]} x {image.shape[1]} pixels, expected {side} x {side} as of the first image")
        return *self.drawn(i), image

    def drawn(self, i: int) -> tuple[Array, int | None]:
        return self.noises[i], None if self.labels is None else int(self.labels[i])


def _array(folder: Path, name: str) -> Array | None:
    """name.npy or all_name.npy of a folder, mapped into memory; None where there is none."""
    for path in (folder / f"{name}.npy", folder / f"all_{name}.npy"):
        if path.is_file():
            try:
                found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise MissingError(f"{path}: truncated, or not a plain array file ({error})") from None
            if not found.ndim or not found.size:
                raise UsageError(f"{path}: an empty array")
            return found
    return None


class Recorded:
    """A recorded teacher: pairs of latents, label and image.

    ``family`` and ``fields`` tell its architecture: all of it where ``gancompress collect`` recorded it, else family None and resolution,
    nc, nz and classes alone.

    Raises:
        MissingError: nothing there, damaged, or not recorded to its end; the file is named.
        UsageError: images and rows that do not fit; the first that does not is named.
    """

    def __init__(self, source: str) -> None:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise MissingError(f"{source}: no such directory", "--recorded takes what gancompress collect wrote, or a folder of images with noises.npy")
        self.source = source
        self._store: _Store = _Shards(folder) if (folder / MANIFEST).is_file() else _Folder(folder)
        self.family, self.fields = self._store.family, self._store.fields
        self.teacher_sha256, self.fingerprint = self._store.teacher_sha256, self._store.fingerprint
        self.latents = self._store.latents
        self[torch.tensor([0])]

    def __len__(self) -> int:
        return len(self._store)

    def drawn(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents (N, nz) float32 or images that were translated, in [-1, 1], and labels (N,) or None; no image of the teacher's is read."""
        found = [self._store.drawn(i) for i in indices.tolist()]
        labels = [label for _, label in found if label is not None]
        return _stacked([z for z, _ in found]), torch.tensor(labels) if labels else None

    def __getitem__(self, indices: Tensor) -> Pairs:
        """Inputs as ``drawn``, labels (N,) or None, images (N, C, R, R) as uint8 or float16; on the CPU."""
        pairs = [self._store.pair(i) for i in indices.tolist()]
        labels = [label for _, label, _ in pairs if label is not None]
        return _stacked([z for z, _, _ in pairs]), torch.tensor(labels) if labels else None, torch.from_numpy(np.stack([image for _, _, image in pairs]))


def _stacked(inputs: list[Array]) -> Tensor:
    """Latents as they are, 8-bit images in [-1, 1]."""
    found = np.stack(inputs)
    return to_float(torch.from_numpy(found)) if found.dtype == np.uint8 else torch.from_numpy(found.astype(np.float32))


class Unknown(nn.Module):
    """Stands for a generator of which nothing is known but its images."""

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        raise UsageError("the recorded teacher's network is not known, so nothing can be said of its size", "--ch-mul, or --target-params N")


class RecordedTeacher(GAN):
    """A recording in the place of a teacher: its shapes, latents and labels, and no weights.

    Raises:
        MissingError: the manifest's architecture is none of ours.
    """

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        what = "latents" if recorded.fields["nz"] else "inputs"
        self.told = f"{len(recorded):,} pairs of {recorded.source} stand in for the teacher; their {what} are {recorded.latents}"
        try:
            if recorded.family is None or recorded.family == user_module.FAMILY.name:
                super().__init__(user_module.FAMILY, user_module.Arch(**recorded.fields), Unknown(), source=recorded.source)
                return
            family = FAMILIES[recorded.family]
            arch = family.build_arch(None, recorded.fields)
            with torch.device("meta"):  # no memory is taken
                super().__init__(family, arch, family.generator(arch), source=recorded.source)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError, UsageError) as error:
            raise MissingError(f"{recorded.source}: {MANIFEST}: damaged, or of another version ({error})") from None
        self.inputs = None if arch.nz else lambda n, rng: self.sample(n, rng)[0]
        self.freeze()

    def to(self, device: torch.device | str) -> GAN:
        return self

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n recorded latents and labels, or images that were translated, drawn with replacement."""
        return self.recorded.drawn(torch.randint(len(self.recorded), (n,), generator=rng))

    def sha256(self) -> str:
        """Of what is recorded."""
        return self.recorded.fingerprint


class Feed:
    """A recorded teacher as batches for a device, shuffled anew in each epoch; what comes next is decoded by threads ahead of time.

    Feeds of another ``stream`` have another order. ``kept``: as many of the last batches stay, to be taken once more.
    """

    def __init__(self, recorded: Recorded, seed: int, stream: int, device: torch.device, kept: int = 1) -> None:
        self.recorded, self.seed, self.stream, self.device, self.kept = recorded, seed, stream, device, kept
        self._workers = min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers, "recorded")
        self._windows: dict[tuple[int, int, int, tuple[int, int]], Future[Pairs]] = {}

    def take(self, start: int, count: int, attempt: int = 0, share: tuple[int, int] = WHOLE) -> Pairs:
        """Latents (N, nz), labels (N,) or None, images (N, C, R, R) in [-1, 1], on the device: places start ... of an endless sequence of epochs.

        Another ``attempt`` takes the same pairs in another order; ``share`` (r, n): only the r-th of them, the (r + n)-th and so on.
        """
        # back by what may be taken again, forward by what was begun before such a step back
        near = {(start + i * count, count, attempt, share) for i in range(-self.kept, self.kept + self._workers + 1)}
        for window in self._windows.keys() - near:
            self._windows.pop(window).cancel()
        for i in range(self._workers + 1):
            if (window := (start + i * count, count, attempt, share)) not in self._windows:
                self._windows[window] = self._pool.submit(self._read, *window)
        inputs, labels, images = self._windows[start, count, attempt, share].result()
        images = images.to(self.device, non_blocking=True)
        images = to_float(images) if images.dtype == torch.uint8 else images.float()
        return sent(inputs, self.device), None if labels is None else sent(labels, self.device), images

    def _read(self, start: int, count: int, attempt: int, share: tuple[int, int]) -> Pairs:
        places = positions(start, count, len(self.recorded), self.seed, attempt, RECORDED, self.stream)
        inputs, labels, images = self.recorded[places[share[0] :: share[1]]]
        return inputs, labels, images.pin_memory() if self.device.type == "cuda" else images
