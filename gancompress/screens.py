"""The tables the commands print."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

from gancompress.collecting import Recording
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
        ("device", device_name(plan.device)),
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
        ("latents", f"{arch.nz} numbers, {settings.latents}; seed {settings.seed}"),
        ("classes", settings.classes or "none"),
        ("format", settings.format),
        ("left to do", f"{recording.left:,} pairs" + (f" of rank 0 of {recording.world}" if recording.world > 1 else "")),
        ("disk", f"about {size(recording.bytes_needed)} needed, {size(recording.bytes_free)} free" if recording.bytes_needed else "nothing more is needed"),
        ("device", device_name(recording.device)),
    ]
    for key, value in [*facts, *(("note", note) for note in recording.notes)]:
        stdout.print(f"  {key:<12}{value}", highlight=False, markup=False)


def show_evaluation(result: dict[str, Any]) -> None:
    """Student beside teacher."""
    protocol, paired = result["protocol"], result.get("paired")
    columns = [name for name in ("teacher", "student") if name in result]
    rows = []
    distance = "fid" if protocol.get("extractor") == "inception-v3" else "frechet_distance"
    labels = {
        "parameters": "parameters",
        "macs_input_convention": "MACs (input positions)",
        "macs_output_convention": "MACs (output positions)",
        "bytes": "size in float32",
        "latency_ms_batch_1": "latency, batch 1 (median ms)",
        "latency_ms_batch_32": "latency, batch 32 (median ms)",
        distance: protocol.get("distance", "") + " (lower is better)",
        "inception_score": protocol.get("score", ""),
        "variance_of_laplacian": "variance of Laplacian (low: blurred)",
    }
    for key, label in labels.items():
        if any(key in result[c] for c in columns):
            values = [size(result[c][key]) if key == "bytes" else number(result[c].get(key, "")) for c in columns]
            rows.append([label, *values])
    stdout.print(table(result["source"], ["", *columns], rows))
    if paired:
        stdout.print(f"same latents: MSE {paired['mse']:.4g}, PSNR {paired['psnr']:.2f} dB, SSIM {paired['ssim']:.3f}", highlight=False)
    elif "teacher" in result:
        stdout.print("same latents: teacher and student share none, so there is no paired error", highlight=False)
    said = [f"{protocol['num_images']:,} images, seed {protocol['seed']}, {protocol['device']}"]
    if "reference" in protocol:
        said.append(f"distances to {protocol['reference_images']:,} of {protocol['reference']}")
    stdout.print("; ".join(said), highlight=False, markup=False)


def show_classes(result: dict[str, Any]) -> None:
    """Distances within classes: their mean, the score, the student's worst classes."""
    protocol, columns = result["protocol"], [name for name in ("teacher", "student") if name in result]
    rows = [[f"{protocol['distance']} within classes, mean", *(number(result[c]["mean"]) for c in columns)]]
    rows.append(["score over all of them", *(number(result[c]["inception_score"]) for c in columns)])
    rows += [[f"class {label}", *(number(result[c]["of_class"][str(label)]) for c in columns)] for label in result["student"]["worst"]]
    stdout.print(table("class by class, the worst first", ["", *columns], rows))
    said = f"{protocol['classes']} classes, {protocol['num_images_per_class']:,} images of each, seed {protocol['seed']}, {protocol['extractor']}"
    stdout.print(f"{said}; distances to {protocol['reference']}", highlight=False, markup=False)


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
