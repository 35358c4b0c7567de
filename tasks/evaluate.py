"""Evaluate: held-out loss and bits per byte by source, of several checkpoints and of a unigram model of the training tokens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch
from tasks.leases import held
from tasks.shards import ShardRef, ShardTask, Step
from tasks.store import Attempt, Books, Store
from tasks.train import checkpoint_folder, mix_paths

STEP = Step("evaluate", 1, "tasks.evaluate", ("torch",))
FILE = "evaluation.json"
UNIGRAM = "unigram model"
COUNT_AT_ONCE = 4_000_000  # tokens: counting each document by itself would cost a vocabulary's length each


def task(
    name: str, config: dict[str, Any], checkpoints: dict[str, ShardRef], held_out: dict[str, ShardRef], training_mix: ShardRef | None
) -> ShardTask:
    """An evaluation. config: sequence_length. `training_mix`: where the unigram baseline counts its tokens, if it is wanted."""
    held_out = dict(sorted(held_out.items()))
    names = {"checkpoints": list(checkpoints), "sources": list(held_out)}
    inputs: dict[str, Any] = {"checkpoints": list(checkpoints.values()), "held_out": list(held_out.values())}
    return ShardTask(name, {**config, **names}, {**inputs, "training_mix": [training_mix] if training_mix else []})


class EvaluateJob:
    """Launches evaluations."""

    def __init__(self, store: Store, launcher: LauncherConfig, batch_instances: int, precision: str) -> None:
        self.store, self.launcher = store, launcher
        self.batch_instances, self.precision = batch_instances, precision
        self.settings = {"launcher": launcher.model_dump(mode="json"), "batch_instances": batch_instances, "precision": precision}

    def __call__(self, task: ShardTask, key: str) -> None:
        with held(self.store, STEP.name, key, f"the evaluation {task.name}") as missing:
            if missing:
                self._make(task, key)

    def _make(self, task: ShardTask, key: str) -> None:
        started = time.monotonic()
        attempt = Attempt(self.store, STEP.name, key, task.name)
        sources, empty = held_out_mixes(self.store, dict(_named(task, "sources", "held_out")), attempt.folder)
        config = {
            "checkpoints": {name: str(checkpoint_folder(self.store, ref)) for name, ref in _named(task, "checkpoints", "checkpoints")},
            "sources": sources,
            "sequence_length": task.config["sequence_length"],
            "batch_instances": self.batch_instances,
            "device": self.launcher.device,
            "precision": self.precision,
            "output": str(attempt.folder / FILE),
        }
        launch("trainer.evaluate", config, attempt.folder, self.launcher, cordon=Cordon(self.store))
        self._complete(task, attempt.folder, sources, empty)
        number = len(config["checkpoints"])
        attempt.commit(Books("checkpoints", number, number), time.monotonic() - started, only=[attempt.folder / FILE])

    def _complete(self, task: ShardTask, folder: Path, sources: dict[str, dict[str, str]], empty: list[str]) -> None:
        """Add the unigram baseline, and the sources that have no held-out document."""
        result = json.loads((folder / FILE).read_text())
        result["nothing_held_out"] = empty
        if task.inputs["training_mix"]:
            training, _ = mix_paths(self.store, task.inputs["training_mix"][0], folder / "files-training.json")  # type: ignore[arg-type]
            result["checkpoints"][UNIGRAM] = unigram(training, sources)
        (folder / FILE).write_text(json.dumps(result, indent=1))


def held_out_mixes(store: Store, held_out: dict[str, ShardRef], folder: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """What `trainer.evaluate` takes as its sources, and the names of those that have no held-out document; writes into `folder`.

    Raises UserError where no source has one.
    """
    mixes = {name: mix_paths(store, ref, folder / f"files-{i}.json") for i, (name, ref) in enumerate(held_out.items())}
    empty = [name for name, (_, header) in mixes.items() if not header["documents"]]
    if len(empty) == len(mixes):
        raise UserError(
            "no source has a held-out document to evaluate on: raise held_out.share or held_out.tokens_per_source in the recipe"
        )
    return {name: mix for name, (mix, _) in mixes.items() if name not in empty}, empty


def _named(task: ShardTask, names: str, role: str) -> list[tuple[str, ShardRef]]:
    return list(zip(task.config[names], task.inputs[role], strict=True))  # type: ignore[arg-type]


def unigram(training: dict[str, str], sources: dict[str, dict[str, str]]) -> dict[str, dict[str, float]]:
    """Loss and bits per byte of a unigram model with one count added to every token of the vocabulary, by source and over `all`.

    Counted as the trainer's evaluation counts: every token but EOS is a target. EOS has no probability of its own.
    """
    header = json.loads((Path(training["mix"]) / "mix.json").read_text())
    counts = token_counts(training, header["vocab_size"]).astype(np.float64) + 1
    counts[header["eos_id"]] = 0
    with np.errstate(divide="ignore"):
        surprise = -np.log(counts / counts.sum())
    surprise[header["eos_id"]] = 0
    results, total = {}, np.zeros(3)
    for name, source in sources.items():
        held = json.loads((Path(source["mix"]) / "mix.json").read_text())
        seen = token_counts(source, header["vocab_size"])
        seen[header["eos_id"]] = 0
        sums = np.array([float(seen @ surprise), float(seen.sum()), float(held["bytes"])])
        results[name] = _rates(sums)
        total += sums
    return {**results, "all": _rates(total)}


def _rates(sums: np.ndarray) -> dict[str, float]:
    nats, tokens, size = sums.tolist()
    return {"loss": nats / max(tokens, 1), "bits_per_byte": nats / np.log(2) / max(size, 1), "tokens": int(tokens), "bytes": int(size)}


def token_counts(mix: dict[str, str], vocab_size: int) -> np.ndarray:
    """How often each token stands in a compiled mix, copies included: int64[vocab_size]."""
    files = [
        np.memmap(path, "<u4", "r") if Path(path).stat().st_size else np.zeros(0, "<u4")
        for path in json.loads(Path(mix["files"]).read_text())
    ]
    counts = np.zeros(vocab_size, np.int64)
    pieces, held = [], 0
    for file, start, length, _ in np.load(Path(mix["mix"]) / "extents.npy", mmap_mode="r"):
        pieces.append(files[file][start : start + length])
        held += length
        if held >= COUNT_AT_ONCE:
            counts += np.bincount(np.concatenate(pieces), minlength=vocab_size)
            pieces, held = [], 0
    return counts + np.bincount(np.concatenate([np.zeros(0, "<u4"), *pieces]), minlength=vocab_size)
