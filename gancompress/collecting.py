"""Records a teacher: its latents, labels and images, or what it translates, as shards that any black-box recipe trains on later."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gancompress import shards
from gancompress.brock import truncated_normal
from gancompress.checkpoint import atomic_write, write_json
from gancompress.console import Silent, size
from gancompress.data import RECORDED, Images, draw, rng, seed_for, to_float, to_uint8
from gancompress.devices import choose_device
from gancompress.distributed import device_of_process, place
from gancompress.errors import GanCompressError, MissingError, StoppedError, UsageError
from gancompress.gan import GAN
from gancompress.loading import load_gan
from gancompress.loop import Reporter, StopRequest
from gancompress.pairs import feed_translator
from gancompress.runs import LOCK, differences, locked, versions
from gancompress.shards import Array, Settings

#: bounds of what one shard holds: what a stop may cost, and how many files there are
SHARD_BYTES, SHARD_PAIRS = 64 << 20, 4096
#: pairs that are drawn and encoded to estimate the disk needed
PREVIEW = 16


@dataclass
class Recording:
    """What is to be recorded, checked. ``missing``: the shards that this rank of ``world`` ones has still to write; ``there``: pairs of the
    recording that this one makes longer, 0 where it does not."""

    gan: GAN
    settings: Settings
    out: Path
    source: str
    device: torch.device
    batch_size: int
    rank: int
    world: int
    #: what a translator is to be given, in this order
    images: Images | None = None
    there: int = 0
    missing: list[int] = field(default_factory=list)
    bytes_needed: int = 0
    bytes_free: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.classes = shards.parse_classes(self.settings.classes, self.gan.arch.classes) if self.settings.classes else []

    @property
    def left(self) -> int:
        """Pairs that this rank has still to record."""
        return sum(len(self.settings.pairs_of(k)) for k in self.missing)


def prepare(
    teacher: str,
    out: str | Path,
    *,
    num: int | None = None,
    per_class: int | None = None,
    truncation: float | None = None,
    classes: str | None = None,
    image_format: str = "png",
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    data: str | None = None,
    direction: str | None = None,
    reader_options: Mapping[str, Any] | None = None,
) -> Recording:
    """Check everything and estimate the disk needed; nothing is written.

    Args are those of ``gancompress collect``. ``truncation``: of a family with a truncation of its own (biggan, biggan_deep, stylegan2,
    stylegan3), that; of any other, z = truncation * (a normal within [-2, 2]), as TinyGAN's teacher is sampled (Chang & Lu 2020, code).

    Raises:
        GanCompressError: of the kind that fits; the message says what is wrong and what to do.
    """
    rank, world = place()
    gan, scaled = _load(teacher, dict(reader_options or {}), truncation)
    images = _translated(gan, data, direction, truncation)
    arch, chosen = gan.arch, shards.recorded_classes(gan.arch.classes, classes, per_class)
    settings = Settings(
        teacher_sha256=gan.sha256(), family=gan.family.name, arch=json.loads(json.dumps(dataclasses.asdict(arch))),
        latents=_law(gan, truncation if scaled else None, images, direction), truncation=truncation if scaled else None,
        classes=chosen, per_class=per_class, seed=seed,
        num=shards.recorded_number(num, per_class, len(shards.parse_classes(chosen, arch.classes)) if chosen else 0, len(images) if images else None),
        format=shards.image_format(image_format, arch.nc), shard=_pairs_of_a_shard(arch),
    )  # fmt: skip
    gan.discriminator = None  # it is in the hash, as in that of a live run, and judges nothing here
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: at least 1")
    folder = Path(out)
    there = _refuse_foreign(folder, settings)
    where = device_of_process(choose_device(device))
    gan.to(where)
    recording = Recording(gan, settings, folder, teacher, where, batch_size, rank, world, images, there if there < settings.num else 0)
    if recording.there:
        recording.notes.append(f"{there:,} pairs are recorded in {folder}, or were begun: it grows to {settings.num:,}")
    recording.missing, everyones = _missing(recording)
    _check_disk(recording, sum(len(settings.pairs_of(k)) for k in everyones))
    return recording


def _load(teacher: str, options: dict[str, Any], truncation: float | None) -> tuple[GAN, bool]:
    """(the teacher's generator, whether its latents are to be truncated by us)."""
    gan = load_gan(teacher, options=options)
    own = hasattr(gan.arch, "truncation")
    if truncation is not None and own:
        if "truncation" in options:
            raise UsageError("--truncation and --reader truncation=...: give one of them")
        gan = load_gan(teacher, options=options | {"truncation": truncation})
    elif truncation is not None and not 0 < truncation <= 1:
        raise UsageError(f"--truncation {truncation:g}: in (0, 1], the factor of a normal within [-2, 2]")
    return gan, truncation is not None and not own


def _translated(gan: GAN, data: str | None, direction: str | None, truncation: float | None) -> Images | None:
    """What a translator is given; None for a teacher that draws from latents.

    Raises:
        UsageError: an option of the other kind of teacher. MissingError: no images.
    """
    if gan.arch.nz:
        if data or direction:
            raise UsageError(f"--data and --direction are for translators, and {gan.source} takes latents", "leave them out")
        return None
    if truncation is not None:
        raise UsageError(f"--truncation {truncation:g}: {gan.source} translates images, and has no latents", "leave it out")
    return feed_translator(gan, data, direction)


def _law(gan: GAN, factor: float | None, images: Images | None, direction: str | None) -> str:
    if images:
        return f"images of the data set {images.fingerprint[:16]} in their order" + (f", {direction}" if direction else "")
    if factor is not None:
        return f"{factor:g} times a standard normal within [-2, 2]"
    own = getattr(gan.arch, "truncation", None)
    return f"as family {gan.family.name} draws them" + ("" if own is None else f", truncation {own:g}")


def _pairs_of_a_shard(arch: Any) -> int:
    fit = max(PREVIEW, min(SHARD_PAIRS, SHARD_BYTES // ((arch.nc + getattr(arch, "nc_in", 0)) * arch.resolution**2)))
    return 1 << (fit.bit_length() - 1)


# --------------------------------------------------------------------------------------------------------------------- the folder


def _refuse_foreign(folder: Path, settings: Settings) -> int:
    """The number of pairs of the recording of the same law that is there, 0 where the folder is free.

    Raises:
        UsageError: a recording of another law, or of more pairs, or somebody's files.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a directory", "choose another --out")
    if not folder.is_dir() or all(p.suffix == ".tmp" or p.name.startswith(LOCK) for p in folder.iterdir()):
        return 0
    if not (folder / shards.MANIFEST).is_file():
        raise UsageError(f"{folder} is not empty and holds no recording", "choose another --out")
    there = shards.read_settings(folder)
    if found := differences(there.law(), settings.law()):
        raise UsageError(f"{folder} holds another recording:\n  " + "\n  ".join(found), "choose another --out, or repeat the old command to go on with it")
    if settings.num < there.num:
        asked, has = (f"--per-class {s.per_class:,}" if s.per_class else f"--num {s.num:,}" for s in (settings, there))
        raise UsageError(f"{asked}: {folder} is a recording of {has}, and a recording is not cut", "choose another --out, or record as many or more")
    return there.num


def _missing(recording: Recording) -> tuple[list[int], list[int]]:
    """The shards that are not there whole: this rank's, and everybody's."""
    settings, everyones = recording.settings, []
    for k in range(settings.shards):
        try:
            shards.open_shard(recording.out, settings, k)
        except MissingError as error:
            everyones.append(k)
            grows = recording.there in settings.pairs_of(k)[1:]  # the last one of the shorter recording
            if shards.shard_path(recording.out, k).exists() and k % recording.world == recording.rank and not grows:
                recording.notes.append(f"{error}; it is recorded anew")
    return [k for k in everyones if k % recording.world == recording.rank], everyones


def _check_disk(recording: Recording, pairs: int) -> None:
    """Estimate what ``pairs`` pairs take from a few of them.

    Raises:
        GanCompressError: there is not so much room.
    """
    if not pairs:
        return
    few = range(min(PREVIEW, recording.settings.num))
    inputs, labels, images = _draw(recording, few)
    encoded = sum(len(data) for z, image in zip(inputs, images, strict=True) for data in _encoded(recording, z, image))
    each = 4 * recording.gan.arch.nz + (8 if labels is not None else 0) + 16 + encoded / len(few)
    place = next(p for p in (recording.out.absolute(), *recording.out.absolute().parents) if p.exists())
    recording.bytes_needed, recording.bytes_free = round(pairs * each), shutil.disk_usage(place).free
    if recording.bytes_needed > recording.bytes_free:
        needed, free = size(recording.bytes_needed), size(recording.bytes_free)
        raise GanCompressError(f"{recording.out}: about {needed} are needed and {free} are free", "fewer pairs, --format png, or another --out")


@contextmanager
def _held(folder: Path, rank: int, world: int) -> Iterator[None]:
    """This rank's hold of the folder; ranks of one launch do not hinder each other, another launch is refused."""
    mine = f"{LOCK}-{rank}-of-{world}"
    with ExitStack() as stack:
        stack.enter_context(locked(folder, mine, "recording"))
        for other in folder.glob(f"{LOCK}-*-of-*"):
            if not other.name.endswith(f"-of-{world}"):
                with locked(folder, other.name, "recording"):  # nobody's any more
                    pass
        yield


# ------------------------------------------------------------------------------------------------------------------------ drawing


def _inputs(recording: Recording, i: int) -> tuple[Tensor, int | None]:
    """Latents (1, nz) and label of pair i, a function of (seed, i) and the settings alone; of a translator its image (1, nc_in, R, R)."""
    if recording.images is not None:
        image = recording.images.load(i)
        if image is None:
            raise MissingError(f"{recording.images.source}: {recording.images.names[i]} cannot be read", "replace it, or take it away")
        return to_float(image[None]), None
    settings, arch, generator = recording.settings, recording.gan.arch, rng(recording.settings.seed, RECORDED, i)
    if settings.truncation is not None:
        z = settings.truncation * truncated_normal((1, arch.nz), 2.0, generator)
    else:
        z = recording.gan.family.sample(arch, 1, generator)[0]
    if not recording.classes:
        return z, None
    chosen = recording.classes
    return z, chosen[i % len(chosen) if settings.per_class else int(torch.randint(len(chosen), (1,), generator=generator))]


def _draw(recording: Recording, pairs: range) -> tuple[Tensor, Tensor | None, Array]:
    """Latents, labels and images (n, C, R, R), uint8 or float16, of these pairs."""
    found = [_inputs(recording, i) for i in pairs]
    inputs = torch.cat([z for z, _ in found])
    labels = torch.tensor([label for _, label in found]) if recording.classes else None
    torch.manual_seed(seed_for(recording.settings.seed, RECORDED, pairs.start, 1))  # for a network that adds noise
    images = draw(recording.gan, inputs, labels, recording.device)
    images = images.half() if recording.settings.format == "float16" else images
    if bad := int((~torch.isfinite(images).flatten(1).all(1)).sum()):
        raise GanCompressError(f"{recording.source}: {bad} of its images {pairs.start} ... {pairs.stop - 1} are not finite")
    kept = images if images.dtype == torch.float16 else to_uint8(images)
    return inputs, labels, kept.cpu().numpy()


def _encoded(recording: Recording, inputs: Tensor, image: Array) -> list[bytes]:
    """The images of a pair as they are kept."""
    given = [shards.encode(to_uint8(inputs).numpy(), "png")] if recording.images is not None else []
    return [*given, shards.encode(image, recording.settings.format)]


def _shard(recording: Recording, k: int, pool: ThreadPoolExecutor, go_on: Callable[[int], bool]) -> bytes | None:
    """Shard k as a file's content; None where ``go_on``, asked with the number of pairs drawn so far, says no."""
    settings, whole = recording.settings, recording.settings.pairs_of(k)
    inputs: list[Array] = []
    labels: list[int] = []
    encoded: list[Future[list[bytes]]] = []
    for start in range(whole.start, whole.stop, recording.batch_size):
        if not go_on(start - whole.start):
            return None
        z, c, images = _draw(recording, range(start, min(start + recording.batch_size, whole.stop)))
        inputs += list(z.numpy() if recording.images is None else np.empty((len(z), 0), np.float32))
        labels += [] if c is None else c.tolist()
        encoded += [pool.submit(_encoded, recording, *pair) for pair in zip(z, images, strict=True)]
    return shards.pack(settings, k, inputs, labels, [data for future in encoded for data in future.result()])


def record(recording: Recording, reporter: Reporter) -> Path:
    """Write the shards that are missing, then, once all ranks' are there, the index; returns the folder.

    Raises:
        GanCompressError: another process is recording here, stopped (whole shards are kept), disk full, out of memory.
    """
    settings, out = recording.settings, recording.out
    with _held(out, recording.rank, recording.world), StopRequest().installed() as stop:
        with locked(out, doing="recording", seconds=60):  # other ranks come to this at the same time
            if _refuse_foreign(out, settings) < settings.num:
                (out / shards.INDEX).unlink(missing_ok=True)  # first, for it lists what the manifest says
                write_json(out / shards.MANIFEST, {"settings": settings.model_dump(mode="json"), "source": recording.source, "versions": versions()})
        recording.missing, _ = _missing(recording)
        _record_shards(recording, reporter, stop)
        with locked(out, doing="recording", seconds=60):
            if _refuse_foreign(out, settings) == settings.num and not _missing(recording)[1]:
                write_json(out / shards.INDEX, shards.index_of(out, settings))
    return out


def _record_shards(recording: Recording, reporter: Reporter, stop: StopRequest) -> None:
    settings, out = recording.settings, recording.out
    done, written, began = 0, 0, time.monotonic()

    def go_on(drawn: int) -> bool:
        if done + drawn:
            reporter.progress(done + drawn, {"MB": written / 1e6}, (done + drawn) / max(time.monotonic() - began, 1e-9))
        return not stop.signal

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for k in recording.missing:
            content = _shard(recording, k, pool, go_on)
            if content is None:
                name, code = signal.Signals(stop.signal).name, 130 if stop.signal == signal.SIGINT else 75
                raise StoppedError(f"stopped by {name}; the shards written so far in {out} are whole", "the same command goes on", exit_code=code)
            atomic_write(shards.shard_path(out, k), content)
            done, written = done + len(settings.pairs_of(k)), written + len(content)
        go_on(0)


def collect(teacher: str, out: str | Path, *, reporter: Reporter | None = None, **options: Any) -> Path:
    """Record a teacher's latents, labels and images; called again with the same arguments it goes on or is done. Returns the folder.

    Args:
        options: num, per_class, truncation, classes, image_format, batch_size, seed, device, data, direction, reader_options (see ``prepare``).

    Raises:
        GanCompressError: of the kind that fits.
    """
    return record(prepare(teacher, out, **options), reporter or Silent())
