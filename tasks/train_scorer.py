"""Train a scorer: a fastText classifier or a FineWeb-Edu-like regressor, from labelled texts. Needs all examples at once: one task."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tasks.errors import UserError
from tasks.examples import Examples, load
from tasks.shards import Shard, ShardTask, Step
from tasks.sources.base import RawFile
from tasks.store import Books

STEP = Step("train-scorer", 1, "tasks.train_scorer", ("fasttext-numpy2-wheel", "torch", "transformers", "tokenizers"))


class FastTextTraining(BaseModel):
    """Trains a fastText classifier in DCLM's manner; labels are `__label__...` words."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["fasttext"] = "fasttext"
    examples: list[Examples] = Field(description="Labelled texts; a label such as hq becomes __label__hq.", min_length=1)
    dim: int = Field(default=100, ge=1, description="Size of the word vectors.")
    epochs: int = Field(default=5, ge=1, description="Passes over the examples.")
    lr: float = Field(default=0.1, gt=0, description="Learning rate.")
    word_ngrams: int = Field(default=2, ge=1, description="Longest word n-gram.")
    bucket: int = Field(default=2_000_000, ge=1, description="Hash buckets for n-grams; the model takes bucket x dim x 4 bytes.")


class RegressorTraining(BaseModel):
    """Trains a small BERT with one regression output on texts labelled 0 to 5."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["edu"] = "edu"
    examples: list[Examples] = Field(description="Texts labelled 0 to 5.", min_length=1)
    epochs: int = Field(default=5, ge=1, description="Passes over the examples.")
    lr: float = Field(default=1e-3, gt=0, description="Peak learning rate.")
    hidden_size: int = Field(default=64, ge=4, description="Width of the encoder.")
    layers: int = Field(default=2, ge=1, description="Layers of the encoder.")
    max_tokens: int = Field(default=256, ge=8, description="Texts are cut to this many tokens.")


ScorerTraining = Annotated[FastTextTraining | RegressorTraining, Field(discriminator="type")]


def task(name: str, config: FastTextTraining | RegressorTraining, raw: list[list[RawFile]]) -> ShardTask:
    """raw: the files of each set of examples."""
    settings = config.model_dump(mode="json", exclude={"examples": {"__all__": {"paths"}}})
    return ShardTask(name, settings, {f"examples:{i}": list(files) for i, files in enumerate(raw)})


def run(shard: Shard) -> Books:
    """Labelled raw files -> model.bin (fastText) or a Hugging Face folder under model/."""
    sets = [Examples.model_validate({**examples, "paths": ["-"]}) for examples in shard.config["examples"]]
    config: Any = TypeAdapter(ScorerTraining).validate_python({**shard.config, "examples": sets})
    books = Books("examples")
    pairs = load(shard, sets, books)
    options = config.model_dump(exclude={"type", "examples"})
    if isinstance(config, FastTextTraining):
        from tasks.scorers.fasttext_quality import LABEL_PREFIX, train_fasttext

        labelled = [(text, str(label) if str(label).startswith(LABEL_PREFIX) else f"{LABEL_PREFIX}{label}") for text, label in pairs]
        summary: dict[str, Any] = dict(train_fasttext(labelled, shard.folder / "model.bin", **options))
    else:
        from tasks.scorers.train_edu import train_regressor

        summary = dict(train_regressor([(text, _score(label, shard.name)) for text, label in pairs], shard.folder / "model", **options))
    (shard.folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return books


def _score(label: str | float | None, name: str) -> float:
    try:
        return float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UserError(f"scorer {name}: the label {label!r} of an example is no number from 0 to 5") from error
