"""Annotate-sample: of a shard of documents, those that stand first in line to be annotated, with their texts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.documents import FILE as DOCUMENTS
from tasks.documents import read_rows
from tasks.mix_plan import order
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books

STEP = Step("annotate-sample", 1, "tasks.annotate_sample")
FILE = "sample.parquet"
SCHEMA = pa.schema([("place", pa.uint64()), ("key", pa.uint64()), ("id", pa.string()), ("text", pa.large_string())])
SEED = 4_2_1  # of the line; another than a mix's, so that what is annotated is no favourite of small mixes


def halvings(wanted: int, documents: int) -> int:
    """How often a source's documents may be halved, by hash of the key, so that all of the first `wanted` in line are left.

    A power of two, so that a source that grows leaves the samples of its shards alone until it has doubled. The margin of six standard
    deviations is exceeded once in a billion times.
    """
    return max(0, math.floor(math.log2(documents / (wanted + 6 * math.sqrt(wanted) + 10)))) if documents else 0


def task(name: str, wanted: int, halved: int, documents: ShardRef) -> ShardTask:
    """At most `wanted` documents of one shard, of the 2^-halved part of its documents that is first in line."""
    return ShardTask(name, {"documents": wanted, "halvings": halved}, {"documents": [documents]})


def run(shard: Shard) -> Books:
    """documents -> sample.parquet: place in line, key, id, text; sorted by place."""
    documents: Path = shard.one("documents")[DOCUMENTS]
    keys = pq.read_table(documents, columns=["key"]).column("key").to_numpy()
    place = order(keys, SEED)
    first = np.lexsort((np.arange(len(keys)), place))[: shard.config["documents"]]
    first = first[place[first] >> np.uint64(64 - shard.config["halvings"]) == 0] if shard.config["halvings"] else first
    rows = np.sort(first)
    table = (
        read_rows(documents, rows, ["key", "id", "text"])
        .add_column(0, "place", pa.array(place[rows], pa.uint64()))
        .cast(SCHEMA)
        .sort_by("place")
    )
    pq.write_table(table, shard.folder / FILE, compression="zstd")
    books = Books(read=len(keys), kept=len(rows))
    if len(rows) < len(keys):
        books.drop("not first in line", len(keys) - len(rows))
    return books
