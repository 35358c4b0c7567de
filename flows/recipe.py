"""The recipe: one YAML file, one pydantic model, the one parameter of every flow.

It holds what the experiment is (sources, scorers, filters, mixes, model, schedules, seeds, evaluation) and, under `where`, the machine it
runs on, which changes no key.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from flows.declared import Declared, Reported
from flows.recipe_file import read
from flows.section import Section
from flows.section import at as _at
from olmo_model.config import PRESETS, ModelConfig
from tasks.annotate import Annotation
from tasks.engine import LocalConfig
from tasks.engine_ray import RayConfig
from tasks.errors import RecipeError
from tasks.filters import Filter
from tasks.from_annotation import TopicFromAnnotation
from tasks.launch import LauncherConfig
from tasks.mix_plan import MixSource, MixSpec
from tasks.scorers import ScorerConfig
from tasks.signatures import Deduplicate
from tasks.sources import SourceConfig
from tasks.tokenize import TokenizeWhere
from tasks.train_scorer import ScorerTraining
from tasks.train_tokenizer import Cl100k, TokenizerConfig

MICRO = "micro-anneal "  # begins the names of micro-anneals' mixes and runs


def _engine_kind(value: Any) -> Any:
    return value.get("kind", "local") if isinstance(value, dict) else getattr(value, "kind", None)


EngineConfig = Annotated[
    Annotated[LocalConfig, Tag("local")] | Annotated[RayConfig, Tag("ray")],
    Discriminator(_engine_kind, custom_error_type="engine", custom_error_message="`kind` is local or ray"),
]


class Where(Section):
    """The machine. Changes no artifact."""

    engine: EngineConfig = Field(default=LocalConfig(), description="Data steps.", json_schema_extra=_at(0))
    launcher: LauncherConfig = Field(default=LauncherConfig(), description="Training and evaluation jobs.", json_schema_extra=_at(1))


class SampleCorpus(Section):
    """A corpus made from this machine's Python installation, for trying things out."""

    folder: str = Field(description="Where the raw files are written.", json_schema_extra=_at(0))
    bytes: int = Field(default=10_000_000, ge=100_000, description="About how many bytes of text.", json_schema_extra=_at(1))
    seed: int = Field(default=0, description="Seed of what is made up.", json_schema_extra=_at(2))


class Scorer(Section):
    """A scorer, and how to train its model where none is given."""

    scorer: ScorerConfig = Field(description="What looks at the text.", json_schema_extra=_at(0))
    train: ScorerTraining | None = Field(default=None, description="Train the model first, from labelled texts.", json_schema_extra=_at(1))

    @model_validator(mode="after")
    def _trained_or_given(self) -> Scorer:
        needs_model = "model" in type(self.scorer).model_fields
        given = getattr(self.scorer, "model", None) is not None
        if self.train is not None and (not needs_model or given or self.train.type != self.scorer.type):
            raise ValueError(f"a {self.scorer.type} scorer {'with a model' if given else ''} takes no `train` of type {self.train.type}")
        if needs_model and self.scorer.type != "language" and not given and self.train is None:
            raise ValueError(f"the {self.scorer.type} scorer has no model: give `model`, or `train`")
        return self


class ScoreUse(Section):
    """How a source uses a scorer."""

    where: list[Filter] = Field(default=[], description="Score only documents that pass these thresholds over columns of earlier scorers.")


class Subset(Section):
    """A stricter selection of a source, which mixes name `SOURCE/SUBSET`: the same documents, scores and tokens under more thresholds."""

    filters: list[Filter] = Field(min_length=1, description="Thresholds beside those of the source.", json_schema_extra=_at(0))
    declared: Declared | None = Field(default=None, description="Sizes after the filters, as stated.", json_schema_extra=_at(1))


class Source(SourceConfig):
    """A source: its raw files, what is measured of its documents, and which of them are wanted."""

    model_config = ConfigDict(extra="forbid")
    mask_personal_data: bool = Field(
        default=False, description="Mask e-mail addresses, phone numbers and IP addresses.", json_schema_extra=_at(18)
    )
    deduplicate: Deduplicate | None = Field(
        default=None, description="Tell duplicates, in a column `duplicate` that filters read.", json_schema_extra=_at(19)
    )
    scores: dict[str, ScoreUse] = Field(default={}, description="Scorers to run, cheap ones first.", json_schema_extra=_at(20))
    tokenize_where: TokenizeWhere = Field(
        default=TokenizeWhere(), description="The loosest cut that will be asked for.", json_schema_extra=_at(21)
    )
    filters: list[Filter] = Field(default=[], description="Which documents a mix may take.", json_schema_extra=_at(22))
    max_quarantined: float = Field(
        default=0.0, ge=0, le=1, description="Share of records that may be unreadable.", json_schema_extra=_at(23)
    )
    subsets: dict[str, Subset] = Field(default={}, description="Stricter selections by name.", json_schema_extra=_at(24))
    declared: Declared | None = Field(default=None, description="Sizes after the filters, as stated.", json_schema_extra=_at(25))

    def reader(self) -> SourceConfig:
        return SourceConfig.model_validate({name: getattr(self, name) for name in SourceConfig.model_fields})


class HeldOut(Section):
    """Documents that no mix may take, for evaluation."""

    share: float = Field(default=0.02, gt=0, lt=1, description="Largest share of a source's selected documents.", json_schema_extra=_at(0))
    tokens_per_source: int = Field(
        default=1_000_000, ge=1, description="About how many tokens of a source at most.", json_schema_extra=_at(1)
    )


class Mix(Section):
    """A mix of sources (report, section 4.3)."""

    sources: dict[str, MixSource] = Field(description="Sources with repeat (copies of it) or share (of the mix).", json_schema_extra=_at(0))
    tokens: int | None = Field(default=None, ge=1, description="Size of a mix given by shares alone.", json_schema_extra=_at(1))
    seed: int = Field(default=0, description="Seed of the documents that a part of a source takes.", json_schema_extra=_at(2))
    pack: bool = Field(
        default=False, description="Write the tokens out in instance order, for many nodes and for OLMo-core.", json_schema_extra=_at(3)
    )

    def spec(self, sequence_length: int) -> MixSpec:
        return MixSpec(seed=self.seed, sequence_length=sequence_length, tokens=self.tokens, sources=self.sources, pack=self.pack)


class Model(Section):
    """The architecture: a preset, or the sizes of one. The vocabulary is the tokenizer's."""

    preset: Literal["1b", "7b", "13b", "32b"] | None = Field(default=None, description="One of OLMo 2's sizes.", json_schema_extra=_at(0))
    d_model: int | None = Field(default=None, ge=8, description="Width.", json_schema_extra=_at(1))
    n_layers: int | None = Field(default=None, ge=1, description="Layers.", json_schema_extra=_at(2))
    n_heads: int | None = Field(default=None, ge=1, description="Attention heads.", json_schema_extra=_at(3))
    n_kv_heads: int | None = Field(
        default=None, ge=1, description="Key and value heads; n_heads where left empty.", json_schema_extra=_at(4)
    )
    mlp_hidden: int | None = Field(default=None, ge=8, description="Hidden size of the MLP.", json_schema_extra=_at(5))

    @model_validator(mode="after")
    def _preset_or_sizes(self) -> Model:
        sizes = [self.d_model, self.n_layers, self.n_heads, self.mlp_hidden]
        if (self.preset is None) == (None in sizes) or (self.preset is not None and any(size is not None for size in sizes)):
            raise ValueError("give either a preset or all of d_model, n_layers, n_heads and mlp_hidden")
        return self

    def config(self, vocab_size: int, sequence_length: int) -> ModelConfig:
        if self.preset is not None:
            preset = PRESETS[self.preset]
            return ModelConfig(
                **{
                    **dataclasses.asdict(preset),
                    "vocab_size": vocab_size,
                    "max_sequence_length": max(sequence_length, preset.max_sequence_length),
                }
            )
        assert self.d_model and self.n_layers and self.n_heads and self.mlp_hidden
        heads = self.n_kv_heads or self.n_heads
        return ModelConfig(
            self.d_model, self.n_layers, self.n_heads, heads, self.mlp_hidden, vocab_size, max_sequence_length=sequence_length
        )


class Pretrain(Section):
    """Pretraining (report, section 2.3 and Table 3): warm-up, then a cosine that may be cut short."""

    mix: str = Field(description="The mix to train on.", json_schema_extra=_at(0))
    learning_rate: float = Field(gt=0, description="Peak learning rate.", json_schema_extra=_at(1))
    global_batch_instances: int = Field(ge=1, description="Instances a step, over all ranks.", json_schema_extra=_at(2))
    micro_batch_instances: int = Field(ge=1, description="Instances a rank takes at once.", json_schema_extra=_at(3))
    warmup_steps: int = Field(default=2000, ge=0, description="Linear warm-up.", json_schema_extra=_at(4))
    decay_steps: int | None = Field(
        default=None, ge=1, description="Length of the full cosine; the run's own where left empty.", json_schema_extra=_at(5)
    )
    steps: int | None = Field(default=None, ge=1, description="Steps; one epoch of the mix where left empty.", json_schema_extra=_at(6))
    seed: int = Field(default=0, description="Seed of the initialisation.", json_schema_extra=_at(7))
    data_seed: int = Field(default=0, description="Seed of the instances' order.", json_schema_extra=_at(8))
    weight_decay: float = Field(default=0.1, ge=0, description="Of all weights but the input embedding.", json_schema_extra=_at(9))
    z_loss: float = Field(default=1e-5, ge=0, description="Weight of the z-loss (section 3.3.3).", json_schema_extra=_at(10))
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient clipping.", json_schema_extra=_at(11))
    mask_repetitions: bool = Field(
        default=True, description="Mask the loss of instances with long repetitions (section 3.1).", json_schema_extra=_at(12)
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="Of the computation; weights and sums are fp32.", json_schema_extra=_at(13)
    )
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints; only the last where empty.", json_schema_extra=_at(14)
    )
    deterministic: bool = Field(default=False, description="The same bits again on a GPU, at some speed.", json_schema_extra=_at(15))


class FurtherAnneals(Section):
    """Anneals over another mix whose checkpoints join the same soup, as the 13B's fourth (report, section 2.3)."""

    mix: str = Field(description="The mid-training mix.", json_schema_extra=_at(0))
    seeds: list[int] = Field(min_length=1, description="Data orders.", json_schema_extra=_at(1))
    steps: int | None = Field(default=None, ge=1, description="Steps; one epoch of the mix where left empty.", json_schema_extra=_at(2))


class AnnealRun(NamedTuple):
    """One anneal: what it is called, its mix, its data order, its steps (None: one epoch)."""

    name: str
    mix: str
    seed: int
    steps: int | None


class Anneal(Section):
    """Anneals: from the pretrained checkpoint's own learning rate linearly to zero, once for each data order (report, section 4)."""

    mix: str = Field(description="The mid-training mix.", json_schema_extra=_at(0))
    seeds: list[int] = Field(
        default=[42, 42069, 666], min_length=1, description="Data orders; their checkpoints are averaged.", json_schema_extra=_at(1)
    )
    steps: int | None = Field(default=None, ge=1, description="Steps; one epoch of the mix where left empty.", json_schema_extra=_at(2))
    further: list[FurtherAnneals] = Field(
        default=[], description="Anneals over other mixes, averaged with these.", json_schema_extra=_at(3)
    )

    @model_validator(mode="after")
    def _distinct(self) -> Anneal:
        mixes = [self.mix, *(further.mix for further in self.further)]
        if len(set(mixes)) < len(mixes):
            raise ValueError(f"a mix stands twice in {mixes}: give all its seeds in one place")
        for seeds in (self.seeds, *(further.seeds for further in self.further)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"a seed stands twice in {seeds}: two equal ingredients add nothing to a soup")
        return self

    def runs(self) -> list[AnnealRun]:
        """Every anneal, in the order of the recipe; those of further mixes have the mix in their names."""
        first = [AnnealRun(f"anneal {seed}", self.mix, seed, self.steps) for seed in self.seeds]
        return first + [AnnealRun(f"anneal {more.mix} {seed}", more.mix, seed, more.steps) for more in self.further for seed in more.seeds]


class MicroAnneal(Section):
    """A source under test beside an equal share of the general mix, linear to zero (report, section 4.2.2)."""

    sources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="Sources under test with their repeat.", json_schema_extra=_at(0)
    )
    general: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="The general mix: sources with their weights.", json_schema_extra=_at(1)
    )
    general_share: float = Field(default=0.5, gt=0, lt=1, description="Share of the general mix.", json_schema_extra=_at(2))
    seed: int = Field(default=7201, description="Seed of the data order.", json_schema_extra=_at(3))
    max_repeat: float = Field(default=1.0, gt=0, description="Copies of a general source at most.", json_schema_extra=_at(4))

    def spec(self, sequence_length: int) -> MixSpec:
        total = sum(self.general.values())
        shares = {
            name: MixSource(share=self.general_share * weight / total, max_repeat=self.max_repeat) for name, weight in self.general.items()
        }
        tested = {name: MixSource(repeat=repeat) for name, repeat in self.sources.items()}
        return MixSpec(seed=self.seed, sequence_length=sequence_length, sources={**tested, **shares})


class Evaluation(Section):
    """Held-out loss and bits per byte by source."""

    batch_instances: int = Field(default=16, ge=1, description="Windows at once a rank.", json_schema_extra=_at(0))


class LeftOut(Section):
    """Raw files that a recipe leaves out on purpose."""

    paths: str = Field(description="Glob below the inventory's root.", json_schema_extra=_at(0))
    why: str = Field(description="The reason, for the report.", json_schema_extra=_at(1))


class Inventory(Section):
    """A folder of raw data that the report accounts for, file by file."""

    root: str = Field(description="The folder.", json_schema_extra=_at(0))
    left_out: list[LeftOut] = Field(default=[], description="What is left out, and why.", json_schema_extra=_at(1))


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
    tokenizer: TokenizerConfig = Field(default=Cl100k(), description="The tokenizer.", json_schema_extra=_at(7))
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
        for key, table in self.reported.items():
            _known(f"reported.{key}.mix", [table.mix] if table.mix else [], self.mixes, "mixes")
            taken = self.mixes[table.mix].sources if table.mix else selections
            for label, row in table.rows.items():
                _known(f"reported.{key}.rows.{label}.sources", row.sources, taken, f"mixes.{table.mix}.sources" if table.mix else "sources")
        for source, config in self.sources.items():
            _known(f"sources.{source}.scores", config.scores, self.scorers, "scorers")
        self._annotations_fit()
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
        if self.pretrain and not self.model:
            raise ValueError("pretrain needs a `model`")
        if self.model:
            self.model.config(128, self.sequence_length)  # raises where the sizes do not fit each other
        self._batch_fits()
        if "all" in self.sources:
            raise ValueError("sources.all: the evaluation calls the sum over all sources so; give it another name")
        for name in self.mixes:
            if name.startswith(MICRO):
                raise ValueError(f"mixes.{name}: the mixes of micro-anneals are called so; give it another name")
        if "pretrained" in self.micro_anneals:
            raise ValueError("micro_anneals.pretrained: the baseline is called so; give it another name")
        if (self.anneal or self.micro_anneals) and not self.pretrain:
            raise ValueError("anneal and micro_anneals start from a pretrained checkpoint: add `pretrain`")
        return self

    def annotation_of(self, scorer: str) -> str | None:
        """The annotation that a scorer is trained on."""
        annotation = getattr(self.scorers[scorer].train, "annotation", None)
        return annotation.name if annotation is not None else None

    def annotated_for(self, source: str) -> list[str]:
        """The sources whose annotated documents train a scorer of this source."""
        names = [self.annotation_of(scorer) for scorer in self.sources[source].scores]
        return [self.annotations[name].source for name in names if name is not None]

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

    def _batch_fits(self) -> None:
        if self.pretrain is None:
            return
        at_once = self.where.launcher.processes * self.pretrain.micro_batch_instances
        if self.pretrain.global_batch_instances % at_once:
            raise ValueError(
                f"pretrain.global_batch_instances is {self.pretrain.global_batch_instances}, not a multiple of {at_once} "
                "(where.launcher.processes x pretrain.micro_batch_instances)"
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
    raw = read(path)
    for override in overrides or []:
        _override(raw, override)
    try:
        return Recipe.model_validate(_filled(raw, str(path)))
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first fault of a recipe as one sentence: its key, what is wrong, and what was perhaps meant."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "tagged-union"))]
    key = ".".join(parts) or "the recipe"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(parts[-1], _all_keys(Recipe), n=1)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; remove it") + more
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{more}" if parts else f"{message}{more}"


def _all_keys(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    keys = set(schema.get("properties", {}))
    for definition in schema.get("$defs", {}).values():
        keys |= set(definition.get("properties", {}))
    return sorted(keys)


def _override(raw: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {text}: write it as a.b=value")
    *path, last = key.split(".")
    place: Any = raw
    for part in path:
        place = _step_into(place, part, text)
    if isinstance(place, list):
        if not last.isdigit() or int(last) >= len(place):
            raise RecipeError(f"--set {text}: {key} counts into a list of {len(place)}; use a number from 0 to {len(place) - 1}")
        place[int(last)] = _parsed(value, text)
    else:
        place[last] = _parsed(value, text)


def _parsed(value: str, text: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: {value!r} is not valid YAML") from error


def _step_into(place: Any, part: str, text: str) -> Any:
    if isinstance(place, list):
        if part.isdigit() and int(part) < len(place):
            return place[int(part)]
    elif isinstance(place, dict):
        found = place.setdefault(part, {})
        if isinstance(found, dict | list):
            return found
    raise RecipeError(f"--set {text}: the recipe has nothing under {part} to set a key in")


VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _filled(value: Any, path: str) -> Any:
    """Environment variables filled in, in every string of a recipe."""
    if isinstance(value, dict):
        return {key: _filled(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found and match[2] is not None:  # as in a shell, `:-` also stands for an empty variable
            found = match[2]
        if found is None:
            raise RecipeError(
                f"{path}: the environment variable {match[1]} is not set; set it, or write ${{{match[1]}:-default}} in the recipe"
            )
        return found

    return VARIABLE.sub(fill, value)
