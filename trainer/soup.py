"""A checkpoint soup: the mean of several checkpoints' weights (report, section 4.5). `python -m trainer.soup CONFIG.yaml`.

Reads one tensor of each ingredient at a time, so that a soup of any size needs little memory and no GPU.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from olmo_model.config import ModelConfig
from olmo_model.shards import check_tensors, write_tensors
from trainer.checkpoint import MARKER, fault_in, load_model_tensors, write_json, write_marker
from trainer.config import parse, read_yaml, to_dict
from trainer.errors import TrainerError


@dataclass(frozen=True)
class SoupConfig:
    """What to mix.

    Attributes:
        ingredients: folders of training checkpoints, or of other soups.
        output: folder of the soup: safetensors files, `config.json`, and last the marker `checkpoint.json`.
        weights: one number an ingredient, divided by their sum; None: the plain mean, as in the report.
    """

    ingredients: list[str]
    output: str
    weights: list[float] | None = None


def make_soup(config: SoupConfig) -> None:
    """Write the mean of the ingredients as a weights-only fp32 checkpoint; what the output folder held of an earlier soup is replaced.

    Sums are fp64, rounded once to fp32. Raises TrainerError naming the ingredient that is missing, damaged or of another shape.
    """
    weights = _weights(config)
    folder = Path(config.output)
    if folder.resolve() in [Path(each).resolve() for each in config.ingredients]:
        raise TrainerError(f"output {config.output} is one of the ingredients; give another folder.")
    model = _common_model(config.ingredients)
    for each in config.ingredients:
        if fault := fault_in(Path(each)):
            raise TrainerError(f"ingredient {each} is no whole checkpoint: {fault}; give another one.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    streams = [checked_tensors(load_model_tensors(each), model, each) for each in config.ingredients]
    write_tensors(_mean(streams, weights), folder)
    write_json(folder / "config.json", {"model": to_dict(model), "soup": {"ingredients": config.ingredients, "weights": weights}})
    write_marker(folder)


def read_model_config(folder: str | Path) -> ModelConfig:
    """The model's sizes from the `config.json` of a training checkpoint or a soup. Raises TrainerError where there is none."""
    path = Path(folder) / "config.json"
    content = read_yaml(path)
    if not isinstance(content, dict) or "model" not in content:
        raise TrainerError(f"{path} names no model; give the folder of a training checkpoint or of a soup.")
    return parse(ModelConfig, content["model"], str(path), "model")


def checked_tensors(tensors: Iterable[tuple[str, Tensor]], model: ModelConfig, folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Passes a checkpoint's tensors on; TrainerError naming the folder where they are not exactly the model's."""
    try:
        yield from check_tensors(tensors, model)
    except ValueError as error:
        raise TrainerError(f"checkpoint {folder}: {error}; take a whole checkpoint of the same model.") from None


def _weights(config: SoupConfig) -> list[float]:
    if not config.ingredients:
        raise TrainerError("ingredients is empty; give one checkpoint folder or more.")
    if config.weights is None:
        return [1.0] * len(config.ingredients)
    if len(config.weights) != len(config.ingredients):
        raise TrainerError(f"weights has {len(config.weights)} numbers for {len(config.ingredients)} ingredients; give one each.")
    if not math.fsum(config.weights) > 0:
        raise TrainerError(f"the sum of weights is {math.fsum(config.weights)}; give numbers whose sum is above 0.")
    return config.weights


def _common_model(ingredients: list[str]) -> ModelConfig:
    models = {each: read_model_config(each) for each in ingredients}
    first, *others = ingredients
    for other in others:
        if models[other] != models[first]:
            raise TrainerError(f"ingredients {first} and {other} are models of different sizes; a soup needs checkpoints of one model.")
    return models[first]


def _mean(streams: list[Iterator[tuple[str, Tensor]]], weights: list[float]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor's weighted mean. The streams hold the same names (they are checked) and are sorted by name, so they go in step."""
    total = math.fsum(weights)
    for (name, first), *others in zip(*streams, strict=True):
        mean = first.double().mul_(weights[0])
        for (_, tensor), weight in zip(others, weights[1:], strict=True):
            mean.add_(tensor, alpha=weight)
        yield name, mean.div_(total).float()


def main(arguments: list[str]) -> int:
    """Run from the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    if len(arguments) != 1:
        print("usage: python -m trainer.soup CONFIG.yaml", file=sys.stderr)
        return 2
    try:
        make_soup(parse(SoupConfig, read_yaml(arguments[0]), arguments[0]))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
