"""The tokenizer artifact: OLMo 2's own (cl100k with pinned special ids), or byte pairs trained from given texts. One task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tasks.examples import Examples, load
from tasks.shards import Shard, ShardTask, Step
from tasks.sources.base import RawFile
from tasks.store import Books

STEP = Step("tokenizer", 1, "tasks.train_tokenizer", ("tokenizers",))


class Cl100k(BaseModel):
    """OLMo 2's tokenizer: the cl100k ranks, special ids pinned, vocabulary padded to 100352."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["cl100k"] = "cl100k"


class BytePairs(BaseModel):
    """A byte-level BPE tokenizer trained on given files: a frozen sample, so that a file added to a source leaves the tokens alone."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(ge=300, description="Ids before padding to a multiple of 128, special tokens included.")
    train_on: list[Examples] = Field(description="Raw files to train on; labels are not needed.", min_length=1)


TokenizerConfig = Annotated[Cl100k | BytePairs, Field(discriminator="kind")]


def task(config: Cl100k | BytePairs, raw: list[list[RawFile]]) -> ShardTask:
    settings = config.model_dump(mode="json", exclude={"train_on": {"__all__": {"paths"}}} if isinstance(config, BytePairs) else None)
    return ShardTask(config.kind, settings, {f"examples:{i}": list(files) for i, files in enumerate(raw)})


def run(shard: Shard) -> Books:
    """Texts -> tokenizer.json, tokenizer_config.json, ranks.tiktoken, ..."""
    from tasks.tokenizer import build_cl100k, train_bpe

    if shard.config["kind"] == "cl100k":
        build_cl100k(shard.folder)
        return Books("texts")
    sets = [Examples.model_validate({**examples, "paths": ["-"]}) for examples in shard.config["train_on"]]
    config = TypeAdapter(TokenizerConfig).validate_python({**shard.config, "train_on": sets})
    assert isinstance(config, BytePairs)
    books = Books("texts")
    pairs = load(shard, sets, books)
    train_bpe((text for text, _ in pairs), config.vocab_size, shard.folder)
    return books
