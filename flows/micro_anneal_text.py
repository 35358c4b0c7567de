"""The micro-anneal table for a terminal of 120 columns, and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tasks.readable import compact, percent
from tasks.report_data import MicroAnneal
from tasks.report_micro_anneals import Cell, cell, score_names, shown_sources

_MOST_SOURCES = 3  # side by side; the report has all


def micro_anneal_table(rows: Sequence[MicroAnneal]) -> Table:
    """Bits per byte and their difference from the baseline, for all sources together and for the first sources under test."""
    sources = shown_sources(rows)[:_MOST_SOURCES]
    table = Table(title="micro-anneals: held-out bits per byte, difference from the checkpoint that all started from", title_justify="left")
    table.add_column("mix")
    for heading in ("web", "tokens", "seeds", *sources, "GPU-hours", "of an anneal"):
        table.add_column(escape(heading), justify="right")
    baseline = next((row for row in rows if row.baseline), None)
    experiment = ""
    for row in rows:
        if row.experiment != experiment and not row.baseline:
            experiment = row.experiment
            table.add_section()
            table.add_row(f"[bold]{escape(experiment)}[/]")
        table.add_row(
            escape(row.mix),
            "n/a" if row.web_ratio is None else percent(row.web_ratio),
            "n/a" if row.tokens is None else compact(row.tokens),
            str(len(row.by_seed)) if row.by_seed else "n/a",
            *(_text(cell(row, source, baseline)) for source in sources),
            "n/a" if row.gpu_hours is None else f"{row.gpu_hours:.3g}",
            "n/a" if row.anneal_share is None else percent(row.anneal_share),
        )
    return table


def _text(found: Cell) -> str:
    if found.score is None:
        return "-"
    value = f"{found.score.bits_per_byte:.3f}"
    if found.change is None:
        return value
    about = "" if found.change.half_width is None else f" ±{found.change.half_width:.3f}"
    return f"{value} {found.change.mean:+.3f}{about}"


def as_json(rows: Sequence[MicroAnneal]) -> list[dict[str, Any]]:
    """The same of every source: mean, difference from the baseline, its standard deviation over seeds and 95 % interval."""
    baseline = next((row for row in rows if row.baseline), None)
    found = []
    for row in rows:
        scores = {}
        for source in score_names([row.scores]):
            told = cell(row, source, baseline)
            assert told.score is not None
            scores[source] = {"bits_per_byte": told.score.bits_per_byte}
            if told.change is not None:
                scores[source] |= {"change": told.change.mean}
                if told.change.interval is not None and told.change.deviation is not None:
                    low, high = told.change.interval
                    scores[source] |= {"deviation": told.change.deviation, "low": low, "high": high}
        found.append(
            {
                "mix": row.mix,
                "experiment": row.experiment,
                "baseline": row.baseline,
                "web_ratio": row.web_ratio,
                "tokens": row.tokens,
                "seeds": list(row.by_seed),
                "gpu_hours": row.gpu_hours,
                "anneal_share": row.anneal_share,
                "scores": scores,
            }
        )
    return found
