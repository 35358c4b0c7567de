"""The trainer's configuration: plain dataclasses, loaded strictly from YAML or JSON.

No torch here, so that a CLI or a form opens at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from olmo_model.config import ModelConfig
from trainer.errors import TrainerError
from trainer.parsing import dotted, parse, read_yaml, to_dict

# A restart in the same run folder may change these: they say where and how fast, not what is trained.
_FREE_ON_RESTART = (
    "run_folder",
    "checkpoint",
    "device",
    "threads",
    "micro_batch_instances",
    "data.mix",
    "data.files",
    "init_from",
    "parallel",
    "metrics",
    "held_out",
    "profile",
)


@dataclass(frozen=True)
class DataConfig:
    """Where the instances come from.

    Attributes:
        mix: folder of a compiled mix.
        files: path of a JSON list with the mix's token files in the mix's order; None: they lie beside the mix.
        seed: order of the instances.
        mask_repetitions: mask the loss of instances that repeat an n-gram of 1 to 13 tokens 32 or more times (report, section 3.1).
    """

    mix: str
    seed: int
    files: str | None = None
    mask_repetitions: bool = True


@dataclass(frozen=True)
class SkipStepConfig:
    """Leave out the update of a step whose loss or gradient norm is over the mean of the last `window` steps by more than `sigmas`
    standard deviations, as OLMo 2 32B did. Until so many steps are done none is left out."""

    window: int = 128
    sigmas: float = 6.0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (report, sections 2.3 and 3.4). `learning_rate` is the peak; an anneal takes its rate from the checkpoint instead.
    `decay_embeddings`: decay the input embedding too, as OLMo-0424 did."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    z_loss: float = 1e-5
    max_grad_norm: float = 1.0
    skip_step: SkipStepConfig | None = None


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps.

    Attributes:
        kind: `cosine` from the peak to `final_fraction` of it, or `linear_to_zero` (an anneal).
        warmup_steps: linear warm-up from 0, for `cosine` only.
        decay_steps: step at which the cosine would end, warm-up included; the run may end before (report: 5e12 tokens, truncated).
            None: `max_steps`.
        final_fraction: share of the peak at which the cosine ends.
    """

    kind: Literal["cosine", "linear_to_zero"]
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_fraction: float = 0.1


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves, and what of it stays; the last step is saved in any case.

    Attributes:
        every_steps: steps between checkpoints; None: only the permanent ones and the last.
        keep: older checkpoints that stay beside the newest, permanent ones not counted; None: all.
        permanent_every_steps: steps between checkpoints that are saved too and never removed; None: there are none.
    """

    every_steps: int | None = None
    keep: int | None = None
    permanent_every_steps: int | None = None

    def due(self, step: int) -> bool:
        """Whether the run saves after `step`."""
        return any(every and step % every == 0 for every in (self.every_steps, self.permanent_every_steps))


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the model, and what they trade for memory. The loss stays the same but for rounding.

    Attributes:
        replicas: copies of the model; the ranks of a copy share its weights (FSDP), copies share only gradients (HSDP). As a rule a copy
            is a node or a few: ranks that follow each other belong to one copy.
        activation_checkpointing: what the backward pass computes again instead of keeping it: `none`; `selected`, all of a layer but
            its matrix products and attention; `full`, whole layers.
        accumulate: gradients of a step's micro-batches. `whole`: a rank adds them up and reduces once, which takes 4 bytes a parameter (and
            2 to 4 for weights that stay between micro-batches); `sharded`: reduced after each micro-batch, for models too large for that.
        compile: torch.compile for each layer and for the loss; needs a C++ compiler on a CPU.
    """

    replicas: int = 1
    activation_checkpointing: Literal["none", "selected", "full"] = "none"
    accumulate: Literal["whole", "sharded"] = "whole"
    compile: bool = False


@dataclass(frozen=True)
class WandbConfig:
    """A run of Weights & Biases. `mode` offline: written under the run folder only, to be sent later by `wandb sync`."""

    project: str
    name: str | None = None
    mode: Literal["online", "offline"] = "online"


@dataclass(frozen=True)
class EnergyConfig:
    """The data centre, for CO2 and water from the GPUs' energy (report, section 6.5)."""

    power_usage_effectiveness: float
    carbon_kg_per_kwh: float
    water_offsite_litres_per_kwh: float
    water_onsite_litres_per_kwh: float = 0.0


@dataclass(frozen=True)
class MetricsConfig:
    """What is written about the steps beside `metrics.jsonl`, and how often.

    Attributes:
        every_steps: steps whose numbers leave the device together; None: 1 on a CPU, 10 on a GPU. Each step has its line either way.
        embedding_norm_every_steps: steps between two looks at the norm of the input embeddings.
        ranks_every_steps: steps between two lines that tell of each rank by itself, or the least that leave the device together.
        tensorboard: write TensorBoard's files to `tensorboard/` in the run folder too; needs the extra `tensorboard`.
        wandb: send it to Weights & Biases too, or keep it for them; needs the extra `wandb`.
        energy: the data centre, for CO2 and water in `done.json`; the GPUs' energy itself needs the extra `gpu`.
    """

    every_steps: int | None = None
    embedding_norm_every_steps: int = 100
    ranks_every_steps: int = 100
    tensorboard: bool = False
    wandb: WandbConfig | None = None
    energy: EnergyConfig | None = None


@dataclass(frozen=True)
class HeldOutMix:
    """A compiled mix of held-out documents; `files` as in `DataConfig.files`."""

    mix: str
    files: str | None = None


@dataclass(frozen=True)
class HeldOutConfig:
    """Loss and bits per byte on held-out text, every `every_steps` steps and after the last. `sources`: a mix each, by name.

    `answers`: folders of gold answers (`trainer.answers`) by task, whose bits per byte are told beside.
    """

    every_steps: int
    sources: dict[str, HeldOutMix]
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProfileConfig:
    """Trace `steps` steps from `first_step` (counted from 1) on, on rank 0, to `profile/` in the run folder."""

    first_step: int
    steps: int = 3


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        sequence_length: tokens an instance; must be the mix's.
        global_batch_instances: instances a step, over all ranks.
        micro_batch_instances: instances that one rank puts through the model at once.
        max_steps: steps of the run; None: one epoch of the mix.
        init_from: folder of a training checkpoint whose weights, optimizer state and learning rate an anneal starts from; its data order is
            its own. Needs `schedule.kind: linear_to_zero`.
        seed: of the initial weights.
        run_folder: what the run writes; all ranks must see it. A run that finds checkpoints there goes on from the newest whole one.
        precision: of the matrix products; master weights, optimizer and reductions are fp32 either way.
        loss: `chunked` never holds all logits; `plain` does, and leaves everything to torch's own functions and autograd: for small models
            only, to compare the two (report, section 3.3.3 and Figure 8).
        threads: CPU threads a rank; None: torch's own choice.
        deterministic: refuse operations whose result may differ from run to run.
        held_out: score the model on held-out text while it is trained.
        profile: trace some steps.
    """

    model: ModelConfig
    data: DataConfig
    sequence_length: int
    global_batch_instances: int
    micro_batch_instances: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    seed: int
    run_folder: str
    max_steps: int | None = None
    init_from: str | None = None
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    held_out: HeldOutConfig | None = None
    profile: ProfileConfig | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "bf16"
    loss: Literal["chunked", "plain"] = "chunked"
    threads: int | None = None
    deterministic: bool = False


def load_config(path: str | Path) -> TrainConfig:
    """Read and check a run's config file (YAML or JSON). Raises TrainerError naming the file and the key at fault."""
    return checked(read_yaml(path), str(path))


def checked(data: Any, source: str) -> TrainConfig:
    """A run's config from a mapping. Raises TrainerError naming `source` and the key at fault."""
    config = parse(TrainConfig, data, source)
    _check(config, source)
    return config


def difference_on_restart(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first dotted key in which two runs' configs differ and that a restart must not change; None where there is none.

    A setting that came after the old run began has its default there.
    """
    flat_old, flat_new = _flatten(to_dict(parse(TrainConfig, old, "the run's config.json"))), _flatten(new)
    for key in sorted(flat_old.keys() | flat_new.keys()):
        free = any(key == each or key.startswith(each + ".") for each in _FREE_ON_RESTART)
        if not free and flat_old.get(key) != flat_new.get(key):
            return key
    return None


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat |= _flatten(value, dotted(prefix, name))
        else:
            flat[dotted(prefix, name)] = list(value) if isinstance(value, tuple) else value
    return flat


def _check(config: TrainConfig, source: str) -> None:
    """What types alone do not say."""

    def need(holds: bool, message: str) -> None:
        if not holds:
            raise TrainerError(f"{source}: {message}")

    schedule, optimizer, checkpoint = config.schedule, config.optimizer, config.checkpoint
    for key, value in {
        "global_batch_instances": config.global_batch_instances,
        "micro_batch_instances": config.micro_batch_instances,
        "max_steps": config.max_steps,
        "threads": config.threads,
        "schedule.decay_steps": schedule.decay_steps,
        "checkpoint.every_steps": checkpoint.every_steps,
        "parallel.replicas": config.parallel.replicas,
        "checkpoint.permanent_every_steps": checkpoint.permanent_every_steps,
        "metrics.every_steps": config.metrics.every_steps,
        "metrics.embedding_norm_every_steps": config.metrics.embedding_norm_every_steps,
        "metrics.ranks_every_steps": config.metrics.ranks_every_steps,
        "held_out.every_steps": config.held_out.every_steps if config.held_out else None,
        "profile.first_step": config.profile.first_step if config.profile else None,
        "profile.steps": config.profile.steps if config.profile else None,
    }.items():
        need(value is None or value >= 1, f"{key} is {value}; give 1 or more.")
    for key, whole in {
        "data.seed": config.data.seed,
        "seed": config.seed,
        "schedule.warmup_steps": schedule.warmup_steps,
        "checkpoint.keep": checkpoint.keep,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.z_loss": optimizer.z_loss,
    }.items():
        need(whole is None or whole >= 0, f"{key} is {whole}; give 0 or more.")
    for key, number in {"learning_rate": optimizer.learning_rate, "eps": optimizer.eps, "max_grad_norm": optimizer.max_grad_norm}.items():
        need(number > 0, f"optimizer.{key} is {number}; give a number above 0.")
    need(all(0 <= beta < 1 for beta in optimizer.betas), f"optimizer.betas is {list(optimizer.betas)}; give two numbers from 0 to below 1.")
    need(0 <= schedule.final_fraction <= 1, f"schedule.final_fraction is {schedule.final_fraction}; give a number from 0 to 1.")
    if optimizer.skip_step:
        need(optimizer.skip_step.window >= 2, f"optimizer.skip_step.window is {optimizer.skip_step.window}; give 2 or more.")
        need(optimizer.skip_step.sigmas > 0, f"optimizer.skip_step.sigmas is {optimizer.skip_step.sigmas}; give a number above 0.")
    if config.held_out:
        sources = config.held_out.sources
        need(bool(sources or config.held_out.answers), "held_out.sources is empty; name a source, or leave held_out out.")
        need("all" not in sources, 'held_out.sources: "all" is the name of the sum over sources; name this source otherwise.')
    need(config.sequence_length >= 2, f"sequence_length is {config.sequence_length}; give 2 or more.")
    need(
        config.sequence_length <= config.model.max_sequence_length,
        f"sequence_length {config.sequence_length} is over model.max_sequence_length {config.model.max_sequence_length}; lower the one or "
        "raise the other.",
    )
    annealed = schedule.kind == "linear_to_zero"
    need(not (annealed and schedule.warmup_steps), "schedule.warmup_steps does not go with kind linear_to_zero; leave it out.")
    need(not (annealed and schedule.decay_steps), "schedule.decay_steps does not go with kind linear_to_zero; set max_steps.")
    need(annealed or config.init_from is None, "init_from goes with schedule.kind linear_to_zero only; change one of them.")
    need(
        schedule.decay_steps is None or schedule.decay_steps > schedule.warmup_steps,
        f"schedule.decay_steps {schedule.decay_steps} must be more than schedule.warmup_steps {schedule.warmup_steps}.",
    )
