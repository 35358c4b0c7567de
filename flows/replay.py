"""`olmoflow replay`: an artifact rebuilt from its manifest alone into a scratch store, and compared with the one that is there."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import flows.pipeline  # which imports every step
from flows.recipe_file import filled
from flows.show import find_artifact
from tasks import replay, shard_tasks, workers
from tasks.downstream import DownstreamJob
from tasks.engine import LocalEngine
from tasks.errors import UserError
from tasks.evaluate import EvaluateJob
from tasks.launch import LauncherConfig
from tasks.overlay import Overlay
from tasks.progress import Watch
from tasks.replay import OTHER, Comparison, compare
from tasks.shard_tasks import StoredTask, StoredTasks
from tasks.shards import ShardTask, Step, inputs_json, software
from tasks.soup import SoupJob
from tasks.store import Store
from tasks.train import TrainJob

SHOWN_DIFFERENCES = 10
LAUNCHED = ("train", "soup", "evaluate", "downstream")


def replay_artifact(console: Console, url: str, beginning: str, into: Path | None, as_json: bool, watch: Watch) -> bool:
    """Print what came of it; whether the artifact was reproduced. `into`: the scratch store's folder, which stays."""
    store = Store(url)
    manifest = find_artifact(store, beginning, store.manifests())
    tasks = shard_tasks.read(store, manifest["step"], manifest["id"])
    if tasks is None:
        raise UserError(
            f"{manifest['id']} was made by an older olmoflow, which did not keep what its shards were asked for: run its recipe once to have it kept"
        )
    tasks.job = filled(tasks.job, manifest["id"])
    tasks.shards = [_with_secrets(task, manifest["id"]) for task in tasks.shards]
    step = _step(manifest["step"])
    other = replay.made_with_other(manifest, step, tasks.libraries)
    if not as_json:
        for line in other:
            console.print(f"made with other software: {escape(line)}")
    with nullcontext(str(into)) if into else tempfile.TemporaryDirectory(prefix="olmoflow-replay-") as folder:
        made = _Replay(store, manifest, tasks, step, Path(folder).resolve(), watch).compared()
    if as_json:
        files = [asdict(file) for file in made.files if file.verdict != replay.SAME]
        told = {
            "id": manifest["id"],
            "reproduced": made.reproduced,
            "other_software": other,
            "files": made.counts(),
            "not_the_same_bytes": files,
        }
        print(json.dumps(told))
    else:
        _print(console, manifest, made, into)
    return made.reproduced


def _with_secrets(task: StoredTask, identity: str) -> StoredTask:
    """The task as it was asked for: the store has the names of secrets in their place."""
    inputs = {
        role: [replace(item, raw=filled(item.raw, identity)) if item.raw else item for item in items] for role, items in task.inputs.items()
    }
    return StoredTask(task.name, filled(task.config, identity), filled(task.hints, identity), inputs)


def _print(console: Console, manifest: dict[str, Any], made: Comparison, into: Path | None) -> None:
    differing = [file for file in made.files if file.verdict == OTHER]
    for file in differing[:SHOWN_DIFFERENCES]:
        console.print(f"{escape(file.shard)}: {escape(file.file)} differs: {escape(file.where)}")
    if len(differing) > SHOWN_DIFFERENCES:
        console.print(f"and {len(differing) - SHOWN_DIFFERENCES:,} files more")
    counts = ", ".join(f"{number:,} {verdict}" for verdict, number in made.counts().items())
    place = f"; the new one is in {into}" if into else ""
    verdict = "reproduced" if made.reproduced else "NOT reproduced"
    console.print(f"{manifest['id']} {escape(manifest['name'])}: {verdict} ({counts}){place}")


def _step(name: str) -> Step:
    """The step of a name, as this olmoflow has it."""
    assert flows.pipeline
    modules = [module for path, module in list(sys.modules.items()) if path.startswith("tasks.")]
    found = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Step)}
    if name not in found:
        raise UserError(f"this olmoflow has no step {name}: take the one that made the artifact")
    return found[name]


@dataclass
class _Replay:
    store: Store
    manifest: dict[str, Any]
    stored: StoredTasks
    step: Step
    folder: Path
    watch: Watch

    def compared(self) -> Comparison:
        """Make the shards anew and compare each."""
        launched = self.step.name in LAUNCHED
        tasks = replay.shard_tasks(self.store, self.stored, launched)
        keys = [task.key(self.step) for task in tasks]
        anew = {(self.step.name, key) for key in [*self.manifest["shards"], *keys]}
        scratch = Overlay(str(self.folder), self.store, anew)
        if launched:
            job = self._job(scratch, tasks)
            for task, key in zip(tasks, keys, strict=True):
                job(task, key)
        else:
            self._run(scratch, tasks, keys)
        comparison = Comparison()
        for old_key, key in zip(self.manifest["shards"], keys, strict=True):
            old, new = self.store.record(self.step.name, old_key), scratch.record(self.step.name, key)
            if old is None or new is None:
                raise UserError(
                    f"shard {self.step.name}/{old_key} is not whole in {(self.store if old is None else scratch).url}: nothing to compare"
                )
            comparison.files += compare(self.store, old, scratch, new)
        return comparison

    def _run(self, scratch: Overlay, tasks: list[ShardTask], keys: list[str]) -> None:
        shards = {key: {"key": key, **asdict(task), "inputs": inputs_json(task)} for key, task in zip(keys, tasks, strict=True)}
        plan: dict[str, Any] = {"store": scratch.url, "behind": self.store.url, "step": asdict(self.step), "name": self.manifest["name"]}
        plan |= {"software": software(self.step.libraries), "shards": list(shards.values())}
        try:
            LocalEngine(os.cpu_count() or 1, self.watch).run(plan, [spec["weight"] for spec in shards.values()], scratch)
        finally:
            workers.release()

    def _job(self, scratch: Overlay, tasks: list[ShardTask]) -> Callable[[ShardTask, str], None]:
        settings = self.stored.job
        launcher = LauncherConfig.model_validate(settings.get("launcher", {}))
        batch = settings.get("batch_instances", 1)
        if self.step.name == "train":
            return TrainJob(scratch, launcher, self.watch)
        if self.step.name == "soup":
            return SoupJob(scratch, launcher)
        if self.step.name == "evaluate":
            return EvaluateJob(scratch, launcher, batch, settings.get("precision", "fp32"))
        return DownstreamJob(scratch, launcher, batch, tasks)
