"""The report's table of evaluations against sources and mixes: only what was found takes room, the rest is named in a sentence."""

from __future__ import annotations

from typing import Any

from tasks.report_data import EvaluationInside, Place

_MOST_EXAMPLES = 100


def evaluations_table(places: list[Place]) -> dict[str, Any]:
    """Rows of evaluations, columns of places, the instances that were found, and the names of what nothing was found in or of."""
    evaluations = list(dict.fromkeys(name for place in places for name in place.evaluations))
    columns = [place for place in places if any(found.touched for found in place.evaluations.values())]
    rows: list[dict[str, Any]] = []
    for name in evaluations:
        cells = [_cell(name, place, place.evaluations.get(name)) for place in columns]
        rows.append({"name": name, "cells": cells, "instances": max(place.evaluations[name].instances for place in _with(places, name))})
    return {
        "columns": columns,
        "rows": [row for row in rows if any(cell["touched"] for cell in row["cells"])],
        "clean": [row["name"] for row in rows if not any(cell["touched"] for cell in row["cells"])],
        "empty": [place.name for place in places if place not in columns],
        "partial": [(place.name, place.not_looked_at, place.not_scored) for place in places if place.not_looked_at or place.not_scored],
        "examples": _examples(columns),
        "ngram": places[0].ngram if places else 0,
    }


def _with(places: list[Place], evaluation: str) -> list[Place]:
    return [place for place in places if evaluation in place.evaluations]


def _cell(name: str, place: Place, found: EvaluationInside | None) -> dict[str, Any]:
    if found is None:
        return {"touched": 0, "inside": 0, "share": 0.0, "tip": "", "later": None}
    tip = f"{name} in {place.name}: {found.inside:,} of {found.instances:,} instances inside, {found.touched:,} touched, by {found.documents:,} documents"
    if place.kind == "mix":
        tip += f" ({found.copies:,} with their copies)"
    elif found.inside_when_selected is not None:
        tip += f"; {found.inside_when_selected:,} inside and {found.touched_when_selected or 0:,} touched once the filters have selected"
    share = found.inside / found.instances if found.instances else 0.0
    return {"touched": found.touched, "inside": found.inside, "share": share, "tip": tip, "later": found.inside_when_selected}


def _examples(places: list[Place]) -> list[dict[str, Any]]:
    """Instances that stand in documents, the most complete first; one that several places hold in the same document is told once."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for place in places:
        for name, evaluation in place.evaluations.items():
            for example in evaluation.examples:
                key = (name, example.instance, example.source, example.document)
                found.setdefault(key, {"evaluation": name, "example": example, "places": []})["places"].append(place.name)
    return sorted(found.values(), key=lambda item: -item["example"].share)[:_MOST_EXAMPLES]
