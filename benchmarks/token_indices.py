"""Token indices and selections of very many documents, as the steps leave them, with holes for tokens that nobody reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.select import FILE as SELECTION
from tasks.tokenize import INDEX, SCHEMA, TOKENS, index_writer

ROW_GROUP = 4096  # documents of about 4 kB, of which ingestion and tokenization put 16 MB into a row group
TOKENIZED, KEPT = 0.9, 0.9  # shares of a shard's documents, and of those that are tokenized
REASON = "quality 0.017 is under 0.018"


def write(folder: Path, documents: int, seed: int) -> None:
    """One shard: `tokens.npy`, `index.parquet` of so many documents, `selection.parquet`. Lengths in tokens are log-normal: median 600, mean 990."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows = np.cumsum(random.geometric(TOKENIZED, documents)) - 1
    lengths = np.maximum(random.lognormal(6.4, 1.0, documents), 2).astype(np.int32)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    sizes = (lengths * random.normal(4.2, 0.3, documents).clip(1)).astype(np.int64)
    columns = [rows, random.integers(0, 2**64, documents, np.uint64), starts, lengths, sizes, random.random(documents) < 0.01]
    with index_writer(folder / INDEX) as index:
        for first in range(0, documents, ROW_GROUP):
            index.write_table(pa.table([column[first : first + ROW_GROUP] for column in columns], schema=SCHEMA))
    with (folder / TOKENS).open("wb") as tokens:
        tokens.truncate(4 * int(lengths.sum()))
    keep = np.zeros(int(rows[-1]) + 1, bool)
    keep[rows] = random.random(documents) < KEPT
    reasons = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(keep), np.int32), mask=keep), [REASON]).dictionary_decode()
    pq.write_table(pa.table({"keep": keep, "reason": reasons}), folder / SELECTION, compression="zstd")
