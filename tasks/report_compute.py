"""Training compute against score, in the manner of the report's Figure 1: a chart a score, and the table below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from tasks.report_charts import Spot, scatter
from tasks.report_data_training import TrainedFor

_MOST_TASKS = 9  # charts; the table has all


def compute_table(rows: Sequence[TrainedFor]) -> dict[str, Any]:
    """Charts of held-out bits per byte and of the average over tasks, of single tasks where there are several, and the table's columns."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.tasks))
    averaged = any(row.average is not None for row in rows)

    def of_task(task: str) -> Markup | None:
        return _chart(f"{task}, percent", rows, lambda row: None if task not in row.tasks else 100 * row.tasks[task])

    charts = [_chart("Held-out bits per byte, all sources", rows, lambda row: row.bits_per_byte)]
    if averaged:
        charts.append(
            _chart("Average of development's tasks, percent", rows, lambda row: None if row.average is None else 100 * row.average)
        )
    single = [of_task(task) for task in tasks[:_MOST_TASKS]]
    if len(single) == 1:
        charts, single = charts + single, []
    return {
        "rows": rows,
        "tasks": tasks,
        "averaged": averaged,
        "charts": [chart for chart in charts if chart is not None],
        "by_task": [chart for chart in single if chart is not None],
    }


def _chart(title: str, rows: Sequence[TrainedFor], value: Callable[[TrainedFor], float | None]) -> Markup | None:
    kinds = list(dict.fromkeys(row.kind for row in rows))
    spots = [
        Spot(row.name, row.kind, row.flops, score, kinds.index(row.kind))
        for row in rows
        if row.flops is not None and (score := value(row)) is not None
    ]
    return scatter(title, spots, "FLOPs") if spots else None
