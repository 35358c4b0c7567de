"""How well checkpoints predict held-out text, source by source: `[torchrun -m | python -m] trainer.evaluate CONFIG.yaml`.

The ranks share the windows of a source; each holds the whole model.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from olmo_model.config import ModelConfig
from olmo_model.model import Olmo2
from trainer import parallel
from trainer.checkpoint import fault_in, load_model_tensors, read_model_config, tokenizer_of, write_json
from trainer.config import HeldOutMix
from trainer.data import Mix, check_files, check_tokenizer
from trainer.errors import TrainerError
from trainer.parsing import parse, read_yaml
from trainer.process import die_with_torchrun
from trainer.soup import checked_tensors

_NOT_COUNTED = -100  # cross_entropy's own mark for a target to leave out


@dataclass(frozen=True)
class EvaluateConfig:
    """Which checkpoints to measure on which held-out text.

    Attributes:
        checkpoints: name -> folder of a training checkpoint or a soup.
        sources: name -> held-out mix.
        sequence_length: tokens a window; the training's own, as a rule.
        batch_instances: windows that one rank puts through the model at once.
        output: path of the JSON to write.
        precision: of the weights and the matrix products; losses are fp32, their sums fp64.
    """

    checkpoints: dict[str, str]
    sources: dict[str, HeldOutMix]
    sequence_length: int
    batch_instances: int
    output: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "bf16"
    threads: int | None = None


@dataclass(frozen=True)
class Score:
    """What a model needed to predict some text: `nats` in sum, over `tokens` counted targets that stand for `bytes` of UTF-8."""

    nats: float
    tokens: int
    bytes: int

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    def report(self) -> dict[str, float | int]:
        """Mean loss in nats a token, and bits a byte, which compares models of different tokenizers."""
        return {
            "loss": self.nats / self.tokens,
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


def evaluate(config: EvaluateConfig, world: parallel.World) -> dict[str, Any]:
    """Score every checkpoint on every source, and on all of them together ("all").

    Returns {"checkpoints": {name: {source: {"loss", "bits_per_byte", "tokens", "bytes"}}}}, the same on every rank. Every rank must call
    it. Raises TrainerError where a checkpoint or a mix is missing, or they do not fit together.
    """
    if "all" in config.sources:
        raise TrainerError('sources: "all" is the name of the sum over sources; name this source otherwise.')
    mixes = {name: Mix(source.mix, source.files) for name, source in config.sources.items()}
    for mix in mixes.values():
        check_files(mix, world)
    results = {}
    for checkpoint, folder in config.checkpoints.items():
        check_fit(folder, read_model_config(folder), mixes, config.sequence_length)
        faults = [fault for fault in world.gather(fault_in(Path(folder), world.rank, world.size)) if fault]
        if faults:
            raise TrainerError(f"checkpoint {folder} is not whole: {faults[0]}; give another one.")
        model = load_model(folder, world.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
        scores = {name: score(model, mix, config.sequence_length, config.batch_instances, world) for name, mix in mixes.items()}
        scores["all"] = sum(scores.values(), Score(0.0, 0, 0))
        results[checkpoint] = {name: each.report() for name, each in scores.items()}
        del model  # before the next one is loaded
    return {"checkpoints": results}


def load_model(folder: str | Path, device: torch.device, dtype: torch.dtype) -> Olmo2:
    """The model of a training checkpoint or a soup, whole on `device`. Raises TrainerError where tensors are missing."""
    config = read_model_config(folder)
    with torch.device("meta"):
        model = Olmo2(config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    parameters = dict(model.named_parameters())
    for name, tensor in checked_tensors(load_model_tensors(folder), config, folder):
        parameters[name].copy_(tensor)
    return model


@torch.no_grad()  # not inference_mode: what FSDP gathers here, a training step may use again
def score(model: Olmo2, mix: Mix, sequence_length: int, batch_instances: int, world: parallel.World) -> Score:
    """Predict every token of the mix's stream once, in windows of `sequence_length` tokens that do not see each other.

    EOS stands in front of the stream, so that the first token has something to be predicted from; EOS as a target is not counted,
    since it is not text. Every rank must call it; each gets the whole sum.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for inputs, targets in _batches(mix, sequence_length, batch_instances, world):
        logits = model(inputs.to(world.device))
        for row, target in zip(logits, targets.to(world.device), strict=True):  # one fp32 copy of a row's logits at a time
            losses = F.cross_entropy(row.float(), target, reduction="none", ignore_index=_NOT_COUNTED)
            sums[0] += losses.sum(dtype=torch.float64)
            sums[1] += (target != _NOT_COUNTED).sum()
    dist.all_reduce(sums)
    nats, tokens = sums.tolist()
    return Score(nats, int(tokens), mix.bytes)


def _batches(mix: Mix, length: int, batch: int, world: parallel.World) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of the windows, as inputs and targets of shape (up to `batch`, `length`), int64.

    Every rank gets as many batches, since a sharded model needs all of them each time: where there are no more windows, a window of
    padding.
    """
    windows = -(-mix.tokens // length)
    for first in range(0, windows, world.size * batch):
        mine = first + world.rank * batch
        numbers = range(mine, min(mine + batch, windows)) or [windows]
        rows = np.stack([_window(mix, number * length, length) for number in numbers])
        if rows.max() >= mix.vocab_size:
            raise TrainerError(
                f"the mix {mix.folder} holds id {rows.max()}, outside its vocabulary of {mix.vocab_size}; a token file is damaged or of "
                "another tokenizer: tokenize its source again."
            )
        ids = torch.from_numpy(rows)
        targets = ids[:, 1:].clone()
        for row, number in zip(targets, numbers, strict=True):
            row[max(0, mix.tokens - number * length) :] = _NOT_COUNTED  # padding after the end of the stream
        targets[targets == mix.eos_id] = _NOT_COUNTED
        yield ids[:, :-1], targets


def _window(mix: Mix, start: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Tokens [start - 1, start + length) of the stream, with EOS before its beginning and padding after its end."""
    window = np.full(length + 1, mix.pad_id, np.int64)
    window[0] = mix.eos_id
    if start >= mix.tokens:
        return window
    before = 1 if start else 0
    tokens = mix.read(start - before, min(length, mix.tokens - start) + before)
    window[1 - before : 1 - before + len(tokens)] = tokens
    return window


def check_fit(folder: str, model: ModelConfig, mixes: dict[str, Mix], sequence_length: int) -> None:
    """TrainerError where a model, named by its folder, and held-out mixes by source do not go together."""
    if sequence_length > model.max_sequence_length:
        raise TrainerError(
            f"sequence_length {sequence_length} is over the {model.max_sequence_length} that the model of {folder} takes; lower it."
        )
    for name, mix in mixes.items():
        if mix.vocab_size != model.vocab_size:
            raise TrainerError(
                f"the mix of source {name} has a vocabulary of {mix.vocab_size}, the model of {folder} one of {model.vocab_size}; "
                "compile the mix with the model's tokenizer."
            )
        first = next(iter(mixes.values()))
        check_tokenizer(mix, first.tokenizer, f"the mix {first.folder}")
        check_tokenizer(mix, tokenizer_of(folder), f"the mix that {folder} was trained on")
        if not mix.bytes or not mix.tokens:
            raise TrainerError(f"the mix of source {name} holds no text; hold out more of it, or leave the source out.")


def main(arguments: list[str]) -> int:
    """Run from the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    if len(arguments) != 1:
        print("usage: python -m trainer.evaluate CONFIG.yaml", file=sys.stderr)
        return 2
    die_with_torchrun()
    try:
        config = parse(EvaluateConfig, read_yaml(arguments[0]), arguments[0])
        for key in ("sequence_length", "batch_instances"):
            if getattr(config, key) < 1:
                raise TrainerError(f"{arguments[0]}: {key} is {getattr(config, key)}; give 1 or more.")
        world = parallel.start(config.device, config.threads)
        result = evaluate(config, world)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if world.rank == 0:
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result)
    parallel.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
