"""Micro-anneals in the manner of the report's Table 12: values, differences from the baseline with their spread over seeds, and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from tasks.report_charts import BarRow, bar_plot
from tasks.report_data_training import MicroAnneal, Score, sum_known
from tasks.spread import Spread, spread

ALL = "all"  # the name under which scores hold the sum over sources
AVERAGE = "average"  # and that of the average over tasks
_MOST_CHARTS = 6  # of sources under test; the table has all


@dataclass(frozen=True)
class Cell:
    """A row's score on one source, its difference from the baseline and the spread of that over seeds; None where there is none."""

    score: Score | None
    change: Spread | None


def cell(row: MicroAnneal, source: str, baseline: MicroAnneal | None) -> Cell:
    """Bits per byte of a row on a source beside the baseline, whose own score has no spread: all runs start from the one checkpoint."""
    score, reference = row.scores.get(source), baseline.scores.get(source) if baseline else None
    if score is None or reference is None or row.baseline:
        return Cell(score, None)
    runs = [scores[source].bits_per_byte for scores in row.by_seed.values() if source in scores] or [score.bits_per_byte]
    return Cell(score, spread([value - reference.bits_per_byte for value in runs]))


@dataclass(frozen=True)
class TaskCell:
    """A row's score on a task in percent, its difference from the baseline in points and the spread of that over seeds."""

    score: float | None
    change: Spread | None


def task_cell(row: MicroAnneal, task: str, baseline: MicroAnneal | None) -> TaskCell:
    """The score on a task, or the average over tasks, beside the baseline's; the difference is of the same instances."""
    score, reference = row.tasks.get(task), baseline.tasks.get(task) if baseline else None
    if score is None:
        return TaskCell(None, None)
    if reference is None or row.baseline:
        return TaskCell(100 * score, None)
    return TaskCell(100 * score, spread([100 * (scores[task] - reference) for scores in row.tasks_by_seed.values()]))


def micro_anneals(rows: Sequence[MicroAnneal]) -> dict[str, Any]:
    """The table by experiment, its charts, and what all runs cost together."""
    sources = score_names(row.scores for row in rows)
    baseline = next((row for row in rows if row.baseline), None)
    tasks = task_names(rows)
    cells = [
        {
            "row": row,
            "values": [cell(row, source, baseline) for source in sources],
            "tasks": [task_cell(row, task, baseline) for task in tasks],
        }
        for row in rows
    ]
    shifts = [abs(each.change.mean) for line in cells for each in line["tasks"] if each.change is not None]  # type: ignore[attr-defined]
    changes = [abs(each.change.mean) for line in cells for each in line["values"] if each.change is not None]  # type: ignore[attr-defined]
    tried = [row for row in rows if not row.baseline]
    return {
        "sources": sources,
        "tasks": tasks,
        "cells": cells,
        "widest_shift": max(shifts, default=0.0) or 1.0,
        "widest": max(changes, default=0.0) or 1.0,
        "experiments": list(dict.fromkeys(row.experiment for row in tried)),
        "baseline": baseline,
        "charts": [
            chart
            for chart in (
                *(_chart(source, tried, baseline) for source in shown_sources(rows)),
                *(_task_chart(task, tried, baseline) for task in tasks[:_MOST_CHARTS]),
            )
            if chart is not None
        ],
        "seeds": max((len(row.by_seed) for row in rows), default=0),
        "hours": sum_known({run: hours for row in tried for run, hours in row.hours_by_run.items()}),  # a run of two rows counts once
        "anneals": sum_known({run: share for row in tried for run, share in row.share_by_run.items()}),
    }


def by_experiment(rows: Sequence[MicroAnneal]) -> list[MicroAnneal]:
    """Rows of one experiment together, whatever stands between them in the recipe; the baseline first."""
    experiments = list(dict.fromkeys(row.experiment for row in rows if not row.baseline))
    return sorted(rows, key=lambda row: -1 if row.baseline else experiments.index(row.experiment))


def shown_sources(rows: Sequence[MicroAnneal]) -> list[str]:
    """The sum over sources, and the first sources under test: what decides."""
    scored = score_names(row.scores for row in rows)
    tested = dict.fromkeys(source.partition("/")[0] for row in rows for source in row.tested)
    return [name for name in [ALL, *list(tested)[:_MOST_CHARTS]] if name in scored]


def _chart(source: str, rows: Sequence[MicroAnneal], baseline: MicroAnneal | None) -> Markup | None:
    bars = []
    for row in rows:
        change = cell(row, source, baseline).change
        if change is not None:
            bars.append(BarRow(row.mix, change.mean, change.interval))
    title = "all sources" if source == ALL else source
    return bar_plot(f"Change of held-out bits per byte on {title}", bars) if bars else None


def _task_chart(task: str, rows: Sequence[MicroAnneal], baseline: MicroAnneal | None) -> Markup | None:
    changes = {row.mix: task_cell(row, task, baseline).change for row in rows}
    bars = [BarRow(name, change.mean, change.interval) for name, change in changes.items() if change is not None]
    title = "Change of the average score on tasks, points" if task == AVERAGE else f"Change of the score on {task}, points"
    return bar_plot(title, bars, higher_is_better=True) if bars else None


def task_names(rows: Sequence[MicroAnneal]) -> list[str]:
    """Tasks in the order of the recipe, after their average."""
    return list(dict.fromkeys(task for row in rows for task in row.tasks))


def mean_scores(runs: list[dict[str, Score]]) -> dict[str, Score]:
    """The mean over runs of the scores of each source."""
    means = {}
    for source in runs[0]:
        losses = [run[source].loss for run in runs]
        known = [loss for loss in losses if loss is not None]
        means[source] = Score(fmean(run[source].bits_per_byte for run in runs), fmean(known) if len(known) == len(runs) else None)
    return means


def gpu_hours(lines: list[dict[str, Any]]) -> float | None:
    """Hours of GPUs (of ranks, on a CPU) that the steps of `metrics.jsonl` took, checkpoints and held-out scores included.

    None where a line does not say how many ranks took the step, as those of older runs. Starting up, and steps that a crash undid, are not
    in the lines.
    """
    if not all("ranks" in line for line in lines):
        return None
    stood = ("seconds", "checkpoint_seconds", "held_out_seconds")
    return sum(line["ranks"] * sum(line.get(name, 0.0) for name in stood) for line in lines) / 3600


def score_names(scores: Iterable[Mapping[str, Score]]) -> list[str]:
    """Sources in order of appearance, the sum over all of them first."""
    names = list(dict.fromkeys(name for item in scores for name in item))
    return sorted(names, key=lambda name: name != ALL)
