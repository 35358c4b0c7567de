"""The flow `compare-tokenizers`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="compare-tokenizers", flow_run_name="compare-tokenizers {recipe.name}", persist_result=False)
def compare_tokenizers(recipe: Recipe) -> RunSummary:
    """Pretraining under several tokenizers, one pass over the same documents each, evaluated (report, Table 5).

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "compare-tokenizers", Pipeline.tokenizers_all)
