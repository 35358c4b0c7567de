"""What a flow run tells while it works: a line for each artifact, progress, and what somebody should look at."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.events import emit_event
from prefect.exceptions import MissingContextError, PrefectException
from prefect.settings import PREFECT_API_URL

from flows.alerts import Disks
from tasks.measure import Hits
from tasks.progress import Progress, Seldom, Watch
from tasks.secrets import hidden
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
LOG_SECONDS, BAR_SECONDS = 30.0, 5.0  # between two lines of progress in Prefect's log, and two states of its progress artifact


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
