"""Histograms that count every document, on an axis that suits the values; and the most frequent values of a text column."""

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.report_scores import categories, histogram

NUMBERS = st.one_of(st.none(), st.floats(width=32), st.floats(0, 1), st.sampled_from([0.0, 1e-6, 0.5, 3.0]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.booleans()), max_size=60), st.lists(st.floats(-10, 10), max_size=3), st.booleans())
@example([(0.0, True), (1e-5, True), (1.0, False)], [0.5], False)
@example([(float("inf"), True), (1.0, False)], [], False)
@example([(5e-324, True)], [], True)  # the smallest number above 0
def test_a_histogram_counts_every_value_once_in_the_bin_that_holds_it(rows, marks, log):
    values, keep = [value for value, _ in rows], np.array([kept for _, kept in rows], bool)
    check_counts(histogram("x", pa.chunked_array([pa.array(values, pa.float64())]), keep, marks, log), values, keep, marks)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(-50, 5000)), st.booleans()), max_size=60), st.booleans())
def test_a_histogram_of_whole_numbers_has_its_edges_between_them(rows, log):
    values, keep = [value for value, _ in rows], np.array([kept for _, kept in rows], bool)
    made = histogram("x", pa.chunked_array([pa.array(values, pa.int64())]), keep, [], log)
    check_counts(made, values, keep, [])
    assert all(edge % 1 == 0.5 for edge in made.edges)


def check_counts(made, values, keep, marks):
    edges = made.edges
    valid = [(value, kept) for value, kept in zip(values, keep, strict=True) if value is not None and value == value]
    assert made.nulls == len(values) - len(valid)
    if not any(np.isfinite(value) for value, _ in valid):
        assert edges == made.kept == made.dropped == []
        return
    assert edges == sorted(set(edges)) and len(edges) == len(made.kept) + 1
    assert all(edges[0] <= mark <= edges[-1] for mark in marks if mark > 0 or not made.log)
    counts = {True: Counter(), False: Counter()}
    for value, kept in valid:
        if made.log and value == 0:
            counts[kept]["zero"] += 1
            continue
        inside = [n for n in range(len(edges) - 1) if edges[n] <= value < edges[n + 1]]
        counts[kept][inside[0] if inside else 0 if value < edges[0] else len(edges) - 2] += 1
    for kept, bins, zeros in ((True, made.kept, made.zeros_kept), (False, made.dropped, made.zeros_dropped)):
        assert bins == [counts[kept][n] for n in range(len(bins))] and zeros == counts[kept]["zero"]
    assert made.open_low or all(value >= edges[0] or (made.log and value == 0) for value, _ in valid)
    assert made.open_high or all(value <= edges[-1] for value, _ in valid)


def floats(values) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.float64())])


def test_the_axis_is_logarithmic_where_the_values_need_it():
    rng = np.random.default_rng(0)
    keep = np.ones(5000, bool)
    assert histogram("fastText", floats(rng.beta(0.1, 3, 5000)), keep).log
    assert histogram("stars", floats(rng.pareto(0.7, 5000)), keep).log
    assert not histogram("edu", floats(rng.normal(1.5, 1, 5000)), keep).log
    assert not histogram("language score", floats(rng.beta(30, 1, 5000)), keep).log
    far = histogram("votes", floats(np.append(rng.normal(3, 2, 4999), 1e6)), keep)
    assert not far.log and far.open_high and far.edges[-1] < 20


def test_categories_are_the_most_frequent_values():
    values = pa.chunked_array([pa.array(["en"] * 5 + ["de"] * 3 + [f"l{n:02}" for n in range(20)] + [None])])
    made = categories("language", values, np.arange(29) < 6)
    assert made.names == ["en", "de", *(f"l{n:02}" for n in range(13))]
    assert made.kept[:3] == [5, 1, 0] and made.dropped[:3] == [0, 2, 1]
    assert (made.others, made.other_names, made.nulls) == (7, 7, 1)
