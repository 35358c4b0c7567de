"""A GPU job as data: what a flow run of the deployment `train` gets as its one parameter, and the job made of it where it runs.

No value of an environment variable or a block that the recipe names is in it: its name goes along and is filled in by the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from flows.recipe_file import filled
from flows.section import Section
from flows.section import at as _at
from tasks import downstream, evaluate, soup, train
from tasks.beside import Job
from tasks.errors import UserError
from tasks.launch import LauncherConfig
from tasks.progress import Watch
from tasks.secrets import hidden
from tasks.shards import Input, ShardRef, ShardTask, Step, inputs_json, library_version
from tasks.sources.base import RawFile
from tasks.store import Store

if TYPE_CHECKING:
    from flows.recipe import Recipe  # as long to import as all else here, which each GPU job would wait for

STEPS: dict[str, Step] = {step.name: step for step in (train.STEP, evaluate.STEP, downstream.STEP, soup.STEP)}


class Shard(Section):
    """A shard to make (`tasks.shards.ShardTask`)."""

    name: str = Field(description="Name of the run, or of the task.", json_schema_extra=_at(0))
    key: str = Field(description="Key in the store.", json_schema_extra=_at(1))
    config: dict[str, Any] = Field(default={}, description="What makes it what it is.", json_schema_extra=_at(2))
    inputs: dict[str, list[dict[str, Any]]] = Field(
        default={}, description="Shards and files that it is made of.", json_schema_extra=_at(3)
    )
    hints: dict[str, Any] = Field(default={}, description="What changes no result.", json_schema_extra=_at(4))


class GpuJob(Section):
    """A training run, a soup or an evaluation, as a flow of a recipe submits it."""

    recipe: str = Field(description="Name of the recipe that it is for.", json_schema_extra=_at(0))
    step: Literal["train", "soup", "evaluate", "downstream"] = Field(description="What is done.", json_schema_extra=_at(1))
    store: str = Field(description="Folder or fsspec URL of all artifacts.", json_schema_extra=_at(2))
    launcher: LauncherConfig = Field(default=LauncherConfig(), description="Where and on how many ranks.", json_schema_extra=_at(3))
    shards: list[Shard] = Field(min_length=1, description="What is made.", json_schema_extra=_at(4))
    batch_instances: int = Field(default=1, ge=1, description="Instances at once, of an evaluation.", json_schema_extra=_at(5))
    precision: str = Field(default="bf16", description="fp32 or bf16, of an evaluation.", json_schema_extra=_at(6))

    @property
    def title(self) -> str:
        """What runs: `train pretrain demo`."""
        name = self.shards[0].name if len(self.shards) == 1 else f"{len(self.shards)} tasks"
        return " ".join(dict.fromkeys([self.step, name, self.recipe]))

    def tasks(self) -> dict[str, ShardTask]:
        """The shards by key. Raises UserError where they have other keys here, or the job's kind is another."""
        found = {}
        for shard in self.shards:
            inputs = {role: [_input(item) for item in items] for role, items in shard.inputs.items()}
            task = ShardTask(shard.name, shard.config, inputs, _hints(shard.hints))
            step = STEPS[self.step]
            if task.key(step) != shard.key:
                versions = ", ".join(f"{name} {library_version(name)}" for name in step.libraries)
                raise UserError(
                    f"{self.step} {shard.name} was submitted as {shard.key[:12]} and is {task.key(step)[:12]} here ({versions}): "
                    "install the same olmoflow with the same constraints.txt on every machine, and submit it again"
                )
            found[shard.key] = task
        return found

    def make(self, store: Store, watch: Watch, look: Callable[[], None] = lambda: None) -> Job:
        """The job, to be called with each task and its key. `look` is called every few seconds of a training."""
        if self.step == "train":
            return train.TrainJob(store, self.launcher, watch, look)
        if self.step == "soup":
            return soup.SoupJob(store, self.launcher)
        if self.step == "evaluate":
            return evaluate.EvaluateJob(store, self.launcher, self.batch_instances, self.precision)
        return downstream.DownstreamJob(store, self.launcher, self.batch_instances, list(self.tasks().values()))

    def here(self) -> GpuJob:
        """The job with its ${VAR} and ${block:NAME} filled in, where it runs."""
        return GpuJob.model_validate(filled(self.model_dump(mode="json"), f"the job {self.title}"))


def _hints(hints: dict[str, Any]) -> dict[str, Any]:
    """With what a training is scored on as shards again."""
    held_out = hints.get("held_out")
    if not held_out:
        return hints
    shards = {role: {name: ShardRef(**ref) for name, ref in held_out[role].items()} for role in ("sources", "answers")}
    return {**hints, "held_out": {**held_out, **shards}}


def _input(item: dict[str, Any]) -> Input:
    fields = {name: value for name, value in item.items() if name != "raw"}
    return RawFile(**fields) if item["raw"] else ShardRef(**fields)


def describe(job: Job, task: ShardTask, recipe: Recipe, variables: Mapping[str, str]) -> dict[str, Any]:
    """The job that makes a task, as the parameter of a flow run, with names for secrets and for the `variables`."""
    several = list(job.tasks.values()) if isinstance(job, downstream.DownstreamJob) else [task]
    step = STEPS[_step_of(job)]
    given = {name: getattr(job, name) for name in ("batch_instances", "precision") if hasattr(job, name)}
    described = GpuJob(
        recipe=recipe.name,
        step=step.name,  # type: ignore[arg-type]
        store=recipe.store,
        launcher=job.launcher,  # type: ignore[attr-defined]
        shards=[
            Shard(name=each.name, key=each.key(step), config=each.config, inputs=inputs_json(each), hints=asdict(each)["hints"])
            for each in several
        ],
        **given,
    )
    parameter: dict[str, Any] = hidden(described.model_dump(mode="json", exclude_unset=True), variables)
    return parameter


def _step_of(job: Job) -> str:
    kinds: dict[type, str] = {
        train.TrainJob: "train",
        soup.SoupJob: "soup",
        evaluate.EvaluateJob: "evaluate",
        downstream.DownstreamJob: "downstream",
    }
    return kinds[type(job)]
