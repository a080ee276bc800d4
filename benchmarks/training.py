"""Training speed of each recipe and family on this device, as ratios in one run: ours, a plain loop, the reference's step.

    python benchmarks/training.py [--device auto] [--size small] [--families dcgan,stylegan2] [--recipes mse,dgl] [--switches bf16] [--seconds 4]
                                  [--reference tinygan=PATH] [--reference dgl=PATH] [--reference rosinality=PATH]

Ours is the loop of `gancompress distill`, batches included; plain is plain_loops.py on copies of the same networks; a reference is a checkout's own
step on the same weights (reference_steps.py: its code is imported and run, so name only what you trust). Teachers have random weights, real images
are noise: both take as long as any. The variants take turns, turn by turn over whole periods of the lazy regularisers, so that the machine's moods
hit all alike; rates are of the fastest turn, ratios the median of each round's and those of the fastest turns. Apart from that each recipe's step is split
by part, and held against the largest rate of products that the device shows. Then students' latency beside their MACs, and our evaluator beside
torch-fidelity's. It writes results/training.json and results/training.md; the last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import RESULTS, finish
from evaluator import compare as compare_evaluators
from plain_loops import plain_loop
from reference_steps import REFERENCES, Reference
from training_cases import POOL, RECIPES, SIZES, SWITCHES, drawing, pairs_of, plan_of, trainer_of, write_case, write_data
from training_parts import flops_of, now, peak, time_split, writing
from training_table import table

from gancompress.cost import generator_cost
from gancompress.devices import choose_device
from gancompress.errors import GanCompressError
from gancompress.families import FAMILIES
from gancompress.loading import load_gan
from gancompress.planning import Plan
from gancompress.running import _frozen
from gancompress.speed import applied

Variant = Callable[[], object]
#: shares of the width of the students whose latency is taken
WIDTHS = (1.0, 0.5, 0.25)
#: a turn is at least so long, in seconds
TURN = 0.05


def take_turns(
    variants: dict[str, Variant], base: str, period: int, seconds: float, device: torch.device, least: int = 3
) -> dict[str, dict[str, float]]:  # fmt: skip
    """{variant: seconds a call in the fastest turn, how many times as fast as ``base`` that is, the median of each round's such ratio}.

    Turns are whole periods of calls; there are at least so many rounds, and more until the seconds are over.
    """

    def turn(run: Variant, calls: int) -> float:
        start = now(device)
        for _ in range(calls):
            run()
        return (now(device) - start) / calls

    took = {name: turn(run, period) for name, run in variants.items()}  # with what is made once, such as an optimiser's state
    if sum(took.values()) * period < seconds / 4:
        took = {name: turn(run, period) for name, run in variants.items()}
    calls = {name: period * max(1, math.ceil(TURN / (period * t))) for name, t in took.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < least or time.perf_counter() < end:
        rounds += 1
        for name, run in variants.items():
            times[name].append(turn(run, calls[name]))
    return {
        name: {
            "seconds": min(mine),
            "ratio": round(min(times[base]) / min(mine), 3),
            "ratio_median": round(statistics.median(b / t for b, t in zip(times[base], mine, strict=True)), 3),
            "rounds": rounds,
        }
        for name, mine in times.items()
    }


def step_of(plan: Plan) -> Variant:
    trainer, batches = trainer_of(plan)
    networks = [*trainer.trained, *_frozen(plan, batches)]

    def step() -> None:
        with applied(networks, plan.recipe.precision, plan.compiler):
            trainer.train_step(batches)

    return step


def period_of(plan: Plan) -> int:
    """Steps after which what a step does repeats."""
    return math.lcm(plan.loss.d_every or 1, plan.loss.g_every or 1, plan.recipe.weights.get("adversarial_every", 1))


def rates(times: dict[str, dict[str, float]], batch: int) -> dict[str, dict[str, float]]:
    return {name: {"images_per_s": round(batch / t["seconds"], 2)} | {k: t[k] for k in ("ratio", "ratio_median", "rounds")} for name, t in times.items()}


def ours(build: Callable[[list[tuple[str, Any]], bool], Plan], recipe: str, batch: int, switches: list[str]) -> tuple[dict[str, Variant], dict[str, str]]:
    """(steps of the recipe as it is and with each switch, why a switch is refused)."""
    variants: dict[str, Variant] = {"ours": step_of(build([], False))}
    refused = {}
    for name in switches:
        switch = SWITCHES[name]
        if recipe in switch.recipes:
            try:
                variants[name] = step_of(build(switch.changes(batch), switch.compiled))
            except GanCompressError as error:
                refused[name] = str(error)
    return variants, refused


def measure(family: str, recipe: str, case: tuple[str, str], batch: int, peak_rate: float, args: argparse.Namespace) -> dict[str, Any]:
    """One row: rates of ours, of its switches and of the plain loop, the step's parts and its share of the peak."""
    device, (teacher, data) = args.where, case
    row: dict[str, Any] = {"family": family, "recipe": recipe, "batch_size": batch}
    try:
        plan = plan_of(teacher, data, recipe, batch, device)
    except GanCompressError as error:
        return row | {"refused": str(error).replace(teacher, Path(teacher).name)}
    variants, refused = ours(lambda changes, compiled: plan_of(teacher, data, recipe, batch, device, changes, compiled), recipe, batch, args.switches)
    variants["plain"] = plain_loop(plan, drawing(plan))
    period = period_of(plan)
    if "reused" in variants:
        for _ in range(POOL):  # until its pool is full
            variants["reused"]()
    times = take_turns(variants, "plain", period, args.seconds, device)
    flops = flops_of(variants["ours"], period)
    row |= {
        "rates": rates(times, batch),
        "refused_switches": refused,
        "flops_per_step": flops,
        "share_of_peak": round(flops / times["ours"]["seconds"] / peak_rate, 4),
    }
    trainer, batches = trainer_of(plan)
    trainer.train_step(batches)  # the first one allocates
    trainer.step = 0
    written = writing(plan, trainer, batches)
    return row | {"ms": time_split(plan, trainer, batches, period * max(1, 8 // period)), "ms_of_writing": written}


def against(name: str, path: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One row: ours beside the step of a reference's checkout, from the same weights on."""
    device, builder = args.where, REFERENCES[name][1]
    with contextlib.redirect_stdout(sys.stderr):  # upstream prints as it builds
        theirs: Reference = builder(path.resolve(), folder, args.size == "full", device)
    data = write_data(argparse.Namespace(resolution=theirs.resolution, nc=3, classes=theirs.classes), folder / f"{name}.npz")
    changes = dict(theirs.changes)
    batch = changes.pop("schedule.batch_size")
    own = load_gan(str(theirs.student))
    assert own.discriminator is not None

    def build(more: list[tuple[str, Any]], compiled: bool) -> Plan:
        plan = plan_of(str(theirs.teacher), data, theirs.recipe, batch, device, [*changes.items(), *more], compiled)
        plan.student.generator.load_state_dict(own.generator.state_dict())
        plan.loss.critics["student"].load_state_dict(own.discriminator.state_dict())
        return plan

    plan = build([], False)
    variants, refused = ours(build, plan.recipe.loss, batch, [name for name in args.switches if name != "reused"])
    with contextlib.redirect_stdout(sys.stderr):
        times = take_turns(variants | {"reference": theirs.step}, "reference", period_of(plan), args.seconds, device, least=2)
    row = {"reference": REFERENCES[name][0], "family": plan.student.family.name, "recipe": theirs.recipe, "batch_size": batch, "remark": theirs.remark}
    return row | {"rates": rates(times, batch), "refused_switches": refused}


def latencies(families: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds for one image by generators of a family at shares of its width, in one run, beside their multiply-adds."""
    rows = []
    for name in families:
        family, fields = FAMILIES[name], SIZES[args.size][name][0]
        full = family.build_arch(None, fields)
        variants: dict[str, Variant] = {}
        costs = {}
        for width in WIDTHS:
            arch = family.scale(full, width)
            net = family.generator(arch).eval().requires_grad_(False).to(args.where)
            given = [None if t is None else t.to(args.where) for t in family.sample(arch, 1, torch.Generator().manual_seed(0))]
            variants[f"{width:g}"] = partial(net, *given)
            costs[f"{width:g}"] = generator_cost(family, arch).macs_out
        times = take_turns(variants, "1", 1, args.seconds / 4, args.where)
        rows += [
            {"family": name, "width": float(width), "macs": costs[width], "fewer_macs": round(costs["1"] / costs[width], 2)}
            | {"ms": round(1000 * t["seconds"], 3), "faster": t["ratio"], "faster_median": t["ratio_median"]}
            for width, t in times.items()
        ]
    return rows


def chosen(text: str, known: Iterable[str], option: str, parser: argparse.ArgumentParser) -> list[str]:
    names = text.split(",") if text else list(known)
    if wrong := [name for name in names if name not in known]:
        parser.error(f"{option}: {', '.join(wrong)}: none of {', '.join(known)}")
    return names


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="full: the papers' shapes, for a GPU")
    parser.add_argument("--families", default="", help=f"some of {', '.join(SIZES['small'])}")
    parser.add_argument("--recipes", default="", help=f"some of {', '.join(RECIPES)}")
    parser.add_argument("--switches", help=f"rows beside the recipes as they are, some of {', '.join(SWITCHES)}; all on a GPU, else reused")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long the variants of a row take turns, at least")
    parser.add_argument("--reference", action="append", default=[], metavar="NAME=PATH", help=f"a checkout of {', '.join(REFERENCES)}; may be repeated")
    parser.add_argument("--evaluator-images", type=int, default=16, help="0: the evaluator is left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of training.json and training.md")
    args = parser.parse_args()
    args.families = chosen(args.families, SIZES["small"], "--families", parser)
    args.recipes = chosen(args.recipes, RECIPES, "--recipes", parser)
    args.checkouts = dict(text.partition("=")[::2] for text in args.reference)
    chosen(",".join(args.checkouts), REFERENCES, "--reference", parser)
    if absent := [path for path in args.checkouts.values() if not Path(path).is_dir()]:
        parser.error(f"--reference: no folder {absent[0]!r}")
    args.where = choose_device(args.device)
    wanted = args.switches if args.switches is not None else "" if args.where.type == "cuda" else "reused"
    args.switches = chosen(wanted, SWITCHES, "--switches", parser)
    return args


def references(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each reference; for one that is not there, where it could be fetched."""
    rows = []
    for name, (repository, _) in REFERENCES.items():
        if name in args.checkouts:
            print(f"reference {name}", file=sys.stderr, flush=True)
            rows.append(against(name, Path(args.checkouts[name]), folder, args))
        else:
            rows.append({"reference": repository, "left_out": f"not given: --reference {name}=PATH, of a checkout of github.com/{repository}"})
    return rows


def load_now() -> list[float] | None:
    """Processes that want a core, on average over 1, 5 and 15 minutes; None: this system does not tell."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def main() -> None:
    args = arguments()
    began, load, rows = time.perf_counter(), load_now(), []
    peaks = peak(args.where)
    with TemporaryDirectory() as name:
        cases: dict[str, tuple[str, str]] = {}
        for family, recipe in pairs_of(args.families, args.recipes):
            fields, batch = SIZES[args.size][family]
            print(f"{family} {recipe}", file=sys.stderr, flush=True)
            if family not in cases:
                cases[family] = write_case(family, fields, Path(name))
            rows.append(measure(family, recipe, cases[family], batch, max(peaks.values()), args))
        beside = references(Path(name), args)
    result: dict[str, Any] = {"size": args.size, "device_type": args.where.type, "precision": "fp32", "threads": torch.get_num_threads()}
    result["clock"] = "the process's own time" if args.where.type == "cpu" and torch.get_num_threads() == 1 else "the wall's"
    result |= {"seconds_a_row": args.seconds, "load_before": load, "peak_flops_per_s": {k: round(v) for k, v in peaks.items()}}
    result |= {"rows": rows, "references": beside, "latency": latencies(args.families, args)}
    if args.evaluator_images:
        result["evaluator"] = compare_evaluators(None, args.evaluator_images, 32, 2, args.where)
    result |= {"load_after": load_now(), "took_s": round(time.perf_counter() - began)}
    kept = finish("training", result, args.out)
    (args.out / "training.md").write_text(table(kept))


if __name__ == "__main__":
    main()
