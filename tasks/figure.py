"""The report's Figures 3 to 10 again, small: what differs in one setting is trained on the same text, or measured at initialisation.

A run's folder is named after all that it depends on, so nothing is trained twice: not by a figure that was interrupted, and not by another
figure that has the same run in it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import correlation, fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from olmo_model.config import ModelConfig
from tasks.errors import RecipeError, UserError
from tasks.figure_mix import Text, plant_repetitions
from tasks.launch import LauncherConfig, launch
from tasks.progress import Progress, Watch
from tasks.train import RunProgress, locked
from trainer.config import TrainConfig, checked
from trainer.data import Mix, check_fit
from trainer.errors import TrainerError
from trainer.parsing import parse
from trainer.spikes import spike_score

SCORED = ("loss", "grad_norm")  # whose spike scores the report gives
MEASURED = ("activations", "gradients")
_MLP_PER_WIDTH = 11008 / 4096  # the 7B model's
_LAST = 20  # the last loss is the mean over a run's last twentieth: single batches differ too much

Tell = Callable[[str], None]


class Widths(BaseModel):
    """Models of several widths at initialisation (report, section 3.2). `model`: keys of the model's config that do not go by the width."""

    model_config = ConfigDict(extra="forbid")
    widths: list[int] = Field(min_length=2, description="d_model of each model.")
    head_dim: int = Field(default=32, ge=2, description="Width of an attention head.")
    documents: int = Field(default=50, ge=1, description="Instances put through each model; the report took 50 documents.")
    seed: int = Field(default=0, description="Seed of the weights and of the choice of instances.")
    model: dict[str, Any] = Field(description="Keys of the model's config but d_model, n_heads, n_kv_heads, mlp_hidden and vocab_size.")


class Figure(BaseModel):
    """One figure: `training` or `initialisation` is the base, each variant lays dotted keys over it."""

    model_config = ConfigDict(extra="forbid")
    figure: int = Field(ge=1, description="Its number in the report.")
    title: str = Field(description="What it is about.")
    reported: str = Field(description="What the report's figure shows.")
    variants: dict[str, dict[str, Any]] = Field(min_length=2, description="Name -> dotted keys of the base, with their values here.")
    training: dict[str, Any] | None = Field(
        default=None, description="The trainer's config but data.mix, data.files, model.vocab_size, sequence_length, run_folder and device."
    )
    curves: list[Literal["loss", "z_loss", "grad_norm", "embedding_norm"]] = Field(
        default=["grad_norm", "loss"], description="What is drawn over the steps."
    )
    repetitions: float = Field(default=0, ge=0, lt=1, description="Share of instances with a planted long repetition.")
    initialisation: Widths | None = Field(default=None, description="Models that are measured and not trained.")
    shows: Literal["exponents", "norms"] = Field(default="exponents", description="What is drawn of an initialisation.")
    launcher: LauncherConfig = Field(default=LauncherConfig(), description="Where it runs.")

    @model_validator(mode="after")
    def _one_base(self) -> Figure:
        if (self.training is None) == (self.initialisation is None):
            raise ValueError("give either training or initialisation")
        return self

    def train_configs(self, text: Text, source: str) -> dict[str, TrainConfig]:
        """Each variant's training config but for its run_folder. Raises RecipeError, with the variant's name, for one that cannot be."""
        assert self.training is not None
        length = text.header["sequence_length"]
        given = {
            "data.mix": str(text.folder),
            "data.files": str(text.files),
            "model.vocab_size": text.header["vocab_size"],
            "model.max_sequence_length": length,
            "sequence_length": length,
            "run_folder": "",
            "device": self.launcher.device,
            "threads": self.launcher.threads_per_rank,
        }
        configs = {}
        for name, changes in self.variants.items():
            of = f"{source}: variant {name}"
            with _as_recipe_errors():
                configs[name] = checked(_with(self.training, {**given, **changes}, of), of)
        return configs

    def models(self, text: Text, source: str) -> dict[str, dict[int, ModelConfig]]:
        """Each variant's models by width. Raises RecipeError, with the variant's name, for one that cannot be."""
        assert self.initialisation is not None
        models: dict[str, dict[int, ModelConfig]] = {}
        for name, changes in self.variants.items():
            of = f"{source}: variant {name}"
            for width in self.initialisation.widths:
                heads = max(1, width // self.initialisation.head_dim)
                sizes = {"d_model": width, "n_heads": heads, "n_kv_heads": heads, "mlp_hidden": round(width * _MLP_PER_WIDTH / 16) * 16}
                whole = _with({**self.initialisation.model, **sizes, "vocab_size": text.header["vocab_size"]}, changes, of)
                with _as_recipe_errors():
                    models.setdefault(name, {})[width] = parse(ModelConfig, whole, of)
        return models


def replay(figure: Figure, text: Text, folder: Path, source: str, tell: Tell, watch: Watch) -> dict[str, Any]:
    """Train or measure every variant that `folder` does not hold yet. Returns the figure's content as JSON-ready data.

    Raises RecipeError before anything runs where a variant cannot be, UserError where a run fails. `tell` gets a line for each variant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if figure.repetitions:
        settings = [text.identity, figure.repetitions]
        text = plant_repetitions(text, figure.repetitions, 0, folder / "mixes" / _key(settings))
    about = {"figure": figure.figure, "title": figure.title, "reported": figure.reported.strip(), "mix": text.identity}
    if figure.training is not None:
        variants = _train(figure, text, folder, source, tell, watch)
        return {**about, "curves": figure.curves, "repetitions": figure.repetitions, "variants": variants}
    return {**about, "shows": figure.shows, "variants": _initialise(figure, text, folder, source, tell, watch)}


def metrics(run: Path) -> list[dict[str, Any]]:
    """A run's `metrics.jsonl`, a mapping for each step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _train(figure: Figure, text: Text, folder: Path, source: str, tell: Tell, watch: Watch) -> dict[str, Any]:
    results: dict[str, Any] = {}
    configs = figure.train_configs(text, source)
    with _as_recipe_errors():
        for config in configs.values():
            check_fit(Mix(text.folder, text.files), config, figure.launcher.ranks)
    for name, config in configs.items():
        run = folder / "runs" / _key([_what(config), text.identity])
        run.mkdir(parents=True, exist_ok=True)
        with locked(run, f"figure {figure.figure}: {name}"):
            if not (run / "done.json").exists() and not _diverged(run):
                steps = config.max_steps or text.header["instances"] // config.global_batch_instances
                progress = RunProgress(run / "metrics.jsonl", name, steps, watch)
                try:
                    launch("trainer", {**asdict(config), "run_folder": str(run)}, run, figure.launcher, progress)
                except UserError:
                    if not _diverged(run):
                        raise
        lines = metrics(run)
        scores = {metric: spike_score(line[metric] for line in lines) for metric in SCORED}
        results[name] = result = {
            "changes": figure.variants[name],
            "run": str(run.relative_to(folder)),
            "steps": len(lines),
            "diverged": _diverged(run),
            "last_loss": fmean(line["loss"] for line in lines[-max(1, len(lines) // _LAST) :]),
            "spike_scores": scores,
        }
        told = ", ".join(f"{metric.replace('_', ' ')} {score:.3f}" for metric, score in scores.items())
        end = " until it diverged" if result["diverged"] else ""
        tell(f"{name:<32}  {len(lines):,} steps{end}, last loss {result['last_loss']:.3f}, spike score in percent: {told}")
    return results


def _diverged(run: Path) -> bool:
    """Whether a run ended with a loss or gradient norm that is no number: the trainer then writes the batch. For a figure that is a result."""
    return (run / "bad-batches").exists() and (run / "metrics.jsonl").stat().st_size > 0


def _initialise(figure: Figure, text: Text, folder: Path, source: str, tell: Tell, watch: Watch) -> dict[str, Any]:
    assert figure.initialisation is not None
    widths = figure.initialisation.widths
    models = figure.models(text, source)
    flat = {_key(asdict(model)): asdict(model) for by_width in models.values() for model in by_width.values()}
    settings = {
        "documents": figure.initialisation.documents,
        "seed": figure.initialisation.seed,
        "mix": str(text.folder),
        "files": str(text.files),
    }
    run = folder / "runs" / _key([settings["documents"], settings["seed"], text.identity])
    run.mkdir(parents=True, exist_ok=True)
    output = run / "growth.json"

    def progress() -> None:
        done = len(flat.keys() & _read(output).keys())
        watch(Progress("growth", f"figure {figure.figure}", done, len(flat), "models", done / len(flat), 0.0))

    with locked(run, f"figure {figure.figure}"):
        if flat.keys() - _read(output).keys():
            launcher = figure.launcher.alone()
            places = {"output": str(output), "device": launcher.device, "threads": launcher.threads_per_rank}
            launch("trainer.growth", {"models": flat, **settings, **places}, run, launcher, progress)
    found = _read(output)
    results: dict[str, Any] = {}
    for name, by_width in models.items():
        measured = {str(width): found[_key(asdict(model))] for width, model in by_width.items()}
        roots = [width**0.5 for width in widths]
        correlations = {kind: correlation(roots, [measured[str(width)][kind]["last"] for width in widths]) for kind in MEASURED}
        results[name] = {"changes": figure.variants[name], "widths": measured, "correlation_with_root_width": correlations}
        exponents = ", ".join(
            f"{measured[str(w)]['activations']['exponent']:+.3f}/{measured[str(w)]['gradients']['exponent']:+.3f}" for w in widths
        )
        tell(f"{name:<32}  growth exponents of activations/gradients at widths {', '.join(map(str, widths))}: {exponents}")
    return results


def _key(depends_on: Any) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]


def _what(config: TrainConfig) -> dict[str, Any]:
    """What of a run's config can change its curves."""
    flat = asdict(config)
    for where in ("run_folder", "device", "threads", "checkpoint", "init_from"):
        del flat[where]
    return {**flat, "data": {name: value for name, value in flat["data"].items() if name not in ("mix", "files")}}


def _with(base: dict[str, Any], changes: dict[str, Any], source: str) -> dict[str, Any]:
    """A copy of a config in which dotted keys have other values."""
    changed = copy.deepcopy(base)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        place = changed
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise RecipeError(f"{source}: there is nothing under {part} to set {dotted} in; correct the key")
        place[last] = value
    return changed


@contextmanager
def _as_recipe_errors() -> Iterator[None]:
    """The trainer's sentence about a config as one about the figure's file."""
    try:
        yield
    except TrainerError as error:
        raise RecipeError(str(error)) from None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
