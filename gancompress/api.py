"""What the commands do, as functions: inspect, distill, sample, eval."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from gancompress import distributed as ranks
from gancompress.checkpoint import unused
from gancompress.classwise import class_list, evaluate_classes, interpolations, save_worst
from gancompress.config import load_recipe, recipe_names
from gancompress.console import Silent
from gancompress.cost import device_name, generator_cost
from gancompress.data import EVALUATION, Images, draw, rng
from gancompress.describing import latent_words
from gancompress.devices import choose_device
from gancompress.distances import Statistics, read_statistics
from gancompress.errors import MissingError, ParityError, UsageError
from gancompress.extractors import Extractor, make_extractor
from gancompress.fidelity import default_batch_size
from gancompress.gan import GAN, state_hash
from gancompress.loading import find, load_gan
from gancompress.loop import Reporter
from gancompress.losses import LOSSES
from gancompress.losses.base import NEEDS
from gancompress.metrics import FEATURES, evaluate, parse_metrics
from gancompress.pairs import feed_translator, holds_both, sides
from gancompress.planning import make_plan
from gancompress.references import cache_folder
from gancompress.report import save_grid, save_rows
from gancompress.request import Request
from gancompress.running import run_plan
from gancompress.runs import teacher_of
from gancompress.segmentation import VOID, LabelMaps, fcn_score, open_segmenter


def recipe_table() -> list[dict[str, Any]]:
    """Every recipe with its paper and what it needs."""
    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        loss = LOSSES[recipe.loss]
        rows.append({"name": name, "paper": recipe.paper, "needs": sorted(loss.needs), "uses": sorted(loss.uses)})
    return rows


def inspect(source: str, *, discriminator: str | None = None, **reader_options: Any) -> dict[str, Any]:
    """What a source holds, as a JSON-able dict: family, architecture, latents, costs, contents, assumptions, recipes it can feed.

    Raises:
        GanCompressError: the source is missing, unsafe, damaged or of no family we know.
    """
    found = find(source, discriminator=discriminator, options=reader_options)
    parts = {n.reading.part for n in found.networks}
    taken = [found.network("generator"), found.network("discriminator")]
    result: dict[str, Any] = {
        "source": source,
        "container": found.container,
        "bytes": found.file_bytes,
        "family": found.family.name,
        "resolution": found.arch.resolution,
        "channels": found.arch.nc,
        "latents": f"{found.arch.nz} numbers, {latent_words(found.arch)}" if found.arch.nz else "an image",
        "classes": found.arch.classes,
        "arch": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(found.arch).items()},
        "contents": [
            {
                "where": n.where,
                "part": n.reading.part,
                "ema": n.ema,
                "taken": any(n is t for t in taken),
                "parameters": _count(found.family, found.arch, n.reading.part),
            }
            for n in found.networks
        ],
        "others": found.others,
        "assumptions": found.assumptions,
        "metadata": {k: v for k, v in found.metadata.items() if k not in ("arch", "family")},
    }
    if "generator" in parts:
        cost = generator_cost(found.family, found.arch)
        result |= {"parameters": cost.parameters, "macs_input_convention": cost.macs_in, "macs_output_convention": cost.macs_out}
        result["generator_bytes"] = cost.bytes
    result["recipes"] = {}
    has = {"teacher_images"} if "generator" in parts else set()
    has |= set() if found.arch.nz else {"translator"}
    has |= {"teacher_discriminator"} if "discriminator" in parts else set()
    for row in recipe_table():
        missing = [NEEDS[n] for n in row["needs"] if n not in has and n != "real"]
        result["recipes"][row["name"]] = {
            "feeds": not missing and "generator" in parts,
            "missing": missing or ([] if "generator" in parts else ["a generator"]),
            "also": [NEEDS[n] for n in row["needs"] if n == "real"] + [f"optional: {NEEDS[n]}" for n in row["uses"] if n not in has],
        }
    return result


def _count(family: Any, arch: Any, part: str) -> int:
    with torch.device("meta"):
        net = family.generator(arch) if part == "generator" else family.discriminator(arch)
    return sum(p.numel() for p in net.parameters())


def distill(
    teacher: str | None = None,
    recipe: str = "mse",
    *,
    overrides: Iterable[tuple[str, Any]] = (),
    reporter: Reporter | None = None,
    **plan_options: Any,
) -> Path:
    """Compress a teacher; returns the path of student.safetensors. Called again with the same arguments it goes on or is done.

    Args:
        teacher: whatever ``load`` takes; None for a recipe that trains without one.
        recipe: a name of ``gancompress recipes`` or the path of a YAML file.
        overrides: pairs such as ("student.ch_mul", 0.25) or ("schedule.kimg", 50).
        plan_options: data, out, device, discriminator, reader_options, target_params, target_macs, target_size, steps,
            fit_discriminator, target, direction, recorded, back, compiled (see ``gancompress.request.Request``).

    Raises:
        GanCompressError: of the kind that fits.
    """
    with ranks.joined(choose_device(plan_options.get("device", "auto"))):
        plan = ranks.agreed(lambda: make_plan(Request(teacher, recipe, overrides=overrides, **plan_options)), lambda plan: json.dumps(plan.identity))
        return run_plan(plan, reporter if reporter and not ranks.rank() else Silent())


def sample(
    source: str,
    out: str | Path,
    *,
    num: int = 64,
    seed: int = 0,
    label: int | None = None,
    data: str | None = None,
    direction: str | None = None,
    device: torch.device | None = None,
    **reader_options: Any,
) -> Path:
    """Images of a source (a translator's of images of ``data``): one grid where ``out`` ends in .png (with a number where that file is
    there already), else ``num`` numbered files in that directory.

    Raises:
        UsageError: a label the network does not have. GanCompressError: the source cannot be loaded.
    """
    gan = load_gan(source, options=reader_options)
    device = device or torch.device("cpu")
    if num < 1:
        raise UsageError(f"--num {num}: at least 1")
    if label is not None and not 0 <= label < gan.arch.classes:
        raise UsageError(f"--label {label}: this network has {gan.arch.classes} classes" if gan.arch.classes else "this network has no classes")
    if not gan.arch.nz:
        feed_translator(gan, data, direction)
    inputs, condition = gan.sample(num, rng(seed, EVALUATION))
    if label is not None:
        condition = torch.full((num,), label)
    gan.to(device)
    images = torch.cat([draw(gan, i, None if condition is None else c, device).cpu() for i, c in _pieces(inputs, condition)])
    target = Path(out)
    if target.suffix.lower() == ".png":
        target = unused(target)
        save_grid(target, images)
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty directory", "choose another --out, or a name ending in .png for one grid")
    for i, image in enumerate(images):
        save_rows(target / f"{i:06d}.png", [("", image[None])], scale=1)
    return target


def _pieces(inputs: torch.Tensor, condition: torch.Tensor | None) -> Iterable[tuple[torch.Tensor, Any]]:
    labels = condition.split(64) if condition is not None else [None] * len(inputs.split(64))
    return zip(inputs.split(64), labels, strict=True)


def measure(
    source: str,
    against: str | None = None,
    *,
    data: str | None = None,
    direction: str | None = None,
    metrics: str | None = None,
    num_images: int = 5000,
    batch_size: int | None = None,
    max_fid: float | None = None,
    save_stats: Path | None = None,
    feature_extractor: str | None = None,
    weights: str | None = None,
    per_class: str | None = None,
    pictures: Path | None = None,
    options: dict[str, Any] | None = None,
    device: torch.device | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What ``gancompress eval`` measures, as a JSON-able dict: ``evaluate`` on sources; or distances within classes, where ``per_class`` lists them.

    Args:
        against: the teacher; None: the one a run was made from.
        data: real images, or an .npz with mu and sigma, or what a translator translates.
        metrics: ``fid,kid``; without it what cannot be measured is left out and said in ``notes``.
        max_fid: a distance must be measured for ``check_distance`` to judge it.

    Raises:
        GanCompressError: a source cannot be loaded, or a metric that was asked for cannot be measured.
    """
    device = device or torch.device("cpu")
    wanted = parse_metrics(metrics) if metrics is not None else None
    gan, teacher, against, notes = student_and_teacher(source, against, options)
    images = _images_for(gan, teacher, data, direction)
    if per_class is not None:
        if metrics is not None or save_stats is not None:
            raise UsageError(f"--per-class {per_class}: distances within classes and nothing else", "leave out --metrics and --save-stats")
        if isinstance(images, Statistics):
            raise UsageError(f"--data {data}: statistics know no classes", "--data with labelled images")
        protocol = {"num_images": num_images, "seed": seed, "device": device, "batch_size": batch_size or default_batch_size(gan.arch.resolution, device)}
        extractor = make_extractor(feature_extractor or "inception", weights, device)
        found = eval_classes(gan, teacher, images, extractor, per_class, pictures, **protocol)
        return found | {"source": source, "against": against, "notes": notes}
    if pictures is not None:
        raise UsageError(f"--pictures {pictures}: they are of classes", "--per-class all")
    asked = bool(feature_extractor or weights or max_fid is not None or save_stats or (wanted and FEATURES & set(wanted)))
    chosen = None
    if asked or (wanted is None and (images is not None or teacher)):
        try:
            chosen = make_extractor(feature_extractor or "inception", weights, device)
        except MissingError as error:
            if asked:
                raise
            notes.append(f"left out: {error}\nhint: {error.hint}")
    result = evaluate(
        gan, teacher, images, num_images=num_images, extractor=chosen, seed=seed, device=device, metrics=wanted, batch_size=batch_size,
        cache=cache_folder(), save_stats=save_stats,
    )  # fmt: skip
    if max_fid is not None and distance_of(result) is None:
        raise UsageError(f"--max-fid {max_fid:g}: no distance was measured", "--data, or --against TEACHER, and fid among --metrics")
    said = {"source": source, "against": against, "student_sha256": state_hash(gan.generator.state_dict()), "notes": notes + result["notes"]}
    return result | said


def student_and_teacher(source: str, against: str | None, options: dict[str, Any] | None) -> tuple[GAN, GAN | None, str | None, list[str]]:
    """(what is measured, its teacher where there is one, that teacher's name, what is worth telling); ``against`` None: the one a run was made from."""
    options, notes = options or {}, []
    gan = load_gan(source, options=options)
    if against is None:
        against, recorded, why_not = teacher_of(source)
        options, notes = recorded | options, [why_not] if why_not else []
    return gan, load_gan(against, options=options) if against else None, against, notes


def _images_for(gan: GAN, teacher: GAN | None, data: str | None, direction: str | None) -> Images | Statistics | None:
    """What ``data`` is to a generator: real images or their statistics. Translators are fed with it."""
    translators = [g for g in (gan, teacher) if g and not g.arch.nz]
    for translator in translators:
        feed_translator(translator, data, direction)
    if not data or translators:
        return None
    return read_statistics(Path(data).expanduser()) or Images(data, gan.arch.resolution, gan.arch.nc)


def distance_of(result: dict[str, Any]) -> float | None:
    """The student's Frechet distance (its mean over classes) in what ``measure`` gave, None where none was measured."""
    student = result["student"]
    found = next((student[key] for key in ("fid", "frechet_distance", "mean") if key in student), None)
    return None if found is None else float(found)


def check_distance(result: dict[str, Any], most: float | None) -> None:
    """Raises ParityError: the student's distance is above ``most``."""
    found = distance_of(result)
    if most is not None and found is not None and not found <= most:
        raise ParityError(f"{result['protocol']['distance']} {found:.4g} is above --max-fid {most:g}")


def eval_classes(
    student: GAN, teacher: GAN | None, images: Images | None, extractor: Extractor, classes: str, pictures: Path | None, **protocol: Any
) -> dict[str, Any]:
    """``evaluate_classes`` over a list such as ``all`` or ``3,7-9``; worst.png and interpolations.png go into ``pictures``.

    Raises:
        UsageError, MissingError: as ``class_list`` and ``evaluate_classes``.
    """
    chosen = class_list(classes, student)
    found = evaluate_classes(student, teacher, images, extractor, chosen, **protocol)
    if pictures is not None and not ranks.rank():
        seed, device = protocol["seed"], protocol["device"]
        save_worst(pictures / "worst.png", student, teacher, found["student"]["worst"], seed, device)
        save_rows(pictures / "interpolations.png", interpolations(student, chosen, seed, device))
    return found


def eval_segmentation(
    student: GAN, teacher: GAN | None, data: str | None, segmenter: str, *, label_maps: str | None, target: str | None = None, direction: str | None = None,
    classes: int | None = None, ignored: Iterable[int] | None = None, num_images: int = 5000, device: torch.device | None = None,
) -> dict[str, Any]:  # fmt: skip
    """FCN scores of a translator, of its teacher and, where ``data`` and ``target`` tell them, of the real targets, as a JSON-able dict.

    Args are those of ``gancompress eval``; ``ignored``: values of label maps beside 255, which is a class where there are so many.

    Raises:
        UsageError: a network that does not translate to grey or RGB. GanCompressError: as ``open_segmenter``, ``LabelMaps`` and ``fcn_score``.
    """
    device = device or torch.device("cpu")
    columns = {"student": student} | ({"teacher": teacher} if teacher else {})
    for gan in columns.values():
        if gan.arch.nz or gan.arch.nc not in (1, 3):
            raise UsageError(f"--segmenter: {gan.source} does not translate images to grey or RGB ones", "the FCN score is of translators; eval without it")
    if label_maps is None:
        raise MissingError("--segmenter: the FCN score needs the classes of the pixels", "--label-maps DIR with a .png or .npy for each image of --data")
    judge = open_segmenter(segmenter, student.arch.resolution, classes, device)
    left_out = frozenset(ignored or ()) | ({VOID} if judge.classes <= VOID else frozenset())
    maps = LabelMaps(label_maps, judge.classes, left_out)
    both = data is not None and (target is not None or direction is not None or holds_both(data))
    result: dict[str, Any] = {}
    total = 0
    for name, gan in columns.items():
        arch = gan.to(device).arch
        found = sides(str(data), target, arch.resolution, (arch.nc_in, arch.nc), direction) if both else (feed_translator(gan, data), None)
        total = len(found[0])
        if found[1] is not None and gan is student:
            result["ground truth"] = fcn_score(None, found[1], judge, maps, num_images)
        result[name] = fcn_score(gan, found[0], judge, maps, num_images)
    protocol = {"segmenter": judge.name, "segmenter_sha256": judge.sha256, "classes": judge.classes, "images": min(num_images, total), "of_images": total}
    protocol |= {"data": data, "label_maps": label_maps, "ignored": sorted(left_out), "quantisation": "round to 8 bits"}
    protocol |= {"resolution": student.arch.resolution, "device": device_name(device), "torch": torch.__version__}
    return {"protocol": protocol, **result}
