"""A plan as tables for a terminal of 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

WIDTH = 120
HEADINGS = {"source_percent": "source %", "mix_percent": "mix %", "documents": "docs"}


def plan_tables(plan: dict[str, Any]) -> Iterator[Table | Group]:
    """The steps, the training runs, and each reported table with its note."""
    yield _steps(plan["steps"])
    if plan["training"]:
        yield _training(plan["training"])
    for table in plan["tables"]:
        parts: list[Any] = [Text(f"\n{table['title']}", style="bold"), _comparison(table)]
        yield Group(*parts, *([Text(wrapped(table["note"]))] if table["note"] else []))


def wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, break_on_hyphens=False, break_long_words=False)


def _steps(rows: list[dict[str, Any]]) -> Table:
    table = _table("step", "name", "shards", "reused", "to run", "documents", "tokens", "bytes")
    for row in rows:
        numbers = [_number(row[name]) for name in ("shards", "reused", "to_run", "documents", "tokens", "bytes")]
        table.add_row(row["step"], escape(row["name"]), *numbers, style="dim" if row["to_run"] == 0 else "")
    return table


def _training(runs: list[dict[str, Any]]) -> Table:
    table = _table("\nrun", "\nmix", "\nsteps", "\ntokens", "\nFLOPs", "\nH100 hours")
    for run in runs:
        flops = "" if run["flops"] is None else f"{run['flops']:.3g}"
        hours = "" if run["gpu_hours"] is None else f"{run['gpu_hours']:,.0f}" if run["gpu_hours"] >= 10 else f"{run['gpu_hours']:.2g}"
        table.add_row(escape(run["name"]), escape(run["mix"]), _number(run["steps"]), _number(run["tokens"]), flops, hours)
    return table


def _comparison(table: dict[str, Any]) -> Table:
    """For each measure what is computed, and where something is reported, that and the difference."""
    measures = {measure: any(row[measure]["reported"] is not None for row in table["rows"].values()) for measure in table["rows"]["total"]}
    headings = [
        heading
        for measure, reported in measures.items()
        for heading in (HEADINGS.get(measure, measure), *(["report", "diff"] if reported else []))
    ]
    shown = _table("", *headings)
    for label, row in table["rows"].items():
        cells = []
        for measure, reported in measures.items():
            percent, entry = measure.endswith("percent"), row[measure]
            cells.append(_value(entry["computed"], percent))
            if reported:
                cells += [_value(entry["reported"], percent), _signed(entry["difference"], percent)]
        shown.add_row(escape(label), *cells, style="bold" if label == "total" else "")
    return shown


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="left" if heading.strip() in ("name", "mix") else "right", no_wrap=True)
    return table


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _value(value: float | None, percent: bool) -> str:
    if value is None:
        return "-"
    if percent:
        return f"{value:.2f}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _signed(difference: float | None, percent: bool) -> str:
    """Points of a percentage, percent of a size; never -0.0."""
    if difference is None:
        return ""
    digits = 2 if percent else 1
    return f"{round(difference, digits) + 0.0:+.{digits}f}" + ("" if percent else "%")
