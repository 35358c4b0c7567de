"""GPU jobs of a flow run as child runs of the deployment `train`: submitted, waited for, and cancelled with their parent.

The server keeps who runs what: a job that runs already, for another parent or for this one before it was killed, is waited for and not begun
again. A server that is away is waited for too; the jobs do not need it.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun, State
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling

from flows.automations import HEARD_NOTHING
from flows.jobs import STEPS, GpuJob, describe
from flows.recipe import Recipe
from tasks.beside import Job
from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.launch import LauncherConfig
from tasks.shards import ShardTask
from tasks.store import Store

T = TypeVar("T")

DEPLOYMENT = "train/train"
POLL_SECONDS = 0.5
TRIES = 3  # runs that somebody else cancelled or killed before ours is begun and believed
RAISED = re.compile(r"^Flow run encountered an exception: (?:[\w.]+: )?", re.DOTALL)


class ChildRuns:
    """Makes of a job one that runs it as a child of the flow run that this is called in."""

    def __init__(self, recipe: Recipe, variables: Mapping[str, str], store: Store, tell: Callable[[str], None]) -> None:
        self.recipe, self.variables, self.store, self.tell = recipe, variables, store, tell
        self.parent = contextvars.copy_context()  # a thread has none, and the child would have no parent

    def __call__(self, job: Job) -> Job:
        def run(task: ShardTask, key: str) -> None:
            described = GpuJob.model_validate(parameter := describe(job, task, self.recipe, self.variables))
            step = STEPS[described.step].name
            if self.store.record(step, key) is None:
                check: Callable[[], None] = getattr(job, "check", lambda: None)
                child = ChildRun(
                    described.title, key, {"job": parameter}, check, self.tell, partial(job_variables, described.launcher, self.store)
                )
                self.parent.copy().run(child)
                if self.store.record(step, key) is None:
                    raise UserError(
                        f"{described.title} ended well but left nothing in {self.store.url}: let the workers of both pools see the same store"
                    )

        run.settings = getattr(job, "settings", {})  # type: ignore[attr-defined]  # for the store
        return run


def job_variables(launcher: LauncherConfig, store: Store) -> dict[str, Any]:
    """What the work pool's template (`deployments/kubernetes`) is to make for a job: pods, their GPUs, and the nodes to keep away from."""
    if launcher.kind != "kubernetes":
        return {}
    gpus = 0 if launcher.device == "cpu" else launcher.processes
    away = {"keep_away": sorted(hosts)} if (hosts := Cordon(store).hosts()) else {}
    return {"nodes": launcher.nodes, "gpus": gpus, **away}


class ChildRun:
    """One job; called, it runs it to its end. `check` is called now and then and ends it by raising.

    A child that an automation has marked crashed may be dead, or live where no network reaches it. Another one is begun in either case: the
    lock of the training's folder makes it wait for the first, and it goes on where that one stopped.
    """

    def __init__(
        self,
        title: str,
        key: str,
        parameters: dict[str, Any],
        check: Callable[[], None],
        tell: Callable[[str], None],
        variables: Callable[[], dict[str, Any]],
    ) -> None:
        self.title, self.key, self.parameters, self.check, self.tell, self.variables = title, key, parameters, check, tell, variables

    def __call__(self) -> None:
        """Raises UserError with the child's own words where it fails."""
        with get_client(sync_client=True) as client:
            for left in reversed(range(TRIES)):
                variables = self.variables()
                run, ours = self._to_its_end(client, variables)
                if run.state and run.state.is_completed():
                    return
                why = self._why_again(run, ours, variables)
                if why is None or not left:
                    raise UserError(self._failure(run))
                self.tell(f"{self.title}: {why}")

    def _to_its_end(self, client: SyncPrefectClient, variables: dict[str, Any]) -> tuple[FlowRun, bool]:
        """The run of this job after its end, and whether it is ours; the one that lives, or a new one."""
        earlier = self._patiently(partial(self._earlier, client))
        live = next((run for run in earlier if run.state and not run.state.is_final()), None)
        run = live or self._patiently(partial(self._submit, earlier, variables))
        self.tell(f"{self.title}: {'waiting for' if live else 'submitted as'} flow run {run.name} ({run.id})")
        ours = self._patiently(partial(self._is_ours, client, run))
        try:
            return self._end_of(client, run), ours
        except BaseException:  # the parent ends: it fails, is cancelled, or its worker stops
            if ours:
                self._cancel(client, run)
            raise

    def _why_again(self, run: FlowRun, ours: bool, variables: dict[str, Any]) -> str | None:
        """Why another run may complete where this one did not; None where it would end as this one."""
        assert run.state is not None
        if _is_given_up(run.state):
            return f"nothing was heard from flow run {run.name} any more; another one goes on, or waits for it if it lives"
        if run.state.is_failed():
            return "a node failed the health check and is cordoned; the job goes elsewhere" if self.variables() != variables else None
        return None if ours else f"flow run {run.name} ended with the run that had submitted it; another one goes on"

    def _earlier(self, client: SyncPrefectClient) -> list[FlowRun]:
        """The runs of this job, the newest first."""
        tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[self.key]))
        return client.read_flow_runs(flow_run_filter=tagged, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=50)

    def _submit(self, earlier: list[FlowRun], variables: dict[str, Any]) -> FlowRun:
        """A new run; one and the same for all who ask after the same end of the run before it."""
        after = str(earlier[0].id) if earlier else "none"
        return run_deployment(  # type: ignore[return-value]  # no coroutine where no loop runs
            DEPLOYMENT,
            parameters=self.parameters,
            job_variables=variables,
            flow_run_name=self.title,
            tags=[self.key],
            idempotency_key=f"{self.key} after {after}",
            timeout=0,
        )

    def _end_of(self, client: SyncPrefectClient, run: FlowRun) -> FlowRun:
        told: str | None = ""
        while run.state is None or not run.state.is_final():
            self.check()
            time.sleep(POLL_SECONDS)
            run = self._patiently(partial(client.read_flow_run, run.id))
            name = run.state.name if run.state else None
            if name == "Late" != told:
                self.tell(f"{self.title}: waits for a free worker of the pool {run.work_pool_name}")
            told = name
        return run

    def _patiently(self, ask: Callable[[], T]) -> T:
        """The answer of the server, however long it is away."""
        away = False
        while True:
            try:
                return ask()
            except ObjectNotFound as error:
                raise UserError(
                    f"{self.title}: the server does not know the deployment {DEPLOYMENT} or its run any more: `olmoflow up` makes it, then retry"
                ) from error
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise UserError(f"{self.title}: the server refused it: {error}") from error
            except httpx.HTTPError:
                pass
            if not away:
                self.tell(f"{self.title}: the server does not answer; waiting for it")
            away = True
            self.check()
            time.sleep(POLL_SECONDS)

    def _cancel(self, client: SyncPrefectClient, run: FlowRun) -> None:
        """Ask for the child's end; its worker lets it save."""
        with contextlib.suppress(PrefectException, httpx.HTTPError):
            client.set_flow_run_state(run.id, Cancelling(message="The parent flow run ended."))

    def _is_ours(self, client: SyncPrefectClient, run: FlowRun) -> bool:
        """Whether this flow run submitted it, now or before it was killed; another parent's may be ended by that one."""
        context = FlowRunContext.get()
        assert context is not None and context.flow_run is not None
        return run.parent_task_run_id is not None and client.read_task_run(run.parent_task_run_id).flow_run_id == context.flow_run.id

    def _failure(self, run: FlowRun) -> str:
        assert run.state is not None
        message = RAISED.sub("", run.state.message or "it says nothing").strip().rstrip(".")
        verb = {"FAILED": "failed", "CRASHED": "crashed", "CANCELLED": "was cancelled"}.get(run.state.type.value, run.state.type.value)
        return f"{self.title} {verb} (flow run {run.name}, {run.id}): {message}; a retry goes on where it stopped"


def _is_given_up(state: State) -> bool:
    """Whether an automation has marked the run crashed, since nothing was heard from it."""
    return state.is_crashed() and (state.message or "").startswith(HEARD_NOTHING)
