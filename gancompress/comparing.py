"""Several generators side by side, measured in one go: quality by one protocol, cost, pictures on the same latents, curves of their runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancompress.checkpoint import unused
from gancompress.comparison import COSTS, RATIOS, check_out, quality_keys, write
from gancompress.data import PICTURES, Images, draw, rng
from gancompress.devices import choose_device
from gancompress.errors import GanCompressError, MissingError, UsageError
from gancompress.extractors import Extractor, make_extractor
from gancompress.fidelity import paired_fidelity
from gancompress.gan import GAN, shares_latents
from gancompress.loading import load_gan
from gancompress.metrics import evaluate
from gancompress.pairs import feed_translator
from gancompress.references import cache_folder
from gancompress.report import panels_of
from gancompress.runs import record_of

SHOWN = 16
Panels = dict[str, dict[str, list[tuple[float, float]]]]


@dataclass
class Comparison:
    """``result``: all numbers, JSON-able; ``pictures``: (label, images (N, C, H, W) in [-1, 1]); ``panels``: {title: {run: points}}."""

    result: dict[str, Any]
    pictures: list[tuple[str, Tensor]] = field(default_factory=list)
    panels: Panels = field(default_factory=dict)


def compare(sources: Sequence[str | Path], out: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Measure the sources side by side, write ``out`` (.html, .md or .json; a number is added where it is taken) and return the numbers.

    Args:
        sources: two or more of whatever ``load`` takes. The first is what the others are held against.
        options: as of ``measure``.

    Raises:
        GanCompressError: of the kind that fits.
    """
    if out is not None:
        check_out(Path(out))
    found = measure(list(map(str, sources)), **options)
    if out is not None:
        write(unused(Path(out)), found.result, found.pictures, found.panels)
    return found.result


def measure(
    sources: Sequence[str],
    *,
    data: str | None = None,
    direction: str | None = None,
    num_images: int = 5000,
    feature_extractor: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    device: str = "auto",
    reader_options: Mapping[str, Any] | None = None,
) -> Comparison:
    """Everything ``gancompress compare`` tells.

    Args:
        data: real images that distances are taken to, or what translators translate; without it samples of the first source are the reference.
        feature_extractor: ``inception``, ``digits`` or a file, as of ``make_extractor``; None: Inception where its weights can be had.

    Raises:
        UsageError: fewer than two sources, or such as make images of different sizes or channels. GanCompressError: a source cannot be loaded.
    """
    if len(sources) < 2:
        raise UsageError(f"compare takes two sources or more, and was given {len(sources)}", "gancompress compare TEACHER RUN")
    where, notes = choose_device(device), list[str]()
    gans = [load_gan(source, options=reader_options) for source in sources]
    _check_alike(sources, gans)
    images: Images | None = None
    if not gans[0].arch.nz:
        for gan in gans:
            feed_translator(gan, data, direction)
    elif data is not None:
        images = Images(data, gans[0].arch.resolution, gans[0].arch.nc)
    extractor: Extractor | None = None
    try:
        extractor = make_extractor(feature_extractor or "inception", weights, where)
    except MissingError as error:
        if feature_extractor or weights:
            raise
        notes.append(f"distances and scores are left out: {error}; {error.hint}")
    protocol, columns, told = _measured(gans, images, extractor, num_images, seed, where)
    notes += told
    if "reference" in protocol and images is None:
        protocol["reference"] = f"samples of 1 ({sources[0]})"
    folders = [_run_of(source) for source in sources]
    rows: list[dict[str, Any]] = []
    for number, (source, folder, column) in enumerate(zip(sources, folders, columns, strict=True), 1):
        row = {"number": number, "source": source, "run": _told(folder), **column}
        row["against_1"] = {key: columns[0][key] / max(column[key], 1e-9) for key in (*RATIOS, *COSTS) if key in RATIOS or key.startswith("latency_ms")}
        rows.append(row)
    for row, gan in zip(rows[1:], gans[1:], strict=True):
        if not shares_latents(gan, gans[0]):
            notes.append(f"{row['number']} shares no latents with 1: its pictures are of its own, and it has no paired error")
    if unsteady := [str(row["number"]) for row in rows if row["latency_iqr_ms_batch_1"] > row["latency_ms_batch_1"] / 4]:
        notes.append(
            f"Milliseconds of {', '.join(unsteady)} spread (IQR) by more than a quarter of their median: measure speed on a machine with nothing else to do"
        )
    panels, more = _curves(folders)
    result = {"protocol": protocol, "rows": rows, "over_seeds": _over_seeds(rows, folders), "notes": notes + more}
    return Comparison(result, _pictures(gans, rows, seed, where), panels)


def _check_alike(sources: Sequence[str], gans: Sequence[GAN]) -> None:
    for source, gan in zip(sources, gans, strict=True):
        if bool(gan.arch.nz) != bool(gans[0].arch.nz):
            raise UsageError(f"{source} {'takes latents' if gan.arch.nz else 'translates images'}, unlike {sources[0]}: they have no common task")
        for key, what in (("resolution", "images of resolution"), ("nc", "channels:"), ("nc_in", "input channels:")):
            mine, first = getattr(gan.arch, key, None), getattr(gans[0].arch, key, None)
            if mine != first:
                raise UsageError(f"{source} has {what} {mine}, {sources[0]} {first}: their images cannot be compared", "compare those of one size")


def _measured(
    gans: Sequence[GAN], images: Images | None, extractor: Extractor | None, num_images: int, seed: int, device: torch.device
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """(protocol, a column for each generator, what ``evaluate`` notes of which); all of one protocol.

    Raises:
        GanCompressError: their protocols differ, so that no two numbers may stand side by side.
    """
    options: dict[str, Any] = {"num_images": num_images, "extractor": extractor, "seed": seed, "device": device, "cache": cache_folder()}
    first = gans[0]
    if images is None and extractor is not None:  # the first one's samples are the reference
        found = [evaluate(gan, first, None, **options) for gan in gans[1:]]
        columns = [found[0]["teacher"]] + [f["student"] | ({"paired": f["paired"]} if f.get("paired") else {}) for f in found]
    else:
        found = [evaluate(gan, None, images, **options) for gan in gans]
        columns = [f["student"] for f in found]
        for gan, column in zip(gans[1:], columns[1:], strict=True):
            if paired := paired_fidelity(gan, first, min(num_images, 1000), seed, device):
                column["paired"] = paired
    if any(f["protocol"] != found[0]["protocol"] for f in found):
        raise GanCompressError("the sources were measured by different protocols; their numbers are not comparable", "run the comparison again")
    noted: dict[str, list[int]] = {}
    for number, f in enumerate(found, 1 + len(gans) - len(found)):
        for note in f.get("notes", ()):
            noted.setdefault(note, []).append(number)
    told = [note if len(numbers) == len(found) else f"{', '.join(map(str, numbers))}: {note}" for note, numbers in noted.items()]
    return dict(found[0]["protocol"]), columns, told


def _run_of(source: str) -> Path | None:
    """The run folder of a source that is one, or the student in one."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent if path.name == "student.safetensors" else None
    return folder if folder is not None and record_of(folder) else None


def _told(folder: Path | None) -> str:
    """What a run was, in a few words; "" of anything else."""
    record = record_of(folder) if folder else None
    recipe = record["identity"].get("recipe") if record else None
    if not isinstance(recipe, dict):
        return ""
    student, schedule = (values if isinstance(values := recipe.get(key), dict) else {} for key in ("student", "schedule"))
    found = {"recipe": recipe.get("loss"), "ch_mul": student.get("ch_mul"), "kimg": schedule.get("kimg"), "seed": recipe.get("seed")}
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items() if isinstance(value, str | int | float)
    )


def _over_seeds(rows: Sequence[dict[str, Any]], folders: Sequence[Path | None]) -> list[dict[str, Any]]:
    """Mean and standard deviation of every quality over runs that differ in nothing but their seed."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}  # {all but the seed: {seed: row}}
    for row, folder in zip(rows, folders, strict=True):
        record = record_of(folder) if folder else None
        if record and isinstance(recipe := record["identity"].get("recipe"), dict) and "seed" in recipe:
            rest = record["identity"] | {"recipe": {key: value for key, value in recipe.items() if key != "seed"}}
            groups.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(str(recipe["seed"]), row)
    found = []
    for members in (list(group.values()) for group in groups.values() if len(group) > 1):
        values = {key: [row[key] for row in members] for key in quality_keys(rows) if all(key in row for row in members)}
        if all(row.get("paired") for row in members):
            values |= {key: [row["paired"][key] for row in members] for key in members[0]["paired"]}
        spread = {key: {"mean": statistics.mean(v), "standard_deviation": statistics.stdev(v)} for key, v in values.items()}
        found.append({"members": [row["number"] for row in members], "run": members[0]["run"].rpartition(", seed")[0], "metrics": spread})
    return found


def _curves(folders: Sequence[Path | None]) -> tuple[Panels, list[str]]:
    """The curves of all runs, one panel for each term, and what is wrong with a log."""
    panels: Panels = {}
    notes = []
    for number, folder in enumerate(folders, 1):
        if folder is None:
            continue
        try:
            found = panels_of(folder / "log.jsonl")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            notes.append(f"{number}: {folder / 'log.jsonl'} is missing or damaged, so its curves are left out")
            continue
        for title, lines in found.items():
            for name, points in lines.items():
                panels.setdefault(title, {})[f"{number}" if len(lines) == 1 else f"{number} {name}"] = points
    return panels, notes


def _pictures(gans: Sequence[GAN], rows: Sequence[dict[str, Any]], seed: int, device: torch.device) -> list[tuple[str, Tensor]]:
    """A row of images of each; on the latents (or inputs) of the first where they are shared."""
    first = gans[0]
    inputs, labels = first.sample(SHOWN, rng(seed, PICTURES))
    found = [] if first.arch.nz else [("inputs", inputs)]
    for row, gan in zip(rows, gans, strict=True):
        same = shares_latents(gan, first)
        images = draw(gan, *((inputs, labels) if same else gan.sample(SHOWN, rng(seed, PICTURES))), device).cpu()
        found.append((f"{row['number']}" + ("" if same else " (latents of its own)"), images))
    return found
