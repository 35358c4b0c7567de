"""The flow `rerun`: one step of a recipe again, and only it."""

from __future__ import annotations

from prefect import flow

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.summary import RunSummary


@flow(name="rerun", flow_run_name="rerun {step} {recipe.name}", persist_result=False)
def rerun_step(recipe: Recipe, step: str, source: str | None = None, force: bool = False) -> RunSummary:
    """Make a step's missing shards, or with `force` all of them; the steps before it must be there, the steps after it are left alone."""
    return run_stage(recipe, f"rerun {step}", Pipeline.end_to_end, only=(step, source), force=force)
