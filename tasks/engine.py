"""Engines: where the shards of a plan run."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks import scratch, workers
from tasks.errors import UserError
from tasks.progress import Watch, Watcher, ignore
from tasks.shards import Engine
from tasks.store import Store

POLL_SECONDS = 1.0
RECORD_SECONDS = 90  # a file system over the network may hide a new file from another node for a minute


class StepFailed(Exception):
    """A step's own code failed: a bug, or a machine at its end. Carries the worker's traceback."""


class LocalConfig(BaseModel):
    """Shards on processes of this machine."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["local"] = Field(default="local", description="local: processes of this machine.", json_schema_extra={"position": 0})
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="Processes at once.", json_schema_extra={"position": 1}
    )


class LocalEngine(Engine):
    """Shards on processes of this machine (`tasks.workers`), `workers` at once, each shard whole in one of them."""

    def __init__(self, workers: int, watch: Watch = ignore) -> None:
        self.workers, self.watch = workers, watch

    def run(self, plan: dict[str, Any], weights: list[int], store: Store) -> None:
        ranks = min(self.workers, len(plan["shards"]))
        for spec, rank in zip(plan["shards"], balanced(weights, ranks), strict=True):
            spec["rank"] = rank
        threads = max(1, (os.cpu_count() or 1) // ranks)

        def start(path: Path, watcher: Callable[[], None]) -> list[int]:
            return _run_all([(str(path), str(rank)) for rank in range(ranks)], threads, watcher)

        codes, errors = run_plan(plan, weights, self.watch, start)
        raise_errors(plan, errors, codes)


def run_plan(
    plan: dict[str, Any],
    weights: list[int],
    watch: Watch,
    start: Callable[[Path, Callable[[], None]], list[int]],
    work_folder: Path | None = None,
) -> tuple[list[int], list[dict[str, Any]]]:
    """Hand a plan as a file to `start(path, watcher)`, which runs it and calls the watcher meanwhile.

    `work_folder`: where the plan's own folder lies for that time; the scratch folder where left out. Returns the exit codes that `start` does, and the errors that workers left beside the plan.
    """
    parent = work_folder or scratch.folder()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="plan-", dir=parent) as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(plan))
        watcher = Watcher(plan["step"]["name"], plan["name"], weights, path.parent, watch)
        codes = start(path, watcher)
        watcher()
        return codes, [error for file in sorted(path.parent.glob("error-*.json")) for error in json.loads(file.read_text())]


def balanced(weights: list[int], workers: int) -> list[int]:
    """A rank for each shard: the heaviest first, each to the worker with the least so far."""
    loads = [0] * workers
    ranks = [0] * len(weights)
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        ranks[index] = loads.index(min(loads))
        loads[ranks[index]] += max(weights[index], 1)
    return ranks


def _run_all(jobs: list[tuple[str, str]], threads: int, watcher: Callable[[], None]) -> list[int]:
    return workers.run_all(jobs, threads, POLL_SECONDS, watcher)


def raise_errors(plan: dict[str, Any], errors: list[dict[str, Any]], codes: list[int]) -> None:
    """Turn what the workers reported into one exception."""
    step = f"{plan['step']['name']} {plan['name']}"
    bugs = [error for error in errors if not error["user"]]
    if bugs:
        raise StepFailed(f"{step}: {bugs[0]['message']}\n{bugs[0].get('traceback', '')}")
    if errors:
        more = f" ({len(errors) - 1} more shards failed)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]['message']}{more}")
    killed = [code for code in codes if code != 0]
    if killed:
        short = " (killed: was memory short? then lower engine.workers)" if killed[0] == -9 else ""
        raise UserError(
            f"{step}: a worker process ended with {ending(killed[0])}{short}; run the same command again to go on where it stopped"
        )


def await_records(plan: dict[str, Any], store: Store, url: str, maker: str) -> None:
    """Wait until what other machines (`maker` in words) have committed can be seen here; if it never can, they have another store."""
    deadline = time.monotonic() + RECORD_SECONDS
    name = plan["step"]["name"]
    for spec in plan["shards"]:
        while store.record(name, spec["key"]) is None:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{name} {plan['name']}: {maker} made shard {spec['name']}, but the store {url} here does not have it: "
                    "give a `store` that every node shares, a folder mounted at the same path or a URL such as s3://bucket/store"
                )
            time.sleep(POLL_SECONDS)
            store.names(f"shards/{name}")  # opening a folder makes a network file system ask anew what is in it


def ending(code: int) -> str:
    """A process's exit code in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
