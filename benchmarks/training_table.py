"""The Markdown of benchmarks/training.py, from its JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: columns of the split: (heading, name of the part)
PARTS = (
    ("teacher", "teacher"),
    ("student", "student"),
    ("critics", "critics"),
    ("student's update", "student_update"),
    ("critics' update", "critics_update"),
    ("data", "data"),
    ("average", "average"),
    ("rest", "rest"),
)


def _grid(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    heading = list(heading)
    return [f"| {' | '.join(map(str, row))} |" for row in (heading, ["---"] * len(heading), *rows)] + [""]


def _ratio(rate: dict[str, Any]) -> str:
    return f"{rate['ratio_median']:.2f} ({rate['ratio']:.2f})"


def _rates(measured: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in measured:
        for name, rate in row["rates"].items():
            if name != "plain":
                share = f"{row['share_of_peak']:.0%}" if name == "ours" else ""
                rows.append((row["family"], row["recipe"], name, row["batch_size"], f"{rate['images_per_s']:g}", _ratio(rate), share))
    return _grid(("family", "recipe", "row", "batch", "images/s", "to plain", "of peak"), rows)


def _parts(measured: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in measured:
        written = sum(row["ms_of_writing"].values())
        rows.append((row["family"], row["recipe"], *(f"{row['ms'].get(name, 0):.2f}" for _, name in PARTS), f"{written:.2f}"))
    return _grid(("family", "recipe", *(heading for heading, _ in PARTS), "writing"), rows)


def _references(found: list[dict[str, Any]]) -> list[str]:
    rows = []
    for row in found:
        for name, ours in row.get("rates", {}).items():
            if name != "reference":
                theirs = row["rates"]["reference"]
                rows.append((row["reference"], row["recipe"], name, f"{ours['images_per_s']:g}", f"{theirs['images_per_s']:g}", _ratio(ours), row["remark"]))
        if "left_out" in row:
            rows.append((row["reference"], "", "", "", "", "", row["left_out"]))
    return _grid(("reference", "recipe", "row", "images/s", "theirs", "ratio", ""), rows)


def _latency(found: list[dict[str, Any]]) -> list[str]:
    rows = ((row["family"], f"{row['width']:g}", f"{row['macs']:,}", row["fewer_macs"], row["ms"], f"{row['faster_median']:.2f}") for row in found)
    return _grid(("family", "width", "MACs", "fewer", "ms", "faster"), rows)


def table(found: dict[str, Any]) -> str:
    """All tables of one result."""
    lines = [
        f"Training speed, {found['size']} sizes, on {found['device']}, in {found['precision']}; commit {found['commit']}, torch {found['torch']}.",
        f"Seconds are {found['clock']}. Load of the machine before and after: {found['load_before']} and {found['load_after']}.",
        "",
        "Images a second, and how many times the plain loop's that is: the median of the rounds, in brackets of the fastest turns.",
        "",
    ]
    measured = [row for row in found["rows"] if "rates" in row]
    lines += _rates(measured)
    lines += ["Milliseconds of a step by part, and what a run's log, pictures and states add to each:", "", *_parts(measured)]
    lines += ["Beside the reference's own step, on the same weights:", "", *_references(found["references"])]
    lines += ["Latency of one image, eager:", "", *_latency(found["latency"])]
    if evaluator := found.get("evaluator"):
        ratios = " and ".join(f"{evaluator[f'ratio_to_torch_fidelity_{n}']:.2f} times torch-fidelity's at a batch of {n}" for n in (64, 8))
        lines += [f"Evaluator: {evaluator['images_per_s']['ours']:g} images/s, {ratios}.", ""]
    refused = [f"- {row['family']} {row['recipe']}: {row['refused']}" for row in found["rows"] if "refused" in row]
    refused += sorted({f"- {name}: {why}" for row in found["rows"] for name, why in row.get("refused_switches", {}).items()})
    if refused:
        lines += ["Not measured, in the plan's words:", "", *refused]
    return "\n".join(lines).rstrip() + "\n"
