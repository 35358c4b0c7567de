"""The flow `poll-stackexchange`."""

from __future__ import annotations

from typing import cast

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.runtime import deployment
from prefect.states import Completed

from flows import recuration
from flows.recipe import Recipe, in_environment
from flows.recurate_stackexchange import recurate_stackexchange
from flows.summary import RunSummary
from flows.telling import tell

DEPLOYMENT = "recurate-stackexchange/recurate-stackexchange"
NOT_ENDED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]


@flow(name="poll-stackexchange", flow_run_name="poll-stackexchange {recipe.name}", persist_result=False)
def poll_stackexchange(recipe: Recipe) -> RunSummary | State:
    """Look for a new Stack Exchange dump; where there is one that is whole, start `recurate-stackexchange` on it, else be `Skipped`.

    Run by a worker it starts a run of that deployment and does not wait for it; else it does the work itself. A run that fails is tried again
    by the next poll, for its dump is not done.

    Args:
        recipe: The recipe whose Stack Exchange source is looked after.
    """
    found = recuration.find(in_environment(recipe), None, tell)
    if found.dump is None:
        return _skipped(found.why)
    name = found.dump.place.name
    tell(f"new dump {name}: curating it")
    if deployment.id is None:
        state = recurate_stackexchange(recipe, return_state=True)
        return state if state.name == "Skipped" else cast(RunSummary, state.result())
    running = _running(recipe.name)
    if running is not None:
        return _skipped(f"{name} is new, but the run {running} of recurate-stackexchange has not ended yet")
    parameters = {"recipe": recipe.model_dump(mode="json", exclude_unset=True)}  # not the name: a newer one may be done until it starts
    run = cast(FlowRun, run_deployment(DEPLOYMENT, parameters=parameters, timeout=0))
    return Completed(message=f"new dump {name}: started the run {run.name} of recurate-stackexchange")


def _skipped(why: str) -> State:
    tell(f"skipped: {why}")
    return Completed(name="Skipped", message=why)


def _running(recipe: str) -> str | None:
    """The name of a run of the re-curation of a recipe that has not ended."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["recurate-stackexchange"])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=NOT_ENDED))),
        )
    return next((run.name for run in runs if (run.parameters.get("recipe") or {}).get("name") == recipe), None)
