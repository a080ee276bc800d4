"""Pictures and curves of a run."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from gancompress.checkpoint import atomic_write
from gancompress.data import to_uint8

#: panel of what discriminators say of images (Tian et al. 2021, Figure 8)
SCORES = "scores"


def _tile(images: Tensor, scale: int) -> Image.Image:
    """(N, C, H, W) in [-1, 1] -> one row, each pixel ``scale`` times as large."""
    row = to_uint8(images.detach().cpu()).permute(2, 0, 3, 1).flatten(1, 2).numpy()  # (H, N * W, C)
    picture = Image.fromarray(row[..., 0] if row.shape[2] == 1 else row[..., :3])
    return picture.convert("RGB").resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def save_png(path: Path, picture: Image.Image) -> None:
    atomic_write(path, _png(picture))


def strip_png(images: Tensor) -> bytes:
    """One row of images (N, C, H, W) in [-1, 1] as a PNG: small ones enlarged to about 64 pixels, large ones reduced to 128."""
    size = images.shape[3]
    picture = _tile(images, max(1, round(64 / size)))
    if size > 128:
        picture = picture.resize((128 * len(images), 128), Image.Resampling.LANCZOS)
    return _png(picture)


def save_rows(path: Path, rows: list[tuple[str, Tensor]], gaps_after: Collection[int] = (), scale: int | None = None) -> None:
    """Labelled rows of images (N, C, H, W) in [-1, 1] as a PNG; small images are enlarged to about 64 pixels."""
    scale = scale or max(1, round(64 / rows[0][1].shape[3]))
    tiles = [_tile(images, scale) for _, images in rows]
    gap, widest = 6, max(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(label) for label, _ in rows)
    margin = max(58, round(widest) + 10) if widest else 0
    height = sum(t.height for t in tiles) + gap * len(gaps_after)
    canvas = Image.new("RGB", (margin + max(t.width for t in tiles), height), "white")
    pen, y = ImageDraw.Draw(canvas), 0
    for i, ((label, _), tile) in enumerate(zip(rows, tiles, strict=True)):
        canvas.paste(tile, (margin, y))
        if label:
            pen.text((4, y + tile.height // 2 - 6), label, fill="black")
        y += tile.height + (gap if i in gaps_after else 0)
    save_png(path, canvas)


def save_comparison(path: Path, teacher: Tensor | None, student: Tensor) -> None:
    """The teacher's images above the student's of the same latents, eight to a row; the student's alone without a teacher."""
    rows: list[tuple[str, Tensor]] = []
    for start in range(0, len(student), 8):
        if teacher is not None:
            rows.append(("teacher", teacher[start : start + 8]))
        rows.append(("student", student[start : start + 8]))
    save_rows(path, rows, range(1, len(rows) - 1, 2) if teacher is not None else ())


def save_grid(path: Path, images: Tensor) -> None:
    """A square grid of images (N, C, H, W) in [-1, 1]."""
    side = math.ceil(math.sqrt(len(images)))
    save_rows(path, [("", images[i : i + side]) for i in range(0, len(images), side)])


def save_scatter(path: Path, panels: list[tuple[str, Tensor, Tensor]]) -> None:
    """Panels (title, points (N, 2), which of them are good (N,)) side by side on one scale, that of the first; bad points are orange."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    reach = 1.2 * float(panels[0][1].abs().max())
    figure, axes = pyplot.subplots(1, len(panels), figsize=(2.4 * len(panels), 2.95), squeeze=False, layout="constrained")
    for axis, (title, points, good) in zip(axes[0], panels, strict=True):
        for chosen, colour in ((~good, "tab:orange"), (good, "tab:blue")):
            axis.scatter(*points[chosen].T, s=2, c=colour, alpha=0.5, linewidths=0)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        axis.set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pyplot.close(figure)
    atomic_write(path, buffer.getvalue())


def save_curves(log_path: Path, path: Path) -> None:
    """Every term of the log against kimg, and the paired error on the fixed latents where it is known; all scores in one panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = panels_of(log_path)
    if not panels:
        return
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3), squeeze=False, layout="constrained")
    for axis, (name, curves) in zip(axes[0], panels.items(), strict=True):
        for label, points in curves.items():
            xs, ys = zip(*points, strict=True)
            axis.plot(xs, ys, linewidth=1.2, marker="." if len(xs) < 30 else None, label=label.replace("_", " "))
        axis.set(title=name.replace("_", " "), xlabel="kimg")
        if min(y for points in curves.values() for _, y in points) > 0 and name != SCORES:
            axis.set_yscale("log")
        if len(curves) > 1:
            axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pyplot.close(figure)
    atomic_write(path, buffer.getvalue())


def panels_of(log_path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{title: {curve: (kimg, value) of each log line that has it}}: the discriminators' scores together, each other term by itself, or with
    that of the way back."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in log_path.read_text().splitlines():
        entry = json.loads(line)
        for key, value in entry.items():
            if key not in ("step", "kimg", "images_per_s", "event", "non_finite_at_step", "non_finite") and isinstance(value, int | float):
                panel = SCORES if key.startswith("score_") else key.removesuffix("_back")
                panels.setdefault(panel, {}).setdefault(key, []).append((entry["kimg"], value))
    return panels
