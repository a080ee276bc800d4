"""``report.html`` of a finished run: what was compressed and by how much, what it looks like, how it went, and how to go on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancompress.charts import curves
from gancompress.checkpoint import atomic_write
from gancompress.console import number, size
from gancompress.cost import Cost
from gancompress.data import PICTURES, draw, rng, seed_for, to_float
from gancompress.gan import GAN, shares_latents
from gancompress.htmlreport import Html, Table, block, code, facts, figures, folded, page, paragraph, picture, section, table
from gancompress.recorded import RecordedTeacher
from gancompress.report import panels_of, strip_png
from gancompress.runs import record_of

REPORT = "report.html"
#: images of the side by side, images in a row, and steps from one latent to another
SHOWN, ROW, BETWEEN = 16, 8, 8


def write_report(
    folder: Path, student: GAN, teacher: GAN | None, costs: tuple[Cost, Cost | None], recipe: dict[str, Any], paired: bool, device: torch.device
) -> Path:
    """Write report.html into a finished run's folder; returns its path. The same run gives the same bytes.

    Args:
        student: as student.safetensors has it; a translator's with its ``inputs``.
        teacher: None for a run without one; of a recorded one the recorded images are shown.
        costs: of student and teacher, the latter None where it is not known.
        recipe: as recipe.yaml has it.
        paired: whether the recipe taught the teacher's images of the same latents.
    """
    record = record_of(folder) or {}
    name = str((record.get("sources") or {}).get("teacher") or (teacher.source if teacher else ""))
    arch = student.arch
    channels = {1: "grey", 3: "RGB"}.get(arch.nc, f"{arch.nc}-channel")
    what = f"{student.family.name} generator of {channels} images, {arch.resolution} x {arch.resolution}" + (
        f", {arch.classes} classes" if arch.classes else ""
    )
    lead = f"A {what}, " + (f"distilled from {name}" if teacher else "trained without a teacher") + f" with recipe {recipe['loss']} ({recipe['paper']})."
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_for(recipe["seed"], PICTURES))  # for a network that adds noise
        seen = [_pictures(student, teacher, recipe["seed"], paired, device), _interpolation(student, teacher, recipe["seed"], device)]
    parts = [
        paragraph(lead),
        *_sizes(*costs),
        *seen,
        section("Curves", *_curves(folder / "log.jsonl")),
        section("Recipe", facts(_numbers(recipe)), folded("every number (recipe.yaml)", code((folder / "recipe.yaml").read_text()))),
        section("Reproduce", *_origin(record, student)),
        section("Use it", *_use(student, name if teacher and not isinstance(teacher, RecordedTeacher) else "", record)),
    ]
    atomic_write(folder / REPORT, page(f"{recipe['loss']}: {student.family.name} at {recipe['student']['ch_mul']:g} of the width", parts))
    return folder / REPORT


def _sizes(student: Cost, teacher: Cost | None) -> list[Html]:
    costs = [("teacher", teacher), ("student", student)]
    rows = [[name, number(c.parameters), number(c.macs_in), number(c.macs_out), size(c.bytes)] for name, c in costs if c]
    made = Table("Cost of one image", ["", "parameters", "MACs, input positions", "MACs, output positions", "size in float32"], rows)
    said = paragraph("MACs: transposed convolutions are counted at their input positions (the products really formed) or at their output positions.", soft=True)
    if not teacher:
        return [table(made), said]
    pairs = [(teacher.parameters, student.parameters), (teacher.macs_in, student.macs_in), (teacher.macs_out, student.macs_out), (teacher.bytes, student.bytes)]
    ratios = [f"{a / max(1, b):.3g}x" for a, b in pairs]
    made.rows.append(["smaller by", *ratios])
    words = ("fewer parameters", "fewer MACs (input positions)", "fewer MACs (output positions)", "smaller file")
    return [figures(list(zip(ratios, words, strict=True))), table(made), said]


def _rows(rows: list[tuple[str, Tensor]]) -> Html:
    """Labelled rows of images, eight to a row, as blocks of which each shows all labels."""
    blocks = []
    for start in range(0, len(rows[0][1]), ROW):
        strips = [(label, images[start : start + ROW]) for label, images in rows]
        blocks.append(block("pair", [picture(strip_png(i), f"{label}: images {start + 1} to {start + len(i)}", label) for label, i in strips]))
    return block("grid", blocks)


def _pictures(student: GAN, teacher: GAN | None, seed: int, paired: bool, device: torch.device) -> Html:
    what = "latents" if student.arch.nz else "inputs"
    if isinstance(teacher, RecordedTeacher):
        inputs, labels, images = teacher.recorded[torch.arange(min(SHOWN, len(teacher.recorded)))]
        shown = to_float(images) if images.dtype == torch.uint8 else images.float()
        return section("The recorded teacher and the student", _rows([("teacher, as recorded", shown), ("student", draw(student, inputs, labels, device))]))
    shared = teacher is not None and shares_latents(student, teacher)
    inputs, labels = (teacher if teacher and shared else student).sample(SHOWN, rng(seed, PICTURES))
    made = draw(student, inputs, labels, device)
    if teacher is None:
        return section("The student's images", _rows([("student", made)]))
    if not shared:
        theirs = draw(teacher, *teacher.sample(SHOWN, rng(seed, PICTURES)), device)
        note = paragraph("Teacher and student share no latents: each shows its own images.", soft=True)
        return section("Teacher and student", note, _rows([("teacher", theirs), ("student", made)]))
    rows = [] if student.arch.nz else [("input", inputs)]
    rows += [("teacher", draw(teacher, inputs, labels, device)), ("student", made)]
    said = f"Column by column the same {what}."
    said += "" if paired else " This recipe does not teach the student the teacher's image of each, so they need not be alike."
    return section(f"Teacher and student on the same {what}", paragraph(said, soft=True), _rows(rows))


def _interpolation(student: GAN, teacher: GAN | None, seed: int, device: torch.device) -> Html:
    if not student.arch.nz:
        return Html("")
    source = teacher if teacher and not isinstance(teacher, RecordedTeacher) and shares_latents(student, teacher) else student
    ends, labels = source.sample(2, rng(seed, PICTURES, 1))
    steps = torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, BETWEEN)[:, None])
    fixed = None if labels is None else labels[:1].expand(BETWEEN)
    gans = [("teacher", source)] if source is not student else []
    rows = [(name, draw(gan, steps, fixed, device)) for name, gan in (*gans, ("student", student))]
    said = f"In {BETWEEN} equal steps along the line between two latents" + ("" if labels is None else f", class {int(labels[0])}") + "."
    return section("From one latent to another", paragraph(said, soft=True), _rows(rows))


def _curves(log: Path) -> list[Html]:
    """A chart of each term; what the log holds once, and events such as going back to a saved state, are said in words."""
    panels = panels_of(log)
    charts = [curves(title.replace("_", " "), lines) for title, lines in panels.items() if any(len(points) > 1 for points in lines.values())]
    single = [(name, points) for lines in panels.values() for name, points in lines.items() if all(len(p) == 1 for p in lines.values())]
    said = facts([(name.replace("_", " "), f"{points[0][1]:.4g} at {points[0][0]:g} kimg") for name, points in single])
    events = [entry for entry in map(json.loads, log.read_text().splitlines()) if "event" in entry]
    told = [paragraph(f"Step {entry['step']:,}: {entry['event']}.") for entry in events]
    return [block("grid", charts), said, *told] if panels else [paragraph("The log holds no values."), *told]


def _numbers(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    schedule, optim, student = recipe["schedule"], recipe["optim"], recipe["student"]
    return [
        ("paper", recipe["paper"]),
        ("student", f"ch_mul {student['ch_mul']:g}, init {student['init']}"),
        ("weights", ", ".join(f"{k} {v}" for k, v in recipe["weights"].items()) or "none"),
        ("length", f"{schedule['kimg']:g} kimg in batches of {schedule['batch_size']}"),
        ("optimiser", f"Adam, rate {optim['g_lr']:g}, betas {', '.join(map(str, optim['g_betas']))}, {optim['decay']}"),
        ("seed", str(recipe["seed"])),
    ]


def _origin(record: dict[str, Any], student: GAN) -> list[Html]:
    identity = record.get("identity") or {}
    versions = " ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    words = shlex.split(str(record.get("command", "")))
    if words and Path(words[0]).name in ("gancompress", "__main__.py"):
        words[0] = "gancompress"
    pairs = [("command", shlex.join(words)), ("on", f"{record.get('device', '')}; {versions}")]
    pairs += [(key, str(place)) for key, place in (record.get("sources") or {}).items() if place]
    pairs += [(f"sha256, {key}", str(identity[key]["sha256"])) for key in ("teacher", "data") if identity.get(key)]
    pairs.append(("sha256, student", student.sha256()))
    said = "Hashes of networks are over their tensors. On a CPU the same command gives the same student, bit for bit, with the same versions and threads."
    return [facts(pairs), paragraph(said, soft=True)]


def _use(student: GAN, teacher: str, record: dict[str, Any]) -> list[Html]:
    arch = student.arch
    given = f"torch.randn(16, {arch.nz})" + (f", torch.randint({arch.classes}, (16,))" if arch.classes else "") if arch.nz else "inputs"
    lines = ["import gancompress, torch", "", 'G = gancompress.load("student.safetensors")']
    lines += [] if arch.nz else [f"# inputs: (N, {arch.nc_in}, {arch.resolution}, {arch.resolution}) in [-1, 1]"]
    lines += ["with torch.no_grad():", f"    images = G({given})  # (N, {arch.nc}, {arch.resolution}, {arch.resolution}) in [-1, 1]"]
    data = "" if arch.nz else " --data FOLDER"
    shell = [f"gancompress eval .{data}", f"gancompress sample .{data} --out grid.png", "gancompress export ."]
    if teacher:
        options = (record.get("identity") or {}).get("teacher", {}).get("options") or {}
        reader = "".join(f" --reader {shlex.quote(f'{key}={value}')}" for key, value in options.items())
        shell.insert(1, f"gancompress compare {shlex.quote(teacher)} .{data}{reader} --out compare.html")
    return [paragraph("In this folder:"), code("\n".join(lines)), code("\n".join(shell))]
