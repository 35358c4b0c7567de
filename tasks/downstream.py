"""Downstream: a model's scores on evaluation tasks, a shard a task, through lm-eval (`tasks.olmes`)."""

from __future__ import annotations

import getpass
import importlib.util
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch
from tasks.leases import held
from tasks.olmes import data, requests
from tasks.olmes.definitions import TASKS, Suite
from tasks.olmes.run import REQUESTS, SAMPLES, SCORES
from tasks.score import model_folder
from tasks.shards import Input, ShardRef, ShardTask, Step, input_files
from tasks.sources.base import RawFile
from tasks.store import Attempt, Books, Store

STEP = Step("downstream", 2, "tasks.downstream", ("lm-eval", "transformers", "torch"))
HELD_OUT = ": held-out"  # ends the names of artifacts of that suite
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class TaskFiles(BaseModel):
    """The files of an evaluation task."""

    model_config = ConfigDict(extra="forbid")
    paths: list[str] = Field(
        min_length=1,
        description="JSON lines or Parquet: files, folders, globs or URLs, also of the hub (hf://datasets/...).",
        json_schema_extra={"position": 0},
    )
    shot_paths: list[str] = Field(
        default=[],
        description="Files whose first records (of each subject, where there are some) are the shots of a task that has none of its own.",
        json_schema_extra={"position": 1},
    )
    instances: int | None = Field(
        default=None, ge=1, description="Size of the subset that counts; the report's where left empty.", json_schema_extra={"position": 2}
    )
    shots: int | None = Field(
        default=None,
        ge=0,
        description="Examples in the prompt, for a window too short for the report's five.",
        json_schema_extra={"position": 3},
    )


def names(suite: Suite, given: Iterable[str]) -> list[str]:
    """Those of the given tasks that are in a suite."""
    return [name for name in given if TASKS[name].suite == suite]


def check_installed() -> None:
    """Raise UserError where lm-eval is not installed: better told before the training than after it."""
    if importlib.util.find_spec("lm_eval") is None or importlib.util.find_spec("accelerate") is None:
        raise UserError("evaluation.tasks needs lm-eval: install olmoflow with its extra `eval`, or leave the tasks out")


def task(name: str, files: TaskFiles, precision: str, model: ShardRef, raw: list[RawFile], shot_files: list[RawFile]) -> ShardTask:
    """A task's evaluation of an exported model."""
    config = asked_for(name, files, raw, shot_files) | {"precision": precision}
    inputs: dict[str, list[Input]] = {"model": [model], "files": list(raw), "shot_files": list(shot_files)}
    return ShardTask(name, config, inputs)


def asked_for(name: str, files: TaskFiles, raw: Sequence[RawFile], shot_files: Sequence[RawFile]) -> dict[str, Any]:
    """The part of a config that decides what is asked. Raises UserError for a file whose path tells no subject where it must."""
    config: dict[str, Any] = {"task": name, "instances": files.instances, "shots": files.shots}
    if TASKS[name].subjects:
        config["subjects"], config["shot_subjects"] = ([data.subject_of(TASKS[name], file) for file in of] for of in (raw, shot_files))
    return config


def requests_of(config: Mapping[str, Any], raw: Sequence[RawFile], shot_files: Sequence[RawFile]) -> tuple[list[requests.Form], Books]:
    """The requests that `asked_for` stands for, and what became of the records."""
    definition, sample = TASKS[config["task"]], config["instances"]
    asked = data.read(definition, raw, config.get("subjects", ()))
    rows = data.counted(definition, len(asked), definition.sample if sample is None else sample)
    if not rows:
        raise UserError(f"evaluation.tasks.{definition.name}: of its {len(asked)} records none are left to count; give more files")
    books = Books("instances", read=len(asked), kept=len(rows))
    if len(asked) > len(rows):
        books.drop("not_in_the_subset", len(asked) - len(rows))
    shots = data.read(definition, shot_files, config.get("shot_subjects", ()))
    return requests.forms(definition, [asked[row] for row in rows], config["shots"], shots), books


class DownstreamJob:
    """Evaluates a model on all its tasks that are missing in one process, since a model is slow to load; each task is a shard of its own."""

    def __init__(self, store: Store, launcher: LauncherConfig, batch_instances: int, tasks: Sequence[ShardTask]) -> None:
        self.store, self.batch_instances = store, batch_instances
        self.launcher = launcher.alone()
        self.settings = {"launcher": launcher.model_dump(mode="json"), "batch_instances": batch_instances}
        self.tasks = {task.key(STEP): task for task in tasks}

    def __call__(self, task: ShardTask, key: str) -> None:
        if self.store.record(STEP.name, key) is not None:  # it came with an earlier one
            return
        with held(self.store, STEP.name, key, f"the evaluation on {task.name}") as missing:
            if missing:
                self._evaluate({each: of for each, of in self.tasks.items() if self.store.record(STEP.name, each) is None})

    def _evaluate(self, missing: dict[str, ShardTask]) -> None:
        prepared = {key: self._prepare(task, key) for key, task in missing.items()}
        first = next(iter(missing.values()))
        (model,) = first.inputs["model"]
        assert isinstance(model, ShardRef)
        config = {
            "model": str(model_folder(input_files(self.store, model))),
            "device": self.launcher.device,
            "dtype": DTYPES[str(first.config["precision"])],
            "batch_size": self.batch_instances,
            "threads": self.launcher.threads_per_rank,
            "tasks": {task.name: str(prepared[key][0].folder) for key, task in missing.items()},
        }
        started = time.monotonic()
        try:
            launch("tasks.olmes.run", config, prepared[next(iter(missing))][0].folder, self.launcher, cordon=Cordon(self.store))
        finally:  # what is through is kept, whatever became of the others
            done = {key: each for key, each in prepared.items() if (each[0].folder / SCORES).exists()}
            for attempt, books in done.values():
                written = [attempt.folder / SCORES, attempt.folder / SAMPLES, *(attempt.folder / REQUESTS).iterdir()]
                attempt.commit(books, (time.monotonic() - started) / len(done), only=written)

    def _prepare(self, task: ShardTask, key: str) -> tuple[Attempt, Books]:
        """The task's requests, written where its scores will lie, and what became of its records."""
        made, books = requests_of(task.config, _raw(task, "files"), _raw(task, "shot_files"))
        attempt = Attempt(self.store, STEP.name, key, task.name)
        requests.write(attempt.folder / REQUESTS, made)
        return attempt, books


def _raw(task: ShardTask, role: str) -> list[RawFile]:
    return [file for file in task.inputs[role] if isinstance(file, RawFile)]


def log_held_out(store: Store, recipe: str, tasks: Sequence[str], models: Sequence[str]) -> None:
    """Write into the store, for good, that somebody looks at the held-out suite (`held-out/TIME-....json`)."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"time": now, "user": _user(), "recipe": recipe, "tasks": list(tasks), "models": list(models)}
    store.create(f"held-out/{now.replace(':', '')}-{uuid.uuid4().hex[:8]}.json", json.dumps(entry, indent=1))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        return "unknown"
