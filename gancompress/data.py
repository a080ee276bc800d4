"""Where batches come from: the live teacher, a pool of its images, and real images. Each is a function of (seed, step) alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gancompress import distributed as ranks
from gancompress.config import Schedule
from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.gan import GAN, Batch, Translation
from gancompress.speed import sent

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
CACHE_BYTES = 4 << 30
#: random streams: what is drawn with the same seed and step must not be the same numbers
LATENTS, REAL, FALLBACK, POOL, STEP, PICTURES, EVALUATION, INIT, MIRROR, STANDING, RECORDED = range(11)
#: a share of a batch's rows, (first, every how many): all of them
WHOLE = (0, 1)


def seed_for(*parts: int) -> int:
    """A 63-bit seed from whole numbers, different for different numbers."""
    # numpy takes (1, 0) for (1,): their number tells them apart
    high, low = np.random.SeedSequence((len(parts), *parts)).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def rng(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*parts))


def positions(start: int, count: int, n: int, *seed: int) -> Tensor:
    """Indices (count,) at places start ... of an endless sequence of shuffled epochs over n items."""
    if start % n + count <= n:  # within one epoch, as most batches are
        return _shuffled(n, *seed, start // n)[start % n : start % n + count]
    places = torch.arange(start, start + count)
    out = torch.empty(count, dtype=torch.long)
    for epoch in (places // n).unique().tolist():
        here = places // n == epoch
        out[here] = _shuffled(n, *seed, epoch)[places[here] % n]
    return out


@lru_cache(maxsize=4)  # an epoch is asked for once a batch
def _shuffled(n: int, *seed: int) -> Tensor:
    return torch.randperm(n, generator=rng(*seed))


def to_float(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8, rounded to the nearest."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


# ------------------------------------------------------------------------------------------------------------------ real images


class Images:
    """Real images at one resolution: an image folder, a zip of images, an .npz, or MNIST idx files.

    Each is cropped to its central square, resized and made grey or RGB when first used, and kept as uint8. An image that cannot
    be read is named in ``unreadable`` and the next one takes its place. ``half``: each picture is two side by side, and one of them is
    taken; ``array_name``: the one of an .npz to take.

    Raises:
        MissingError: nothing there, or not one readable image. UsageError: an array of a shape that is no image set.
    """

    def __init__(self, source: str, resolution: int, nc: int, *, half: Literal["left", "right"] | None = None, array_name: str | None = None) -> None:
        path = Path(source).expanduser()
        if not path.exists():
            raise MissingError(f"{source}: no such file or directory", "--data takes a folder or zip of images, an .npz, or MNIST idx files")
        if nc not in (1, 3):
            raise UsageError(f"real images are grey or RGB; this network makes {nc} channels")
        self.source, self.resolution, self.nc, self.half = source, resolution, nc, half
        self.labels: Tensor | None = None
        self.unreadable: list[str] = []
        self._draw: Callable[[int], Image.Image]
        self.names: list[str] = []
        if path.is_dir():
            self._open_folder(path)
        elif zipfile.is_zipfile(path) and path.suffix == ".npz":
            self._open_npz(path, array_name)
        elif zipfile.is_zipfile(path):
            self._open_zip(path)
        elif (array := _read_idx(path)) is not None:
            self._open_array(array, path.name)
            self.labels = _idx_labels(path)
            self.fingerprint = _hash_file(path)
        else:
            raise MissingError(f"{source}: not a folder or zip of images, an .npz or an idx file")
        if not len(self):
            raise MissingError(f"{source}: no images in it", f"looked for {', '.join(sorted(EXTENSIONS))}")
        shape = (len(self), nc, resolution, resolution)
        self._cache = torch.empty(shape, dtype=torch.uint8) if np.prod(shape) <= CACHE_BYTES else None
        self._cached = torch.zeros(len(self), dtype=torch.bool)
        self._bad: set[int] = set()
        self[torch.tensor([0])]  # at least one must be readable

    def __len__(self) -> int:
        return len(self.names)

    def _open_folder(self, path: Path) -> None:
        if idx := sorted(p for p in path.iterdir() if "images-idx3" in p.name or "images.idx3" in p.name):
            chosen = next((p for p in idx if "train" in p.name), idx[0])
            array = _read_idx(chosen)
            if array is None:
                raise MissingError(f"{chosen}: damaged idx file")
            self._open_array(array, chosen.name)
            self.labels = _idx_labels(chosen)
            self.fingerprint = _hash_file(chosen)
            return
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        self.names = [str(p.relative_to(path)) for p in files]
        self._draw = lambda i: Image.open(files[i])
        listed = "".join(f"{name}:{file.stat().st_size}\n" for name, file in zip(self.names, files, strict=True))
        self.fingerprint = hashlib.sha256(listed.encode()).hexdigest()

    def _open_zip(self, path: Path) -> None:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise MissingError(f"{path}: damaged zip archive ({error})") from None
        if any(info.flag_bits & 1 for info in archive.infolist()):
            raise MissingError(f"{path}: an encrypted zip archive", "unpack it first")
        self.names = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in EXTENSIONS)
        self._draw = lambda i: Image.open(io.BytesIO(archive.read(self.names[i])))
        self.fingerprint = _hash_file(path)

    def _open_npz(self, path: Path, wanted: str | None) -> None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = arrays.files
                name = wanted or ("x_train" if "x_train" in names else names[0] if len(names) == 1 else None)
                if name is None:
                    raise UsageError(f"{path}: it holds {', '.join(names)}; an .npz needs x_train or one single array")
                self._open_array(arrays[name], f"{path.name}/{wanted}" if wanted else path.name)
                label = next((n for n in ("y_train", "labels") if n in names), None)
                if label and arrays[label].shape == (len(self),):
                    self.labels = torch.from_numpy(arrays[label].astype(np.int64))
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise MissingError(f"{path}: damaged or not a plain array file ({error})") from None
        self.fingerprint = _hash_file(path)

    def _open_array(self, array: np.ndarray[Any, Any], name: str) -> None:
        if array.ndim == 4 and array.shape[1] in (1, 3, 4) and array.shape[3] not in (1, 3, 4):
            array = array.transpose(0, 2, 3, 1)
        if array.ndim == 4 and array.shape[3] == 1:
            array = array[..., 0]
        if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (3, 4)) or not array.size or array.dtype.kind not in "buif":
            raise UsageError(f"{self.source}: an array of shape {array.shape} is no set of images (N, H, W) or (N, H, W, C)")
        if array.dtype != np.uint8:
            low, high = float(array.min()), float(array.max())
            array = (array + 1) * 127.5 if low < 0 and high <= 1 else array * 255 if high <= 1 else array
            array = array.round().clip(0, 255).astype(np.uint8)
        self.names = [f"{name}[{i}]" for i in range(len(array))]
        self._draw = lambda i: Image.fromarray(array[i])

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of one picture as it is stored, or None where it cannot be read."""
        try:
            with self._draw(index) as picture:
                return picture.size
        except Exception:  # as in load
            return None

    def load(self, index: int) -> Tensor | None:
        """One image as uint8 (nc, R, R), or None where it cannot be read."""
        if index in self._bad:
            return None
        if self._cache is not None and self._cached[index]:
            return self._cache[index]
        try:
            with self._draw(index) as picture:
                if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip to 255
                    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
                if self.half:
                    middle = picture.width // 2
                    picture = picture.crop((0, 0, middle, picture.height) if self.half == "left" else (middle, 0, 2 * middle, picture.height))
                side = min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                picture = picture.convert("RGB" if self.nc == 3 else "L").crop((left, top, left + side, top + side))
                if side != self.resolution:
                    picture = picture.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        except Exception:  # what a damaged file makes of a decoder is beyond listing
            self._bad.add(index)
            self.unreadable.append(self.names[index])
            return None
        image = torch.from_numpy(np.array(picture)).reshape(self.resolution, self.resolution, self.nc).permute(2, 0, 1)
        if self._cache is not None:
            self._cache[index], self._cached[index] = image, True
        return image

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (N, nc, R, R) and labels (N,) or None."""
        if self._cache is not None and bool(self._cached[indices].all()):
            return self._cache[indices], self.labels[indices] if self.labels is not None else None
        images, used = [], []
        for index in indices.tolist():
            image = self.load(index)
            while image is None:
                if len(self._bad) == len(self):
                    raise MissingError(f"{self.source}: not one of its {len(self)} images can be read (first: {self.unreadable[0]})")
                index = (index + 1) % len(self)
                image = self.load(index)
            images.append(image)
            used.append(index)
        return torch.stack(images), self.labels[used] if self.labels is not None else None

    def inputs(self, n: int, rng: torch.Generator) -> Tensor:
        """n images in [-1, 1], drawn with replacement: what a translator is fed with."""
        return to_float(self[torch.randint(len(self), (n,), generator=rng)][0])


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()


def _unzipped(path: Path) -> bytes:
    """What a gzip file holds, no further than its idx header says."""
    with gzip.open(path) as file:
        head = file.read(4)
        head += file.read(4 * head[3]) if len(head) == 4 else b""
        shape = struct.unpack(f">{len(head[4:]) // 4}I", head[4 : 4 + len(head[4:]) // 4 * 4])
        return head + file.read(min(int(np.prod(shape, dtype=np.float64)), 1 << 33) + 1)


def _read_idx(path: Path) -> np.ndarray[Any, Any] | None:
    """An idx file (plain or .gz) as an array, None where it is none."""
    try:
        raw = path.read_bytes() if path.suffix != ".gz" else _unzipped(path)
    except (OSError, EOFError, zlib.error):
        return None
    if len(raw) < 8 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        return None
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    return body.reshape(shape) if body.size == int(np.prod(shape)) else None


def _idx_labels(path: Path) -> Tensor | None:
    sibling = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = _read_idx(sibling) if sibling != path and sibling.is_file() else None
    return None if labels is None else torch.from_numpy(labels.astype(np.int64))


# --------------------------------------------------------------------------------------------------------------------- batches


class TeacherPool:
    """``size`` (latent, image) pairs of the teacher, drawn when first needed and then reused. Images are kept as float16."""

    def __init__(self, teacher: GAN, size: int, chunk: int, seed: int, device: torch.device) -> None:
        if size % chunk:
            raise UsageError(f"schedule.teacher_pool={size}: it must be a multiple of the batch size {chunk}")
        self.teacher, self.size, self.chunk, self.seed, self.device = teacher, size, chunk, seed, device
        self._inputs: list[tuple[Tensor, Tensor | None]] = [teacher.sample(chunk, rng(seed, POOL, c)) for c in range(size // chunk)]
        arch = teacher.arch
        self._images = torch.empty(size, arch.nc, arch.resolution, arch.resolution, dtype=torch.float16, device=device)
        self._drawn = [False] * (size // chunk)

    def take(self, start: int, count: int, attempt: int = 0, share: tuple[int, int] = WHOLE) -> tuple[Tensor, Tensor | None, Tensor]:
        """The pairs at places start ... of the endless sequence; the first pass is in order, so that it fills chunk by chunk.

        Another ``attempt`` takes the same pairs in another order. Each process of a run draws a pool of its own.
        """
        first = start + count <= self.size and not attempt
        indices = torch.arange(start, start + count) if first else positions(start, count, self.size, self.seed, attempt, POOL)
        for c in (indices // self.chunk).unique().tolist():
            if not self._drawn[c]:
                inputs, condition = self._inputs[c]
                with ranks.alone():
                    self._images[c * self.chunk : (c + 1) * self.chunk] = draw(self.teacher, inputs, condition, self.device).half()
                self._drawn[c] = True
        indices = indices[share[0] :: share[1]]
        rows = [(self._inputs[i // self.chunk], i % self.chunk) for i in indices.tolist()]
        labels = [c[r] for (_, c), r in rows if c is not None]
        images = self._images[sent(indices, self.device)].float()
        return torch.stack([z[r] for (z, _), r in rows]), torch.stack(labels) if labels else None, images


class Pairs(Protocol):
    """A teacher's images beside what they were drawn from, as an endless sequence: latents (N, nz), labels (N,) or None, images in [-1, 1].

    ``share`` (r, n): of the count places only the r-th, the (r + n)-th and so on."""

    def take(self, start: int, count: int, attempt: int = 0, share: tuple[int, int] = WHOLE) -> tuple[Tensor, Tensor | None, Tensor]: ...


@torch.no_grad()
def draw(gan: GAN, inputs: Tensor, condition: Tensor | None, device: torch.device) -> Tensor:
    """Images of a frozen GAN, on the device."""
    return gan.generator(sent(inputs, device), None if condition is None else sent(condition, device))


class Batches:
    """``batches(step, substep, part) -> Batch``: part ``part`` of ``accumulate`` equal ones of that batch.

    Of several processes each has its rows of that part. ``attempt`` changes every stream: a retry after a divergence sees other data. A
    recorded teacher gives ``pairs`` (latents and the teacher's images of them) and ``others`` (its images in an order of their own) in place
    of what is drawn.
    """

    def __init__(
        self, sampler: GAN, teacher: GAN | None, images: Images | Translation | None, schedule: Schedule, *, mirror: bool, seed: int, pool: int,
        device: torch.device, pairs: Pairs | None = None, others: Pairs | None = None,
    ) -> None:  # fmt: skip
        self.sampler, self.teacher, self.schedule = sampler, teacher, schedule
        self.images = images if isinstance(images, Images) else None
        self.translation = None if isinstance(images, Images) else images
        self.mirror, self.seed, self.device = mirror, seed, device
        self.attempt = 0
        self._pairs, self._others = pairs, others
        if pool and teacher and not pairs:
            self._pairs = TeacherPool(teacher, pool, schedule.batch_size // schedule.accumulate, seed, device)

    def pictures(self, n: int, of_teacher: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Latents, labels and, where it is asked for and there is one, the teacher's images of them: those of a run's pictures."""
        if self._pairs is not None and self._others is not None:  # a recorded teacher draws no others
            return self._pairs.take(0, n)
        z, c = self.sampler.sample(n, rng(self.seed, PICTURES))
        return z, c, draw(self.teacher, z, c, self.device) if self.teacher and of_teacher else None

    def __call__(self, step: int, substep: int, part: int = 0) -> Batch:
        index, size = step * self.schedule.d_steps + substep, self.schedule.batch_size
        n = size // self.schedule.accumulate
        share = rank, world = ranks.rank(), ranks.world()
        start, rows = index * size + part * n, slice(part * n + rank, (part + 1) * n, world)

        def drawn(gan: GAN, stream: int) -> tuple[Tensor, Tensor | None]:
            """The part's latents and labels; those of a whole batch do not depend on its parts."""
            z, c = gan.sample(size, rng(self.seed, self.attempt, stream, index))
            return sent(z[rows], self.device), sent(c[rows], self.device) if c is not None else None

        pooled: Tensor | None = None
        targets: Tensor | None = None
        if self.translation is not None:
            inputs, targets = (sent(x[rank::world], self.device) for x in self.translation.take(start, n, self.seed, self.attempt))
            condition = inputs if self.translation.beside else None
        elif self._pairs is not None:
            z, c, pooled = self._pairs.take(start, n, self.attempt, share)
            inputs, condition = sent(z, self.device), sent(c, self.device) if c is not None else None
        else:
            inputs, condition = drawn(self.sampler, LATENTS)

        def real() -> tuple[Tensor, Tensor | None]:
            if targets is not None:
                return targets, condition
            if self.images is None:
                return unpaired()
            found, labels = self.images[positions(start, n, len(self.images), self.seed, self.attempt, REAL)[rank::world]]
            if self.mirror:
                flips = torch.rand(size, generator=rng(self.seed, self.attempt, MIRROR, index))[rows] < 0.5
                found = torch.where(flips[:, None, None, None], found.flip(3), found)
            return to_float(sent(found, self.device)), sent(labels, self.device) if labels is not None else None

        def teacher() -> Tensor:
            if pooled is not None:
                return sent(pooled, self.device)
            if self.teacher is None:
                raise GanCompressError("teacher images are needed and there is no teacher")
            return draw(self.teacher, inputs, condition, self.device)

        def unpaired() -> tuple[Tensor, Tensor | None]:
            if self._others is not None:
                _, c, images = self._others.take(start, n, self.attempt, share)
                return sent(images, self.device), sent(c, self.device) if c is not None else None
            if self.teacher is None:
                raise GanCompressError("images are needed, and there are neither real ones nor a teacher")
            z, c = drawn(self.teacher, FALLBACK)
            if self.translation is not None and self.translation.beside:
                c = z
            return draw(self.teacher, z, c, self.device), c

        paired = self.translation is not None and self.translation.paired
        done, has_real = step / self.schedule.steps, self.images is not None or targets is not None
        return Batch(inputs, condition, step, step * size / 1000, real, teacher, unpaired, paired, done, has_real)
