"""The flow `curate`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="curate", flow_run_name="curate {recipe.name}", persist_result=False)
def curate(recipe: Recipe) -> RunSummary:
    """Raw files to selected documents: ingest, score, tokenize, select.

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "curate", Pipeline.curate)
