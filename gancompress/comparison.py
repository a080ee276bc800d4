"""A comparison as tables, and as a page, Markdown or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gancompress.charts import Points, curves, front
from gancompress.checkpoint import atomic_write, write_json
from gancompress.console import number, size
from gancompress.errors import UsageError
from gancompress.htmlreport import Html, Table, block, facts, markdown, page, paragraph, picture, plain, section, table
from gancompress.report import save_rows, strip_png

#: what a generator costs, as ``metrics.evaluate`` calls it; all else it says in numbers is quality
RATIOS = ("parameters", "macs_input_convention", "macs_output_convention", "bytes")
MEMORY = ("peak_memory_bytes_batch_1", "peak_memory_bytes_batch_32")
COSTS = ("latency_ms_batch_1", "latency_iqr_ms_batch_1", "latency_ms_batch_32", "latency_iqr_ms_batch_32")
#: distances among the qualities, the first there is drawn against cost
DISTANCES = ("fid", "frechet_distance")
PAIRED = {"mse": "MSE to 1", "psnr": "PSNR to 1, dB", "ssim": "SSIM to 1"}
FORMATS = (".html", ".md", ".json")
ROW = 8


def check_out(path: Path) -> None:
    """Raises UsageError where ``path`` ends in no format we write."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {path}: expected a name that ends in {', '.join(FORMATS)}")


def write(path: Path, result: Mapping[str, Any], pictures: Sequence[tuple[str, Tensor]], panels: Mapping[str, Mapping[str, Points]]) -> None:
    """By the suffix: one page that needs no other file, Markdown with a picture beside it, or the numbers alone."""
    if path.suffix.lower() == ".json":
        write_json(path, result)
    elif path.suffix.lower() == ".md":
        beside = path.with_name(f"{path.stem}-pictures.png")
        save_rows(beside, [(label.split(" ")[0], images[:ROW]) for label, images in pictures])
        atomic_write(path, as_markdown(result, beside.name).encode())
    else:
        atomic_write(path, as_page(result, pictures, panels))


def quality_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every quality that some row has, in the order met."""
    known = {*RATIOS, *MEMORY, *COSTS, "number"}
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if key not in known and isinstance(value, int | float)))


def name_of(row: Mapping[str, Any]) -> str:
    """``2 run-folder``: the number by which plots call it, and the end of its source."""
    path = Path(row["source"])
    inside = path.name in ("student.safetensors", "model.safetensors")
    return f"{row['number']} {path.parent.name if inside and path.parent.name else path.name or path.resolve().name}"


def _label(key: str, protocol: Mapping[str, Any]) -> str:
    names = {"inception_score": protocol.get("score"), **dict.fromkeys(DISTANCES, protocol.get("distance")), **PAIRED}
    return str(names.get(key) or key.replace("_", " "))


def _cell(value: Any) -> str:
    return "" if value is None else number(value)


def tables(result: Mapping[str, Any], named: bool = True) -> list[Table]:
    """Quality, cost, speed, and mean and spread over seeds where there are several; rows go by number alone where they are not ``named``."""
    rows, protocol = result["rows"], result["protocol"]
    keys = sorted(quality_keys(rows), key=lambda key: key not in DISTANCES)
    paired = [key for key in PAIRED if any(row.get("paired") for row in rows)]
    quality = Table("Quality", ["", *(_label(k, protocol) for k in (*keys, *paired))], [])
    costs = ["parameters", "MACs, input positions", "MACs, output positions", "size in float32", "peak memory, batch 1", "batch 32"]
    cost = Table("Cost", ["", *costs], [])
    columns = [
        "ms, batch 1 (IQR)",
        "ms, batch 32 (IQR)",
        "speed-up, batch 1",
        "speed-up, batch 32",
        "fewer MACs (input)",
        "fewer MACs (output)",
        "fewer parameters",
    ]
    speed = Table("Speed-up against reduction", ["", *columns], [])
    for row in rows:
        name, ratio = name_of(row) if named else str(row["number"]), row["against_1"]
        quality.rows.append([name, *(_cell(row.get(k)) for k in keys), *(_cell((row.get("paired") or {}).get(k)) for k in paired)])
        cost.rows.append([name, *(number(row[k]) for k in RATIOS[:3]), *(size(row[k]) for k in ("bytes", *MEMORY))])
        times = [f"{row[f'latency_ms_batch_{n}']:.3g} ({row[f'latency_iqr_ms_batch_{n}']:.2g})" for n in (1, 32)]
        order = ("latency_ms_batch_1", "latency_ms_batch_32", "macs_input_convention", "macs_output_convention", "parameters")
        speed.rows.append([name, *times, *(f"{ratio[k]:.3g}x" for k in order)])
    found = [quality, cost, speed]
    if groups := result["over_seeds"]:
        shown = sorted(dict.fromkeys(key for group in groups for key in group["metrics"]), key=lambda key: key not in DISTANCES)
        spread = Table("Over seeds: mean ± standard deviation", ["", "runs", *(_label(k, protocol) for k in shown)], [])
        for group in groups:
            values = [group["metrics"].get(k) for k in shown]
            cells = [f"{v['mean']:.4g} ± {v['standard_deviation']:.2g}" if v else "" for v in values]
            spread.rows.append([group["run"], ", ".join(map(str, group["members"])), *cells])
        found.append(spread)
    return found


def said(result: Mapping[str, Any]) -> str:
    """What the numbers were taken from, in a sentence."""
    protocol = result["protocol"]
    text = f"{protocol['num_images']:,} images of each, seed {protocol['seed']}, on {protocol['device']}"
    if "reference" in protocol:
        text += f"; distances to {protocol['reference_images']:,} images: {protocol['reference']}; features: {protocol['extractor']}"
    return text + "."


def _sources(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(row["number"]), "; ".join(filter(None, (row["source"], row["family"], row["run"])))) for row in result["rows"]]


def _fronts(result: Mapping[str, Any]) -> list[Html]:
    key = next((k for k in DISTANCES if all(k in row for row in result["rows"])), None)
    if key is None:
        return []
    label = _label(key, result["protocol"])
    axes = {"parameters": "parameters", "macs_input_convention": "MACs (input positions)", "latency_ms_batch_1": "milliseconds, batch 1"}
    return [front(f"distance against {x}", x, label, [(str(row["number"]), row[k], row[key]) for row in result["rows"]]) for k, x in axes.items()]


def as_page(result: Mapping[str, Any], pictures: Sequence[tuple[str, Tensor]], panels: Mapping[str, Mapping[str, Points]]) -> bytes:
    """One self-contained HTML file."""
    names = {str(row["number"]): name_of(row) for row in result["rows"]}
    strips = []
    for start in range(0, len(pictures[0][1]), ROW):
        block_of = [(names.get(label, label), images[start : start + ROW]) for label, images in pictures]
        strips.append(block("pair", [picture(strip_png(i), f"{name}: images {start + 1} to {start + len(i)}", name) for name, i in block_of]))
    own = any("own" in label for label, _ in pictures)
    long = {
        title: {" ".join((names.get(label.partition(" ")[0], label), *label.split(" ")[1:])): points for label, points in lines.items()}
        for title, lines in panels.items()
        if any(len(points) > 1 for points in lines.values())
    }
    drawn, fronts = [curves(title.replace("_", " "), lines) for title, lines in long.items()], _fronts(result)
    first = name_of(result["rows"][0])
    speed = (
        "Speed-up is measured in milliseconds, here and now; reductions are counted. MACs: transposed convolutions at their input or at their output positions."
    )
    parts = [
        paragraph(f"Everything is held against {first}. {said(result)}"),
        *(paragraph(note, soft=True) for note in result["notes"]),
        section("Numbers", *map(table, tables(result)), paragraph(speed, soft=True)),
        section("Distance against cost", paragraph("Left and low is better; the line joins what nothing else beats in both.", soft=True), block("grid", fronts))
        if fronts
        else Html(""),
        section("Pictures", paragraph("Column by column the same latents or inputs" + (", save where latents of its own are said." if own else "."), soft=True),
                block("grid", strips)),
        section("Curves of the runs", block("grid", drawn)) if drawn else Html(""),
        section("Sources", facts(_sources(result))),
        section("Protocol", facts([(key.replace("_", " "), str(value)) for key, value in result["protocol"].items()])),
    ]  # fmt: skip
    return page(f"{len(result['rows'])} generators compared", parts)


def as_markdown(result: Mapping[str, Any], beside: str) -> str:
    """Tables, the picture beside the file, sources and protocol."""
    parts = [f"# {len(result['rows'])} generators compared", plain(f"Everything is held against {name_of(result['rows'][0])}. {said(result)}")]
    parts += [plain(note) for note in result["notes"]]
    parts += [markdown(made) for made in tables(result)]
    parts.append(f"![Rows of images, each of the source of that number](<{beside.replace('<', '').replace('>', '')}>)")
    parts.append("\n".join(f"{number}. {plain(text)}" for number, text in _sources(result)))
    parts.append("\n".join(f"- {plain(key)}: {plain(str(value))}" for key, value in result["protocol"].items()))
    return "\n\n".join(part.strip() for part in parts) + "\n"
