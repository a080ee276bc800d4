"""The files of a recorded teacher: what a manifest fixes, how an image is kept, how a shard is read.

A recording is a folder: ``manifest.json`` (what is recorded), ``shard-NNNNNN.safetensors`` (each whole or absent) and ``index.json``, written
last. A shard has the tensors inputs (n, nz) float32, labels (n,) int64 (of a conditional teacher), images uint8 (the encoded images one after
the other), offsets (n + 1,) and crc (n,), the checksum of each pair.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gancompress.checkpoint import read_json
from gancompress.errors import MissingError, UsageError

MANIFEST, INDEX = "manifest.json", "index.json"
AGAIN = "run the same gancompress collect again: it records what is missing"
ImageFormat = Literal["png", "webp-lossless", "float16"]
Array = np.ndarray[Any, Any]
Pair = tuple[Array, int | None, Array]  # latents (nz,), label, image (C, R, R) as uint8 or float16


class Settings(BaseModel):
    """All that decides what a recording holds: two of the same settings are the same recording."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    teacher_sha256: str
    family: str
    arch: dict[str, Any]
    #: the law of the latents in words, and the factor T of T * (a normal within 2), where it is that law
    latents: str
    truncation: float | None
    #: of a conditional teacher, such as "0-9,17"; "" of an unconditional one
    classes: str
    per_class: int | None
    seed: int = Field(ge=0)
    num: int = Field(ge=1)
    format: ImageFormat
    image_range: tuple[float, float] = (-1.0, 1.0)
    shard: int = Field(ge=1)

    @property
    def shards(self) -> int:
        return -(-self.num // self.shard)

    def pairs_of(self, k: int) -> range:
        """The pairs of shard k."""
        return range(k * self.shard, min((k + 1) * self.shard, self.num))

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def shard_path(folder: Path, k: int) -> Path:
    return folder / f"shard-{k:06d}.safetensors"


def shard_name(settings: Settings, k: int) -> str:
    """What a shard says of itself: in one entry, for safetensors writes several in no fixed order."""
    return f"{k} of {settings.digest()}"


def read_settings(folder: Path) -> Settings:
    """Of the manifest of a recording.

    Raises:
        MissingError: it is damaged, or of another version.
    """
    try:
        settings = Settings.model_validate(read_json(folder / MANIFEST)["settings"])
        if not all(type(settings.arch.get(k)) is int and settings.arch[k] >= least for k, least in (("resolution", 1), ("nc", 1), ("nz", 1), ("classes", 0))):
            raise ValueError("no resolution, nc, nz and classes in its architecture")
    except ValidationError as error:
        first = error.errors()[0]
        raise MissingError(f"{folder / MANIFEST}: damaged, or of another version ({'.'.join(map(str, first['loc']))}: {first['msg']})") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MissingError(f"{folder / MANIFEST}: damaged ({error})") from None
    return settings


# ---------------------------------------------------------------------------------------------------------------------- images


def encode(image: Array, kind: ImageFormat) -> bytes:
    """(C, H, W) uint8, or float16 for that format, as bytes that give it back exactly."""
    if kind == "float16":
        return image.astype("<f2").tobytes()
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG")
    else:
        picture.convert("RGB").save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def decode(data: bytes, kind: ImageFormat, shape: tuple[int, int, int]) -> Array:
    """The inverse of ``encode``.

    Raises:
        ValueError, OSError: no such image.
    """
    if kind == "float16":
        return np.frombuffer(data, "<f2").astype(np.float16).reshape(shape)
    with Image.open(io.BytesIO(data), formats=["PNG", "WEBP"]) as picture:
        if picture.size != (shape[2], shape[1]):
            raise ValueError(f"{picture.width} x {picture.height} pixels")
        pixels = np.asarray(picture.convert("RGB" if shape[0] == 3 else "L"))
    return pixels.reshape(shape[1], shape[2], shape[0]).transpose(2, 0, 1)


# ---------------------------------------------------------------------------------------------------------------------- shards


def checksum(inputs: Array, label: int | None, image: bytes) -> int:
    """Of one pair, whatever part of it is damaged."""
    return zlib.crc32(image, zlib.crc32(inputs.astype("<f4").tobytes() + (b"" if label is None else label.to_bytes(8, "little", signed=True))))


@dataclass(frozen=True)
class Shard:
    """One file, mapped into memory."""

    path: Path
    settings: Settings
    inputs: Array
    labels: Array | None
    images: Array
    offsets: Array
    crc: Array

    def drawn(self, j: int) -> tuple[Array, int | None]:
        """Latents and label of the j-th pair, whose image is not looked at.

        Raises:
            MissingError: a label of no class.
        """
        label, classes = None if self.labels is None else int(self.labels[j]), self.settings.arch["classes"]
        if label is not None and not 0 <= label < classes:
            raise MissingError(f"{self.path}: its pair {j} is damaged (label {label} of {classes} classes)", f"delete this file and {AGAIN}")
        return self.inputs[j], label

    def pair(self, j: int) -> Pair:
        """The j-th pair of this file.

        Raises:
            MissingError: it is damaged.
        """
        arch = self.settings.arch
        z, label = self.drawn(j)
        data = self.images[self.offsets[j] : self.offsets[j + 1]].tobytes()
        try:
            if checksum(z, label, data) != int(self.crc[j]):
                raise ValueError("another checksum")
            image = decode(data, self.settings.format, (arch["nc"], arch["resolution"], arch["resolution"]))
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise MissingError(f"{self.path}: its pair {j} is damaged ({error})", f"delete this file and {AGAIN}") from None
        return z, label, image


def open_shard(folder: Path, settings: Settings, k: int) -> Shard:
    """Shard k of a recording; its images are not looked at.

    Raises:
        MissingError: it is absent, truncated, or of another recording.
    """
    path, n = shard_path(folder, k), len(settings.pairs_of(k))
    try:
        with safe_open(path, "pt") as file:  # tensors are views of the mapped file
            told = file.metadata() or {}
            found = {key: file.get_tensor(key).numpy() for key in file.keys()}  # noqa: SIM118 it is no dict
    except FileNotFoundError:
        raise MissingError(f"{path}: missing", AGAIN) from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise MissingError(f"{path}: truncated or damaged ({error})", f"delete this file and {AGAIN}") from None
    if told.get("shard") != shard_name(settings, k):
        raise MissingError(f"{path}: not shard {k} of this recording, by what it says of itself", f"delete this file and {AGAIN}")
    expected = {"inputs": ((n, settings.arch["nz"]), "float32"), "offsets": ((n + 1,), "int64"), "crc": ((n,), "int64")}
    expected |= {"labels": ((n,), "int64")} if settings.classes else {}
    expected["images"] = (found["images"].shape[:1] if "images" in found else (0,), "uint8")
    if {key: (array.shape, str(array.dtype)) for key, array in found.items()} != expected:
        raise MissingError(f"{path}: its arrays are not those of {n} pairs", f"delete this file and {AGAIN}")
    return Shard(path, settings, found["inputs"], found.get("labels"), found["images"], found["offsets"], found["crc"])


def pack(settings: Settings, k: int, inputs: list[Array], labels: list[int], images: list[bytes]) -> bytes:
    """Shard k as a file's content; ``labels`` is empty for an unconditional teacher."""
    crc = [checksum(z, labels[j] if labels else None, image) for j, (z, image) in enumerate(zip(inputs, images, strict=True))]
    arrays = {
        "inputs": np.stack(inputs),
        "images": np.frombuffer(b"".join(images), np.uint8),
        "offsets": np.cumsum([0, *map(len, images)], dtype=np.int64),
        "crc": np.array(crc, np.int64),
    } | ({"labels": np.array(labels, np.int64)} if labels else {})
    return save(arrays, {"shard": shard_name(settings, k)})


def index_of(folder: Path, settings: Settings) -> dict[str, Any]:
    """Counts, and the size and checksum of every shard of a recording that is whole."""
    shards, counts = [], np.zeros(settings.arch["classes"], np.int64)
    for k in range(settings.shards):
        shard = open_shard(folder, settings, k)
        if shard.labels is not None:
            counts += np.bincount(shard.labels, minlength=len(counts))
        shards.append({"file": shard.path.name, "pairs": len(shard.crc), "bytes": shard.path.stat().st_size, "crc": zlib.crc32(shard.crc.tobytes())})
    return {"pairs": settings.num, "per_class": {str(c): int(n) for c, n in enumerate(counts) if n}, "shards": shards}


def parse_classes(text: str, classes: int) -> list[int]:
    """``3,7-9`` -> [3, 7, 8, 9].

    Raises:
        UsageError: it is no such list, or a class is not below ``classes``.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if high < low:
            raise UsageError(f"--classes {text}: {part.strip()!r} is no class and no range; expected such as 3,7-9")
        if high >= classes:
            raise UsageError(f"--classes {text}: there is no class {high}; this network has " + (f"0 ... {classes - 1}" if classes else "none"))
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def classes_text(chosen: list[int]) -> str:
    """[3, 7, 8, 9] -> ``3,7-9``."""
    ends = [i for i, c in enumerate(chosen) if i + 1 == len(chosen) or chosen[i + 1] != c + 1]
    starts = [0, *(i + 1 for i in ends[:-1])]
    return ",".join(f"{chosen[a]}-{chosen[b]}" if a < b else f"{chosen[a]}" for a, b in zip(starts, ends, strict=True))
