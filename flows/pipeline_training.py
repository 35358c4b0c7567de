"""A recipe's mixes, training runs and soups: the middle of `flows.pipeline`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any

from flows.pipeline_curation import Call, Curation, call_directly
from flows.recipe import Recipe
from flows.recipe_training import MICRO, MicroAnneal, RateRun, mix_soup
from olmo_model.config import ABLATIONS
from tasks import downstream, gold_answers, mix, raw_files, soup, train
from tasks.beside import Beside, Job, gpus_of
from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.mix_plan import MixSpec
from tasks.progress import Watch, ignore
from tasks.shards import Artifact, Runner, ShardRef, ShardTask, input_files
from tasks.sources.base import RawFile

TO_ZERO = {"kind": "linear_to_zero"}


class Training(Curation):
    """Mixes of a recipe's sources, and the training runs over them.

    `call(name, function)` is how work is run, `tell` gets lines about it and `watch` a training run's progress. `elsewhere` makes of a GPU job
    one that waits for it to be done elsewhere.
    """

    def __init__(
        self,
        recipe: Recipe,
        runner: Runner,
        call: Call = call_directly,
        tell: Callable[[str], None] = ignore,
        watch: Watch = ignore,
        elsewhere: Callable[[Job], Job] | None = None,
    ) -> None:
        super().__init__(recipe, runner, call, tell)
        self.watch, self.elsewhere = watch, elsewhere

    def job(self, job: Job) -> Job:
        """A GPU job as it is run: here, or handed on."""
        return self.elsewhere(job) if self.elsewhere else job

    # -- mixes -------------------------------------------------------------------------------------------------------------------

    def _sources(self, names: list[str]) -> tuple[dict[str, tuple[list[ShardRef], list[ShardRef]]], list[Artifact]]:
        pairs = {name: (self.tokens(name.partition("/")[0]), self.selection(name)) for name in names}
        refs = {name: (tokens.refs, selection.refs) for name, (tokens, selection) in pairs.items()}
        return refs, [artifact for pair in pairs.values() for artifact in pair]

    def _encoded_as(self, names: list[str]) -> dict[str, Artifact]:
        """The tokens that mixes of these sources have in place of those that their documents were chosen by; none but in `Under`."""
        return {}

    def mix(self, name: str) -> Artifact:
        return self._mix(name, self.recipe.mixes[name].spec(self.recipe.sequence_length))

    def _mix(self, name: str, spec: MixSpec) -> Artifact:
        sources, inputs = self._sources(list(spec.sources))
        held, others = self.recipe.held_out, self._encoded_as(list(spec.sources))
        encoded_as = {source: artifact.refs for source, artifact in others.items()}

        def make() -> Artifact:
            tokenizer = self.tokenizer().refs[0]
            task = mix.task(spec, name, sources, tokenizer, held.share, held.tokens_per_source, encoded_as)
            return self.runner.run(mix.MIX, name, [task], inputs=[*inputs, *others.values()])

        made = self._once("mix", name, make)
        self.contamination(f"mix {name}", list(spec.sources), made)
        return made

    def held_out(self, source: str) -> Artifact:
        sources, inputs = self._sources([source])
        held, others = self.recipe.held_out, self._encoded_as([source])
        encoded_as = others[source].refs if others else None

        def make() -> Artifact:
            tokenizer, length = self.tokenizer().refs[0], self.recipe.sequence_length
            task = mix.held_out_task(source, sources[source], tokenizer, held.share, held.tokens_per_source, length, encoded_as)
            return self.runner.run(mix.HELD_OUT, source, [task], inputs=[*inputs, *others.values()])

        return self._once("held-out", source, make)

    def mix_all(self) -> None:
        for name in self.recipe.mixes:
            self.mix(name)

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _require(self, section: str) -> Any:
        config = getattr(self.recipe, section)
        if not config:
            raise UserError(f"the recipe {self.recipe.name} has no `{section}`: add it to run this flow")
        return config

    def _train(
        self,
        name: str,
        mix_artifact: Artifact,
        init_from: Artifact | None,
        data_seed: int,
        schedule: dict[str, Any],
        steps: int | None,
        peak: float | None = None,
    ) -> Artifact:
        config = self._train_config(data_seed, schedule, steps, peak)
        task = train.task(name, config, self._train_hints(), mix_artifact.refs[0], init_from.refs[0] if init_from else None)
        job = train.TrainJob(self.store, self.recipe.where.launcher, self.watch)
        return self._launch_training(task, [mix_artifact, *([init_from] if init_from else [])], self.job(job))

    def _launch_training(self, task: ShardTask, inputs: list[Artifact], job: Job) -> Artifact:
        return self._once("train", task.name, lambda: self.runner.run(train.STEP, task.name, [task], inputs=inputs, launch=job))

    def _train_hints(self) -> dict[str, Any]:
        """The trainer's settings that change no weight but by rounding."""
        where, every = self.recipe.where, self.recipe.evaluation.while_training_every
        hints: dict[str, Any] = {
            "checkpoint": {"every_steps": self._require("pretrain").checkpoint_every, "keep": 1},
            "parallel": where.parallel.model_dump(),
            "metrics": where.metrics.model_dump(),
        }
        if every:
            held = {source: self.held_out(source) for source in self.recipe.sources}
            sources = {source: artifact.refs[0] for source, artifact in held.items() if artifact.is_whole}
            golds = {name: self._gold_answers(name) for name in downstream.names("development", self.recipe.evaluation.tasks)}
            answers = {name: artifact.refs[0] for name, artifact in golds.items() if artifact.is_whole}
            hints["held_out"] = {"every_steps": every, "sources": sources, "answers": answers}
        return hints

    def _gold_answers(self, name: str) -> Artifact:
        """A task's gold answers as tokens, for the scores of trainings that go on."""
        files, tokenizer = self.recipe.evaluation.tasks[name], self.tokenizer()
        raw, shots = self._task_files(name)
        task = gold_answers.task(name, files, self.recipe.sequence_length, tokenizer.refs[0], raw, shots)
        return self._once("gold-answers", name, lambda: self.runner.run(gold_answers.STEP, name, [task], inputs=[tokenizer]))

    def _task_files(self, name: str) -> tuple[list[RawFile], list[RawFile]]:
        """Files of an evaluation task, and those of its shots."""
        files = self.recipe.evaluation.tasks[name]
        raw, shots = (
            raw_files.find(self.store, f"evaluation.tasks.{name}", paths)[0] if paths else [] for paths in (files.paths, files.shot_paths)
        )
        return raw, shots

    def _train_config(self, data_seed: int, schedule: dict[str, Any], steps: int | None, peak: float | None = None) -> dict[str, Any]:
        """The trainer's config without what is known only at launch: paths, vocabulary, device."""
        pretrain, model = self._require("pretrain"), self._require("model")
        length = self.recipe.sequence_length
        config = model.config(128, length)
        # Ablations only where there are some, so that runs of OLMo 2 from before they existed keep their keys.
        sizes = {name: value for name, value in vars(config).items() if name not in ("vocab_size", *ABLATIONS)} | config.ablations()
        optimizer = {"learning_rate": peak or pretrain.learning_rate, "weight_decay": pretrain.weight_decay, "z_loss": pretrain.z_loss}
        return {
            "model": sizes,
            "data": {"seed": data_seed, "mask_repetitions": pretrain.mask_repetitions},
            "sequence_length": length,
            "global_batch_instances": pretrain.global_batch_instances,
            "micro_batch_instances": pretrain.micro_batch_instances,
            "optimizer": {**optimizer, "max_grad_norm": pretrain.max_grad_norm, **pretrain.optimizer_ablations()},
            "schedule": schedule,
            "max_steps": steps,
            "seed": pretrain.seed,
            "precision": pretrain.precision,
            "deterministic": pretrain.deterministic,
        }

    def pretrain(self) -> Artifact:
        config = self._require("pretrain")
        if self.recipe.evaluation.tasks and not self.runner.plan_only:
            downstream.check_installed()
        return self._train("pretrain", self.mix(config.mix), None, config.data_seed, self._cosine(), config.steps)

    def _cosine(self) -> dict[str, Any]:
        config = self._require("pretrain")
        return {"kind": "cosine", "warmup_steps": config.warmup_steps, "decay_steps": config.decay_steps}

    def learning_rates(self) -> dict[str, Artifact]:
        """The runs of the learning-rate study by name: a pretraining for each peak, and from each its decays to zero."""
        study, pretrain = self._require("learning_rates"), self._require("pretrain")
        mixes = {name: self.mix(decay.mix or pretrain.mix) for name, decay in study.decays.items()}
        made: dict[str, Artifact] = {}
        for run in study.runs():
            if run.decay is None:
                data, start, seed, schedule = self.mix(pretrain.mix), None, pretrain.data_seed, self._cosine()
                steps = study.steps or pretrain.steps
            else:
                decay = study.decays[run.decay]
                data, start, seed, schedule, steps = mixes[run.decay], made[RateRun(run.peak, None).name], decay.seed, TO_ZERO, decay.steps
            self._check_size(data, None)
            made[run.name] = self._train(run.name, data, start, seed, schedule, steps, run.peak)
        return made

    def _micro_mix(self, name: str) -> Artifact:
        return self._mix(f"{MICRO}{name}", self.recipe.micro_anneals[name].spec(self.recipe.sequence_length))

    def micro_anneals(self) -> dict[str, Artifact]:
        """The runs of all micro-anneals by label, beside each other as far as `where.micro_anneals` lets them."""
        start, batch = self.pretrain(), self._require("pretrain").global_batch_instances * self.recipe.sequence_length
        mixes = {name: self._micro_mix(name) for name in self._require("micro_anneals")}
        for name, made in mixes.items():
            self._check_size(made, self.recipe.micro_anneals[name])
        tasks = {}
        for run in self.recipe.micro_anneal_runs():
            config = self._train_config(run.seed, TO_ZERO, self.recipe.micro_anneals[run.micro].steps(batch))
            tasks[run] = train.task(run.name, config, self._train_hints(), mixes[run.micro].refs[0], start.refs[0])
        missing = [task for run, task in tasks.items() if self.runner.begin(train.STEP, run.name, task, [mixes[run.micro], start])]
        with self._beside() as beside:
            if missing:
                self._gpus_of(beside.at_once - 1)  # told before hours of training
            for task in missing:
                beside.start(task, task.key(train.STEP))
            return {run.label: self._launch_training(task, [mixes[run.micro], start], beside) for run, task in tasks.items()}

    def _beside(self) -> Beside:
        where, ranks = self.recipe.where, self.recipe.where.micro_anneal_ranks
        gpus = where.micro_anneals.gpus or ranks
        launcher = where.launcher.of_ranks(ranks)
        if launcher.kind == "local" and launcher.threads is None and not self.elsewhere:
            launcher.threads = max(1, (os.cpu_count() or 1) // gpus)

        def job(slot: int, watch: Watch, check: Callable[[], None]) -> Job:
            return self.job(train.TrainJob(self.store, launcher, watch, check, self._gpus_of(slot)))

        return Beside(gpus // ranks, job, self.watch, {"launcher": launcher.model_dump(mode="json")})

    def _gpus_of(self, slot: int) -> list[str]:
        """The GPUs of this machine that a slot's micro-anneal may use; a cluster, or who runs the job elsewhere, deals out its own."""
        where = self.recipe.where
        if where.launcher.kind != "local" or self.elsewhere:
            return []
        here = Cordon(self.store).here()
        return gpus_of(slot, where.micro_anneal_ranks, where.launcher.device, here.devices if here else ())

    def training_mixes(self) -> None:
        """The mixes of all training runs, each large enough for one batch: better told before the first run than after it."""
        pretrain = self._require("pretrain")
        names = dict.fromkeys([pretrain.mix, *(run.mix for run in (self.recipe.anneal.runs() if self.recipe.anneal else []))])
        for artifact in map(self.mix, names):
            self._check_size(artifact, None)
        for name, micro in self.recipe.micro_anneals.items():
            self._check_size(self._micro_mix(name), micro)

    def _check_size(self, made: Artifact, micro: MicroAnneal | None) -> None:
        """UserError where a mix that is made has less than a batch, or than its micro-anneal is to train on."""
        if not made.is_whole:
            return
        header = json.loads(input_files(self.store, made.refs[0])["mix.json"].read_text())
        batch, instances, length = self._require("pretrain").global_batch_instances, header["instances"], header["sequence_length"]
        if instances < batch:
            raise UserError(
                f"the mix {made.name} has {instances} instances of {length} tokens, fewer than a batch of "
                f"{batch}: give it more of its sources, or lower pretrain.global_batch_instances"
            )
        steps = micro.steps(batch * length) if micro else None
        if micro and steps and steps * batch > instances:
            factor = steps * batch / instances
            enough = ", ".join(f"{source}: {math.ceil(repeat * factor * 1000) / 1000:g}" for source, repeat in micro.sources.items())
            raise UserError(
                f"the mix {made.name} has {instances * length:,} tokens in whole instances, fewer than the {micro.tokens:,} to train on: "
                f"repeat its sources more ({enough} would do), or lower tokens"
            )

    def anneals(self) -> dict[str, Artifact]:
        runs, start, schedule = self._require("anneal").runs(), self.pretrain(), TO_ZERO
        return {run.name: self._train(run.name, self.mix(run.mix), start, run.seed, schedule, run.steps) for run in runs}

    def soup(self) -> Artifact:
        config = self._require("anneal").soup
        ingredients = self.anneals()
        refs = {name: artifact.refs[0] for name, artifact in ingredients.items()}
        if config.kind == "greedy":
            held = {source: self.held_out(source) for source in config.held_out or self.recipe.sources}
            held_refs = {source: artifact.refs[0] for source, artifact in held.items()}
            precision, batch = self._require("pretrain").precision, self.recipe.evaluation.batch_instances
            task = soup.greedy_task("soup", refs, held_refs, self.recipe.sequence_length, precision, batch)
            return self._soup(task, [*ingredients.values(), *held.values()])
        weights = [config.weights[name] for name in refs] if config.weights else None
        return self._soup(soup.task("soup", list(refs.values()), weights), list(ingredients.values()))

    def mix_soups(self) -> dict[str, Artifact]:
        """The plain mean of each mix's anneals by name, where the recipe asks for it and it is not the soup itself (report, Table 14)."""
        config, anneals = self._require("anneal"), self.anneals()
        found = {}
        for mix_name, names in config.by_mix().items() if config.soup.of_each_mix and config.further else ():
            if len(names) > 1:
                ingredients = [anneals[name] for name in names]
                task = soup.task(mix_soup(mix_name), [artifact.refs[0] for artifact in ingredients])
                found[task.name] = self._soup(task, ingredients)
        return found

    def _soup(self, task: ShardTask, inputs: list[Artifact]) -> Artifact:
        job = self.job(soup.SoupJob(self.store, self.recipe.where.launcher))
        name = "" if task.name == "soup" else task.name
        return self._once("soup", name, lambda: self.runner.run(soup.STEP, task.name, [task], inputs=inputs, launch=job))
