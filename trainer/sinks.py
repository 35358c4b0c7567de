"""Where a run's metrics go: `metrics.jsonl` always, TensorBoard and Weights & Biases where the config asks for them. On rank 0 only."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from trainer.config import MetricsConfig, WandbConfig
from trainer.errors import TrainerError

NAME = "metrics.jsonl"


class Sink(Protocol):
    """Takes the steps' lines in order."""

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Each line holds `step`, `tokens` and numbers by flat name; a list has a number a rank, or None where there is none."""

    def close(self) -> None:
        """Nothing comes after it."""


class JsonLines:
    """`metrics.jsonl` in the run folder, one object a step, in order and without a gap."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / NAME).open("a", encoding="utf-8")

    def write(self, lines: list[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard's event files under `tensorboard/` in the run folder; a run that goes on takes back what it trains again."""

    def __init__(self, folder: Path, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps + 1)

    def write(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            for name, value in flat(line).items():
                if name != "step":
                    self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, its id made of the run folder's path, so that a run that goes on is the same run there."""

    def __init__(self, folder: Path, wandb_config: WandbConfig, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=wandb_config.project,
            name=wandb_config.name or folder.name,
            id=hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16],
            dir=str(folder),
            mode=wandb_config.mode,
            resume="allow",
            config=config,
        )
        # Its own count never goes back, ours does where a run goes on from a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            self._run.log(flat(line))

    def close(self) -> None:
        self._run.finish()


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """A line for a sink that takes numbers only: `rank_gpu_celsius/3` for what the list `rank_gpu_celsius` has of rank 3."""
    numbers = {name: value for name, value in line.items() if not isinstance(value, list)}
    for name, values in line.items():
        if isinstance(values, list):
            numbers |= {f"{name}/{rank}": value for rank, value in enumerate(values) if value is not None}
    return numbers


def check_extras(metrics: MetricsConfig) -> None:
    """TrainerError where a sink is asked for whose extra is not installed."""
    for name, asked_for in {"tensorboard": metrics.tensorboard, "wandb": metrics.wandb is not None}.items():
        if asked_for and importlib.util.find_spec(name) is None:
            raise TrainerError(f"metrics.{name} needs the extra `{name}`: pip install 'olmoflow[{name}]', or leave the key out.")


def open_sinks(folder: Path, steps: int, metrics: MetricsConfig, config: dict[str, Any]) -> list[Sink]:
    """The sinks for the steps after the first `steps`; `config`: the whole run's, as JSON."""
    sinks: list[Sink] = [JsonLines(folder)]
    if metrics.tensorboard:
        sinks.append(TensorBoard(folder, steps))
    if metrics.wandb:
        sinks.append(WeightsAndBiases(folder, metrics.wandb, config))
    return sinks


def cut_back(folder: Path, steps: int) -> None:
    """Cut `metrics.jsonl` back to its first `steps` lines; before the sinks are opened.

    A line beyond the checkpoint that a run goes on from, or one that a kill cut short, is trained again.
    """
    path = folder / NAME
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as kept:
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                kept.writelines(itertools.islice(lines, steps))
    partial.replace(path)


def written(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    with (folder / NAME).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)
