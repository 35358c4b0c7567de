"""The flow `soup`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="soup", flow_run_name="soup {recipe.name}", persist_result=False)
def soup(recipe: Recipe) -> RunSummary:
    """The mean of the anneals' weights, and its Hugging Face model (report, section 4.3).

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "soup", Pipeline.soup_all)
