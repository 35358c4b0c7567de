"""What the filters of a source read of its documents, for the report: distributions of scores, lengths and languages, and cuts.

A cut is one threshold of one filter; with it go the documents nearest to it on either side, for a person to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from tasks import filters
from tasks.filters import Filter
from tasks.look import Look, Made
from tasks.report_data import Categories, Cut, Example, Histogram, SourceScores
from tasks.store import Store

BINS = 40
MOST_NAMES = 15
EXAMPLES = 20  # on each side of a cut
# The smallest normal number: a logarithmic axis reaches up to it at least, as below it there is no room for bins.
SMALLEST = float(np.finfo(np.float64).tiny)
TOKENS, LANGUAGE = "tokens", "language"


def source_scores(store: Store, source: str, made: Sequence[Made], rules: dict[str, list[Filter]]) -> SourceScores:
    """`made`: the documents' artifact and the others over its shards, the selection among them. `rules`: filters by who asks for them."""
    columns = dict.fromkeys(rule.column for asked in rules.values() for rule in asked)
    look = Look(store, made, {*columns, LANGUAGE})
    assert look.selection is not None
    keep = look.selection.column("keep").to_numpy(zero_copy_only=False)
    found = SourceScores(source, look.table.num_rows, int(keep.sum()), len(look.shards), look.shards_in_all)
    cuts = _cuts(rules, look.table)
    for column in dict.fromkeys([*columns, TOKENS]):
        if column in look.table.column_names and _is_number(look.table.schema.field(column).type):
            marks = [cut.at for cut in cuts if cut.column == column]
            found.histograms.append(histogram(column, look.table.column(column), keep, marks, log=column == TOKENS))
    for column in dict.fromkeys([*columns, LANGUAGE]):
        if column in look.table.column_names and _is_text(look.table.schema.field(column).type):
            found.categories.append(categories(column, look.table.column(column), keep))
    found.cuts = _with_examples(look, cuts)
    return found


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


# -- distributions -----------------------------------------------------------------------------------------------------------------------


def histogram(column: str, values: pa.ChunkedArray, keep: np.ndarray, marks: Sequence[float] = (), log: bool = False) -> Histogram:
    """Counts in about 40 bins that hold every value but null and NaN, and reach to all marks; infinite values lie in the outer bins.

    The axis is logarithmic where that is asked for, or where no value is negative and the bulk spans more than two decades, or the largest value is a hundred times
    the median: probabilities near 0, lengths, stars. Else, where a few values lie far out, the outer bins take them in.
    """
    numbers = values.cast(pa.float64()).fill_null(np.nan).to_numpy()
    there = ~np.isnan(numbers)
    whole = pa.types.is_integer(values.type)
    found = Histogram(column, [], [], [], nulls=int((~there).sum()))
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return found
    found.log = bool(log and finite.min() >= 0 and finite.max() > 0) or _is_spread(finite)
    if found.log:
        zero = numbers == 0
        found.zeros_kept, found.zeros_dropped = int((zero & keep).sum()), int((zero & ~keep).sum())
        there &= ~zero
        finite = finite[finite > 0]
    edges = _edges(finite, [mark for mark in marks if not found.log or mark > 0], found.log, whole)
    inside = np.clip(numbers[there], edges[0], np.nextafter(edges[-1], -np.inf))
    found.open_low, found.open_high = bool((numbers[there] < edges[0]).any()), bool((numbers[there] > edges[-1]).any())
    found.edges = edges.tolist()
    found.kept = np.histogram(inside[keep[there]], edges)[0].tolist()
    found.dropped = np.histogram(inside[~keep[there]], edges)[0].tolist()
    return found


def _is_spread(values: np.ndarray) -> bool:
    positive = values[values > 0]
    if values.min() < 0 or not len(positive):
        return False
    low, middle, high = np.quantile(positive, [0.01, 0.5, 0.99])
    return bool(high > 100 * low or positive.max() > 100 * middle)


def _edges(values: np.ndarray, marks: Sequence[float], log: bool, whole: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if log:
        low = max(low, float(np.quantile(values, 0.001)) / 10)  # one value of 1e-30 is not worth 25 decades
        high = max(high, SMALLEST)
    else:
        inner = np.quantile(values, [0.005, 0.995])
        if 4 * (inner[1] - inner[0]) < high - low:
            low, high = float(inner[0]), float(inner[1])
    low, high = min([low, *marks]), max([high, *marks])
    if whole:
        low, high = np.floor(low), np.ceil(high)
        if log:
            return np.unique(np.round(np.geomspace(low, high + 1, BINS + 1))) - 0.5
        step = max(1, int(np.ceil((high - low + 1) / (1.5 * BINS))))
        return np.arange(low, high + step + 0.5, step) - 0.5
    if low == high:
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    return np.unique(np.geomspace(low, high, BINS + 1) if log else np.linspace(low, high, BINS + 1))


def categories(column: str, values: pa.ChunkedArray, keep: np.ndarray) -> Categories:
    """The most frequent values; among equally frequent ones the first by name."""
    names = np.array(values.to_pylist(), object)
    there = np.array([name is not None for name in names], bool)
    kinds, place, counts = np.unique(names[there].astype(str), return_inverse=True, return_counts=True)
    ranked = sorted(range(len(kinds)), key=lambda kind: (-counts[kind], kinds[kind]))
    kept = np.bincount(place[keep[there]], minlength=len(kinds))
    first, rest = ranked[:MOST_NAMES], ranked[MOST_NAMES:]
    return Categories(
        column,
        [str(kinds[kind]) for kind in first],
        [int(kept[kind]) for kind in first],
        [int(counts[kind] - kept[kind]) for kind in first],
        others=int(counts[rest].sum()) if rest else 0,
        other_names=len(rest),
        nulls=int((~there).sum()),
    )


# -- cuts --------------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Cut:
    rule: Filter  # with this one bound
    column: str
    label: str
    at: float
    by: list[str] = field(default_factory=list)
    passes: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    has_value: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def _cuts(rules: dict[str, list[Filter]], table: pa.Table) -> list[_Cut]:
    """Each bound of each filter over numbers once, with all who ask for it."""
    found: dict[str, _Cut] = {}
    for asker, asked in rules.items():
        for rule in asked:
            if rule.column not in table.column_names or not _is_number(table.schema.field(rule.column).type):
                continue
            values = table.column(rule.column).cast(pa.float64()).fill_null(np.nan).to_numpy()
            for sign, bound, limits in (
                ("≥", rule.min, {"min": rule.min}),
                ("≤", rule.max, {"max": rule.max}),
                ("<", rule.below, {"below": rule.below}),
            ):
                if bound is None:
                    continue
                single = Filter(column=rule.column, rounded=rule.rounded, null="drop", **limits)
                shown = f"round({rule.column})" if rule.rounded else rule.column
                label = f"{shown} {sign} {bound:g}"
                if label not in found:
                    between = 0.5 if rule.rounded or pa.types.is_integer(table.schema.field(rule.column).type) else 0.0
                    at = float(bound) + between if sign == "≤" else float(bound) - between
                    passes, _ = filters.apply([single], table, name=rule.column)
                    found[label] = _Cut(single, rule.column, label, at, passes=passes, has_value=~np.isnan(values))
                found[label].by.append(asker)
    return list(found.values())


def _with_examples(look: Look, cuts: list[_Cut]) -> list[Cut]:
    """The cuts with the documents nearest to them, whose texts are read for all cuts together."""
    sides = [(cut, _nearest(look, cut, ~cut.passes & cut.has_value), _nearest(look, cut, cut.passes)) for cut in cuts]
    everything = [places for _, failing, passing in sides for places in (failing, passing)]
    texts = look.read(np.unique(np.concatenate([np.zeros(0, np.int64), *everything])).astype(np.int64))
    assert look.selection is not None
    reasons = look.selection.column("reason")

    def examples(cut: _Cut, places: np.ndarray) -> list[Example]:
        values = look.table.column(cut.column).cast(pa.float64())
        read = [(texts[place], values[place].as_py(), reasons[place].as_py() or "") for place in places.tolist()]
        return [Example(document["id"], value, document["text"], reason) for document, value, reason in read]

    found = []
    for cut, failing, passing in sides:
        above = cut.rule.min is not None
        made = Cut(cut.label, cut.column, cut.at, cut.by, int(cut.passes.sum()), int((~cut.passes & cut.has_value).sum()), above)
        below_side, above_side = (failing, passing) if above else (passing, failing)
        found.append(replace(made, below=examples(cut, below_side), above=examples(cut, above_side)))
    return found


def _nearest(look: Look, cut: _Cut, side: np.ndarray) -> np.ndarray:
    places = np.flatnonzero(side)
    values = look.table.column(cut.column).cast(pa.float64()).fill_null(np.nan).to_numpy()[places]
    return look.first(places, EXAMPLES, np.abs(values - cut.at))
