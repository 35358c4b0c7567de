"""The thin Prefect face: a stage of the pipeline as a flow whose tasks a person recognises, and the summary that a run leaves.

Prefect caches and keeps nothing: the store knows what is done, and two memories would disagree.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.exceptions import MissingContextError, PrefectException
from prefect.runtime import deployment
from prefect.settings import PREFECT_API_URL

from flows import artifacts
from flows.alerts import Disks
from flows.children import ChildRuns
from flows.pipeline import Pipeline, make_runner
from flows.plan import make_plan, stage_of
from flows.recipe import Recipe, in_environment
from flows.report import Gathering, write
from flows.summary import RunSummary, summary_path
from flows.uses import Uses
from tasks import workers
from tasks.errors import UserError
from tasks.measure import Hits
from tasks.progress import Progress, Seldom, Watch
from tasks.secrets import hidden, variables_of
from tasks.shards import Artifact
from tasks.store import Store

TOLD = {  # counts that the lines of these steps tell
    "annotate": {"asked": "asked about", "unusable": "answers unusable"},
    "rewrite": {"asked": "asked about", "unusable": "answers rejected"},
    "train-scorer": {"ngrams": "n-grams", "shorter_than_n": "shorter than n words and indexed whole"},
    "score": {"scored": "scored", "taken_over": "taken over", "skipped": "skipped", "hit": "share n-grams with evaluations"},
    "contamination": {
        "inside": "inside",
        "touched": "touched",
        "inside_when_selected": "inside what is selected",
        "touched_when_selected": "touched by it",
    },
}
TOLD_EVEN_IF_0 = {"asked", "unusable", "hit", "inside", "inside_when_selected"}

Listener = Callable[[str], None]
listeners: list[Listener] = []  # who else than Prefect's log wants a line about each artifact (the CLI)
watchers: list[Watch] = []  # and its progress while it is made
interrupted: list[Callable[[], None]] = []  # what is done at once after a Ctrl-C has ended the work, before Prefect hears of it (the CLI)
at_work: list[str] = []  # the tasks whose own code runs now; Prefect's runs around it
END_TO_END = "end-to-end"
LOG_SECONDS, BAR_SECONDS = 30.0, 5.0  # between two lines of progress in Prefect's log, and two states of its progress artifact


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
        _tell_artifact(artifact)

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


class _Told(logging.Handler):
    """What the code below logs (a job that goes elsewhere, ranks that are tried again), for Prefect's log and the listeners."""

    def emit(self, record: logging.LogRecord) -> None:
        line = hidden(record.getMessage())
        with contextlib.suppress(MissingContextError):  # a thread of its own has no run
            get_run_logger().log(record.levelno, line)
        for listener in listeners:
            listener(line)


@contextlib.contextmanager
def lines_from_below() -> Iterator[None]:
    below, told = logging.getLogger("tasks"), _Told(logging.INFO)
    before = below.level
    below.setLevel(logging.INFO)
    below.addHandler(told)
    try:
        yield
    finally:
        below.removeHandler(told)
        below.setLevel(before)


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


def tell(line: str) -> None:
    """A line for Prefect's log and for the listeners; within a flow."""
    line = hidden(line)
    get_run_logger().info(line)
    for listener in listeners:
        listener(line)


def alert(kind: str, about: str, sentence: str) -> None:
    """Tell what somebody should look at: a warning in Prefect's log, a line for the listeners, and an event where there is a server.

    A server that is away is waited for by a thread of Prefect's, and for its events only so long.
    """
    sentence = hidden(sentence)
    get_run_logger().warning(sentence)
    for listener in listeners:
        listener(sentence)
    if PREFECT_API_URL.value() is not None:
        resource = {"prefect.resource.id": f"olmoflow.{kind}.{about}", "prefect.resource.name": about}
        with contextlib.suppress(Exception):  # whatever Prefect has against it, no run ends by it
            emit_event(f"olmoflow.alert.{kind}", resource, payload={"message": sentence})


def disks(store: Store, *folders: str) -> Disks:
    """What looks after the disks that a run writes to: the store's where it is local, the given ones, and that of temporary files."""
    own = [Path(store.full(""))] if store.is_local else []
    return Disks([*own, *map(Path, folders), Path(tempfile.gettempdir())], alert)


class Watching:
    """Progress for Prefect: now and then a line in the task's log and a state of its progress artifact; and for the watchers all of it.

    `look` is called as often as there is progress.
    """

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self.look = look
        self.log, self.bar = Seldom(LOG_SECONDS), Seldom(BAR_SECONDS)
        self.bars: dict[tuple[str, str], UUID] = {}

    def __call__(self, progress: Progress) -> None:
        self.look()
        for watcher in watchers:
            watcher(progress)
        if self.log(progress):
            get_run_logger().info(str(progress))
        known = (progress.step, progress.name) in self.bars
        if self.bar(progress) or (known and progress.done == progress.total):
            with contextlib.suppress(PrefectException, httpx.HTTPError):  # a server that is away for a while must not end the work
                self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        percent = round(100 * progress.share, 1)
        bar = self.bars.get((progress.step, progress.name))
        if bar is None:
            key = re.sub(r"[^a-z0-9]+", "-", f"progress {progress.step} {progress.name}".lower()).strip("-")
            self.bars[progress.step, progress.name] = create_progress_artifact(percent, key, str(progress))  # type: ignore[assignment]
        else:
            update_progress_artifact(bar, percent, str(progress))


def _tell_artifact(artifact: Artifact) -> None:
    tell(line_of(artifact))


def line_of(artifact: Artifact) -> str:
    """One line about an artifact: what it is, what was reused, what became of its input."""
    shards = len(artifact.keys)
    state = "reused" if not artifact.made else f"{shards} shards" if artifact.made == shards else f"{artifact.made} of {shards} shards"
    if artifact.made == shards == 1:
        state = "made"
    if not artifact.is_whole:
        state = "not made"
    books = artifact.books
    flow = "" if not books.read else f"{books.read:,} {books.unit}" + (f", {books.kept:,} kept" if books.kept != books.read else "")
    flow += "".join(
        f", {books.counts[name]:,} {words}"
        for name, words in TOLD.get(artifact.step, {}).items()
        if books.counts.get(name) or (name in books.counts and name in TOLD_EVEN_IF_0)
    )
    if artifact.step == "train-scorer" and "true_positives" in books.counts:
        flow += f", {_hits(books.counts)}"
    if artifact.step == "clusters":
        flow += f", {books.counts['duplicates']:,} duplicates in {books.counts['clusters']:,} clusters" if books.counts else ""
    if "documents" in books.counts and books.unit != "documents":
        flow += f", {books.counts['documents']:,} documents"
    if "tokens" in books.counts and artifact.step != "select":
        flow += f", {books.counts['tokens']:,} tokens"
    masked = sum(number for name, number in books.counts.items() if name.startswith("masked_"))
    if masked:
        flow += f", {masked:,} addresses and numbers masked"
    if books.counts.get("duplicate_ids"):
        flow += f", {books.counts['duplicate_ids']:,} with an id that another document of the source has"
    if books.quarantined:
        flow += f", {books.quarantined:,} quarantined"
    return f"{artifact.step:<15} {artifact.name:<32} {state:<16} {flow}" + (f"  {artifact.seconds:.1f} s" if artifact.made else "")


def _hits(counts: dict[str, int]) -> str:
    kinds = ("true_positives", "false_positives", "false_negatives", "true_negatives")
    hits = Hits(threshold=0.0, **{kind: counts[kind] for kind in kinds})
    shown = ((name, getattr(hits, name.lower())) for name in ("precision", "recall", "F1"))
    return "held out: " + ", ".join(f"{name} {value:.3f}" if value is not None else f"{name} unknown" for name, value in shown)
