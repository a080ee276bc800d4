"""Small charts as inline SVG: they take the reader's colours, need no network and are the same bytes every time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from gancompress.htmlreport import Html

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 52, 12, 26, 38
#: points of a curve that are drawn at most, and colours that the page has
MOST, COLOURS = 300, 8
#: pixels within which points share one label
CLOSE = 10


class Axis:
    """Values onto pixels. ``log``: every value is positive."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool, room: float = 0.0) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = self._seen(min(values)), self._seen(max(values))
        spare = room * (high - low) or (0.0 if high > low else abs(low) * 0.1 or 1.0)
        self.low, self.high = low - spare, high + spare

    def _seen(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        return self.start + (self._seen(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values within the axis."""
        if not self.log:
            return _round_values(self.low, self.high)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        step = max(1, len(decades) // 6)
        for factors in ((1,), (1, 2, 5)):
            found = [f * 10.0**k for k in decades[::step] for f in factors if self.low <= math.log10(f) + k <= self.high]
            if len(found) >= 3:
                return found
        return [v for v in _round_values(10**self.low, 10**self.high) if v > 0]


def _round_values(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((f * power for f in (1, 2, 5) if f * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """``0.05``, ``1500``, ``20k``, ``3.5M``, ``1.2G``, ``2e-05``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    return f"{value:.4g}"


def _frame(title: str, xlabel: str, ylabel: str, x: Axis, y: Axis, marks: Sequence[str], alt: str) -> Html:
    """Title, grid, tick labels and axis labels around what is drawn."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}"><text class="t" x="{LEFT}" y="15">{escape(title)}</text>']
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<path class="g" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in x.ticks():
        at = x(tick)
        parts.append(
            f'<path class="g" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/><text x="{at:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{short(tick)}</text>'
        )
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(xlabel)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="10" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 10 {middle:.0f})">{escape(ylabel)}</text>')
    return Html("".join([*parts, *marks, "</svg>"]))


def curves(title: str, lines: Mapping[str, Points]) -> Html:
    """Curves over kimg, on a logarithmic scale where every value is positive and they span more than a factor of ten.

    Values that are not finite are left out, and of a long curve at most ``MOST`` points are drawn; "" where nothing is left.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in lines.items()}
    kept = {name: [*points[: -1 : -(-len(points) // MOST)], points[-1]] for name, points in kept.items() if points}
    if not kept:
        return Html("")
    xs, ys = ([point[i] for points in kept.values() for point in points] for i in (0, 1))
    x, y = Axis(xs, LEFT, WIDTH - RIGHT, False), Axis(ys, HEIGHT - BOTTOM, TOP, min(ys) > 0 and max(ys) > 10 * min(ys), 0.04)
    marks = []
    for i, points in enumerate(kept.values()):
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)
        marks.append(f'<path class="l c{i % COLOURS}" d="M{path}"/>')
        if len(points) <= 30:
            marks += [f'<circle class="c{i % COLOURS}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2"/>' for a, b in points]
    ends = "; ".join(f"{name} from {short(points[0][1])} to {short(points[-1][1])}" for name, points in kept.items())
    drawn = _frame(title, "kimg", "", x, y, marks, f"{title} over training: {ends}")
    names = "".join(f'<span class="c{i % COLOURS}">{escape(name)}</span>' for i, name in enumerate(kept)) if len(kept) > 1 else ""
    return Html(f'<figure class="chart">{drawn}<figcaption class="key">{names}</figcaption></figure>')


def front(title: str, xlabel: str, ylabel: str, points: Sequence[tuple[str, float, float]]) -> Html:
    """Points (label, x, y), both the less the better, with a line through those that no other beats in both; "" below two points."""
    points = [p for p in points if math.isfinite(p[1]) and math.isfinite(p[2])]
    if len(points) < 2:
        return Html("")
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    x = Axis(xs, LEFT, WIDTH - RIGHT, min(xs) > 0 and max(xs) > 4 * min(xs), 0.08)
    y = Axis(ys, HEIGHT - BOTTOM, TOP, min(ys) > 0 and max(ys) > 10 * min(ys), 0.1)
    best = best_of(points)
    marks = ['<path class="l front" d="M' + "L".join(f"{x(a):.1f} {y(b):.1f}" for _, a, b in best) + '"/>'] if len(best) > 1 else []
    written: list[tuple[float, float, list[str]]] = []
    for label, a, b in points:
        marks.append(f'<circle class="c{0 if (label, a, b) in best else 1}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="4"/>')
        near = [labels for px, py, labels in written if abs(px - x(a)) < CLOSE and abs(py - y(b)) < CLOSE]
        near[0].append(label) if near else written.append((x(a), y(b), [label]))
    for px, py, labels in written:
        where, anchor = (px - 6, "end") if px > WIDTH - RIGHT - 40 else (px + 6, "start")
        marks.append(f'<text class="b" x="{where:.1f}" y="{py - 6:.1f}" text-anchor="{anchor}">{escape(", ".join(labels))}</text>')
    said = "; ".join(f"{label}: {short(a)}, {short(b)}" for label, a, b in points)
    return Html(f'<figure class="chart">{_frame(title, xlabel, ylabel, x, y, marks, f"{ylabel} against {xlabel}: {said}")}</figure>')


def best_of(points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """The Pareto front from left to right: points with no other as good in both and better in one."""
    kept = [p for p in points if not any(q[1] <= p[1] and q[2] <= p[2] and q[1:] != p[1:] for q in points)]
    return sorted(kept, key=lambda p: p[1:])
