"""Clusters: which documents of a source are duplicates, and of which. Sees all signatures of the source at once: one task.

Duplicates of duplicates are one cluster. The member with the smallest key is kept, so neither the order of the shards nor the number of
workers changes what is kept. Memory: about 100 bytes a document, whatever the number of buckets.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.signatures import BUCKET, Deduplicate
from tasks.signatures import FILE as SIGNATURES
from tasks.store import Books

STEP = Step("clusters", 1, "tasks.clusters")
FILE = "duplicates.parquet"
ROWS = "rows.json"


def task(name: str, config: Deduplicate, signatures: list[ShardRef]) -> ShardTask:
    """The duplicates of one source."""
    return ShardTask(name, {"exact": config.exact}, {"signatures": list(signatures)})


def run(shard: Shard) -> Books:
    """signatures of all shards -> duplicates.parquet and rows.json (the rows of each shard).

    duplicates.parquet has a row for each duplicate, in the order of the documents: shard (number), row, key, duplicate_of (the key that is
    kept), exact (whether the two texts are equal).
    """
    paths = [files[SIGNATURES] for files in shard.inputs["signatures"]]
    rows = [int(pq.read_metadata(path).num_rows) for path in paths]
    columns = [name for name in pq.read_schema(paths[0]).names if name.startswith(BUCKET)] if paths else []
    by_key = np.lexsort((_column(paths, rows, "exact")[0], _column(paths, rows, "key")[0]))  # equal in both: the same document twice
    rank = np.empty_like(by_key)
    rank[by_key] = np.arange(len(by_key))
    first = np.arange(len(by_key))
    for name in [*(["exact"] if shard.config["exact"] and paths else []), *columns]:
        join(first, *_equal(*_column(paths, rows, name), rank))
    found = np.flatnonzero(first != np.arange(len(first)))
    _write(shard.folder / FILE, paths, rows, by_key[found], by_key[first[found]])
    (shard.folder / ROWS).write_text(json.dumps(rows))
    books = Books(read=sum(rows), kept=sum(rows))
    books.count("clusters", len(np.unique(first[found])))
    books.count("duplicates", len(found))
    return books


def _column(paths: list[Path], rows: list[int], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(values, which of them are not null) of a column over all shards."""
    values, there = np.zeros(sum(rows), np.uint64), np.zeros(sum(rows), bool)
    ends = np.cumsum(rows)
    for path, start, end in zip(paths, ends - rows, ends, strict=True):
        column = pq.read_table(path, columns=[name]).column(name)
        values[start:end], there[start:end] = column.fill_null(0).to_numpy(), column.is_valid().to_numpy()
    return values, there


def _equal(values: np.ndarray, there: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (least rank, rank) of the members of each group of equal values."""
    if not there.all():
        values, ranks = values[there], ranks[there]
    order = np.argsort(values)
    values = values[order]
    same = values[1:] == values[:-1]
    goes_on, member = np.zeros((2, len(values)), bool)  # it has the value of the one before it; or of the one after it
    goes_on[1:] = member[1:] = same
    member[:-1] |= same
    ranks, starts = ranks[order[member]], np.flatnonzero(~goes_on[member])
    if not len(starts):
        return ranks, ranks
    return np.repeat(np.minimum.reduceat(ranks, starts), np.diff(np.append(starts, len(ranks)))), ranks


def join(first: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Unite left[i] with right[i], for each i. `first` holds the least member of each one's cluster, before and after."""
    while True:
        left, right = first[left], first[right]
        apart = left != right
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        np.minimum.at(first, np.maximum(left, right), np.minimum(left, right))
        while True:  # halves the way to the least member each time
            nearer = first[first]
            if np.array_equal(nearer, first):
                break
            first[:] = nearer


def _write(path: Path, paths: list[Path], rows: list[int], duplicates: np.ndarray, kept: np.ndarray) -> None:
    order = np.argsort(duplicates)
    duplicates, kept = duplicates[order], kept[order]
    ends = np.cumsum(rows)
    shards = np.searchsorted(ends, duplicates, side="right")
    keys, texts = _column(paths, rows, "key")[0], _column(paths, rows, "exact")[0]
    table = {
        "shard": shards.astype(np.int32),
        "row": duplicates - (ends - rows)[shards] if len(duplicates) else duplicates,
        "key": keys[duplicates],
        "duplicate_of": keys[kept],
        "exact": texts[duplicates] == texts[kept],
    }
    pq.write_table(pa.table(table), path, compression="zstd")
