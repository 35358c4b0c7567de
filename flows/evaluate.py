"""The flow `evaluate`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="evaluate", flow_run_name="evaluate {recipe.name}", persist_result=False)
def evaluate(recipe: Recipe, held_out: bool = False) -> RunSummary:
    """Held-out loss and bits per byte of every checkpoint and its scores on tasks; with `held_out` also on those kept from development.

    Args:
        recipe: What is made, of what, and where.
        held_out: Also on the tasks kept from development; the store remembers that they were looked at.
    """
    return run_stage(recipe, "evaluate", Pipeline.evaluate_held_out if held_out else Pipeline.evaluate_all)
