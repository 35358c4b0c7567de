"""The report's table of scores on evaluation tasks, in the manner of its Tables 21 to 23: models by tasks, with standard errors."""

from __future__ import annotations

from typing import Any

from tasks.report_data_training import TaskScore

_FORMS = {"cf": "cloze", "mcf": "letters"}


def tasks_table(scores: list[TaskScore]) -> dict[str, Any]:
    """Columns of tasks, held-out ones last; a row a model, each score in percent with its standard error; the best of a column is marked."""
    ordered = sorted(scores, key=lambda score: score.suite == "held_out")
    columns = list({score.task: score for score in ordered}.values())
    best = {column.task: max(score.score for score in scores if score.task == column.task) for column in columns}
    rows = []
    for model in dict.fromkeys(score.model for score in scores):
        found = {score.task: score for score in scores if score.model == model}
        rows.append({"model": model, "cells": [_cell(found.get(column.task), best[column.task]) for column in columns]})
    return {
        "columns": columns,
        "rows": rows,
        "letters": any(score.form == "mcf" for score in scores),
        "cut": [f"{score.cut:,} of {score.model}'s on {score.task}" for score in scores if score.cut],
    }


def _cell(score: TaskScore | None, best: float) -> dict[str, Any] | None:
    if score is None:
        return None
    tip = f"{score.metric.replace('_', ' ')} of {score.instances:,} instances"
    if score.forms:
        tip += "; " + ", ".join(f"{_FORMS[form]} {100 * value:.1f}" for form, value in score.forms.items())
    if score.bits_per_byte is not None:
        tip += f"; {score.bits_per_byte:.3f} bits per byte of the gold answers"
    error = None if score.standard_error is None else 100 * score.standard_error
    return {"score": score, "percent": 100 * score.score, "error": error, "best": score.score == best, "tip": tip}
