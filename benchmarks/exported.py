"""Exported networks: parity, bytes and latency of every family in every format, and of a teacher and its students beside their MACs.

    python benchmarks/exported.py dcgan_faces64.tar [--runs 60] [--only students | --only dcgan,mlp,...]

Every family's generator has random weights at a small size a student might have, and BatchNorm statistics of its own latents. Latencies are of
one thread; the variants take turns, run by run, so that the machine's moods hit all alike, and count as ratios within this run: of the medians,
and of the fastest runs, which a busy machine disturbs least. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import RESULTS, finish, take_turns

from gancompress import onnx_export
from gancompress.checkpoint import save_networks
from gancompress.cost import generator_cost
from gancompress.errors import GanCompressError
from gancompress.exporter import export
from gancompress.families import FAMILIES
from gancompress.folding import Deployed
from gancompress.gan import GAN
from gancompress.loading import load_gan

#: fields of each family's generator
SIZES: dict[str, dict[str, Any]] = {
    "dcgan": {"resolution": 64, "width": 16},
    "mlp": {"resolution": 32, "width": 128},
    "unet": {"resolution": 128, "width": 8},
    "resnet": {"resolution": 64, "width": 8},
    "pggan": {"resolution": 64, "width": 64, "nz": 128},
    "sngan": {"resolution": 32, "g_widths": (64,) * 4},
    "sngan24": {"width": 16},
    "tinygan": {"resolution": 32, "classes": 10, "width": 8},
    "biggan": {"resolution": 32, "classes": 10, "width": 16},
    "biggan_deep": {"resolution": 32, "classes": 10, "width": 16},
    "stylegan2": {"resolution": 64, "width": 32, "nz": 128, "w_dim": 128},
    "stylegan3": {"resolution": 32, "width": 32, "nz": 128, "w_dim": 128, "margin": 4},
}
WIDTHS = (1.0, 0.5, 0.25, 0.125)
BATCHES = (1, 32)
Variant = Callable[[], object]


def fresh(name: str) -> GAN:
    """A generator of random weights; a few passes in training mode give its BatchNorms and spectral norms the statistics of its own latents."""
    family = FAMILIES[name]
    arch = family.build_arch(None, SIZES[name])
    torch.manual_seed(0)
    net = family.generator(arch)
    with torch.no_grad():
        for i in range(10):
            net.train()(*family.sample(arch, 8, torch.Generator().manual_seed(i)))
    return GAN(family, arch, net, None, f"{name}.safetensors").freeze()


def latencies(variants: dict[str, Variant], runs: int) -> dict[str, dict[str, float]]:
    """{variant: median and least milliseconds}, of ``runs`` runs each after five for warm-up."""
    times = {name: [1e3 * t for t in each[5:]] for name, each in take_turns(variants, runs + 5, torch.device("cpu")).items()}
    return {name: {"median_ms": round(statistics.median(t), 4), "least_ms": round(min(t), 4)} for name, t in times.items()}


def runs_of(gan: GAN, files: dict[str, Path], batch: int) -> dict[str, Variant]:
    """Eager, then each written file, on the same inputs."""
    given = gan.sample(batch, torch.Generator().manual_seed(0))
    names, tensors = Deployed(gan).names, [t for t in given if t is not None]
    variants: dict[str, Variant] = {"eager": lambda: gan.generator(*given)}
    runners = {name: onnx_export.runner(path, names)[0] for name, path in files.items()}
    return variants | {name: partial(run, tensors) for name, run in runners.items()}


def write_all(gan: GAN, folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """(parity and bytes by file, the files that run) of every format; a refusal is told in its own words."""
    folder.mkdir()
    source = folder / f"{gan.family.name}.safetensors"
    save_networks(source, gan.family, gan.arch, {"generator": gan.generator}, {})
    figures: dict[str, Any] = {}
    files: dict[str, Path] = {}
    wishes: list[tuple[str, dict[str, Any]]] = [
        ("float32", {"formats": ["safetensors", "pt2", "onnx", "openvino"]}),
        ("float16", {"formats": ["onnx"], "dtype": "float16"}),
        ("int8", {"formats": ["onnx"], "int8": True}),
    ]
    for label, wish in wishes:
        try:
            out = export(str(source), folder / label, **wish)
        except GanCompressError as error:
            figures[label] = {"refused": str(error).replace(str(source), source.name)}
            continue
        for name, found in json.loads((out / "parity.json").read_text())["files"].items():
            if label == "int8" and name != "model.int8.onnx":
                continue
            size = sum(p.stat().st_size for p in out.glob("model.bin" if name == "model.xml" else name))
            kept = {"bytes": size, "max_abs_difference": max(found["max_abs_difference"].values()), "psnr_db": min(found["psnr_db"].values())}
            figures[f"{label} {name}"] = kept | {"share_off": found["share_of_uint8_off_by_more_than_one"]}
            if label != "float16" and name not in ("model.safetensors", "model.pt2"):
                files[{"model.onnx": "onnxruntime", "model.xml": "openvino"}.get(name, "onnxruntime int8")] = out / name
    return figures, files


def ratios(times: dict[str, dict[str, float]], base: str = "eager") -> dict[str, dict[str, float]]:
    return {name: t | {f"{k} ratio": round(times[base][f"{k}_ms"] / t[f"{k}_ms"], 3) for k in ("median", "least")} for name, t in times.items()}


def families(names: list[str], runs: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        gan = fresh(name)
        figures, files = write_all(gan, folder / name)
        cost = generator_cost(gan.family, gan.arch)
        found[name] = {"fields": SIZES[name], "parameters": cost.parameters, "macs": cost.macs_out, "files": figures}
        found[name]["latency"] = {str(b): ratios(latencies(runs_of(gan, files, b), runs)) for b in BATCHES}
    return found


def students(teacher: GAN, runs: int, folder: Path) -> dict[str, Any]:
    """The teacher and students of random weights at 1, 1/2, 1/4 and 1/8 of its width, all in one run."""
    family, costs, written, variants = teacher.family, {}, {}, {b: dict[str, Variant]() for b in BATCHES}
    for width in WIDTHS:
        print(f"width {width}", file=sys.stderr, flush=True)
        arch = family.scale(teacher.arch, width)
        torch.manual_seed(0)
        gan = teacher if width == 1 else GAN(family, arch, family.generator(arch), None, "student").freeze()
        written[str(width)], files = write_all(gan, folder / f"width-{width}")
        cost = generator_cost(family, arch)
        costs[str(width)] = {"parameters": cost.parameters, "macs_in": cost.macs_in, "macs_out": cost.macs_out}
        for batch in BATCHES:
            variants[batch] |= {f"{width} {name}": run for name, run in runs_of(gan, files, batch).items()}
    latency = {str(b): ratios(latencies(variants[b], runs), "1.0 eager") for b in BATCHES}
    full = costs["1.0"]
    for cost in costs.values():
        cost |= {f"{k} fewer": round(full[k] / cost[k], 2) for k in ("parameters", "macs_in", "macs_out")}
    return {"costs": costs, "files": written, "latency": latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--only", default=",".join(["students", *SIZES]))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name, torch.no_grad():
        wanted = args.only.split(",")
        found = {"students": students(load_gan(args.teacher), args.runs, Path(name))} if "students" in wanted else {}
        measured = families([f for f in SIZES if f in wanted], args.runs, Path(name))
    kept = RESULTS / "exported.json"  # a part that was measured apart joins the others
    before = json.loads(kept.read_text()) if kept.exists() else {}
    result = {"students": before.get("students")} | found
    finish("exported", {"runs": args.runs, "threads": 1, **result, "families": before.get("families", {}) | measured})


if __name__ == "__main__":
    main()
