"""The flow `anneal`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="anneal", flow_run_name="anneal {recipe.name}", persist_result=False)
def anneal(recipe: Recipe) -> RunSummary:
    """Anneals from the pretrained checkpoint, one for each data order.

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "anneal", Pipeline.anneals)
