"""Signatures: what finding duplicates needs to know of each document, so that the step which sees all of them reads no text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.documents import FILE as DOCUMENTS
from tasks.documents import texts
from tasks.minhash import MinHash, Signer
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books

STEP = Step("signatures", 1, "tasks.signatures", ("datatrove",))
FILE = "signatures.parquet"
BUCKET = "bucket_"  # begins the names of the columns of bucket hashes


class Deduplicate(BaseModel):
    """Which documents of a source count as one. A bool column `duplicate` says of each whether another of its cluster is kept instead."""

    model_config = ConfigDict(extra="forbid")
    exact: bool = Field(default=True, description="Texts that are equal, character for character.", json_schema_extra={"position": 0})
    minhash: MinHash | None = Field(
        default=None, description="Texts that are nearly equal; none where left empty.", json_schema_extra={"position": 1}
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.exact and self.minhash is None:
            raise ValueError("it looks for nothing: set exact or minhash, or leave deduplicate out")
        return self


def task(name: str, config: Deduplicate, documents: ShardRef) -> ShardTask:
    """Signatures of one shard. Whether equal texts count is no part of the key: their hash is always written."""
    return ShardTask(name, {"minhash": config.minhash.model_dump() if config.minhash else None}, {"documents": [documents]})


def run(shard: Shard) -> Books:
    """documents -> signatures.parquet, row-aligned: key, exact (64 bits of BLAKE2b of the text), bucket_00, ... (null without n-grams)."""
    documents: Path = shard.one("documents")[DOCUMENTS]
    config = MinHash.model_validate(shard.config["minhash"]) if shard.config["minhash"] is not None else None
    signer = Signer(config) if config else None
    names = [f"{BUCKET}{number:02}" for number in range(config.buckets if config else 0)]
    schema = pa.schema([(name, pa.uint64()) for name in ("key", "exact", *names)])
    keys = pq.read_table(documents, columns=["key"]).column("key")
    books = Books()
    # hashes do not compress, and each is read by itself
    with pq.ParquetWriter(shard.folder / FILE, schema, compression="none", use_dictionary=False) as writer:
        for first, batch in texts(documents, shard.progress):
            signed = [signer.buckets(text) for text in batch] if signer else []
            columns: dict[str, Any] = {"key": keys.slice(first, len(batch)), "exact": [exact(text) for text in batch]}
            columns |= {name: [row[number] if row else None for row in signed] for number, name in enumerate(names)}
            writer.write_table(pa.table(columns, schema=schema))
            books.count("too_short", sum(row is None for row in signed))
    books.read = books.kept = len(keys)
    return books


def exact(text: str) -> int:
    """64 bits of BLAKE2b of a text: among a billion documents one pair in 40 such sets is equal by chance."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
