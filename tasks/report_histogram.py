"""Histograms of the report page as inline SVG: documents kept and dropped, one on the other, and the cuts as lines across them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from tasks.readable import compact, percent
from tasks.report_charts import log_ticks, ticks
from tasks.report_data import Cut, Histogram

_WIDTH, _PLOT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 130, 40, 10, 8, 22  # units of the SVG; _PLOT is the height of the bars
_TOWERS = 6  # times the next highest bar
_LABEL = 15  # height of a cut's label
_ZERO, _ZERO_GAP = 10, 6  # width of the bar of zeros, and its distance from the logarithmic axis


def histogram_chart(histogram: Histogram, cuts: Sequence[Cut] = ()) -> Markup:
    """The figure, with its notes: what has no value, what an outer bar takes in."""
    if not histogram.edges:
        notes = f"no value for {histogram.nulls:,} documents" if histogram.nulls else "no values"
        return Markup('<figure class="hist"><figcaption>{}</figcaption><p class="none">{}</p></figure>').format(histogram.column, notes)
    drawing = _Drawing(histogram, list(cuts))
    svg = f'<svg viewBox="0 0 {_WIDTH} {drawing.bottom + _BOTTOM}" role="img" aria-label="{escape(histogram.column)}">{drawing.svg()}</svg>'
    return Markup('<figure class="hist"><figcaption>{}<small>{}</small></figcaption>{}</figure>').format(
        histogram.column, ", ".join(_notes(histogram)), Markup(svg)
    )


def _notes(histogram: Histogram) -> list[str]:
    notes = ["log scale"] if histogram.log else []
    notes += ["first bar with all below"] if histogram.open_low else []
    notes += ["last bar with all above"] if histogram.open_high else []
    if histogram.nulls:
        notes.append(f"{histogram.nulls:,} documents without a value")
    return notes


class _Drawing:
    def __init__(self, histogram: Histogram, cuts: list[Cut]) -> None:
        self.histogram, self.cuts = histogram, cuts
        self.zeros = histogram.zeros_kept + histogram.zeros_dropped
        self.left = _LEFT + (_ZERO + _ZERO_GAP if self.zeros else 0)
        self.top = _TOP + _LABEL * len(cuts)
        self.bottom = self.top + _PLOT
        counts = sorted([self.zeros, *map(sum, zip(histogram.kept, histogram.dropped, strict=True)), 1])
        # one bar that towers over all others would make them invisible: it is cut off, and told in numbers
        self.most = 1.6 * counts[-2] if counts[-1] > _TOWERS * counts[-2] > 0 else counts[-1]

    def x(self, value: float) -> float:
        edges = self.histogram.edges
        low, high = edges[0], edges[-1]
        if self.histogram.log:
            if value <= 0:
                return _LEFT + _ZERO + _ZERO_GAP / 2 if self.zeros else self.left
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.left + min(1.0, max(0.0, (value - low) / (high - low))) * (_WIDTH - _RIGHT - self.left)

    def svg(self) -> str:
        return "".join([*self._axes(), *self._bars(), *self._lines()])

    def _axes(self) -> list[str]:
        right, parts = _WIDTH - _RIGHT, []
        for value in ticks(0, self.most, 3):
            y = self.bottom - value / self.most * _PLOT
            if value == int(value):
                parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
                parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{compact(value)}</text>')
        for value in self._ticks():
            x = self.x(value)
            anchor, x = ("end", right) if x > right - 14 else ("middle", x)
            parts.append(f'<text class="tick {anchor}" x="{x:.1f}" y="{self.bottom + 15}">{compact(value)}</text>')
        if self.zeros:
            parts.append(f'<text class="tick middle" x="{_LEFT + _ZERO / 2}" y="{self.bottom + 15}">0</text>')
        return parts

    def _ticks(self) -> list[float]:
        edges = self.histogram.edges
        log = self.histogram.log
        found = log_ticks(math.log10(edges[0]), math.log10(edges[-1])) if log else []
        if len(found) < 3:
            found = [value for value in ticks(edges[0], edges[-1], 5) if value > 0 or not log]
        if self._is_whole:
            found = [value for value in found if value == int(value)]
        shown, last = [], _LEFT + _ZERO / 2 if self.zeros else -math.inf
        for value in found:
            if self.x(value) - last > 32:
                shown.append(value)
                last = self.x(value)
        return shown

    @property
    def _is_whole(self) -> bool:
        """Bins of whole numbers begin and end between two of them."""
        return self.histogram.edges[0] % 1 == 0.5 and self.histogram.edges[-1] % 1 == 0.5

    def _bars(self) -> list[str]:
        histogram = self.histogram
        parts = []
        if self.zeros:
            parts.append(self._bar(_LEFT, _LEFT + _ZERO, histogram.zeros_kept, histogram.zeros_dropped, "0"))
        for index, (kept, dropped) in enumerate(zip(histogram.kept, histogram.dropped, strict=True)):
            low, high = histogram.edges[index], histogram.edges[index + 1]
            parts.append(self._bar(self.x(low), self.x(high), kept, dropped, self._span(low, high)))
        return parts

    def _span(self, low: float, high: float) -> str:
        if not self._is_whole:
            return f"{compact(low)} to {compact(high)}"
        first, last = int(low + 0.5), int(high - 0.5)
        return f"{first:,}" if first == last else f"{first:,} to {last:,}"

    def _bar(self, left: float, right: float, kept: int, dropped: int, span: str) -> str:
        if not kept + dropped:
            return ""
        width, y, parts = max(0.8, right - left - 0.6), float(self.bottom), []
        most = max(self.most, kept + dropped)
        for style, count in (("kept", kept), ("stage1", dropped)):
            height = count / most * _PLOT
            y -= height
            if count:
                parts.append(f'<rect class="bar {style}" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
        if most > self.most:
            parts.append(self._tower(left, left + width, kept + dropped))
        tip = escape(f"{self.histogram.column} {span}\n{kept:,} kept, {dropped:,} dropped")
        target = f'<rect class="target" x="{left:.1f}" y="{self.top}" width="{right - left:.1f}" height="{_PLOT}"/>'
        return f'<g data-tip="{tip}">{target}{"".join(parts)}</g>'

    def _tower(self, left: float, right: float, count: int) -> str:
        """A break in a bar that is cut off, and how many documents it stands for."""
        y = self.top + 16
        anchor, x = ("", right + 4) if left < _WIDTH / 2 else ("end", left - 4)
        return (
            f'<path class="break" d="M{left - 2:.1f},{y + 3} L{right + 2:.1f},{y - 3} M{left - 2:.1f},{y + 7} L{right + 2:.1f},{y + 1}"/>'
            f'<text class="cut {anchor}" x="{x:.1f}" y="{y + 5}">{compact(count)}</text>'
        )

    def _lines(self) -> list[str]:
        parts = [f'<line class="axis" x1="{self.left}" x2="{_WIDTH - _RIGHT}" y1="{self.bottom}" y2="{self.bottom}"/>']
        # a label stands on the inner side of its line; from the outside in, so that few lines cross a label
        for number, cut in enumerate(sorted(self.cuts, key=lambda cut: -abs(self.x(cut.at) - _WIDTH / 2))):
            x, y = self.x(cut.at), _TOP + _LABEL * number
            anchor, shift = ("", 4) if x < _WIDTH / 2 else ("end", -4)
            text = f"{cut.label.removeprefix(self.histogram.column).strip()}: {percent(_share(cut))} pass"
            parts.append(f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{self.bottom}"/>')
            parts.append(f'<text class="cut {anchor}" x="{x + shift:.1f}" y="{y + 9}">{escape(text)}</text>')
        return parts


def _share(cut: Cut) -> float:
    return cut.passed / max(1, cut.passed + cut.failed)
