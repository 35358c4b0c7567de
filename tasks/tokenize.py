"""Tokenize: raw token ids of a shard's documents, and an index with the repetition column computed from the same ids."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from tasks import filters
from tasks.documents import FILE as DOCUMENTS
from tasks.documents import load_columns, texts, utf8_bytes
from tasks.filters import Filter
from tasks.mix_plan import order
from tasks.score import FILE as SCORES
from tasks.score import model_folder
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books
from tasks.tokenizer import Tokenizer
from trainer.repetition import repeated_documents

STEP = Step("tokenize", 1, "tasks.tokenize", ("tiktoken", "quicktok-v1"))
TOKENS = "tokens.npy"
INDEX = "index.parquet"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.uint64()),
        ("start", pa.int64()),
        ("length", pa.int32()),
        ("bytes", pa.int64()),
        ("repeated", pa.bool_()),
    ]
)


class TokenizeWhere(BaseModel):
    """The loosest cut that will ever be asked of a source: what it leaves out is never encoded, and no selection can bring it back."""

    model_config = ConfigDict(extra="forbid")
    filters: list[Filter] = Field(default=[], description="Thresholds over columns, no tighter than the source's own filters.")
    share: float = Field(
        default=1.0, gt=0, le=1, description="Largest share of the documents that a mix will want, taken by hash of the key."
    )

    def apply(self, table: pa.Table, name: str) -> tuple[np.ndarray, list[str | None]]:
        """keep: bool[rows]; reason: why a row is left out."""
        keep, reasons = filters.apply(self.filters, table, name=name)
        reason = list(reasons)
        if self.share < 1:
            outside = order(table.column("key").to_numpy(), seed=0) >= np.uint64(min(int(self.share * 2**64), 2**64 - 1))
            for row in np.flatnonzero(keep & outside):
                reason[row] = f"outside the share of {self.share:g}"
            keep = keep & ~outside
        return keep, reason


def task(name: str, where: TokenizeWhere, documents: ShardRef, scores: list[ShardRef], tokenizer: ShardRef) -> ShardTask:
    """Tokens of one shard; the scores are an input only where the cut reads columns."""
    inputs: dict[str, Any] = {"documents": [documents], "scores": scores if where.filters else [], "tokenizer": [tokenizer]}
    return ShardTask(name, {"tokenize_where": where.model_dump(mode="json")}, inputs)


def run(shard: Shard) -> Books:
    """documents, scores, tokenizer -> tokens.npy (little-endian uint32, EOS closes each document), index.parquet."""
    documents: Path = shard.one("documents")[DOCUMENTS]
    tokenizer = _tokenizer(model_folder(shard.one("tokenizer")))
    table = load_columns(documents, [files[SCORES] for files in shard.inputs["scores"]])
    keep, reasons = TokenizeWhere.model_validate(shard.config["tokenize_where"]).apply(table, shard.name)
    keys = table.column("key").to_numpy()
    books = Books(read=len(keep), kept=int(keep.sum()))
    for reason in (reasons[row] for row in np.flatnonzero(~keep)):
        books.drop(str(reason))
    start = 0
    with (shard.folder / TOKENS).open("wb") as tokens, index_writer(shard.folder / INDEX) as index:
        for first, batch in texts(documents, shard.progress):
            rows = first + np.flatnonzero(keep[first : first + len(batch)])
            start = _encode(tokenizer, rows, [batch[row - first] for row in rows], keys, start, tokens, index, books)
    return books


def index_writer(path: Path) -> pq.ParquetWriter:
    """Values do not repeat, and their differences are small: a dictionary would take twice the time to read and half again the space."""
    differences = dict.fromkeys(["row", "start", "length", "bytes"], "DELTA_BINARY_PACKED")
    return pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False, column_encoding=differences)


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Tokenizer:
    """Loaded once a process; a folder of the store never changes."""
    return Tokenizer.load(folder)


def _encode(
    tokenizer: Tokenizer, rows: np.ndarray, batch: list[str], keys: np.ndarray, start: int, tokens: Any, index: Any, books: Books
) -> int:
    encoded = tokenizer.encode_documents(batch)
    lengths = np.array([len(ids) + 1 for ids in encoded], np.int64)
    starts = np.cumsum(lengths) - lengths
    stream = np.full(int(lengths.sum()), tokenizer.eos_id, "<u4")
    for ids, first in zip(encoded, starts.tolist(), strict=True):
        stream[first : first + len(ids)] = ids
    tokens.write(stream.data)
    sizes = np.array([utf8_bytes(text) for text in batch], np.int64)
    repeated = repeated_documents(stream, starts, lengths)
    index.write_table(pa.table([rows, keys[rows], start + starts, lengths.astype(np.int32), sizes, repeated], schema=SCHEMA))
    books.count("encoded", len(batch))
    books.count("tokens", len(stream))
    books.count("bytes", int(sizes.sum()))
    books.count("repeated", int(repeated.sum()))
    return start + len(stream)
