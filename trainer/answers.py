"""Bits per byte of gold answers: how much of a task a model knows, before it answers any of it right.

A folder of answers holds

| file | holds |
|---|---|
| `answers.json` | version, instances, vocab_size, tokenizer (its hash), longest (tokens of the longest instance) |
| `tokens.npy` | uint32: the instances one after the other, each a context and the answer to it |
| `rows.npy` | int64, shape (instances, 3): an instance's tokens, how many of them at its end are the answer's, UTF-8 bytes of the answer |
| `weights.npy` | float64, shape (instances,): what each counts; they sum to 1 |
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from olmo_model.model import Olmo2
from trainer.errors import TrainerError
from trainer.parallel import World

_MULTIPLE = 128  # lengths of batches: a compiled model is compiled for each


class Answers:
    """A folder of gold answers, opened. `vocab_size` and `tokenizer` are those that the ids are of; `longest`: tokens of an instance."""

    def __init__(self, folder: str | Path) -> None:
        """Raises TrainerError where something is missing or contradicts itself."""
        self.folder = Path(folder)
        try:
            header = json.loads((self.folder / "answers.json").read_text())
            self.tokens, self.rows, self.weights = (
                np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("tokens", "rows", "weights")
            )
            self.vocab_size: int = header["vocab_size"]
            self.tokenizer: str | None = header["tokenizer"]
            self.longest: int = header["longest"]
        except (OSError, ValueError, KeyError) as error:
            raise TrainerError(f"{self.folder} holds no gold answers that can be read ({error}); make them again.") from None
        self.ends = np.cumsum(self.rows[:, 0])
        if len(self.rows) != len(self.weights) or (self.ends[-1:] != len(self.tokens)).any() or not len(self.rows):
            raise TrainerError(f"{self.folder}: rows.npy and its neighbours contradict each other; make the gold answers again.")

    def check_fit(self, name: str, vocab_size: int, tokenizer: str | None, sequence_length: int) -> None:
        """TrainerError where the answers of task `name` do not go with a model and the tokenizer of what it is trained on."""
        if self.vocab_size != vocab_size or (self.tokenizer and tokenizer and self.tokenizer != tokenizer):
            raise TrainerError(f"the gold answers of {name} are of another tokenizer than the model's mix; make them with the same one.")
        if self.longest > sequence_length + 1:
            raise TrainerError(f"the gold answers of {name} are of {self.longest} tokens, over the model's window of {sequence_length}.")


@torch.no_grad()  # not inference_mode, as in trainer.evaluate
def bits_per_byte(model: Olmo2, answers: Answers, batch_instances: int, sequence_length: int, world: World) -> float:
    """Bits that the model needs for each byte of an answer after its context, the weighted mean over instances. Collective.

    The ranks share the instances. Each puts as many batches through the model, since a sharded one needs all of them each time.
    """
    order = np.argsort(-answers.rows[:, 0], kind="stable")  # of like lengths together: short batches are cheap
    total = torch.zeros(1, dtype=torch.float64, device=world.device)
    for first in range(0, len(order), world.size * batch_instances):
        together = order[first : first + world.size * batch_instances]
        mine = together[world.rank * batch_instances : (world.rank + 1) * batch_instances]
        longest = int(answers.rows[together[0], 0]) - 1
        length = min(-(-longest // _MULTIPLE) * _MULTIPLE, max(sequence_length, longest))
        ids = np.zeros((max(1, len(mine)), length + 1), np.int64)  # what stands behind an instance is seen by none of it
        for row, number in zip(ids, mine, strict=False):
            end, tokens = int(answers.ends[number]), int(answers.rows[number, 0])
            row[:tokens] = answers.tokens[end - tokens : end]
        given = torch.from_numpy(ids).to(world.device)
        logits = model(given[:, :-1])
        for row, target, number in zip(logits, given[:, 1:], mine, strict=False):  # a rank without an instance has a row of padding
            tokens, scored, size = answers.rows[number].tolist()
            where = slice(tokens - 1 - scored, tokens - 1)
            nats = F.cross_entropy(row[where].float(), target[where], reduction="none").sum(dtype=torch.float64)
            total += nats * (answers.weights[number] / math.log(2) / size)
    dist.all_reduce(total)
    return float(total.item())
