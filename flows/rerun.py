"""The flow `rerun`: one step of a recipe again, and only it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.face import run_stage
from flows.pipeline import Pipeline
from flows.plan import check_step
from flows.recipe import Recipe, in_environment
from flows.summary import RunSummary


def _called() -> str:
    given: dict[str, Any] = flow_run.parameters
    return " ".join(filter(None, ("rerun", given["step"], given["source"], "of", given["recipe"].name)))


@flow(name="rerun", flow_run_name=_called, persist_result=False)
def rerun_step(step: str, source: str | None = None, force: bool = False, *, recipe: Recipe) -> RunSummary:
    """Make a step's missing shards, or with `force` all of them; the steps before it must be there, the steps after it are left alone.

    Args:
        step: A step as the plan names it, such as ingest, score, tokenize, select, mix, train, soup, evaluate or downstream.
        source: Only this source, mix or run of the step, such as `wiki` or `anneal 42`; all of the step where left empty.
        force: Make also what is there already, not only what is missing.
        recipe: The recipe that the step is of.
    """
    check_step(in_environment(recipe), step, source)  # a form has no list of them
    return run_stage(recipe, f"rerun {step}", Pipeline.end_to_end, only=(step, source), force=force)
