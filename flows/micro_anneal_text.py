"""The micro-anneal table for a terminal of 120 columns, and for a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tasks.readable import compact, percent
from tasks.report_data_training import MicroAnneal
from tasks.report_micro_anneals import Cell, TaskCell, cell, score_names, shown_sources, task_cell, task_names
from tasks.spread import Spread

_MOST_SOURCES, _MOST_TASKS = 3, 5  # side by side; the report has all


def micro_anneal_table(rows: Sequence[MicroAnneal]) -> Table:
    """Bits per byte and their difference from the baseline, for all sources together and for the first sources under test."""
    sources = shown_sources(rows)[:_MOST_SOURCES]
    table = Table(title="micro-anneals: held-out bits per byte, difference from the checkpoint that all started from", title_justify="left")
    table.add_column("mix")
    for heading in ("web", "tokens", "seeds", *sources, "GPU-hours", "of an anneal"):
        table.add_column(escape(heading), justify="right")
    baseline = next((row for row in rows if row.baseline), None)
    for row in _under_headings(table, rows):
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


def micro_anneal_tasks(rows: Sequence[MicroAnneal]) -> Table | None:
    """Scores on development's tasks and their differences from the baseline: the average over all of them, and the first ones."""
    tasks, baseline = task_names(rows)[:_MOST_TASKS], next((row for row in rows if row.baseline), None)
    if not tasks:
        return None
    table = Table(title="micro-anneals: scores on tasks in percent, difference from that checkpoint in points", title_justify="left")
    table.add_column("mix")
    for task in tasks:
        table.add_column(escape(task), justify="right")
    for row in _under_headings(table, rows):
        table.add_row(escape(row.mix), *(_task_text(task_cell(row, task, baseline)) for task in tasks))
    return table


def _under_headings(table: Table, rows: Sequence[MicroAnneal]) -> Iterator[MicroAnneal]:
    """The rows, each experiment's after a row with its heading."""
    experiment = ""
    for row in rows:
        if row.experiment != experiment and not row.baseline:
            experiment = row.experiment
            table.add_section()
            table.add_row(f"[bold]{escape(experiment)}[/]")
        yield row


def _task_text(found: TaskCell) -> str:
    if found.score is None:
        return "-"
    if found.change is None:
        return f"{found.score:.1f}"
    about = "" if found.change.half_width is None else f" ±{found.change.half_width:.1f}"
    return f"{found.score:.1f} {found.change.mean:+.1f}{about}"


def _text(found: Cell) -> str:
    if found.score is None:
        return "-"
    value = f"{found.score.bits_per_byte:.3f}"
    if found.change is None:
        return value
    about = "" if found.change.half_width is None else f" ±{found.change.half_width:.3f}"
    return f"{value} {found.change.mean:+.3f}{about}"


def as_json(rows: Sequence[MicroAnneal]) -> list[dict[str, Any]]:
    """The same of every source and task: mean, difference from the baseline, its standard deviation over seeds and 95 % interval.

    Scores on tasks are in percent, their differences in points.
    """
    baseline = next((row for row in rows if row.baseline), None)
    found = []
    for row in rows:
        scores = {}
        for source in score_names([row.scores]):
            told = cell(row, source, baseline)
            assert told.score is not None
            scores[source] = {"bits_per_byte": told.score.bits_per_byte, **_change(told.change)}
        tasks = {}
        for task in row.tasks:
            on_task = task_cell(row, task, baseline)
            tasks[task] = {"score": on_task.score, **_change(on_task.change)}
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
                "tasks": tasks,
            }
        )
    return found


def _change(change: Spread | None) -> dict[str, float]:
    if change is None:
        return {}
    if change.interval is None or change.deviation is None:
        return {"change": change.mean}
    low, high = change.interval
    return {"change": change.mean, "deviation": change.deviation, "low": low, "high": high}
