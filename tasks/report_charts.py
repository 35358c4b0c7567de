"""Charts of the report page as inline SVG.

A chart is drawn here once and needs no script; beside it stands its data as JSON, from which the page's script shows values under the
mouse. Colours are the page's CSS classes `c0` to `c7`, so that they follow light and dark.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from markupsafe import Markup, escape

from tasks.readable import compact, trimmed

COLOURS = 8
_MOST_POINTS = 500  # of a line; a screen shows no more
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 56, 14, 10, 30  # units of the SVG, as are all lengths below


@dataclass
class Line:
    """One curve; a `noisy` one is drawn faint behind its smoothed self."""

    name: str
    points: list[tuple[float, float]]
    colour: int
    noisy: bool = False


def line_chart(title: str, lines: Sequence[Line], x_label: str, log: bool = False, width: int = 560, height: int = 250) -> Markup:
    """Curves over a common axis, with a legend where there is more than one. Nothing but a note where no line has a point."""
    lines = [Line(line.name, _thin(line.points), line.colour, line.noisy) for line in lines if line.points]
    points = [point for line in lines for point in line.points if not log or point[1] > 0]
    if not points:
        return Markup('<figure class="chart"><figcaption>{}</figcaption><p class="none">No values.</p></figure>').format(title)
    x_low, x_high = _padded(min(x for x, _ in points), max(x for x, _ in points), 0)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    y_low, y_high = _padded(math.log10(y_low), math.log10(y_high), 0.05) if log else _padded(y_low, y_high, 0.05)
    if not log and 0 <= min(y for _, y in points) < 0.15 * (y_high - y_low):
        y_low = 0.0
    frame = _Frame(width, height, x_low, x_high, y_low, y_high, log)
    parts = [frame.grid(x_label)]
    for index, line in enumerate(lines):
        shown = [point for point in line.points if not log or point[1] > 0]
        style = f"c{line.colour % COLOURS}" + (" dashed" if line.colour >= COLOURS else "")
        group = frame.path(shown, f"{style} faint") + frame.path(_smooth(shown), style) if line.noisy else frame.path(shown, style)
        parts.append(f'<g data-line="{index}">{group}</g>')
    data = {
        "x": [frame.x_low, frame.x_high, frame.left, frame.right],
        "y": [frame.y_low, frame.y_high, frame.bottom, _MARGIN_TOP],
        "log": log,
        "label": x_label,
        "lines": [{"name": line.name, "c": line.colour % COLOURS, "p": [[_short(x), _short(y)] for x, y in line.points]} for line in lines],
    }
    legend = Markup("").join(
        Markup('<button type="button" class="key" data-line="{}"><i class="c{}"></i>{}</button>').format(
            n, line.colour % COLOURS, line.name
        )
        for n, line in enumerate(lines)
        if len(lines) > 1
    )
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Markup('<figure class="chart"><figcaption>{}<span class="keys">{}</span></figcaption>{}{}</figure>').format(
        title, legend, Markup(svg), embedded(data)
    )


def embedded(data: object) -> Markup:
    """JSON for the page's script; `<` is escaped, so that no text can close the element."""
    return Markup('<script type="application/json">{}</script>').format(
        Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
    )


@dataclass
class _Frame:
    """The plotting area and its two scales; y_low and y_high are logarithms on a logarithmic axis."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool

    @property
    def left(self) -> int:
        return _MARGIN_LEFT

    @property
    def right(self) -> int:
        return self.width - _MARGIN_RIGHT

    @property
    def bottom(self) -> int:
        return self.height - _MARGIN_BOTTOM

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - _MARGIN_TOP)

    def path(self, points: Sequence[tuple[float, float]], style: str) -> str:
        steps = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        if len(points) == 1:
            return f'<circle class="line {style}" cx="{self.x(points[0][0]):.1f}" cy="{self.y(points[0][1]):.1f}" r="2"/>'
        return f'<polyline class="line {style}" points="{steps}"/>'

    def grid(self, x_label: str) -> str:
        return self.grid_of(x_label, [(value, compact(value)) for value in ticks(self.x_low, self.x_high, 6)])

    def grid_of(self, x_label: str, x_marks: Sequence[tuple[float, str]]) -> str:
        """The axes; x_marks: where along x, and what it says there."""
        parts = []
        for value in log_ticks(self.y_low, self.y_high) if self.log else ticks(self.y_low, self.y_high, 5):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick end" x="{self.left - 7}" y="{y + 3.5:.1f}">{compact(value)}</text>')
        for value, text in x_marks:
            if self.left <= self.x(value) < self.right - 70:
                parts.append(f'<text class="tick middle" x="{self.x(value):.1f}" y="{self.bottom + 17}">{text}</text>')
        parts.append(f'<text class="tick end" x="{self.right}" y="{self.bottom + 17}">{escape(x_label)}</text>')
        parts.append(f'<line class="axis" x1="{self.left}" x2="{self.right}" y1="{self.bottom}" y2="{self.bottom}"/>')
        return "".join(parts)


@dataclass
class DotRow:
    """One line of a dot plot: (name, value, colour, whether filled) of each dot; `strong` sets the line apart."""

    name: str
    dots: list[tuple[str, float, int, bool]]
    strong: bool = False


_HEAD = 26  # pixels above the rows, for the labels of the lines


def _against_nought(
    values: Sequence[float], left: float, right: float, height: float, count: int, unit: str = ""
) -> tuple[Callable[[float], float], list[str]]:
    """Where values lie between left and right, 0 among them, and about `count` vertical lines with their labels above."""
    low, high = _padded(min([*values, 0.0]), max([*values, 0.0]), 0.06)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = []
    for value in ticks(low, high, count):
        style = "axis" if value == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{place(value):.1f}" x2="{place(value):.1f}" y1="{_HEAD - 6}" y2="{height - 8}"/>')
        parts.append(f'<text class="tick middle" x="{place(value):.1f}" y="{_HEAD - 12}">{_signed(value)}{unit}</text>')
    return place, parts


def dot_plot(title: str, rows: Sequence[DotRow], unit: str, width: int = 1120) -> Markup:
    """Changes against nought, one row a name: what lies left of the line got smaller."""
    left, right, top, step = 210, width - 20, _HEAD, 30
    height = top + step * len(rows) + 8
    place, parts = _against_nought([value for row in rows for _, value, _, _ in row.dots], left, right, height, 8, f" {escape(unit)}")
    for number, row in enumerate(rows):
        y = top + step * number + step / 2
        parts.append(f'<text class="label end{" strong" * row.strong}" x="{left - 14}" y="{y + 4}">{escape(_cut(row.name, 26))}</text>')
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        for name, value, colour, filled in row.dots:
            tip = escape(f"{row.name}\n{name}: {_signed(value)} {unit}")
            shape = f'cx="{place(value):.1f}" cy="{y}" r="{6.5 if filled else 5}"'
            parts.append(f'<circle class="dot c{colour % COLOURS}{" filled" * filled}" {shape} data-tip="{tip}"/>')
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Markup('<figure class="dots">{}</figure>').format(Markup(svg))


@dataclass
class BarRow:
    """One bar of a bar plot, from nought to its value, with the interval about it where there is one."""

    name: str
    value: float
    interval: tuple[float, float] | None = None


def bar_plot(title: str, rows: Sequence[BarRow], width: int = 560, higher_is_better: bool = False) -> Markup:
    """Changes against nought as bars with intervals, one row a name: what lies left of the line got smaller."""
    left, right, top, step = 170, width - 20, _HEAD, 26
    height = top + step * len(rows) + 8
    place, parts = _against_nought([end for row in rows for end in (row.value, *(row.interval or ()))], left, right, height, 5)
    for number, row in enumerate(rows):
        y = top + step * number + step / 2
        start, end = sorted((place(0.0), place(row.value)))
        about = "" if row.interval is None else f" ({_signed(row.interval[0])} to {_signed(row.interval[1])})"
        tip = escape(f"{row.name}: {_signed(row.value)}{about}")
        parts.append(f'<text class="label end" x="{left - 12}" y="{y + 4}">{escape(_cut(row.name, 22))}</text>')
        style = "better" if (row.value > 0 if higher_is_better else row.value < 0) else "worse"
        parts.append(
            f'<rect class="shift {style}" x="{start:.1f}" y="{y - 7}" width="{max(end - start, 0.5):.1f}" height="14" data-tip="{tip}"/>'
        )
        if row.interval is not None:
            a, b = map(place, row.interval)
            path = f"M{a:.1f} {y - 4}V{y + 4}M{a:.1f} {y}H{b:.1f}M{b:.1f} {y - 4}V{y + 4}"
            parts.append(f'<path class="interval" d="{path}" data-tip="{tip}"/>')
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}</figure>').format(title, Markup(svg))


@dataclass
class Spot:
    """One point of a scatter plot; those of one kind share a colour and an entry of the legend."""

    name: str
    kind: str
    x: float
    y: float
    colour: int


def scatter(title: str, spots: Sequence[Spot], x_label: str, width: int = 560, height: int = 280) -> Markup:
    """Points over a logarithmic axis, which must all lie right of 0; each tells its name and values under the mouse."""
    x_low, x_high = _padded(math.log10(min(spot.x for spot in spots)), math.log10(max(spot.x for spot in spots)), 0.05)
    y_low, y_high = _padded(min(spot.y for spot in spots), max(spot.y for spot in spots), 0.08)
    frame = _Frame(width, height, x_low, x_high, y_low, y_high, log=False)
    decades = log_ticks(x_low, x_high)
    marks = decades if len(decades) > 2 else [value for value in ticks(10**x_low, 10**x_high, 5) if value > 0]
    parts = [frame.grid_of(x_label, [(math.log10(value), f"{value:.3g}") for value in marks])]
    for spot in spots:
        tip = escape(f"{spot.name} ({spot.kind})\n{spot.x:.4g} {x_label}\n{spot.y:.4g}")
        place = f'cx="{frame.x(math.log10(spot.x)):.1f}" cy="{frame.y(spot.y):.1f}" r="5"'
        parts.append(f'<circle class="dot filled c{spot.colour % COLOURS}" {place} data-tip="{tip}"/>')
    kinds = {spot.kind: spot.colour % COLOURS for spot in spots}
    legend = Markup("").join(
        Markup('<span class="key"><i class="dot filled c{}"></i>{}</span>').format(colour, kind) for kind, colour in kinds.items()
    )
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Markup('<figure class="chart"><figcaption>{}<span class="keys still">{}</span></figcaption>{}</figure>').format(
        title, legend, Markup(svg)
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most about `count` round numbers from low to high."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [0.0 if index == 0 else round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10**low and 10**high: decades, and their doubles and fives where there are few."""
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    every = max(1, round((high - low) / 6))
    exponents = range(math.floor(low), math.ceil(high) + 1)
    found = [factor * 10.0**exponent for exponent in exponents if exponent % every == 0 for factor in factors]
    return [value for value in found if low <= math.log10(value) <= high] or [10.0**low, 10.0**high]


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if high <= low:
        return low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    return low - share * (high - low), high + share * (high - low)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 500 points, among them the lowest and highest of each stretch, so that no spike is lost."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    kept = [points[0]]
    buckets = (_MOST_POINTS - 2) // 2
    inner = points[1:-1]
    for index in range(buckets):
        part = inner[len(inner) * index // buckets : len(inner) * (index + 1) // buckets]
        low, high = min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])
        kept += sorted({low, high})
    return [*kept, points[-1]]


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Medians over a fifteenth part of the curve, so that one spike leaves no mark, and means over half as much against their steps."""
    values = [y for _, y in points]
    half = max(1, len(points) // 30)
    medians = [median(window) for window in _windows(values, half)]
    return [(x, fmean(window)) for (x, _), window in zip(points, _windows(medians, half // 2), strict=True)]


def _windows(values: Sequence[float], half: int) -> Iterator[Sequence[float]]:
    """What lies around each value: narrower at the start, where a loss falls fast, and cut off at the end."""
    return (values[index - min(half, index) : index + min(half, index) + 1] for index in range(len(values)))


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{'+' if value > 0 else '−'}{trimmed(abs(value))}"


def _short(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 else round(value)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def finite_points(x: Iterable[float], y: Iterable[float | None]) -> list[tuple[float, float]]:
    """Pairs whose value is a number."""
    return [(float(a), float(b)) for a, b in zip(x, y, strict=False) if b is not None and math.isfinite(b)]
