"""Train: one run of the trainer (pretraining, an anneal, a micro-anneal) as a step whose shard is its final checkpoint.

The run's folder has a name that follows from the key, not from the attempt, so that a killed run goes on from its newest whole
checkpoint. A lock keeps two launchers of one run apart.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.cordon import Cordon
from tasks.launch import LauncherConfig, launch
from tasks.leases import LOOK_SECONDS, held
from tasks.progress import Progress, Watch
from tasks.shards import ShardRef, ShardTask, Step, input_files
from tasks.store import Attempt, Books, Store

STEP = Step("train", 2, "tasks.train", ("torch",))
RUN = "run"

log = logging.getLogger(__name__)


def task(name: str, config: dict[str, Any], hints: dict[str, Any], mix: ShardRef, init_from: ShardRef | None) -> ShardTask:
    """A run of the trainer. `config`: the trainer's config without paths, vocabulary size and what does not change the weights.

    `hints`: of the latter, `checkpoint`, `parallel` and `metrics` as the trainer has them, and `held_out` with a ShardRef a source and a task.
    """
    return ShardTask(name, config, {"mix": [mix], "init_from": [init_from] if init_from else []}, hints)


class Parallel(BaseModel):
    """How a run's ranks share the model (`trainer.config.ParallelConfig`). No part of any key: losses stay the same but for rounding."""

    model_config = ConfigDict(extra="forbid")
    replicas: int = Field(
        default=1,
        ge=1,
        description="Copies of the model (HSDP); the ranks of a copy share its weights. As a rule one a node.",
        json_schema_extra={"position": 0},
    )
    activation_checkpointing: Literal["none", "selected", "full"] = Field(
        default="none",
        description="What the backward pass computes again to save memory: nothing, all but matrix products and attention, or whole layers.",
        json_schema_extra={"position": 1},
    )
    accumulate: Literal["whole", "sharded"] = Field(
        default="whole",
        description="A step's micro-batches: reduced once, at 4 to 8 bytes of memory a parameter, or after each, for large models.",
        json_schema_extra={"position": 2},
    )
    compile: bool = Field(
        default=False, description="torch.compile; minutes at the start, faster steps after.", json_schema_extra={"position": 3}
    )


class Wandb(BaseModel):
    """A project of Weights & Biases."""

    model_config = ConfigDict(extra="forbid")
    project: str = Field(description="Project.", json_schema_extra={"position": 0})
    mode: Literal["online", "offline"] = Field(
        default="online",
        description="Send while training, or keep in the run's folder for `wandb sync`.",
        json_schema_extra={"position": 1},
    )


class Energy(BaseModel):
    """The data centre, for CO2 and water from the GPUs' energy (report, section 6.5)."""

    model_config = ConfigDict(extra="forbid")
    power_usage_effectiveness: float = Field(
        ge=1, description="Energy of the whole over that of its machines.", json_schema_extra={"position": 0}
    )
    carbon_kg_per_kwh: float = Field(ge=0, description="kg of CO2 a kWh.", json_schema_extra={"position": 1})
    water_offsite_litres_per_kwh: float = Field(ge=0, description="Litres of water to make a kWh.", json_schema_extra={"position": 2})
    water_onsite_litres_per_kwh: float = Field(default=0.0, ge=0, description="Litres to cool it away.", json_schema_extra={"position": 3})


class Metrics(BaseModel):
    """Where a run's metrics go beside `metrics.jsonl` (`trainer.config.MetricsConfig`). No part of any key."""

    model_config = ConfigDict(extra="forbid")
    tensorboard: bool = Field(
        default=False, description="Write TensorBoard's files to the run's folder (extra tensorboard).", json_schema_extra={"position": 0}
    )
    wandb: Wandb | None = Field(default=None, description="Weights & Biases (extra wandb).", json_schema_extra={"position": 1})
    energy: Energy | None = Field(
        default=None, description="For CO2 and water beside the energy (extra gpu).", json_schema_extra={"position": 2}
    )


class TrainJob:
    """Launches training runs; `watch` gets their progress with every step, or every few seconds.

    `check` is called as often, and ends a run, which then saves, by raising. `gpus`: names of those that the run may use, if not all.
    """

    def __init__(
        self,
        store: Store,
        launcher: LauncherConfig,
        watch: Watch,
        check: Callable[[], None] = lambda: None,
        gpus: Sequence[str] = (),
    ) -> None:
        self.store, self.launcher, self.watch, self.check, self.gpus = store, launcher, watch, check, gpus
        self.settings = {"launcher": launcher.model_dump(mode="json")}

    def __call__(self, task: ShardTask, key: str) -> None:
        folder = run_folder(self.store, self.launcher, key)
        folder.mkdir(parents=True, exist_ok=True)
        progress = RunProgress(folder / "metrics.jsonl", task.name, self._steps(task), self.watch)

        def poll() -> None:
            self.check()
            progress()

        with held(self.store, STEP.name, key, task.name, poll) as missing:
            if missing:
                with locked(folder, task.name, poll):
                    self._train(task, key, folder, poll)
                progress()  # the last steps

    def _train(self, task: ShardTask, key: str, folder: Path, poll: Callable[[], None]) -> None:
        if self.store.record(STEP.name, key) is not None:  # by the one that had the folder before
            return
        _forget_damaged_end(folder)
        started, config = time.monotonic(), self._config(task, folder)
        launch("trainer", config, folder, self.launcher, poll, self.gpus, Cordon(self.store))
        done = json.loads((folder / "done.json").read_text())
        self._commit(task, key, folder, done, time.monotonic() - started)

    def _steps(self, task: ShardTask) -> int:
        (mix,) = task.inputs["mix"]
        assert isinstance(mix, ShardRef)
        one_epoch = _epoch(input_files(self.store, mix)["mix.json"].parent, task.config["global_batch_instances"])
        return int(task.config["max_steps"] or one_epoch)

    def _config(self, task: ShardTask, folder: Path) -> dict[str, Any]:
        mix, header = mix_paths(self.store, task.inputs["mix"][0], folder / "files.json")  # type: ignore[arg-type]
        config = json.loads(json.dumps(task.config))
        config["model"]["vocab_size"] = header["vocab_size"]
        config["data"] |= mix
        if task.inputs["init_from"]:
            config["init_from"] = str(checkpoint_folder(self.store, task.inputs["init_from"][0]))  # type: ignore[arg-type]
        return {
            **config,
            **task.hints,
            "held_out": self._held_out(task, folder),
            "run_folder": str(folder),
            "device": self.launcher.device,
            "threads": self.launcher.threads_per_rank,
        }

    def _held_out(self, task: ShardTask, folder: Path) -> dict[str, Any] | None:
        """What the run is scored on while it goes on; a source with no held-out document and a task with no answer have nothing to say."""
        asked_for = task.hints.get("held_out")
        if not asked_for:
            return None
        mixes = {
            name: mix_paths(self.store, ref, folder / f"files-held-out-{number}.json")
            for number, (name, ref) in enumerate(asked_for["sources"].items())
        }
        sources = {name: mix for name, (mix, header) in mixes.items() if header["documents"]}
        folders = {name: input_files(self.store, ref)["answers.json"].parent for name, ref in asked_for["answers"].items()}
        answers = {name: str(folder) for name, folder in folders.items() if json.loads((folder / "answers.json").read_text())["instances"]}
        return {"every_steps": asked_for["every_steps"], "sources": sources, "answers": answers} if sources or answers else None

    def _commit(self, task: ShardTask, key: str, folder: Path, done: dict[str, Any], seconds: float) -> None:
        final = folder / done["checkpoint"]
        keep = [*(path for path in final.rglob("*") if path.is_file()), folder / "metrics.jsonl", folder / "done.json"]
        attempt = Attempt(self.store, STEP.name, key, task.name, RUN)
        if not self.store.is_local:
            attempt.folder = folder
        attempt.commit(Books("steps", done["step"], done["step"], counts={"tokens": done["tokens"]}), seconds, only=keep)
        for checkpoint in (folder / "checkpoints").glob("*") if self.store.is_local else ():
            if checkpoint != final:
                shutil.rmtree(checkpoint)


def run_folder(store: Store, launcher: LauncherConfig, key: str) -> Path:
    if store.is_local:
        return Path(store.full(f"shards/{STEP.name}/{key}/{RUN}"))
    return Path(launcher.work_folder).resolve() / key


def _forget_damaged_end(folder: Path) -> None:
    """Where a finished run's last checkpoint is not whole any more, take back that it is finished: the trainer then goes on before it."""
    done = folder / "done.json"
    if not done.exists():
        return
    last = folder / json.loads(done.read_text())["checkpoint"]
    marker = json.loads((last / "checkpoint.json").read_text()) if (last / "checkpoint.json").exists() else None
    files = (marker or {}).get("files", {})
    whole = all((last / name).exists() and (last / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    if marker is None or not files or not whole:
        done.unlink()


@contextmanager
def locked(folder: Path, name: str, meanwhile: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the run's folder, and wait for it where another process has it, calling `meanwhile` now and then.

    The kernel lets go of it when the process dies, however it dies.
    """
    with (folder / ".lock").open("w") as stream:
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    log.info("%s is being trained by another process in %s; waiting for it", name, folder)
                told = True
            meanwhile()
            time.sleep(LOOK_SECONDS)
        yield


def write_files(store: Store, header: dict[str, Any], path: Path, mix: Path) -> Path:
    """The token files of a compiled mix as a JSON list of paths on this machine; packed files lie beside the mix itself."""
    names = [
        str(mix / name) if header["kind"] == "packed" else str(input_files(store, ShardRef(*name.split("/")[:2]))[name.split("/")[2]])
        for name in header["files"]
    ]
    path.write_text(json.dumps(names))
    return path


def mix_paths(store: Store, ref: ShardRef, files: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Where the trainer finds a compiled mix, as its config has it, and the mix's header; writes `files`."""
    paths = input_files(store, ref)
    folder, header = paths["mix.json"].parent, json.loads(paths["mix.json"].read_text())
    return {"mix": str(folder), "files": str(write_files(store, header, files, folder))}, header


def checkpoint_folder(store: Store, ref: ShardRef) -> Path:
    """Local folder of the checkpoint that a train or soup shard holds."""
    files = input_files(store, ref)
    marker = next(path for name, path in files.items() if name.endswith("checkpoint.json"))
    return marker.parent


def _epoch(mix: Path, batch_instances: int) -> int:
    """Steps of one epoch."""
    return int(json.loads((mix / "mix.json").read_text())["instances"]) // batch_instances


class RunProgress:
    """Tells a run's progress from the newest line of its `metrics.jsonl`, where that has changed since the last call."""

    def __init__(self, metrics: Path, name: str, steps: int, watch: Watch) -> None:
        self.metrics, self.name, self.steps, self.watch = metrics, name, steps, watch
        self.started: float | None = None
        self.first, self.told = 0, self._newest().get("step", 0)  # more than 0 where a run goes on

    def _newest(self) -> dict[str, Any]:
        """The last whole line; lines are far shorter than what is read."""
        if not self.metrics.exists():
            return {}
        with self.metrics.open("rb") as stream:
            stream.seek(max(0, self.metrics.stat().st_size - (1 << 16)))
            lines = stream.read().split(b"\n")[:-1]
        return dict(json.loads(lines[-1])) if lines else {}

    def __call__(self) -> None:
        newest = self._newest()
        step = newest.get("step", 0)
        if step < self.told:  # cut back to the checkpoint that the run goes on from
            self.told = step
        if step == self.told:
            return
        self.told = step
        if self.started is None:  # the time that torch needs to start says nothing about the speed
            self.started, self.first = time.monotonic() - newest["seconds"], step - 1
        seconds = time.monotonic() - self.started
        note = f"loss {newest['loss']:.3f}, {newest['tokens_per_second']:,.0f} tokens/s"
        self.watch(
            Progress(STEP.name, self.name, step, self.steps, "steps", step / self.steps, seconds, self.first / self.steps, note=note)
        )
