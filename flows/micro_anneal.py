"""The flow `micro-anneal`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="micro-anneal", flow_run_name="micro-anneal {recipe.name}", persist_result=False)
def micro_anneal(recipe: Recipe) -> RunSummary:
    """Every micro-anneal, evaluated beside the checkpoint that all start from (report, section 4.2.2).

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "micro-anneal", Pipeline.micro_anneal_all)
