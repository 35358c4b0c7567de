"""The flow `end-to-end`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="end-to-end", flow_run_name="end-to-end {recipe.name}", persist_result=False)
def end_to_end(recipe: Recipe) -> RunSummary:
    """Everything that the recipe asks for: raw files to a souped model, evaluated, with its report.

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "end-to-end", Pipeline.end_to_end)
