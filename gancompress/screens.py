"""The tables the commands print."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

from gancompress.collecting import Recording
from gancompress.comparison import said, tables
from gancompress.console import number, size, stdout, table
from gancompress.cost import device_name
from gancompress.errors import printable
from gancompress.planning import Plan
from gancompress.runs import versions


def show_inspection(found: dict[str, Any]) -> None:
    """What ``inspect`` tells a person."""
    have = {c["part"] for c in found["contents"]}
    absent = tuple(prefix for prefix, part in (("g_", "generator"), ("d_", "discriminator")) if part not in have)
    arch = ", ".join(f"{k} {_plain(v)}" for k, v in found["arch"].items() if not k.startswith(absent))
    rows = [
        ["container", f"{found['container']}, {size(found['bytes'])}"],
        ["family", found["family"]],
        ["images", f"{found['resolution']} x {found['resolution']}, {found['channels']} channels"],
    ]
    if "generator" in have:
        rows += [["latents", found["latents"]], ["classes", str(found["classes"] or "none")]]
        rows.append(["size", f"{size(found['generator_bytes'])}, the generator in float32"])
    rows.append(["architecture", arch])
    parts = [c["part"] for c in found["contents"]]
    for i, c in enumerate(found["contents"]):
        kind = " (EMA)" if c["ema"] else " (raw)" if any(o["ema"] for o in found["contents"] if o["part"] == c["part"]) else ""
        choice = (", taken" if c["taken"] else ", not taken: --key") if parts.count(c["part"]) > 1 else ""
        rows.append(["" if i else "holds", f"{c['part']}{kind} at {c['where']}{choice}"])
    lacking = [f"no {p}" for p in ("generator", "discriminator") if p not in have]
    rows += [["", ", ".join(lacking)]] if lacking else []
    rows += [["also", other] for other in found["others"]]
    rows += [["assumed" if i == 0 else "", a] for i, a in enumerate(found["assumptions"])]
    rows += [[key, _plain(value)] for key, value in found["metadata"].items() if key in ("recipe", "kimg", "seed", "teacher_sha256", "hub")]
    stdout.print(found["source"], style="bold", highlight=False, markup=False)
    for key, value in rows:
        stdout.print(f"  {key:<14}{printable(value)}", highlight=False, markup=False)
    if "parameters" in found:
        stdout.print()
        columns = ["network", "parameters", "MACs, transposed convolutions at input positions", "MACs, at output positions"]
        rows = [["generator", number(found["parameters"]), number(found["macs_input_convention"]), number(found["macs_output_convention"])]]
        rows += [["discriminator", number(c["parameters"]), "", ""] for c in found["contents"] if c["part"] == "discriminator" and c["taken"]]
        stdout.print(table("cost of one image", columns, rows))
    stdout.print()
    rows = []
    for name, recipe in found["recipes"].items():
        rows.append([name, "yes" if recipe["feeds"] else "no", "; ".join([f"missing: {m}" for m in recipe["missing"]] + recipe["also"])])
    stdout.print(table("recipes it can feed", ["recipe", "feeds", "needs besides"], rows))


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def show_plan(plan: Plan) -> None:
    """Teacher, student, costs, recipe: printed before a run."""
    recipe, rows = plan.recipe, []
    pairs = [("teacher", plan.teacher, plan.teacher_cost), ("student", plan.student, plan.student_cost)]
    for name, gan, cost in pairs:
        if gan is not None and cost is not None:
            rows.append([name, gan.family.name, number(cost.parameters), number(cost.macs_in), number(cost.macs_out), size(cost.bytes)])
    if plan.teacher_cost:
        a, b = plan.teacher_cost, plan.student_cost
        ratio = [f"{x / max(1, y):.1f}x" for x, y in ((a.parameters, b.parameters), (a.macs_in, b.macs_in), (a.macs_out, b.macs_out), (a.bytes, b.bytes))]
        rows.append(["smaller by", "", *ratio])
    stdout.print(table("plan", ["", "family", "parameters", "MACs (input pos.)", "MACs (output pos.)", "size"], rows))
    shapes = ", ".join(f"{k} {_plain(v)}" for k, v in vars(plan.student.arch).items() if not k.startswith("d_"))
    schedule, optim = recipe.schedule, recipe.optim
    facts = [
        ("student", f"{shapes}; init {recipe.student.init}"),
        ("recipe", f"{plan.recipe_name} ({recipe.paper}); weights {recipe.weights or 'none'}"),
        ("length", f"{schedule.kimg:g} kimg = {schedule.steps:,} steps of {schedule.batch_size}; {schedule.d_steps} critic steps each"
         if plan.loss.critics else f"{schedule.kimg:g} kimg = {schedule.steps:,} steps of {schedule.batch_size}"),
        ("optimiser", f"Adam {optim.g_lr:g}, betas {list(optim.g_betas)}, {optim.decay}"),
        ("data", _data_of(plan)),
        ("device", f"{device_name(plan.device)}, {recipe.precision}{', compiled' if plan.compiler else ''}"),
        ("run folder", f"{plan.run_dir}{' (goes on)' if plan.resumes and not plan.finished else ''}"),
    ]  # fmt: skip
    for key, value in [*facts, *(("note", note) for note in plan.notes)]:
        stdout.print(f"  {key:<12}{value}", highlight=False, markup=False)


def _data_of(plan: Plan) -> str:
    if plan.images:
        return f"{plan.images.source}: {len(plan.images):,} {'inputs and their targets' if plan.student.inputs else 'images'}"
    if plan.student.inputs:
        return "what teacher and student translate"
    return "none given" if "real" in plan.loss.uses else "none: the recipe needs no real images"


def show_recording(recording: Recording) -> None:
    """What is to be recorded and what it takes: printed before it starts."""
    settings, arch = recording.settings, recording.gan.arch
    facts = [
        ("teacher", f"{recording.source} ({settings.family}), {arch.nc} x {arch.resolution} x {arch.resolution}"),
        ("pairs", f"{settings.num:,} in {settings.shards:,} shards" + (f", {settings.per_class:,} of each class" if settings.per_class else "")),
        ("latents", f"{arch.nz} numbers, {settings.latents}; seed {settings.seed}") if arch.nz else ("inputs", settings.latents),
        ("classes", settings.classes or "none"),
        ("format", settings.format),
        ("left to do", f"{recording.left:,} pairs" + (f" of rank 0 of {recording.world}" if recording.world > 1 else "")),
        ("disk", f"about {size(recording.bytes_needed)} needed, {size(recording.bytes_free)} free" if recording.bytes_needed else "nothing more is needed"),
        ("device", device_name(recording.device)),
    ]
    for key, value in [*facts, *(("note", note) for note in recording.notes)]:
        stdout.print(f"  {key:<12}{value}", highlight=False, markup=False)


#: what a table of an evaluation may hold, in this order; those that say how often the teacher's is the student's
_RATIOS = {
    "parameters": "parameters",
    "macs_input_convention": "MACs (input positions)",
    "macs_output_convention": "MACs (output positions)",
    "bytes": "size in float32",
    "latency_ms_batch_1": "latency, batch 1",
    "latency_ms_batch_32": "latency, batch 32",
    "latency_onnx_ms_batch_1": "latency as ONNX, CPU, batch 1",
    "latency_onnx_ms_batch_32": "latency as ONNX, CPU, batch 32",
    "peak_memory_bytes_batch_1": "peak memory, batch 1",
    "peak_memory_bytes_batch_32": "peak memory, batch 32",
}
_QUALITY = {
    "precision": "precision",
    "recall": "recall",
    "ppl_z": "path length in z (lower is smoother)",
    "ppl_z_cropped": "path length in z, middle of the image",
    "ppl_w": "path length in w (lower is smoother)",
    "ppl_w_cropped": "path length in w, middle of the image",
    "variance_of_laplacian": "variance of Laplacian (low: blurred)",
    "diversity": "diversity (distance between images)",
}


def show_evaluation(result: dict[str, Any]) -> None:
    """Student beside teacher, and how many times smaller and faster it is."""
    protocol, paired = result["protocol"], result.get("paired")
    columns = [name for name in ("teacher", "student") if name in result]
    distance, kernel = protocol.get("distance", ""), "KID"
    if protocol.get("extractor") != "inception-v3":
        kernel = distance.replace("Frechet", "kernel")
    named = {"fid": f"{distance} (lower is better)", "frechet_distance": f"{distance} (lower is better)"}
    kernel += " (mean, sd of subsets)" if any(f"{key}_sd" in result[c] for key in ("kid", "kernel_distance") for c in columns) else " (mean of subsets)"
    named |= {"kid": kernel, "kernel_distance": kernel, "inception_score": protocol.get("score", "")}
    rows = []
    for key, label in (_RATIOS | named | _QUALITY).items():
        if any(key in result[c] for c in columns):
            rows.append([label, *(_shown(key, result[c]) for c in columns), *([_times(key, result)] if len(columns) == 2 else [])])
    stdout.print(table(result["source"], ["", *columns, *(["ratio"] if len(columns) == 2 else [])], rows))
    if paired:
        said = f"same latents: MSE {paired['mse']:.4g}, PSNR {paired['psnr']:.2f} dB, SSIM {paired['ssim']:.3f}"
        stdout.print(said + (f", LPIPS {paired['lpips']:.4g}" if "lpips" in paired else ""), highlight=False)
    elif "paired" in result:
        stdout.print("same latents: teacher and student share none, so there is no paired error", highlight=False)
    said = f"{protocol['num_images']:,} images, seed {protocol['seed']}, {protocol['device']}"
    if "reference" in protocol:
        count = protocol["reference_images"]
        said += f"; distances to {'an unknown number' if count is None else f'{count:,}'} of {protocol['reference']}"
    stdout.print(f"{said}; protocol {protocol['hash']}", highlight=False, markup=False)


def _shown(key: str, column: dict[str, Any]) -> str:
    value = column.get(key, "")
    if "bytes" in key:
        return size(value) if value != "" else ""
    if key.startswith("latency"):
        return f"{number(value)} ms, IQR {number(column[key.replace('ms', 'iqr_ms')])}" if value != "" else ""
    return number(value) + (f" ({number(column[f'{key}_sd'])})" if f"{key}_sd" in column else "")


def _times(key: str, result: dict[str, Any]) -> str:
    """How many times smaller, or faster, the student is: a reduction of MACs is promised, a speed-up is felt."""
    teacher, student = result["teacher"].get(key), result["student"].get(key)
    return f"{teacher / student:.1f}x" + (" as fast" if key.startswith("latency") else " fewer") if key in _RATIOS and teacher and student else ""


def show_classes(result: dict[str, Any]) -> None:
    """Distances within classes: their mean, the score, the student's worst classes."""
    protocol, columns = result["protocol"], [name for name in ("teacher", "student") if name in result]
    rows = [[f"{protocol['distance']} within classes, mean", *(number(result[c]["mean"]) for c in columns)]]
    rows.append(["score over all of them", *(number(result[c]["inception_score"]) for c in columns)])
    rows += [[f"class {label}", *(number(result[c]["of_class"][str(label)]) for c in columns)] for label in result["student"]["worst"]]
    stdout.print(table("class by class, the worst first", ["", *columns], rows))
    said = f"classes {protocol['classes']}, {protocol['num_images_per_class']:,} images of each, seed {protocol['seed']}, {protocol['extractor']}"
    stdout.print(f"{said}; distances to {protocol['reference']}", highlight=False, markup=False)


def show_segmentation(result: dict[str, Any]) -> None:
    """FCN scores in percent, as the papers print them, and each class."""
    protocol, columns = result["protocol"], [name for name in ("ground truth", "teacher", "student") if name in result]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    names = {"per_pixel_accuracy": "per-pixel accuracy", "per_class_accuracy": "per-class accuracy", "class_iou": "class IoU"}
    classes = [[result[c]["of_class"][k] for c in columns] for k in range(protocol["classes"])]
    if absent := sum(row[0]["pixels"] == 0 for row in classes):
        names |= {"per_class_accuracy_present": "per-class accuracy, without 0 / 0", "class_iou_present": "class IoU, without 0 / 0"}
    stdout.print(table("FCN score, %", ["", *columns], [[label, *(percent(result[c][key]) for c in columns)] for key, label in names.items()]))
    rows = [[str(k), number(row[0]["pixels"]), *(f"{percent(e['accuracy'])} / {percent(e['iou'])}" for e in row)] for k, row in enumerate(classes)]
    stdout.print(table("each class: accuracy / IoU, %", ["class", "pixels", *columns], rows))
    said = f"{protocol['images']:,} of {protocol['of_images']:,} images of {protocol['data']}, {protocol['label_maps']}, {protocol['segmenter']}"
    if absent:
        said += f"; {absent} of {protocol['classes']} classes have no pixel in the label maps and count as 0 in the first means, as in pix2pix's code"
    stdout.print(said, highlight=False, markup=False)


def show_comparison(result: dict[str, Any]) -> None:
    """The tables of a comparison and what they were taken from."""
    for made in tables(result, named=False):
        # a terminal is narrow, and there are more numbers than sources: a line for each number
        corner, *heads = [row[0] for row in (made.columns, *made.rows)]
        lines = [list(line) for line in zip(*(row[1:] for row in (made.columns, *made.rows)), strict=True)]
        stdout.print(table(made.title, [corner, *heads], lines))
        stdout.print()
    for row in result["rows"]:
        stdout.print(f"  {row['number']} {row['source']}" + (f" ({row['run']})" if row["run"] else ""), highlight=False, markup=False)
    for line in (said(result), *result["notes"]):
        stdout.print(line, highlight=False, markup=False)


def show_recipes(rows: list[dict[str, Any]]) -> None:
    from gancompress.losses.base import NEEDS

    printed = [[r["name"], ", ".join(NEEDS[n] for n in r["needs"]), ", ".join(NEEDS[n] for n in r["uses"]), r["paper"]] for r in rows]
    stdout.print(table("recipes", ["name", "needs", "uses if there", "paper"], printed))


def show_environment() -> None:
    import torch

    facts = {**versions(), "platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    facts["cuda"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none"
    facts["free disk here"] = size(shutil.disk_usage(".").free)
    for key, value in facts.items():
        stdout.print(f"{key:<16}{value}", highlight=False, markup=False)
