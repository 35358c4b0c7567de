"""Training on what a language model labelled: what is trained on, what is held out, and what the trained scorer does on that."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from tasks import annotate
from tasks.measure import Measured, measure, measure_scale
from tasks.shards import Shard
from tasks.store import Books


class FromAnnotation(BaseModel):
    """Examples that a language model labelled, a part of them held out to measure the trained scorer on."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(description="One of the recipe's annotations.")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="Share that is not trained on, by hash of the text.")


class TopicFromAnnotation(FromAnnotation):
    """Of a topic: which labels are wanted. Texts with these are trained as hq, all others as cc."""

    positive: list[str | int] = Field(min_length=1, description="The labels that are wanted.")


def annotated(
    shard: Shard, config: FromAnnotation, books: Books
) -> tuple[list[tuple[str, str | float | None]], list[tuple[str, str | float | None]]]:
    """(text, label) to train on, and those held out; by hash of the text, so that equal texts are on one side. Booked in `books`."""
    table = pq.read_table(shard.one("annotation")[annotate.FILE], columns=["text", "label"])
    books.read = table.num_rows
    parts: tuple[list[tuple[str, str | float | None]], ...] = ([], [])
    for text, label in zip(table.column("text").to_pylist(), table.column("label").to_pylist(), strict=True):
        if label is None:
            books.drop("without a label")
            continue
        if isinstance(config, TopicFromAnnotation):
            label = "hq" if label in map(str, config.positive) else "cc"
        parts[_place(text, b"held out") < config.held_out].append((text, label))
    train, held_out = (sorted(part, key=lambda pair: (_place(pair[0], b"order"), *map(str, pair))) for part in parts)
    books.kept = len(train)
    if held_out:
        books.drop("held out", len(held_out))
    return train, held_out


def _place(text: str, purpose: bytes) -> float:
    """A number in [0, 1) that follows from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=purpose).digest(), "big") / 2**64


def measure_topic(shard: Shard, held_out: list[tuple[str, Any]]) -> Measured:
    from tasks.scorers.fasttext_quality import FastTextQuality, FastTextQualityConfig

    scores = FastTextQuality(FastTextQualityConfig(), shard.folder / "model.bin").score([text for text, _ in held_out])["quality"]
    return measure(scores, [label == "hq" for _, label in held_out], [round(0.1 * tenth, 1) for tenth in range(1, 10)], main=0.5)


def measure_edu(shard: Shard, max_tokens: int, held_out: list[tuple[str, Any]]) -> Measured:
    from tasks.scorers.edu_classifier import EduClassifier, EduClassifierConfig

    scorer = EduClassifier(EduClassifierConfig(max_tokens=max_tokens, device="cpu"), shard.folder / "model")
    scores, labels = scorer.score([text for text, _ in held_out])["edu"], [float(label) for _, label in held_out]
    return measure_scale(scores, labels, [1, 2, 3, 4], main=3)
