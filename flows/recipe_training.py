"""What a recipe says of its mixes and of the runs over them: the model, pretraining, micro-anneals, anneals and evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from flows.section import Section
from flows.section import at as _at
from olmo_model.config import ABLATIONS, PRESETS, ModelConfig
from tasks.downstream import TaskFiles
from tasks.mix_plan import MixSource, MixSpec
from tasks.olmes.definitions import TASKS

MICRO = "micro-anneal "  # begins the names of micro-anneals' mixes and runs


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
    layer_norm: Literal["rms", "nonparametric"] = Field(
        default="rms",
        description="OLMo 2's RMSNorm, or OLMo-0424's LayerNorm without parameters (section 3.3.1).",
        json_schema_extra=_at(6),
    )
    layer_norm_applied_to: Literal["outputs", "inputs"] = Field(
        default="outputs",
        description="Norms after attention and MLP as in OLMo 2, or before them (section 3.3.2).",
        json_schema_extra=_at(7),
    )
    qkv_normalization: Literal["qk_norm", "clip", "none"] = Field(
        default="qk_norm", description="OLMo 2's QK-norm, or OLMo-0424's clipping to 8 (Table 3).", json_schema_extra=_at(8)
    )
    init: Literal["normal", "scaled"] = Field(
        default="normal", description="OLMo 2's initialisation, or OLMo-0424's by width and depth (section 3.2).", json_schema_extra=_at(9)
    )

    @model_validator(mode="after")
    def _preset_or_sizes(self) -> Model:
        sizes = [self.d_model, self.n_layers, self.n_heads, self.mlp_hidden]
        if (self.preset is None) == (None in sizes) or (self.preset is not None and any(size is not None for size in sizes)):
            raise ValueError("give either a preset or all of d_model, n_layers, n_heads and mlp_hidden")
        return self

    def config(self, vocab_size: int, sequence_length: int) -> ModelConfig:
        ablations = {name: getattr(self, name) for name in ABLATIONS}
        if self.preset is not None:
            preset = PRESETS[self.preset]
            return ModelConfig(
                **{
                    **dataclasses.asdict(preset),
                    **ablations,
                    "vocab_size": vocab_size,
                    "max_sequence_length": max(sequence_length, preset.max_sequence_length),
                }
            )
        assert self.d_model and self.n_layers and self.n_heads and self.mlp_hidden
        heads = self.n_kv_heads or self.n_heads
        return ModelConfig(
            self.d_model, self.n_layers, self.n_heads, heads, self.mlp_hidden, vocab_size, max_sequence_length=sequence_length, **ablations
        )


class SkipStep(Section):
    """Leave out updates after outliers, as OLMo 2 32B did."""

    window: int = Field(default=128, ge=2, description="Steps before it that a step is held against.", json_schema_extra=_at(0))
    sigmas: float = Field(
        default=6.0,
        gt=0,
        description="Standard deviations over their mean from which on a loss or gradient norm is an outlier.",
        json_schema_extra=_at(1),
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
    weight_decay: float = Field(
        default=0.1, ge=0, description="Of all weights but, unless decay_embeddings is set, the input embedding.", json_schema_extra=_at(9)
    )
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
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon; OLMo-0424 had 1e-5 (section 3.4.1).", json_schema_extra=_at(16))
    decay_embeddings: bool = Field(
        default=False, description="Decay the input embedding too, as OLMo-0424 did (section 3.4.2).", json_schema_extra=_at(17)
    )

    skip_step: SkipStep | None = Field(
        default=None, description="Leave out the update of a step that is an outlier; never where left empty.", json_schema_extra=_at(18)
    )

    def optimizer_ablations(self) -> dict[str, Any]:
        """Settings of AdamW in which this run is another than OLMo 2's; left out otherwise, so that older runs keep their keys."""
        own, defaults = self.model_dump(), type(self).model_fields
        return {name: own[name] for name in ("eps", "decay_embeddings", "skip_step") if own[name] != defaults[name].default}


class FurtherAnneals(Section):
    """Anneals over another mix whose checkpoints join the same soup, as the 13B's fourth (report, section 2.3)."""

    mix: str = Field(description="The mid-training mix.", json_schema_extra=_at(0))
    seeds: list[int] = Field(min_length=1, description="Data orders.", json_schema_extra=_at(1))
    steps: int | None = Field(default=None, ge=1, description="Steps; one epoch of the mix where left empty.", json_schema_extra=_at(2))


def mix_soup(mix: str) -> str:
    """What the soup of one mix's anneals is called."""
    return f"soup {mix}"


class AnnealRun(NamedTuple):
    """One anneal: what it is called, its mix, its data order, its steps (None: one epoch)."""

    name: str
    mix: str
    seed: int
    steps: int | None


class Soup(Section):
    """How the anneals' checkpoints become one: their plain mean as in the report, a weighted one, or a greedy one (Wortsman et al., 2022)."""

    kind: Literal["uniform", "weighted", "greedy"] = Field(
        default="uniform",
        description="greedy: from the best ingredient on, each next one joins where the mean gets better on held-out text.",
        json_schema_extra=_at(0),
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="weighted: each ingredient (`anneal SEED`, or `anneal MIX SEED` of a further mix); they sum to 1.",
        json_schema_extra=_at(1),
    )
    held_out: list[str] = Field(
        default=[], description="greedy: the sources whose held-out documents decide; all where left empty.", json_schema_extra=_at(2)
    )
    of_each_mix: bool = Field(
        default=False,
        description="Where there are further mixes, score the plain mean of each mix's own anneals too.",
        json_schema_extra=_at(3),
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Soup:
        if (self.kind == "weighted") != bool(self.weights):
            raise ValueError("weights are what `kind: weighted` needs, and no other kind has")
        if self.weights and abs(math.fsum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f"weights sum to {math.fsum(self.weights.values()):.6g}, not to 1: mend them")
        if self.held_out and self.kind != "greedy":
            raise ValueError("held_out is for `kind: greedy`: set that, or leave it out")
        return self


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
    soup: Soup = Field(default=Soup(), description="How their checkpoints are averaged.", json_schema_extra=_at(4))

    @model_validator(mode="after")
    def _distinct(self) -> Anneal:
        mixes = [self.mix, *(further.mix for further in self.further)]
        if len(set(mixes)) < len(mixes):
            raise ValueError(f"a mix stands twice in {mixes}: give all its seeds in one place")
        for seeds in (self.seeds, *(further.seeds for further in self.further)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"a seed stands twice in {seeds}: two equal ingredients add nothing to a soup")
        names = [run.name for run in self.runs()]
        if len(set(names)) < len(names):
            raise ValueError(f"two anneals would both be called {max(names, key=names.count)}: rename the mix")
        if self.soup.weights and set(self.soup.weights) != set(names):
            raise ValueError(
                f"soup.weights is for {', '.join(self.soup.weights)}, but the ingredients are {', '.join(names)}: give each one weight"
            )
        return self

    def runs(self) -> list[AnnealRun]:
        """Every anneal, in the order of the recipe; those of further mixes have the mix in their names."""
        first = [AnnealRun(f"anneal {seed}", self.mix, seed, self.steps) for seed in self.seeds]
        return first + [AnnealRun(f"anneal {more.mix} {seed}", more.mix, seed, more.steps) for more in self.further for seed in more.seeds]

    def by_mix(self) -> dict[str, list[str]]:
        """Names of the runs of each mix."""
        found: dict[str, list[str]] = {}
        for run in self.runs():
            found.setdefault(run.mix, []).append(run.name)
        return found


class MicroAnnealRun(NamedTuple):
    """One run of a micro-anneal: its label in tables, the micro-anneal's name, its data order."""

    label: str
    micro: str
    seed: int

    @property
    def name(self) -> str:
        return f"{MICRO}{self.label}"


class MicroAnneal(Section):
    """A source under test beside an equal share of the general mix, linear to zero (report, section 4.2.2)."""

    sources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="Sources under test with their repeat.", json_schema_extra=_at(0)
    )
    general: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="The general mix: sources with their weights.", json_schema_extra=_at(1)
    )
    general_share: float = Field(default=0.5, gt=0, lt=1, description="Share of the general mix.", json_schema_extra=_at(2))
    seed: int = Field(
        default=7201,
        description="Seed of the documents that a part of a source takes, and of the data order where `seeds` is left empty.",
        json_schema_extra=_at(3),
    )
    max_repeat: float = Field(default=1.0, gt=0, description="Copies of a general source at most.", json_schema_extra=_at(4))
    seeds: list[int] | None = Field(
        default=None,
        min_length=1,
        description="Data orders, a run each; their spread is the result's uncertainty.",
        json_schema_extra=_at(5),
    )
    tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens to train on, of the mix in its random order; one pass where left empty.",
        json_schema_extra=_at(6),
    )
    experiment: str = Field(default="", description="The heading that it stands under in tables.", json_schema_extra=_at(7))

    @model_validator(mode="after")
    def _distinct(self) -> MicroAnneal:
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a seed stands twice in {self.seeds}: two equal runs say nothing about the spread")
        return self

    def runs(self, name: str) -> list[MicroAnnealRun]:
        """A run for each seed; the seed is in the label where there are several."""
        seeds = self.seeds or [self.seed]
        return [MicroAnnealRun(name if len(seeds) == 1 else f"{name} {seed}", name, seed) for seed in seeds]

    def steps(self, batch_tokens: int) -> int | None:
        """Steps of a run; None: one pass over the mix."""
        return None if self.tokens is None else self.tokens // batch_tokens

    def spec(self, sequence_length: int) -> MixSpec:
        total = sum(self.general.values())
        shares = {
            name: MixSource(share=self.general_share * weight / total, max_repeat=self.max_repeat) for name, weight in self.general.items()
        }
        tested = {name: MixSource(repeat=repeat) for name, repeat in self.sources.items()}
        return MixSpec(seed=self.seed, sequence_length=sequence_length, sources={**tested, **shares})


class Decay(Section):
    """A linear decay to zero from each checkpoint of a learning-rate study."""

    steps: int = Field(ge=1, description="Steps.", json_schema_extra=_at(0))
    mix: str | None = Field(
        default=None, description="The mix to train on; that of pretraining where left empty.", json_schema_extra=_at(1)
    )
    seed: int = Field(default=42, description="Data order.", json_schema_extra=_at(2))


class RateRun(NamedTuple):
    """One run of a learning-rate study: its peak, and the name of its decay; None: the pretraining that decays start from."""

    peak: float
    decay: str | None

    @property
    def name(self) -> str:
        return f"peak {self.peak:g}" + (f" {self.decay}" if self.decay else "")


class LearningRates(Section):
    """Pretraining with several peak learning rates, each decayed to zero over several budgets (report, section 3.5)."""

    peaks: list[Annotated[float, Field(gt=0)]] = Field(min_length=2, description="Peak learning rates.", json_schema_extra=_at(0))
    decays: dict[str, Decay] = Field(min_length=1, description="Decays by name.", json_schema_extra=_at(1))
    steps: int | None = Field(
        default=None, ge=1, description="Steps of pretraining; pretrain.steps where left empty.", json_schema_extra=_at(2)
    )

    @model_validator(mode="after")
    def _distinct(self) -> LearningRates:
        names = [run.name for run in self.runs()]
        if len(set(names)) < len(names):
            raise ValueError(f"two runs would both be called {max(names, key=names.count)!r}: give each peak once, to 6 digits")
        return self

    def runs(self) -> list[RateRun]:
        """Peak by peak: its pretraining, then its decays."""
        return [RateRun(peak, decay) for peak in self.peaks for decay in (None, *self.decays)]


class Evaluation(Section):
    """Held-out loss and bits per byte by source, and scores on tasks."""

    batch_instances: int = Field(default=16, ge=1, description="Windows at once a rank.", json_schema_extra=_at(0))
    while_training_every: int | None = Field(
        default=None,
        ge=1,
        description="Score running trainings too, on held-out text and the tasks' gold answers, every so many steps; never where left empty.",
        json_schema_extra=_at(1),
    )
    tasks: dict[str, TaskFiles] = Field(
        default={}, description="Evaluation tasks (report, Table 20) by name, with their files.", json_schema_extra=_at(2)
    )

    @model_validator(mode="after")
    def _known_tasks(self) -> Evaluation:
        for name, files in self.tasks.items():
            if name not in TASKS:
                raise ValueError(f"tasks.{name}: there is no such task; there are {', '.join(TASKS)}")
            needed = TASKS[name].needs_shot_files and files.shots != 0
            if needed and not files.shot_paths:
                raise ValueError(f"tasks.{name}: shot_paths are needed: it has no shots of its own; or give `shots: 0`")
            if files.shot_paths and not needed:
                others = ", ".join(other for other, task in TASKS.items() if task.needs_shot_files)
                raise ValueError(f"tasks.{name}: shot_paths are for tasks that have no shots of their own: {others}")
        sizes = {self.tasks[name].instances for name in ("gsm_star", "gsm8k") if name in self.tasks}
        if len(sizes) > 1:
            raise ValueError("tasks.gsm8k: its instances are those that tasks.gsm_star leaves; give both the same `instances`")
        return self
