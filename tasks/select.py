"""Select: thresholds over columns decide which documents a mix may take. Reads columns, never text: a new threshold takes seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import filters
from tasks.documents import FILE as DOCUMENTS
from tasks.documents import load_columns
from tasks.filters import Filter
from tasks.score import FILE as SCORES
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books
from tasks.tokenize import INDEX, TokenizeWhere

STEP = Step("select", 1, "tasks.select")
FILE = "selection.parquet"


def task(name: str, rules: list[Filter], where: TokenizeWhere, documents: ShardRef, scores: list[ShardRef], tokens: ShardRef) -> ShardTask:
    """The selection of one shard."""
    config = {"filters": [rule.model_dump(mode="json") for rule in rules], "tokenize_where": where.model_dump(mode="json")}
    inputs: dict[str, Any] = {"documents": [documents], "scores": scores, "tokens": [tokens]}
    return ShardTask(name, config, inputs)


def run(shard: Shard) -> Books:
    """documents' columns, scores, token index -> selection.parquet: keep bool, reason string (null where kept)."""
    table = load_columns(shard.one("documents")[DOCUMENTS], [files[SCORES] for files in shard.inputs["scores"]], shard.one("tokens")[INDEX])
    tokenized, untokenized = TokenizeWhere.model_validate(shard.config["tokenize_where"]).apply(table, shard.name)
    rules = [Filter.model_validate(rule) for rule in shard.config["filters"]]
    passed, failed = filters.apply(rules, table, name=shard.name)
    keep = tokenized & passed
    # a document that was never encoded is told under its own heading, so that nobody looks for it in the filters
    reasons = [None if k else (f"not tokenized: {u}" if u is not None else f) for k, u, f in zip(keep, untokenized, failed, strict=True)]
    pq.write_table(pa.table({"keep": keep, "reason": pa.array(reasons, pa.string())}), shard.folder / FILE, compression="zstd")
    books = Books(read=len(keep), kept=int(keep.sum()))
    for row in np.flatnonzero(~keep):
        books.drop(str(reasons[row]))
    tokens = table.column("tokens").fill_null(0).to_numpy()
    books.count("tokens", int(tokens[keep].sum()))
    return books
