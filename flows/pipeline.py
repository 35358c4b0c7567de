"""What a recipe's artifacts are made of: each method makes one artifact, after those that it needs.

A key follows from the keys before it, so the same code also tells what is missing without running anything (`olmoflow plan`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flows.pipeline_training import Training
from flows.recipe import Recipe
from flows.recipe_training import MICRO
from tasks import downstream, evaluate, export
from tasks.engine import LocalEngine
from tasks.engine_ray import RayConfig, RayEngine
from tasks.engine_slurm import SlurmConfig, SlurmEngine
from tasks.errors import UserError
from tasks.olmes.definitions import Suite
from tasks.progress import Watch, ignore
from tasks.shards import Artifact, Engine, Runner, ShardRef
from tasks.store import Store


class Pipeline(Training):
    """All artifacts of a recipe: those of `Curation` and `Training`, then models and their evaluation."""

    def model(self, name: str, checkpoint: Artifact) -> Artifact:
        tokenizer = self.tokenizer()
        task = export.task(name, checkpoint.refs[0], tokenizer.refs[0])
        return self._once("model", name, lambda: self.runner.run(export.STEP, name, [task], inputs=[checkpoint, tokenizer]))

    # -- evaluation --------------------------------------------------------------------------------------------------------------

    def _evaluate(
        self, name: str, checkpoints: dict[str, Artifact], training_mix: Artifact | None, sources: list[str] | None = None
    ) -> Artifact:
        held = {source: self.held_out(source) for source in sources or self.recipe.sources}
        refs = {label: artifact.refs[0] for label, artifact in checkpoints.items()}
        task = evaluate.task(
            name,
            {"sequence_length": self.recipe.sequence_length},
            refs,
            {source: artifact.refs[0] for source, artifact in held.items()},
            training_mix.refs[0] if training_mix else None,
        )
        pretrain = self._require("pretrain")
        job = evaluate.EvaluateJob(self.store, self.recipe.where.launcher, self.recipe.evaluation.batch_instances, pretrain.precision)
        inputs = [*checkpoints.values(), *held.values(), *([training_mix] if training_mix else [])]
        return self._once("evaluate", name, lambda: self.runner.run(evaluate.STEP, name, [task], inputs=inputs, launch=self.job(job)))

    def micro_anneal_all(self) -> Artifact:
        """Every micro-anneal, evaluated beside the checkpoint that all start from."""
        pretrained, runs = self.pretrain(), dict(sorted(self.micro_anneals().items()))
        evaluated = self._evaluate("micro-anneals", {"pretrained": pretrained, **runs}, None)
        self._downstream_all("development", {"pretrained": pretrained, **{f"{MICRO}{label}": run for label, run in runs.items()}})
        return evaluated

    def learning_rates_all(self) -> Artifact:
        """Every run of the learning-rate study, evaluated."""
        return self._evaluate("learning-rates", self.learning_rates(), None)

    def tokenizers_all(self) -> None:
        """A pretraining under the recipe's tokenizer and each of the others, one pass over the same documents, evaluated (report, Table 5)."""
        each = [self, *(Under(self, name) for name in self._require("other_tokenizers"))]
        for pipeline in each:
            pipeline._check_size(pipeline.mix(self._require("pretrain").mix), None)  # told before hours of training
        for pipeline in each:
            pipeline.pretrained_alone()

    def pretrained_alone(self) -> None:
        """The pretrained checkpoint, evaluated on the sources of its mix and on tasks."""
        pretrained, mix = self.pretrain(), self.recipe.mixes[self._require("pretrain").mix]
        sources = list(dict.fromkeys(name.partition("/")[0] for name in mix.sources))
        self._evaluate("tokenizers", {"pretrained": pretrained}, None, sources)
        self._downstream_all("development", {"pretrained": pretrained})

    def evaluate_all(self) -> Artifact:
        """The pretrained checkpoint, each ingredient and the soup, beside a unigram model of the pretraining tokens."""
        checkpoints = self._checkpoints()
        evaluated = self._evaluate("checkpoints", checkpoints, self.mix(self._require("pretrain").mix))
        self._downstream_all("development", checkpoints)
        return evaluated

    def _checkpoints(self) -> dict[str, Artifact]:
        if self.recipe.anneal is None:
            return {"pretrained": self.pretrain()}
        return {"pretrained": self.pretrain(), **self.anneals(), **self.mix_soups(), "soup": self.soup()}

    def evaluate_held_out(self) -> None:
        """`evaluate_all`, and the held-out tasks, which development may not look at: that somebody does is written into the store."""
        names = downstream.names("held_out", self.recipe.evaluation.tasks)
        if not names:
            raise UserError(f"the recipe {self.recipe.name} has no held-out task: give one (gsm8k, say) in evaluation.tasks")
        self.evaluate_all()
        checkpoints = self._checkpoints()
        if not self.runner.plan_only:
            downstream.log_held_out(self.store, self.recipe.name, names, list(checkpoints))
        self._downstream_all("held_out", checkpoints)

    def _downstream_all(self, suite: Suite, checkpoints: dict[str, Artifact]) -> None:
        names = downstream.names(suite, self.recipe.evaluation.tasks)
        for label, checkpoint in checkpoints.items() if names else ():
            self._downstream(suite, names, label, self.model(label, checkpoint))

    def _downstream(self, suite: Suite, names: list[str], label: str, model: Artifact) -> Artifact:
        """A model's scores on the tasks of a suite. Those on held-out tasks are an artifact of their own."""
        precision, tasks = self._require("pretrain").precision, []
        for task in names:
            files = self.recipe.evaluation.tasks[task]
            raw, shots = self._task_files(task)
            tasks.append(downstream.task(task, files, precision, model.refs[0], raw, shots))
        job = downstream.DownstreamJob(self.store, self.recipe.where.launcher, self.recipe.evaluation.batch_instances, tasks)
        name = label if suite == "development" else label + downstream.HELD_OUT
        return self._once("downstream", name, lambda: self.runner.run(downstream.STEP, name, tasks, inputs=[model], launch=self.job(job)))

    def soup_all(self) -> Artifact:
        """The soup, and its model in Hugging Face's form."""
        return self.model("soup", self.soup())

    def recurated(self) -> None:
        """Curation and mixes, and what the next Stack Exchange dump is compared by."""
        self.curate()
        self.mix_all()
        for source in self.recipe.dump_sources():
            self.signatures(source)

    def end_to_end(self) -> None:
        """Everything that the recipe asks for."""
        stages = self._stages()
        for number, (name, work) in enumerate(stages, 1):
            self.tell(f"stage {number} of {len(stages)}: {name}")
            work()

    def _stages(self) -> list[tuple[str, Callable[[], Any]]]:
        data: list[tuple[str, Callable[[], Any]]] = [("curate", self.curate), ("mix", self.mix_all)]
        if self.recipe.pretrain is None:
            return data
        training: list[tuple[str, Callable[[], Any]]] = [("pretrain", self._pretrain_all)]
        if self.recipe.micro_anneals:
            training.append(("micro-anneal", self.micro_anneal_all))
        if self.recipe.anneal is not None:
            training.append(("anneal and soup", self.soup_all))
        return [*data, *training, ("evaluate", self.evaluate_all)]

    def _pretrain_all(self) -> None:
        """The pretraining, once every mix that a training takes is known to be large enough; its model too where no soup follows."""
        self.training_mixes()
        pretrained = self.pretrain()
        if self.recipe.anneal is None:
            self.model("pretrained", pretrained)


class Under(Pipeline):
    """A recipe under another of its tokenizers. Its documents, and which of them mixes and evaluations take, are those of `own`."""

    def __init__(self, own: Pipeline, name: str) -> None:
        recipe = own.recipe.model_copy(update={"tokenizer": own.recipe.other_tokenizers[name], "other_tokenizers": {}})
        runner = replace(own.runner, label=name)  # which shares its memory
        super().__init__(recipe, runner, lambda task, work: own.call(f"{task} ({name})", work), own.tell, own.watch, own.elsewhere)
        self.own = own

    def documents(self, source: str) -> Artifact:
        return self.own.documents(source)

    def scores(self, source: str) -> list[Artifact]:
        return self.own.scores(source)

    def _sources(self, names: list[str]) -> tuple[dict[str, tuple[list[ShardRef], list[ShardRef]]], list[Artifact]]:
        return self.own._sources(names)

    def _encoded_as(self, names: list[str]) -> dict[str, Artifact]:
        return {name: self.tokens(name.partition("/")[0]) for name in names}

    def contamination(self, name: str, selections: list[str], mixed: Artifact | None) -> None:
        """Nothing: it is that of the same documents under `own`."""


COLLECT_AFTER = 100_000  # new objects. Python's 700 looks through the records of a hundred thousand shards for a third of the time


def make_runner(recipe: Recipe, watch: Watch = ignore, **options: Any) -> Runner:
    gc.set_threshold(COLLECT_AFTER)
    config = recipe.where.engine
    engine: Engine
    if isinstance(config, RayConfig):
        engine = RayEngine(config, watch)
    elif isinstance(config, SlurmConfig):
        engine = SlurmEngine(config, watch)
    else:
        engine = LocalEngine(config.workers, watch)
    return Runner(Store(recipe.store), engine, **options)
