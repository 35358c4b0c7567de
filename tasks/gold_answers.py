"""Gold answers: a task's prompts with their right answers as tokens, on which trainings are scored while they go on.

The shard of a task holds what `trainer.answers` reads. Prompts, subset and shots are those of its evaluation (`tasks.downstream`), and the
tokens those that lm-eval would score: bits per byte are the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from tasks import downstream
from tasks.downstream import TaskFiles
from tasks.olmes import requests, scoring
from tasks.score import model_folder
from tasks.shards import Input, Shard, ShardRef, ShardTask, Step
from tasks.sources.base import RawFile
from tasks.store import Books
from tasks.tokenizer import Tokenizer

STEP = Step("gold-answers", 1, "tasks.gold_answers")


def task(
    name: str, files: TaskFiles, sequence_length: int, tokenizer: ShardRef, raw: Sequence[RawFile], shot_files: Sequence[RawFile]
) -> ShardTask:
    """The gold answers of an evaluation task, prompts cut from the left to a window of `sequence_length`."""
    config = downstream.asked_for(name, files, raw, shot_files) | {"sequence_length": sequence_length}
    inputs: dict[str, list[Input]] = {"tokenizer": [tokenizer], "files": list(raw), "shot_files": list(shot_files)}
    return ShardTask(name, config, inputs)


def run(shard: Shard) -> Books:
    """tokenizer, files, shot_files -> answers.json, tokens.npy, rows.npy, weights.npy"""
    tokenizer, window = Tokenizer.load(model_folder(shard.one("tokenizer"))), shard.config["sequence_length"]
    made, books = downstream.requests_of(shard.config, shard.inputs["files"], shard.inputs["shot_files"])
    tokens, rows, subjects = [], [], []
    for context, answer, subject in requests.gold_pairs({form.name: form for form in made}):
        # The answer's tokens are those that come to the context's, as lm-eval has it; white space before it is the answer's.
        whole, before = tokenizer.encode_documents([f"{context} {answer}", context.rstrip()])
        scored = len(whole) - len(before)
        if not 0 < scored <= window:
            books.kept -= 1
            books.drop("longer_than_the_window")
            continue
        cut = whole[-(window + 1) :]
        tokens.append(cut)
        rows.append((len(cut), scored, len(answer.encode())))
        subjects.append(subject)
    np.save(shard.folder / "tokens.npy", np.concatenate([np.zeros(0, np.uint32), *tokens]))
    np.save(shard.folder / "rows.npy", np.array(rows, np.int64).reshape(-1, 3))
    np.save(shard.folder / "weights.npy", np.array(scoring.weights(subjects), np.float64))
    header = {
        "version": 1,
        "instances": len(rows),
        "vocab_size": tokenizer.padded_vocab_size,
        "tokenizer": tokenizer.sha256,
        "longest": max((row[0] for row in rows), default=0),
    }
    (shard.folder / "answers.json").write_text(json.dumps(header))
    return books
