"""A checkpoint soup: the mean of several checkpoints' weights (report, section 4.5). `python -m trainer.soup CONFIG.yaml`.

Goes through the weights in blocks, so that a soup of any size and of any number of ingredients needs little memory and no GPU.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from olmo_model.config import ModelConfig
from olmo_model.shards import MAX_SHARD_BYTES, check_tensors
from trainer.checkpoint import MARKER, fault_in, model_index, read_model_config, write_json, write_marker
from trainer.errors import TrainerError
from trainer.parsing import parse, read_yaml, to_dict
from trainer.tensorfiles import INDEX, Index, Part, bytes_of, header, make_index, write_all

_BLOCK_ELEMENTS = 1 << 19  # as fp64 and fp32, within a processor's cache


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
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        _check_whole(config.ingredients, pool, threads)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).unlink(missing_ok=True)
        for old in folder.glob("model*.safetensors*"):
            old.unlink()
        indexes = [_checked_index(each, model) for each in config.ingredients]
        parts = [Part(name, torch.float32, shape) for name, shape in sorted(model.parameter_shapes().items())]
        written = _write(folder, parts, indexes, weights, pool, threads)
    write_json(folder / "config.json", {"model": to_dict(model), "soup": {"ingredients": config.ingredients, "weights": weights}})
    write_marker(folder, written)


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


def _check_whole(ingredients: list[str], pool: ThreadPoolExecutor, threads: int) -> None:
    """Compare every file of the ingredients with its checksum; a thread takes a share of an ingredient's files."""
    shares = list(itertools.product(ingredients, range(threads)))
    faults = pool.map(lambda share: fault_in(Path(share[0]), share[1], threads), shares)
    for (each, _), fault in zip(shares, faults, strict=True):
        if fault:
            raise TrainerError(f"ingredient {each} is no whole checkpoint: {fault}; give another one.")


def _checked_index(folder: str, model: ModelConfig) -> Index:
    """Where an ingredient's tensors lie; TrainerError where its weights are not exactly the model's."""
    index = model_index(Path(folder))
    stored = {name: each for name, each in index.tensors.items() if not name.startswith("optimizer.")}
    for _ in checked_tensors(
        ((name, torch.empty(each.shape, dtype=each.dtype, device="meta")) for name, each in stored.items()), model, folder
    ):
        pass
    return index


def _write(
    folder: Path, parts: list[Part], indexes: list[Index], weights: list[float], pool: ThreadPoolExecutor, threads: int
) -> dict[str, dict[str, Any]]:
    """Write the mean as safetensors files of at most `MAX_SHARD_BYTES` and their index; returns the files' entries in the marker."""
    groups: list[list[Part]] = []
    for part in parts:
        if not groups or sum(each.bytes for each in groups[-1]) + part.bytes > MAX_SHARD_BYTES:
            groups.append([])
        groups[-1].append(part)
    files = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    entries, table = {}, []
    numbers = itertools.count()
    for file, (name, group) in enumerate(zip(files, groups, strict=True)):
        head, digest = header(group), hashlib.sha256()
        size = len(head)
        for part in group:
            table.append((next(numbers), file, size, 0, part.elements))
            size += part.bytes
        blocks = _in_order((pool.submit(_mean, indexes, weights, *block) for block in _blocks(group)), threads + 1)
        with (folder / name).open("wb", buffering=0) as stream:
            for content in itertools.chain([memoryview(head)], map(bytes_of, blocks)):
                write_all(stream, content)
                digest.update(content)
            os.fsync(stream.fileno())
        entries[name] = {"bytes": size, "sha256": digest.hexdigest()}
    known = {part.name: (part.dtype, part.shape) for part in parts}
    (folder / INDEX).write_bytes(make_index(Path(), files, known, np.array(table, np.int64)).encode())
    return entries


def _blocks(parts: list[Part]) -> Iterator[tuple[str, int, int]]:
    """(tensor, first element, elements)."""
    for part in parts:
        for start in range(0, part.elements, _BLOCK_ELEMENTS):
            yield part.name, start, min(_BLOCK_ELEMENTS, part.elements - start)


def _in_order(work: Iterator[Future[Tensor]], ahead: int) -> Iterator[Tensor]:
    """Results in the order of the work, of which no more than `ahead` pieces are begun or held."""
    begun: deque[Future[Tensor]] = deque()
    for each in work:
        begun.append(each)
        if len(begun) == ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _mean(indexes: list[Index], weights: list[float], name: str, start: int, count: int) -> Tensor:
    """The weighted mean of a block of a tensor: summed in fp64, rounded once to fp32."""
    mean = torch.full((count,), -0.0, dtype=torch.float64)  # adding to -0 keeps every bit, a zero's sign too
    for index, weight in zip(indexes, weights, strict=True):
        block = torch.empty(count, dtype=index.tensors[name].dtype)
        index.read([(name, start, block)])
        mean.add_(block, alpha=weight)
    return mean.div_(math.fsum(weights)).float()


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
