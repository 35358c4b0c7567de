"""What runs use, so that `olmoflow gc` leaves it: `runs/RECIPE/TIME-....json`, a file a run, written before it looks into the store.

Of each flow of a recipe counts the newest run that finished, every one that began after it, and every one that may still be under way: who
runs writes its file again each hour. So a run that fails or is killed early does not give away what others have made.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tasks.errors import UserError
from tasks.garbage import changed
from tasks.shards import Artifact
from tasks.storage import stamp
from tasks.store import Store

HOUR = 3600.0

Used = dict[str, dict[str, Any] | None]  # by artifact id: None, or the step and keys of its shards where there may be no manifest


class Uses:
    """The uses of one run. started: ISO 8601, UTC."""

    def __init__(self, store: Store, recipe: str, flow: str, started: str) -> None:
        self.store, self.told_of_run = store, {"recipe": recipe, "flow": flow, "started": started}
        self.path = f"runs/{recipe}/{started[:19].replace(':', '')}-{uuid.uuid4().hex[:8]}.json"
        self.artifacts: Used = {}
        self.finished = False
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it the file is fresh; a run that ends without an exception has finished."""
        threading.Thread(target=self._stay_fresh, daemon=True).start()
        try:
            yield
            self.finished = True
            self._write()
        finally:
            self.ended.set()

    def _stay_fresh(self) -> None:
        while not self.ended.wait(HOUR):
            with contextlib.suppress(OSError, UserError):  # a store that is away for a while must not end the work
                self._write()

    def wants(self, identity: str, step: str, keys: list[str]) -> None:
        with self.lock:
            self.artifacts[identity] = {"step": step, "keys": keys}
        self._write()

    def told(self, artifact: Artifact, has_manifest: bool) -> None:
        with self.lock:
            if not any(artifact.records):
                self.artifacts.pop(artifact.id, None)
            elif has_manifest and artifact.is_whole:
                self.artifacts[artifact.id] = None

    def _write(self) -> None:
        with self.lock:
            text = json.dumps({**self.told_of_run, "finished": self.finished, "artifacts": self.artifacts})
        self.store.replace(self.path, text)


@dataclass
class Using:
    """An artifact that a run uses; keys where it may have no manifest."""

    step: str
    keys: list[str] | None
    why: str


class Readers:
    """What the runs of a store use by now; asked again, only files that have changed are read again."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known: dict[str, tuple[str, dict[str, Any]]] = {}

    def now(self, young_after: float) -> tuple[dict[str, Using], dict[str, int]]:
        """By artifact id, and the files of runs that count no more with their bytes. young_after: seconds since the epoch; a file changed since counts."""
        infos = self._infos()
        runs = dict(zip(infos, self.store.fs.each(lambda path: self._read(path, infos[path]), infos), strict=True))
        found: dict[str, Using] = {}
        finished: dict[tuple[str, str], tuple[str, str]] = {}
        per_run = {path: run for path, run in runs.items() if run and path.count("/") == 2}
        for path, run in runs.items():
            for identity, each in run.get("artifacts", {}).items() if path.count("/") == 1 else ():
                found[identity] = Using(each["step"], each["keys"], f"the newest run of {path.removeprefix('runs/').removesuffix('.json')}")
        for path, run in per_run.items():
            if run["finished"]:
                flow = run["recipe"], run["flow"]
                finished[flow] = max(finished.get(flow, ("", "")), (run["started"], path))
        superseded: dict[str, int] = {}
        for path, run in per_run.items():
            at = changed(infos[path])
            if (run["started"], path) < finished.get((run["recipe"], run["flow"]), ("", "")) and at is not None and at < young_after:
                superseded[path] = int(infos[path]["size"])
                continue
            why = f"{run['flow']} {run['recipe']} of {run['started']}"
            for identity, each in run["artifacts"].items():
                step, keys = (each["step"], each["keys"]) if each else (identity.rpartition("-")[0], None)
                found[identity] = Using(step, keys or (found[identity].keys if identity in found else None), why)
        return found, superseded

    def _infos(self) -> dict[str, dict[str, Any]]:
        root = self.store.root
        infos = self.store.fs.find(self.store.full("runs"), detail=True)
        return {path.removeprefix(f"{root}/"): info for path, info in infos.items() if path.endswith(".json")}

    def _read(self, path: str, info: dict[str, Any]) -> dict[str, Any]:
        version = f"{stamp(info)} {info['size']}"
        if self.known.get(path, ("", {}))[0] != version:
            self.known[path] = version, json.loads(self.store.read_text(path) or "{}")
        return self.known[path][1]
