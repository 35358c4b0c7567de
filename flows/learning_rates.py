"""The flow `learning-rates`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="learning-rates", flow_run_name="learning-rates {recipe.name}", persist_result=False)
def learning_rates(recipe: Recipe) -> RunSummary:
    """Pretraining with several peak learning rates, each decayed to zero over several budgets, evaluated (report, section 3.5).

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "learning-rates", Pipeline.learning_rates_all)
