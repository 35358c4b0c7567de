"""The tokenizer artifact: OLMo 2's own (cl100k with pinned special ids), byte pairs trained from given texts, or a given file. One task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tasks.examples import Examples, load
from tasks.shards import Shard, ShardTask, Step
from tasks.sources.base import RawFile
from tasks.store import Books

FROM_FILE = "huggingface"  # the kind of those that are given as a file
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


class TokenizerFile(BaseModel):
    """A byte-level tokenizer as the library `tokenizers` writes it, such as OLMo 1's."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["huggingface"] = "huggingface"
    path: str = Field(description="A tokenizer.json: a path or URL, also of the hub (hf://ORGANIZATION/MODEL/tokenizer.json).")
    eos_token: str = Field(default="<|endoftext|>", description="The token of the file that closes a document.")
    pad_token: str | None = Field(default=None, description="The token of the file that pads; eos_token where left empty.")


AnyTokenizer = Cl100k | BytePairs | TokenizerFile
TokenizerConfig = Annotated[AnyTokenizer, Field(discriminator="kind")]


def task(config: AnyTokenizer, raw: list[list[RawFile]]) -> ShardTask:
    """`raw`: the files of each set of a trained tokenizer's texts, or the file that is the tokenizer."""
    exclude: Any = {"train_on": {"__all__": {"paths"}}} if isinstance(config, BytePairs) else {"path"}
    settings = config.model_dump(mode="json", exclude=exclude)
    return ShardTask(config.kind, settings, {f"examples:{i}": list(files) for i, files in enumerate(raw)})


def run(shard: Shard) -> Books:
    """Texts, or a file -> tokenizer.json, tokenizer_config.json, ranks.tiktoken, ..."""
    from tasks.tokenizer import build_cl100k, build_from_file, train_bpe

    if shard.config["kind"] == "cl100k":
        build_cl100k(shard.folder)
        return Books("texts")
    if shard.config["kind"] == FROM_FILE:
        file: RawFile = shard.one("examples:0")
        with file.open() as stream:
            build_from_file(stream.read(), file.shown, shard.config["eos_token"], shard.config["pad_token"], shard.folder)
        return Books("texts")
    sets = [Examples.model_validate({**examples, "paths": ["-"]}) for examples in shard.config["train_on"]]
    config = TypeAdapter(TokenizerConfig).validate_python({**shard.config, "train_on": sets})
    assert isinstance(config, BytePairs)
    books = Books("texts")
    pairs = load(shard, sets, books)
    train_bpe((text for text, _ in pairs), config.vocab_size, shard.folder)
    return books
