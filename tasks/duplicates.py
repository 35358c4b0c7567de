"""Duplicates: the clusters of a source as a column beside the documents of each shard, which filters read like a score."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.clusters import FILE as CLUSTERS
from tasks.clusters import ROWS
from tasks.score import FILE
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books

STEP = Step("duplicates", 1, "tasks.duplicates", by_content=True)
COLUMN = "duplicate"


def task(name: str, clusters: ShardRef, number: int) -> ShardTask:
    """The column of shard `number` of a source. What reads it depends on its content, so that a new file, which makes new clusters, does
    not score and encode every shard again, but only those in which a document became or ceased to be a duplicate."""
    return ShardTask(name, {"shard": number}, {"clusters": [clusters]})


def run(shard: Shard) -> Books:
    """clusters -> scores.parquet, row-aligned: duplicate bool, true where another document of the cluster is kept."""
    clusters, number = shard.one("clusters"), shard.config["shard"]
    column = np.zeros(json.loads(clusters[ROWS].read_text())[number], bool)
    column[pq.read_table(clusters[CLUSTERS], columns=["row"], filters=[("shard", "=", number)]).column("row").to_numpy()] = True
    pq.write_table(pa.table({COLUMN: column}), shard.folder / FILE, compression="zstd")
    books = Books(read=len(column), kept=len(column))
    books.count("duplicates", int(column.sum()))
    return books
