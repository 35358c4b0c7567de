"""The flow `tokenize`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="tokenize", flow_run_name="tokenize {recipe.name}", persist_result=False)
def tokenize(recipe: Recipe) -> RunSummary:
    """Tokens of every source.

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "tokenize", Pipeline.tokenize_all)
