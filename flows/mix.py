"""The flow `mix`."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="mix", flow_run_name="mix {recipe.name}", persist_result=False)
def mix(recipe: Recipe) -> RunSummary:
    """The recipe's mixes, as plans over tokens.

    Args:
        recipe: What is made, of what, and where.
    """
    return run_stage(recipe, "mix", Pipeline.mix_all)
