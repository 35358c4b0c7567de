"""The recipe: one YAML file, one pydantic model, the one parameter of every flow.

It holds what the experiment is (`recipe_curation`: sources, scorers and filters; `recipe_training`: mixes, model, schedules, seeds and
evaluation) and, under `where`, the machine it runs on, which changes no key. What its parts must be to each other is checked here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from flows.declared import Reported
from flows.recipe_curation import Inventory, SampleCorpus, Scorer, Source, StackExchangeDumps, Subset
from flows.recipe_file import filled, read
from flows.recipe_training import MICRO, Anneal, Evaluation, HeldOut, LearningRates, MicroAnneal, MicroAnnealRun, Mix, Model, Pretrain
from flows.section import Section
from flows.section import at as _at
from flows.section import choice as _choice
from tasks.annotate import Annotation
from tasks.dumps import PLACEHOLDER
from tasks.engine import LocalConfig
from tasks.engine_ray import RayConfig
from tasks.engine_slurm import SlurmConfig
from tasks.errors import RecipeError
from tasks.from_annotation import TopicFromAnnotation
from tasks.launch import LauncherConfig
from tasks.mix_plan import MixSpec
from tasks.scorers import column_names
from tasks.secrets import hidden
from tasks.train import Metrics, Parallel
from tasks.train_tokenizer import Cl100k, TokenizerConfig


def _engine_kind(value: Any) -> Any:
    return value.get("kind", "local") if isinstance(value, dict) else getattr(value, "kind", None)


EngineConfig = Annotated[
    Annotated[LocalConfig, Tag("local")] | Annotated[RayConfig, Tag("ray")] | Annotated[SlurmConfig, Tag("slurm")],
    Discriminator(_engine_kind, custom_error_type="engine", custom_error_message="`kind` is local, ray or slurm"),
]


class Beside(Section):
    """Runs beside each other on one machine."""

    gpus: int | None = Field(
        default=None,
        ge=1,
        description="GPUs (ranks, on a CPU) that all of them together may take; one run after the other where left empty.",
        json_schema_extra=_at(0),
    )
    ranks: int | None = Field(
        default=None, ge=1, description="Ranks of a run; all of the launcher's where left empty.", json_schema_extra=_at(1)
    )


class Where(Section):
    """The machine. Changes no artifact."""

    engine: EngineConfig = Field(default=LocalConfig(), description="Data steps.", json_schema_extra=_choice(0))
    launcher: LauncherConfig = Field(default=LauncherConfig(), description="Training and evaluation jobs.", json_schema_extra=_at(1))
    parallel: Parallel = Field(default=Parallel(), description="How the ranks of a training job share the model.", json_schema_extra=_at(2))
    metrics: Metrics = Field(default=Metrics(), description="Where a training job's metrics go too.", json_schema_extra=_at(3))
    micro_anneals: Beside = Field(default=Beside(), description="How micro-anneals share the machine.", json_schema_extra=_at(4))

    @property
    def micro_anneal_ranks(self) -> int:
        return self.micro_anneals.ranks or self.launcher.ranks


class Recipe(Section):
    """An experiment, from raw files to a souped model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run.", json_schema_extra=_at(0))
    store: str = Field(default="store", description="Folder or fsspec URL of all artifacts.", json_schema_extra=_at(1))
    description: str = Field(default="", description="A sentence for the report.", json_schema_extra=_at(2))
    sample_corpus: SampleCorpus | None = Field(
        default=None, description="Make a corpus from the Python installation first.", json_schema_extra=_at(3)
    )
    sources: dict[str, Source] = Field(min_length=1, description="Sources by name.", json_schema_extra=_at(4))
    annotations: dict[str, Annotation] = Field(
        default={}, description="Labels by a language model, for scorers to be trained on, by name.", json_schema_extra=_at(5)
    )
    scorers: dict[str, Scorer] = Field(default={}, description="Scorers by name.", json_schema_extra=_at(6))
    tokenizer: TokenizerConfig = Field(default=Cl100k(), description="The tokenizer.", json_schema_extra=_choice(7))
    sequence_length: int = Field(default=4096, ge=8, description="Tokens of an instance.", json_schema_extra=_at(8))
    held_out: HeldOut = Field(default=HeldOut(), description="Documents kept for evaluation.", json_schema_extra=_at(9))
    mixes: dict[str, Mix] = Field(default={}, description="Mixes by name.", json_schema_extra=_at(10))
    model: Model | None = Field(default=None, description="The architecture.", json_schema_extra=_at(11))
    pretrain: Pretrain | None = Field(default=None, description="Pretraining.", json_schema_extra=_at(12))
    micro_anneals: dict[str, MicroAnneal] = Field(default={}, description="Micro-anneals by name.", json_schema_extra=_at(13))
    anneal: Anneal | None = Field(default=None, description="Anneals and their soup.", json_schema_extra=_at(14))
    evaluation: Evaluation = Field(default=Evaluation(), description="Evaluation.", json_schema_extra=_at(15))
    inventory: Inventory | None = Field(default=None, description="A folder to account for in the report.", json_schema_extra=_at(16))
    where: Where = Field(default=Where(), description="The machine.", json_schema_extra=_at(17))
    reported: dict[str, Reported] = Field(
        default={}, description="Tables that `olmoflow plan` compares with, by name.", json_schema_extra=_at(18)
    )

    learning_rates: LearningRates | None = Field(
        default=None, description="A study of peak learning rates: the flow `learning-rates`.", json_schema_extra=_at(19)
    )

    other_tokenizers: dict[str, TokenizerConfig] = Field(
        default={},
        description="Tokenizers to hold against `tokenizer`, by name: the flow `compare-tokenizers`.",
        json_schema_extra=_at(20),
    )

    stackexchange_dumps: StackExchangeDumps | None = Field(
        default=None,
        description="Where new Stack Exchange dumps appear: the flows `poll-stackexchange` and `recurate-stackexchange`.",
        json_schema_extra=_at(21),
    )

    def selections(self) -> dict[str, Source | Subset]:
        """All that a mix may name: the sources, each followed by its subsets."""
        found: dict[str, Source | Subset] = {}
        for name, source in self.sources.items():
            found[name] = source
            found |= {f"{name}/{subset}": config for subset, config in source.subsets.items()}
        return found

    def selections_of(self, source: str) -> list[str]:
        """A source and its subsets, by name."""
        return [source, *(f"{source}/{subset}" for subset in self.sources[source].subsets)]

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        for name, config in self.sources.items():
            for part in (name, *config.subsets):
                if "/" in part:
                    raise ValueError(f"sources.{name}: the name {part!r} has a /, which stands between a source and its subset; rename it")
        selections = self.selections()
        mixes: dict[str, dict[str, Any]] = {name: dict(mix.sources) for name, mix in self.mixes.items()}
        mixes |= {f"{MICRO}{name}": {**micro.sources, **micro.general} for name, micro in self.micro_anneals.items()}
        for key, table in self.reported.items():
            _known(f"reported.{key}.mix", [table.mix] if table.mix else [], mixes, "mixes")
            taken: dict[str, Any] = mixes[table.mix] if table.mix else selections
            for label, row in table.rows.items():
                _known(f"reported.{key}.rows.{label}.sources", row.sources, taken, f"mixes.{table.mix}.sources" if table.mix else "sources")
        for source, config in self.sources.items():
            _known(f"sources.{source}.scores", config.scores, self.scorers, "scorers")
            self.scorers_of(source)
        self._annotations_fit()
        self._dumps_fit()
        self._sources_can_be_made(selections)
        for name, mix in self.mixes.items():
            _known(f"mixes.{name}.sources", mix.sources, selections, "sources")
            _adds_up(f"mixes.{name}", mix.spec, self.sequence_length)
        for name, micro in self.micro_anneals.items():
            _known(f"micro_anneals.{name}.sources", micro.sources, selections, "sources")
            _known(f"micro_anneals.{name}.general", micro.general, selections, "sources")
            if set(micro.sources) & set(micro.general):
                raise ValueError(
                    f"micro_anneals.{name}: {min(set(micro.sources) & set(micro.general))} is both under test and in the general mix"
                )
            _adds_up(f"micro_anneals.{name}", micro.spec, self.sequence_length)
        _known("pretrain.mix", [self.pretrain.mix] if self.pretrain else [], self.mixes, "mixes")
        _known("anneal.mix", [run.mix for run in self.anneal.runs()] if self.anneal else [], self.mixes, "mixes")
        _known("anneal.soup.held_out", self.anneal.soup.held_out if self.anneal else [], self.sources, "sources")
        if self.learning_rates:
            _known("learning_rates.decays", [each.mix for each in self.learning_rates.decays.values() if each.mix], self.mixes, "mixes")
            if not self.pretrain:
                raise ValueError("learning_rates is a study of `pretrain`: add it")
        self._tokenizers_can_be_compared()
        if self.pretrain and not self.model:
            raise ValueError("pretrain needs a `model`")
        if self.model:
            self.model.config(128, self.sequence_length)  # raises where the sizes do not fit each other
        self._models_can_be_exported()
        self._batch_fits()
        self._copies_fit()
        self._micro_anneals_fit()
        if "all" in self.sources:
            raise ValueError("sources.all: the evaluation calls the sum over all sources so; give it another name")
        for name in self.mixes:
            if name.startswith(MICRO):
                raise ValueError(f"mixes.{name}: the mixes of micro-anneals are called so; give it another name")
        self._micro_anneals_can_be_told_apart()
        if (self.anneal or self.micro_anneals) and not self.pretrain:
            raise ValueError("anneal and micro_anneals start from a pretrained checkpoint: add `pretrain`")
        return self

    def _tokenizers_can_be_compared(self) -> None:
        if not self.other_tokenizers:
            return
        if not self.pretrain:
            raise ValueError("other_tokenizers compares pretrainings: add `pretrain`")
        for key in ("steps", "decay_steps"):
            if getattr(self.pretrain, key) is not None:
                raise ValueError(
                    f"pretrain.{key} is {getattr(self.pretrain, key)}, but other_tokenizers compares one pass over the same documents, "
                    "which are not as many steps under each tokenizer: leave it empty (null), and give the mix the size that you want"
                )
        before = {"tokenizer": self.tokenizer}
        for name, config in self.other_tokenizers.items():
            if name == self.tokenizer.kind or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"other_tokenizers.{name}: is no name for it, or that of the recipe's own; give letters, digits, . _ -")
            for other, its in before.items():
                if its == config:
                    raise ValueError(f"other_tokenizers.{name} is the same as {other}: leave one of them out")
            before[f"other_tokenizers.{name}"] = config

    def annotation_of(self, scorer: str) -> str | None:
        """The annotation that a scorer is trained on."""
        annotation = getattr(self.scorers[scorer].train, "annotation", None)
        return annotation.name if annotation is not None else None

    def annotated_for(self, source: str) -> list[str]:
        """The sources whose annotated documents train a scorer of this source."""
        names = [self.annotation_of(scorer) for scorer in self.sources[source].scores]
        return [self.annotations[name].source for name in names if name is not None]

    def scorers_of(self, source: str) -> list[str]:
        """A source's scorers, each after those whose columns its `where` reads, else by name: a mapping's own order is lost in Prefect's database.

        Raises ValueError where two read each other's.
        """
        scores, found = self.sources[source].scores, list[str]()
        read = {name: {rule.column for rule in use.where} for name, use in scores.items()}
        needed = {
            name: {other for other in scores if other != name and column_names(self.scorers[other].scorer) & read[name]} for name in scores
        }
        while len(found) < len(needed):
            ready = next((name for name in sorted(needed.keys() - set(found)) if needed[name] <= set(found)), None)
            if ready is None:
                left = ", ".join(sorted(needed.keys() - set(found)))
                raise ValueError(f"sources.{source}.scores: the `where` of {left} read each other's columns: take one of them out")
            found.append(ready)
        return found

    def rewritten_from(self, source: str) -> str | None:
        """The source of whose selected documents this one's are made."""
        rewrite = self.sources[source].rewrite
        return rewrite.source.partition("/")[0] if rewrite is not None else None

    def _sources_can_be_made(self, selections: dict[str, Source | Subset]) -> None:
        """No source is made of itself, through others or through what its scorers are trained on."""
        for name, source in self.sources.items():
            _known(f"sources.{name}.rewrite.source", [source.rewrite.source] if source.rewrite else [], selections, "sources")
        # annotating reads all documents of a source, so that it may be scored by what is trained on them; rewriting those selected
        needed = {f"select {name}": {f"make {each}" for each in (name, *self.annotated_for(name))} for name in self.sources}
        needed |= {f"make {name}": {f"select {first}"} for name in self.sources if (first := self.rewritten_from(name)) is not None}
        try:
            TopologicalSorter(needed).prepare()
        except CycleError as error:
            names = dict.fromkeys(step.partition(" ")[2] for step in error.args[1])
            raise ValueError(
                f"sources.{next(iter(names))} is made of itself by way of {', '.join(names)}: rewrite another source"
            ) from error

    def _dumps_fit(self) -> None:
        for name, source in self.sources.items():
            if any(PLACEHOLDER in path for path in source.paths) and source.format != "stackexchange":
                raise ValueError(f"sources.{name}: only the format stackexchange reads {PLACEHOLDER}, not {source.format}")
            for path in source.paths:
                if PLACEHOLDER in path and not re.fullmatch(re.escape(PLACEHOLDER) + r"(/[^{}]*)?", path):
                    raise ValueError(f"sources.{name}: {PLACEHOLDER} is the whole folder of a dump: write {PLACEHOLDER}/*.7z, not {path}")
        reading = self.dump_sources()
        if reading and self.stackexchange_dumps is None:
            raise ValueError(f"sources.{next(iter(reading))} reads {PLACEHOLDER}: say where dumps appear, in stackexchange_dumps.path")
        if self.stackexchange_dumps is not None and not reading:
            raise ValueError(f"stackexchange_dumps: no source reads a dump; give one the paths [{PLACEHOLDER!r}]")

    def dump_sources(self) -> dict[str, Source]:
        """The sources that read the newest Stack Exchange dump."""
        return {name: source for name, source in self.sources.items() if source.reads_dump}

    def _annotations_fit(self) -> None:
        for name, asked in self.annotations.items():
            _known(f"annotations.{name}.source", [asked.source], self.sources, "sources")
        for name, scorer in self.scorers.items():
            annotation, key = getattr(scorer.train, "annotation", None), f"scorers.{name}.train.annotation"
            if annotation is None:
                continue
            _known(f"{key}.name", [annotation.name], self.annotations, "annotations")
            labels = [str(label) for label in self.annotations[annotation.name].labels]
            if isinstance(annotation, TopicFromAnnotation):
                positive = {str(label) for label in annotation.positive}
                if not positive < set(labels):
                    raise ValueError(f"{key}.positive should be some but not all of the labels {', '.join(labels)}")
            elif not set(labels) <= set("012345"):
                raise ValueError(f"{key}: a regressor learns numbers from 0 to 5, but the labels are {', '.join(labels)}")

    def _models_can_be_exported(self) -> None:
        """Said before the run and not after all its training."""
        exported = [key for key, there in (("anneal", self.anneal), ("evaluation.tasks", self.evaluation.tasks)) if there]
        changed = self.model.config(128, self.sequence_length).ablations() if self.model and exported else {}
        for name, value in changed.items():
            if name != "init":  # which leaves the architecture as it is
                what = "the soup of `anneal` is" if exported == ["anneal"] else "the models that `evaluation.tasks` scores are"
                raise ValueError(
                    f"model.{name} is {value}, which Hugging Face's Olmo2ForCausalLM does not have, and {what} exported to it: "
                    f"leave out {' and '.join(f'`{key}`' for key in exported)} to pretrain and micro-anneal such a model"
                )

    def _batch_fits(self) -> None:
        if self.pretrain is None:
            return
        at_once = self.where.launcher.ranks * self.pretrain.micro_batch_instances
        if self.pretrain.global_batch_instances % at_once:
            raise ValueError(
                f"pretrain.global_batch_instances is {self.pretrain.global_batch_instances}, not a multiple of {at_once} "
                f"({self.where.launcher.ranks_key} x pretrain.micro_batch_instances)"
            )

    def micro_anneal_runs(self) -> list[MicroAnnealRun]:
        """The runs of all micro-anneals, in the order of the recipe."""
        return [run for name, micro in self.micro_anneals.items() for run in micro.runs(name)]

    def _micro_anneals_can_be_told_apart(self) -> None:
        if "pretrained" in self.micro_anneals:
            raise ValueError("micro_anneals.pretrained: the baseline is called so; give it another name")
        labels: dict[str, str] = {}
        for run in self.micro_anneal_runs():
            if run.label in labels:
                raise ValueError(f"micro_anneals.{run.micro} and .{labels[run.label]} both have a run {run.label!r}: rename one of them")
            labels[run.label] = run.micro

    def _micro_anneals_fit(self) -> None:
        """The ranks and tokens of micro-anneals go with the batch of pretraining."""
        if self.pretrain is None:
            return
        ranks, batch = self.where.micro_anneal_ranks, self.pretrain.global_batch_instances
        if batch % (ranks * self.pretrain.micro_batch_instances):
            raise ValueError(
                f"pretrain.global_batch_instances is {batch}, not a multiple of {ranks * self.pretrain.micro_batch_instances} "
                "(where.micro_anneals.ranks x pretrain.micro_batch_instances)"
            )
        try:
            self.where.launcher.of_ranks(ranks)
        except ValueError as error:
            raise ValueError(f"where.micro_anneals.ranks: {error}") from error
        if ranks % self.where.parallel.replicas:
            raise ValueError(
                f"where.parallel.replicas is {self.where.parallel.replicas}, which does not divide where.micro_anneals.ranks {ranks}: give a number that does"
            )
        if self.where.micro_anneals.gpus is not None and self.where.micro_anneals.gpus < ranks:
            raise ValueError(f"where.micro_anneals.gpus is {self.where.micro_anneals.gpus}, too few for one run of {ranks} ranks: raise it")
        for name, micro in self.micro_anneals.items():
            if micro.steps(batch * self.sequence_length) == 0:
                raise ValueError(
                    f"micro_anneals.{name}.tokens is {micro.tokens}, under a batch of {batch * self.sequence_length} tokens: raise it"
                )

    def _copies_fit(self) -> None:
        ranks, replicas = self.where.launcher.ranks, self.where.parallel.replicas
        if ranks % replicas:
            raise ValueError(
                f"where.parallel.replicas is {replicas}, which does not divide {self.where.launcher.ranks_key} {ranks}: give a number that does, or 1"
            )


def _adds_up(key: str, spec: Callable[[int], MixSpec], sequence_length: int) -> None:
    try:
        spec(sequence_length)
    except ValidationError as error:
        raise ValueError(f"{key}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _known(key: str, used: Any, there: dict[str, Any], section: str) -> None:
    for name in used:
        if name not in there:
            raise ValueError(f"{key} names {name!r}, which `{section}` does not have ({', '.join(there) or 'it is empty'})")


def load(path: Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe from its YAML file and those that it `extends`, `--set a.b=c` applied and ${VAR} or ${VAR:-default} filled in. Raises RecipeError with one sentence."""
    return _checked(path, read(path, overrides or []))


def load_form(path: Path) -> dict[str, Any]:
    """The keys of a recipe's file as a form starts with them: those of what it `extends` too, but no ${VAR} filled in. Raises RecipeError."""
    raw = read(path, [], fill=False)
    _checked(path, raw)
    return raw


def _checked(path: Path, raw: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error)}") from error


def in_environment(recipe: Recipe) -> Recipe:
    """A recipe with its ${VAR} filled in here, where it runs; a form and its server hold none of their values. Raises RecipeError."""
    raw = recipe.model_dump(mode="json", exclude_unset=True)
    here = filled(raw, f"the recipe {recipe.name}")
    return recipe if here == raw else Recipe.model_validate(here)


def without_secrets(recipe: Recipe) -> Recipe:
    """A recipe as a flow gets it, whose parameters Prefect keeps: with names for secrets, which `in_environment` fills in again."""
    raw = recipe.model_dump(mode="json", exclude_unset=True)
    told = hidden(raw)
    return recipe if told == raw else Recipe.model_validate(told)


def explain(error: ValidationError, model: type[BaseModel] = Recipe) -> str:
    """The first fault of a recipe (or another `model`) as one sentence: its key, what is wrong, and what was perhaps meant."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "tagged-union"))]
    key = ".".join(parts) or "the recipe"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(parts[-1], _all_keys(model), n=1)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; remove it") + more
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{more}" if parts else f"{message}{more}"


def _all_keys(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    keys = set(schema.get("properties", {}))
    for definition in schema.get("$defs", {}).values():
        keys |= set(definition.get("properties", {}))
    return sorted(keys)
