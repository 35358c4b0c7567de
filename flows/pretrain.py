"""The flow `pretrain`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="pretrain", flow_run_name="pretrain {recipe.name}", persist_result=False)
def pretrain(recipe: Recipe) -> RunSummary:
    """Pretraining.

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "pretrain", Pipeline.pretrain)
