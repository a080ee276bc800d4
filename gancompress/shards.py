"""The files of a recorded teacher: what a manifest fixes, how an image is kept, how a shard is read.

A recording is a folder: ``manifest.json`` (what is recorded), ``shard-NNNNNN.safetensors`` (each whole or absent) and ``index.json``, written
last. A shard has the tensors inputs (n, nz) float32, labels (n,) int64 (of a conditional teacher), images uint8 (the encoded images one after
the other), offsets (n + 1,) and crc (n,), the checksum of each pair. Of a translator there are two images to a pair, what it was given (always a
PNG) and what it made of it, and 2 n + 1 offsets; its inputs are (n, 0).
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
from PIL import Image, features
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gancompress.checkpoint import read_json
from gancompress.errors import MissingError, UsageError

MANIFEST, INDEX = "manifest.json", "index.json"
AGAIN = "run the same gancompress collect again: it records what is missing"
ImageFormat = Literal["png", "webp-lossless", "float16"]
Array = np.ndarray[Any, Any]
#: latents (nz,) float32 or the image (nc_in, R, R) uint8 that was translated; label; image (C, R, R) as uint8 or float16
Pair = tuple[Array, int | None, Array]


class Settings(BaseModel):
    """All that decides what a recording holds: two of the same settings are the same recording, two of the same law begin alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    teacher_sha256: str
    family: str
    arch: dict[str, Any]
    #: the law of the latents in words, or which images are translated; and the factor T of T * (a normal within 2), where it is that law
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

    @property
    def images_of_a_pair(self) -> int:
        """2 of a translator."""
        return 1 if self.arch["nz"] else 2

    def pairs_of(self, k: int) -> range:
        """The pairs of shard k."""
        return range(k * self.shard, min((k + 1) * self.shard, self.num))

    def law(self) -> dict[str, Any]:
        """All that a pair is a function of beside its number; a recording may grow, and its whole shards stay as they are."""
        labels = {"labels": "of each class in turn" if self.per_class else "uniform over classes"} if self.classes else {}
        return self.model_dump(mode="json", exclude={"num", "per_class"}) | labels

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.law(), sort_keys=True).encode()).hexdigest()


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
        fields = {"resolution": 1, "nc": 1, "nz": 0, "classes": 0} | ({} if settings.arch.get("nz") else {"nc_in": 1})
        if not all(type(settings.arch.get(k)) is int and settings.arch[k] >= least for k, least in fields.items()):
            raise ValueError(f"no {', '.join(fields)} in its architecture")
    except ValidationError as error:
        first = error.errors()[0]
        raise MissingError(
            f"{folder / MANIFEST}: damaged, or of another version ({'.'.join(map(str, first['loc']))}: {first['msg']})", "record it again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MissingError(f"{folder / MANIFEST}: damaged ({error})") from None
    return settings


# ---------------------------------------------------------------------------------------------------------------------- images


def image_format(name: str, nc: int) -> ImageFormat:
    """The format of that name for images of so many channels.

    Raises:
        UsageError: there is none, or it cannot hold them here.
    """
    if name == "png" or name == "webp-lossless":
        if nc not in (1, 3):
            raise UsageError(f"--format {name}: pictures are grey or RGB, and this network makes {nc} channels", "--format float16")
        if name == "webp-lossless" and not features.check("webp"):
            raise UsageError("--format webp-lossless: this Pillow was built without WebP", "--format png")
        return name  # type: ignore[return-value]
    if name != "float16":
        raise UsageError(f"--format {name}: expected png, webp-lossless or float16")
    return "float16"


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
        """Latents, or the image that was translated, and label of the j-th pair, of whose image nothing is looked at.

        Raises:
            MissingError: a label of no class, or no image.
        """
        label, classes = None if self.labels is None else int(self.labels[j]), self.settings.arch["classes"]
        if label is not None and not 0 <= label < classes:
            raise self._damaged(j, f"label {label} of {classes} classes")
        return (self.inputs[j] if self.settings.images_of_a_pair == 1 else self._image(j, 0, "png", "nc_in")), label

    def pair(self, j: int) -> Pair:
        """The j-th pair of this file.

        Raises:
            MissingError: it is damaged.
        """
        z, label = self.drawn(j)
        if checksum(self.inputs[j], label, self._bytes(j, 0, self.settings.images_of_a_pair)) != int(self.crc[j]):
            raise self._damaged(j, "another checksum")
        return z, label, self._image(j, self.settings.images_of_a_pair - 1, self.settings.format, "nc")

    def _bytes(self, j: int, first: int, count: int) -> bytes:
        at = j * self.settings.images_of_a_pair + first
        found: bytes = self.images[self.offsets[at] : self.offsets[at + count]].tobytes()
        return found

    def _image(self, j: int, which: int, kind: ImageFormat, channels: str) -> Array:
        arch = self.settings.arch
        try:
            return decode(self._bytes(j, which, 1), kind, (arch[channels], arch["resolution"], arch["resolution"]))
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._damaged(j, str(error)) from None

    def _damaged(self, j: int, why: str) -> MissingError:
        return MissingError(f"{self.path}: its pair {j} is damaged ({why})", f"delete this file and {AGAIN}")


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
    expected = {"inputs": ((n, settings.arch["nz"]), "float32"), "offsets": ((settings.images_of_a_pair * n + 1,), "int64"), "crc": ((n,), "int64")}
    expected |= {"labels": ((n,), "int64")} if settings.classes else {}
    expected["images"] = (found["images"].shape[:1] if "images" in found else (0,), "uint8")
    if {key: (array.shape, str(array.dtype)) for key, array in found.items()} != expected:
        raise MissingError(f"{path}: its arrays are not those of {n} pairs", f"delete this file and {AGAIN}")
    return Shard(path, settings, found["inputs"], found.get("labels"), found["images"], found["offsets"], found["crc"])


def pack(settings: Settings, k: int, inputs: list[Array], labels: list[int], images: list[bytes]) -> bytes:
    """Shard k as a file's content; ``labels`` is empty for an unconditional teacher, ``images`` has as many of each pair as there are to it."""
    each = settings.images_of_a_pair
    crc = [checksum(z, labels[j] if labels else None, b"".join(images[each * j : each * (j + 1)])) for j, z in enumerate(inputs)]
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


def recorded_classes(classes: int, wanted: str | None, per_class: int | None) -> str:
    """The classes to record as text, "" of an unconditional teacher.

    Raises:
        UsageError: no such classes.
    """
    if not classes:
        for flag, value in (("--classes", wanted), ("--per-class", per_class)):
            if value is not None:
                raise UsageError(f"{flag} {value}: this network has no classes", "classes of a one-hot teacher, which no file tells: --reader classes=N")
        return ""
    text = f"0-{classes - 1}" if wanted is None else wanted
    return classes_text(parse_classes(text, classes))


def recorded_number(num: int | None, per_class: int | None, classes: int, inputs: int | None) -> int:
    """Pairs to record; ``inputs``: of a translator, the images that there are.

    Raises:
        UsageError: none is said, or numbers that contradict each other.
    """
    for flag, value in (("--num", num), ("--per-class", per_class)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: at least 1")
    if inputs is not None:
        if num is not None and num > inputs:
            raise UsageError(f"--num {num:,}: there are {inputs:,} images to translate, each once", "leave out --num for all of them")
        return num or inputs
    if per_class is None:
        if num is None:
            raise UsageError("how many pairs?", "--num N, or --per-class N of a conditional teacher")
        return num
    if num is not None and num != per_class * classes:
        raise UsageError(f"--num {num} and --per-class {per_class}: {classes} classes make {per_class * classes:,}", "leave out --num")
    return per_class * classes


def classes_text(chosen: list[int]) -> str:
    """[3, 7, 8, 9] -> ``3,7-9``."""
    ends = [i for i, c in enumerate(chosen) if i + 1 == len(chosen) or chosen[i + 1] != c + 1]
    starts = [0, *(i + 1 for i in ends[:-1])]
    return ",".join(f"{chosen[a]}-{chosen[b]}" if a < b else f"{chosen[a]}" for a, b in zip(starts, ends, strict=True))
