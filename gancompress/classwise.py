"""A conditional generator class by class: distances within classes, the worst of them, and pictures between latents and between classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gancompress import distributed as ranks
from gancompress.data import EVALUATION, Images, draw, positions, rng, to_float
from gancompress.distances import frechet_distance, inception_score
from gancompress.errors import MissingError, UsageError
from gancompress.extractors import Extractor
from gancompress.fidelity import BATCH, features_of, generated, setting
from gancompress.gan import GAN, shares_latents
from gancompress.protocol import protocol_hash
from gancompress.report import save_rows
from gancompress.shards import parse_classes

#: classes whose pictures are shown (Chang & Lu 2020, arXiv:2009.13829, Figure 11), images of each, and steps of an interpolation
WORST, SHOWN, BETWEEN = 10, 8, 8


def class_list(text: str, gan: GAN) -> list[int]:
    """``all`` or ``3,7-9`` of a network's classes.

    Raises:
        UsageError: no such list, or the network has no such class.
    """
    if not gan.arch.classes:
        raise UsageError(f"--per-class {text}: {gan.source} has no classes")
    try:
        return list(range(gan.arch.classes)) if text == "all" else parse_classes(text, gan.arch.classes)
    except UsageError as error:
        raise UsageError(str(error).replace("--classes", "--per-class"), error.hint) from None


def _real(images: Images, label: int, num: int, seed: int, device: torch.device, batch_size: int) -> Iterator[Tensor]:
    """Batches of at most ``num`` real images of one class in [-1, 1]; of several processes each reads its share."""
    if images.labels is None:
        raise MissingError(f"{images.source}: distances by class need labels, and this data has none", "an .npz with y_train, or idx files with labels")
    there = (images.labels == label).nonzero()[:, 0]
    if len(there) < 2:
        raise MissingError(f"{images.source}: {len(there)} images of class {label}; a distance needs at least 2", "--per-class with other classes")
    chosen = there[positions(0, min(num, len(there)), len(there), seed, EVALUATION, label)]
    return (to_float(images[part][0].to(device)) for part in ranks.dealt(chosen.split(batch_size)))


def evaluate_classes(
    student: GAN,
    teacher: GAN | None,
    images: Images | None,
    extractor: Extractor,
    classes: list[int],
    *,
    num_images: int,
    seed: int,
    device: torch.device,
    batch_size: int = BATCH,
) -> dict[str, Any]:
    """Frechet distance of each class to real images of it, or to the teacher's, with its mean over classes (intra-FID: Miyato & Koyama 2018,
    arXiv:1802.05637, §4.1) and the score of all, as a JSON-able dict; ``num_images`` of each class.

    Raises:
        UsageError: neither a teacher nor images. MissingError: images without labels, or too few of a class.
    """
    if images is None and teacher is None:
        raise UsageError("--per-class: distances to what?", "--data with labelled images, or --against TEACHER")
    if images is None and teacher is not None and teacher.arch.classes != student.arch.classes:
        raise UsageError(f"--per-class: the student has {student.arch.classes} classes, the teacher {teacher.arch.classes}")
    columns = {"student": student} | ({"teacher": teacher} if teacher is not None and teacher.arch.classes == student.arch.classes else {})
    for gan in columns.values():
        gan.to(device)
    found: dict[str, dict[str, Any]] = {name: {"of_class": {}} for name in columns}
    logits: dict[str, list[Tensor]] = {name: [] for name in columns}
    for label in classes:
        if images is not None:
            reference = features_of(_real(images, label, num_images, seed, device, batch_size), extractor, dealt=True)[0]
        else:
            reference = features_of(generated(columns["teacher"], num_images, seed + 1, device, batch_size, label, dealt=True), extractor, dealt=True)[0]
        for name, gan in columns.items():
            features, scores, _ = features_of(generated(gan, num_images, seed, device, batch_size, label, dealt=True), extractor, dealt=True)
            found[name]["of_class"][str(label)] = frechet_distance(features, reference)
            logits[name].append(scores)
    for name, column in found.items():
        distances = column["of_class"]
        column["mean"] = sum(distances.values()) / len(distances)
        column["inception_score"] = inception_score(torch.cat(logits[name]))
        column["worst"] = sorted((int(label) for label in distances), key=lambda label: -distances[str(label)])[:WORST]
    protocol = setting(student, extractor, seed, device) | {"num_images_per_class": num_images, "classes": _ranges(classes)}
    if images is not None:
        protocol |= {"reference": images.source, "reference_sha256": images.fingerprint}
        protocol["reference_resize"] = f"central square, Lanczos to {images.resolution} x {images.resolution}"
    elif teacher is not None:
        protocol |= {"reference": "the teacher's samples", "reference_sha256": teacher.sha256()}
    protocol["hash"] = protocol_hash(protocol)
    return {"protocol": protocol, **found}


def _ranges(classes: list[int]) -> str:
    """``0,2-4`` of [0, 2, 3, 4]: the list as --per-class takes it."""
    spans: list[list[int]] = []
    for label in sorted(set(classes)):
        if spans and spans[-1][1] == label - 1:
            spans[-1][1] = label
        else:
            spans.append([label, label])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def save_worst(path: Path, student: GAN, teacher: GAN | None, worst: list[int], seed: int, device: torch.device) -> None:
    """Rows of the worst classes, the teacher's images of the same latents above the student's where they share them."""
    shares = teacher is not None and shares_latents(student, teacher)
    rows: list[tuple[str, Tensor]] = []
    for label in worst:
        source = teacher if teacher is not None and shares else student
        z, _ = source.sample(SHOWN, rng(seed, EVALUATION, label))
        for name, gan in (("T", teacher), ("S", student)) if shares else (("S", student),):
            assert gan is not None
            rows.append((f"{name} {label}", draw(gan, z, torch.full((SHOWN,), label), device)))
    save_rows(path, rows, range(1, len(rows) - 1, 2) if shares else ())


@torch.no_grad()
def interpolations(gan: GAN, classes: list[int], seed: int, device: torch.device) -> list[tuple[str, Tensor]]:
    """Labelled rows of images (Chang & Lu 2020, Figure 10): z from one latent to another at a fixed class, for the first class; then the class
    embedding from that of the first class to that of the last, with z fixed, where the generator has one embedding for all layers."""
    share = torch.linspace(0, 1, BETWEEN)[:, None]
    z, _ = gan.sample(2, rng(seed, EVALUATION))
    first, last = classes[0], classes[-1]
    rows = [(f"z, {first}", draw(gan, torch.lerp(z[:1], z[1:], share), torch.full((BETWEEN,), first), device))]
    embedding = getattr(gan.generator, "embedding", getattr(gan.generator, "shared", None))  # of TinyGAN; of BigGAN
    if isinstance(embedding, nn.Embedding) and first != last:
        weight, steps = embedding.weight, []
        begin, end = weight[first].clone(), weight[last].clone()
        try:
            for t in share[:, 0].tolist():
                weight[first] = torch.lerp(begin, end, t)
                steps.append(draw(gan, z[:1], torch.tensor([first]), device))
        finally:
            weight[first] = begin
        rows.append((f"{first}-{last}", torch.cat(steps)))
    return rows
