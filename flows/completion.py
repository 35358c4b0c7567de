"""What the shell completes: flows, and the steps, sources, mixes and runs of the recipe that stands on the line.

A key press must never print an error, so whatever a recipe has against being read, nothing is offered then.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import typer

# what every recipe may have; which of them a recipe has is known once it stands on the line, behind the step
STEPS = (
    "ingest",
    "gold-answers",
    "annotate-sample",
    "annotate",
    "rewrite",
    "signatures",
    "clusters",
    "duplicates",
    "train-scorer",
    "score",
    "tokenizer",
    "tokenize",
    "select",
    "mix",
    "contamination",
    "train",
    "held-out",
    "evaluate",
    "downstream",
    "soup",
    "model",
)


def steps(incomplete: str) -> list[str]:
    """Steps whose names begin so."""
    return [step for step in STEPS if step.startswith(incomplete)]


def names(context: typer.Context, incomplete: str) -> list[str]:
    """The sources, mixes and runs of the line's recipe whose names begin so: those of the line's step, where it has one."""
    with contextlib.suppress(Exception):
        from flows.plan import step_names
        from flows.recipe import load

        words = [context.params[key] or "" for key in ("step", "recipe_file")] + context.args  # the latter where the line does not end well
        step = next((word for word in words if word in STEPS), None)
        recipe = load(next(Path(word) for word in words if Path(word).is_file()), context.params["set_"])
        return [
            name for name in dict.fromkeys(name for of, name in step_names(recipe) if step in (None, of)) if name.startswith(incomplete)
        ]
    return []
