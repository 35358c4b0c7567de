"""The thin Prefect face: a stage of the pipeline as a flow whose tasks a person recognises, and the summary that a run leaves.

Prefect caches and keeps nothing: the store knows what is done, and two memories would disagree.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment
from prefect.settings import PREFECT_API_URL

from flows import artifacts
from flows.children import ChildRuns
from flows.pipeline import Pipeline, make_runner
from flows.plan import make_plan, stage_of
from flows.recipe import Recipe, in_environment
from flows.report import Gathering, write
from flows.summary import RunSummary, summary_path
from flows.telling import Watching, disks, line_of, lines_from_below, tell
from flows.uses import Uses
from tasks import workers
from tasks.errors import UserError
from tasks.secrets import hidden, variables_of
from tasks.shards import Artifact
from tasks.store import Store

interrupted: list[Callable[[], None]] = []  # what is done at once after a Ctrl-C has ended the work, before Prefect hears of it (the CLI)
at_work: list[str] = []  # the tasks whose own code runs now; Prefect's runs around it
END_TO_END = "end-to-end"


def run_stage(
    recipe: Recipe, flow: str, stage: Callable[[Pipeline], Any], only: tuple[str, str | None] | None = None, force: bool = False
) -> RunSummary:
    """Run a stage within a flow: each artifact is a task run. Returns the summary that it leaves in the store, also where the stage fails.

    Where there is a server with a UI to look at them, the plan before and the results afterwards are artifacts of the flow run. All that the
    recipe asks for, end to end, leaves its report in the store.
    """
    started, clock, shown = datetime.now(UTC), time.monotonic(), PREFECT_API_URL.value() is not None
    variables, recipe = variables_of(recipe.model_dump(mode="json")), in_environment(recipe)
    watch = Watching(disks(Store(recipe.store)))
    uses = Uses(Store(recipe.store), recipe.name, flow, started.isoformat(timespec="seconds"))

    def told(artifact: Artifact) -> None:
        uses.told(artifact, has_manifest=only is None)
        tell(line_of(artifact))

    runner = make_runner(recipe, watch, only=only, force=force, tell=told, wants=uses.wants)
    children = ChildRuns(recipe, variables, runner.store, tell) if deployment.id else None  # a command runs its jobs itself
    pipeline = Pipeline(recipe, runner, _as_task, tell, watch, children)
    try:
        with uses.kept(), lines_from_below():
            pipeline.corpus()
            if shown and only is None:
                with contextlib.suppress(UserError):  # what hinders the plan is told by the step that it hinders
                    artifacts.show(recipe.name, [artifacts.before(make_plan(recipe, stage_of(flow), price=0.0))])
            stage(pipeline)
    finally:
        workers.release()
        summary = RunSummary.of(pipeline, flow, started.isoformat(timespec="seconds"), time.monotonic() - clock)
        if only is None:
            runner.store.replace(summary_path(recipe.name), json.dumps(asdict(summary), indent=1))
    gathering = Gathering(runner.store, Recipe.model_validate(summary.recipe), summary)  # whose secrets are hidden
    if shown:
        artifacts.show(recipe.name, artifacts.after(gathering.figures))
    if flow == END_TO_END:
        lies = _as_task("report", lambda: write(gathering))
        if shown:
            artifacts.show(recipe.name, [artifacts.report(gathering.figures, lies)])
    return summary


class _Leashed:
    """The module `subprocess`, as Prefect's embedded server sees it: what it starts ends with this process, however this process ends.

    Prefect stops its server at exit, but not where the process is killed; and a leash put on later would miss the seconds of its start.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    @staticmethod
    def Popen(args: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tasks.processes", *args], stdin=subprocess.PIPE, **options)


def _leash_server() -> None:
    if PREFECT_API_URL.value() is None:  # else there is a server elsewhere
        importlib.import_module("prefect.server.api.server").subprocess = _Leashed()  # type: ignore[attr-defined]


_leash_server()


def _as_task(name: str, function: Callable[[], Any]) -> Any:
    step = name.split(" ", 1)[0]
    named = task(name=step, task_run_name=name.replace("{", "(").replace("}", ")"), cache_policy=NO_CACHE, persist_result=False)

    def work() -> Any:
        at_work.append(name)
        try:
            return function()
        except KeyboardInterrupt:
            for act in interrupted:
                act()
            raise
        except UserError as error:  # Prefect keeps its words
            if (told := hidden(str(error))) != str(error):
                raise type(error)(told) from None
            raise
        finally:
            at_work.remove(name)

    return named(work)()
