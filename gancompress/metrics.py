"""Measures a generator: against its teacher on the same latents, against real images or the teacher's samples, and its cost."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gancompress import distributed as ranks
from gancompress import references
from gancompress.cost import gan_cost, latency, peak_memory, timed
from gancompress.data import Images
from gancompress.distances import (
    COLLAPSED,
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    NEIGHBOURS,
    SPLITS,
    Statistics,
    frechet,
    inception_score,
    kernel_distance,
    precision_recall,
    write_statistics,
)
from gancompress.errors import UsageError
from gancompress.extractors import Extractor
from gancompress.fidelity import (
    Collected,
    collect,
    default_batch_size,
    diversity,
    generated,
    paired_fidelity,
    setting,
    variance_of_laplacian,
)
from gancompress.gan import GAN, shares_latents
from gancompress.onnx_export import in_onnxruntime, need_extras
from gancompress.perceptual import EPSILON, Lpips, path_length
from gancompress.protocol import protocol_hash

#: every metric by the name ``--metrics`` takes
METRICS = {
    "fid": "Frechet distance to the reference; called FID on Inception features alone",
    "kid": "kernel distance to the reference, unbiased; called KID on Inception features alone",
    "is": "inception score",
    "pr": "precision and recall",
    "ppl": "perceptual path length in z, and in w where there is one",
    "vol": "variance of Laplacian",
    "paired": "MSE, PSNR and SSIM to the teacher on the same latents",
    "lpips": "LPIPS to the teacher on the same latents",
    "diversity": "how far images of different latents lie apart, beside the teacher's",
    "latency": "milliseconds of a forward pass at batch 1 and 32",
    "exported": "the same of the network as ONNX in onnxruntime, on the CPU",
    "memory": "weights and the most that a forward pass holds besides, at batch 1 and 32",
}
#: of features; to a reference; from single features, which a statistics file does not have
FEATURES, DISTANCES, SINGLE = {"fid", "kid", "is", "pr"}, {"fid", "kid", "pr"}, {"kid", "pr"}
DEFAULT = ("fid", "is", "vol", "paired", "diversity", "latency", "memory")
#: images at once of latencies and memory
BATCHES = (1, 32)
#: below so many images a Frechet distance is visibly biased
BIASED = 10_000


def parse_metrics(text: str) -> list[str]:
    """``fid,kid`` as a list.

    Raises:
        UsageError: no such metric.
    """
    names = [name for name in text.replace(" ", "").split(",") if name]
    if not names or (unknown := [name for name in names if name not in METRICS]):
        raise UsageError(f"--metrics {text}: no metric {unknown[0]!r}" if names else "--metrics: none named", "metrics: " + ", ".join(METRICS))
    return names


@dataclass
class _Task:
    """What is to be measured and how."""

    wanted: set[str]
    num_images: int
    seed: int
    device: torch.device
    batch_size: int
    extractor: Extractor | None
    lpips: Lpips | None = None
    reference: references.Reference | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def inception(self) -> bool:
        return self.extractor is not None and self.extractor.name == "inception-v3"


def evaluate(
    student: GAN,
    teacher: GAN | None = None,
    images: Images | Statistics | None = None,
    *,
    num_images: int = 5000,
    extractor: Extractor | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    metrics: Collection[str] | None = None,
    batch_size: int | None = None,
    cache: Path | None = None,
    save_stats: Path | None = None,
) -> dict[str, Any]:
    """Everything ``gancompress eval`` prints, as a JSON-able dict: ``protocol``, ``notes``, a column each for student and teacher, ``paired``.

    Args:
        teacher: for paired fidelity and as a second column; its samples are the reference where there are no ``images``.
        images: real images to measure distances to, or their statistics.
        num_images: images generated, and real ones (or as many as there are) used.
        extractor: None leaves out the metrics that need features.
        metrics: names of ``METRICS``; None: ``DEFAULT``, as far as there is what they need. KID goes beside an FID of few images.
        batch_size: images at a time; it changes no number.
        cache: a folder for the reference's features.
        save_stats: an .npz to write the reference's mean and covariance to.

    Raises:
        UsageError: too few images for a metric, a metric that lacks what it needs, images that are neither grey nor RGB, or of different sizes.
        MissingError: LPIPS or PPL without their weights.
    """
    if num_images < 2:
        raise UsageError(f"--num-images {num_images}: at least 2")
    device = device or torch.device("cpu")
    task = _Task(set(metrics or DEFAULT), num_images, seed, device, batch_size or default_batch_size(student.arch.resolution, device), extractor)
    columns: dict[str, GAN] = {"student": student} | ({"teacher": teacher} if teacher else {})
    _settle(task, columns, images, metrics is not None)
    if save_stats is not None and not task.wanted & DISTANCES:
        raise UsageError(f"--save-stats {save_stats}: no distance is measured, so there are no statistics", "--data, or --against TEACHER, and an extractor")
    for gan in columns.values():
        gan.to(device)
    protocol = {"num_images": num_images, **setting(student, task.extractor if task.wanted & FEATURES else None, seed, device)}
    if task.wanted & DISTANCES:
        task.reference = _reference(task, student, teacher, images, cache)
        protocol |= task.reference.protocol
        task.notes += task.reference.notes
        if save_stats is not None and not ranks.rank():
            write_statistics(save_stats, task.reference.statistics, {k: v for k, v in protocol.items() if k not in ("num_images", "device")})
    result: dict[str, Any] = {"protocol": protocol | _constants(task), "notes": task.notes}
    result["protocol"]["hash"] = protocol_hash(result["protocol"])
    for name, gan in columns.items():
        result[name] = ranks.on_first(functools.partial(_costs, gan, task)) | _quality(gan, task) | _paths(gan, task)
    if teacher is not None and task.wanted & {"paired", "lpips"}:
        count = min(num_images, 1000)
        result["paired"] = paired_fidelity(student, teacher, count, seed, device, task.batch_size, task.lpips if "lpips" in task.wanted else None)
    _spread(result, columns, task)
    return result


def _settle(task: _Task, columns: dict[str, GAN], images: Images | Statistics | None, named: bool) -> None:
    """Take out what cannot be measured; what was ``named`` is refused instead."""
    student, teacher = columns["student"], columns.get("teacher")
    counts = [task.num_images] + ([min(task.num_images, len(images))] if isinstance(images, Images) else [])
    lacking: dict[str, tuple[str, str]] = {}
    for name in FEATURES & (task.wanted | {"kid"}):
        if task.extractor is None:
            lacking[name] = ("an extractor's features", "--feature-extractor inception, digits, or a torchvision MobileNetV2 file")
        elif name in DISTANCES and images is None and teacher is None:
            lacking[name] = ("a reference", "--data, or --against TEACHER")
        elif name in SINGLE and isinstance(images, Statistics):
            lacking[name] = ("the reference's single features, and a statistics file has none", "--data with images")
    needs = {"kid": KID_SUBSET_SIZE, "pr": NEIGHBOURS + 1} | ({"is": SPLITS} if named else {})  # one image a split is a number still
    for name, need in needs.items():
        if name not in lacking and min(counts) < need:
            lacking[name] = (f"{need:,} images, and there are {min(counts):,}", f"--num-images {need} or more, or leave {name} out of --metrics")
    lacking |= dict.fromkeys({"paired", "lpips"} if teacher is None else (), ("a teacher", "--against TEACHER"))
    for name in [n for n in METRICS if n in task.wanted & lacking.keys()]:
        if named:
            raise UsageError(f"--metrics {name}: it needs {lacking[name][0]}", lacking[name][1])
        task.wanted.discard(name)
    if task.extractor is not None and task.wanted & FEATURES:
        for gan in columns.values():
            if gan.arch.nc not in (1, 3):
                raise UsageError(f"{gan.source}: it makes {gan.arch.nc} channels; features are taken of grey or RGB images")
    if task.wanted & DISTANCES:
        references.check_sizes(student, images if isinstance(images, Images) else None, teacher)
    if "fid" in task.wanted and min(counts) < BIASED and task.extractor is not None:
        said = f"{task.extractor.distance} of {min(counts):,} images is biased upwards: compare it at equal counts alone"
        if "kid" not in lacking:
            task.wanted.add("kid")
        task.notes.append(said + ("" if "kid" in task.wanted else f"; the kernel distance, which is not, needs {lacking['kid'][0]}"))
    if "exported" in task.wanted:
        need_extras(("onnx",), "--metrics exported:")
    if task.wanted & {"lpips", "ppl"}:
        task.lpips = Lpips(task.device)


def _reference(task: _Task, student: GAN, teacher: GAN | None, images: Images | Statistics | None, cache: Path | None) -> references.Reference:
    assert task.extractor is not None
    features = bool(task.wanted & SINGLE)
    common = (task.num_images, task.extractor, task.seed, task.device, task.batch_size)
    if isinstance(images, Statistics):
        return references.of_statistics(images, student, task.extractor, task.device)
    if images is not None:
        return references.of_images(images, *common, features=features, cache=cache)
    assert teacher is not None
    return references.of_teacher(teacher, *common, features=features, cache=cache)


def _constants(task: _Task) -> dict[str, Any]:
    """Fields of a protocol that single metrics add."""
    found: dict[str, Any] = {"kid_subsets": KID_SUBSETS, "kid_subset_size": KID_SUBSET_SIZE} if "kid" in task.wanted else {}
    found |= {"is_splits": min(SPLITS, task.num_images)} if "is" in task.wanted else {}
    found |= {"pr_neighbours": NEIGHBOURS} if "pr" in task.wanted else {}
    found |= {"ppl_pairs": task.num_images, "ppl_epsilon": EPSILON} if "ppl" in task.wanted else {}
    return found | ({"lpips_sha256": task.lpips.sha256} if task.lpips is not None else {})


def _costs(gan: GAN, task: _Task) -> dict[str, Any]:
    cost = gan_cost(gan)
    column: dict[str, Any] = {
        "family": gan.family.name,
        "parameters": cost.parameters,
        "macs_input_convention": cost.macs_in,
        "macs_output_convention": cost.macs_out,
        "bytes": cost.bytes,
    }
    as_onnx = in_onnxruntime(gan) if "exported" in task.wanted else None
    for n in BATCHES:
        if "latency" in task.wanted:
            column |= _milliseconds("latency", n, latency(gan, n, task.device))
        if as_onnx is not None:
            tensors = [t for t in gan.sample(n, torch.Generator().manual_seed(0)) if t is not None]
            column |= _milliseconds("latency_onnx", n, timed(functools.partial(as_onnx, tensors), torch.device("cpu")))
        if "memory" in task.wanted:
            column[f"peak_memory_bytes_batch_{n}"] = peak_memory(gan, n, task.device)
    return column


def _milliseconds(name: str, batch_size: int, found: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_{what}_batch_{batch_size}": round(value, 3) for what, value in zip(("ms", "iqr_ms"), found, strict=True)}


def _quality(gan: GAN, task: _Task) -> dict[str, float]:
    """What is measured of a network's images: distances, score, precision and recall, blur."""
    wanted, extractor = task.wanted, task.extractor
    if extractor is None or not wanted & FEATURES:
        if "vol" not in wanted:
            return {}
        blur = [variance_of_laplacian(b) for b in generated(gan, min(task.num_images, 1000), task.seed, task.device, task.batch_size)]
        return {"variance_of_laplacian": float(torch.cat(blur).mean())}
    batches = generated(gan, task.num_images, task.seed, task.device, task.batch_size, dealt=True)
    found = collect(batches, extractor, features=bool(wanted & SINGLE), logits="is" in wanted, moments="fid" in wanted, dealt=True)
    column: dict[str, float] = {}
    if task.reference is not None:
        column |= _distances(found, task.reference, task)
    if found.logits is not None:
        column["inception_score"] = inception_score(found.logits)
    return column | ({"variance_of_laplacian": found.sharpness} if "vol" in wanted else {})


def _distances(found: Collected, reference: references.Reference, task: _Task) -> dict[str, float]:
    column: dict[str, float] = {}
    features = found.features
    if found.moments is not None:
        column["fid" if task.inception else "frechet_distance"] = frechet(found.moments.statistics(), reference.statistics)
    if features is None or reference.features is None:
        return column
    if "kid" in task.wanted:
        name = "kid" if task.inception else "kernel_distance"
        column[name], sd = kernel_distance(features, reference.features, task.seed, KID_SUBSETS, KID_SUBSET_SIZE)
        column |= {} if sd is None else {f"{name}_sd": sd}
    if "pr" in task.wanted:
        column["precision"], column["recall"] = precision_recall(features.to(task.device), reference.features.to(task.device))
    return column


def _paths(gan: GAN, task: _Task) -> dict[str, float]:
    """Path lengths in each space there is, of whole images and of their middles."""
    if "ppl" not in task.wanted or task.lpips is None:
        return {}
    column: dict[str, float] = {}
    for space in ("z", "w") if hasattr(gan.generator, "styles") else ("z",):
        whole, middle = path_length(gan, space, task.lpips, task.num_images, task.seed, task.device, task.batch_size)
        column[f"ppl_{space}"] = whole
        if middle is not None:
            column[f"ppl_{space}_cropped"] = middle
    return column


def _spread(result: dict[str, Any], columns: dict[str, GAN], task: _Task) -> None:
    """Diversity of each column, and a word where the student's is nothing beside the teacher's."""
    if "diversity" not in task.wanted:
        return
    for name, gan in columns.items():
        result[name]["diversity"] = diversity(gan, task.seed, task.device, task.batch_size)
    teacher = columns.get("teacher")
    if teacher is None or not shares_latents(columns["student"], teacher):
        return
    mine, its = result["student"]["diversity"], result["teacher"]["diversity"]
    if mine < COLLAPSED * its:
        task.notes.append(f"the student's images of different latents lie {mine:.3g} apart, the teacher's {its:.3g}: it has collapsed to few images")
