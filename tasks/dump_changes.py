"""What a dump changes: documents that are new, gone and edited since the one before, told by the signatures of both (`tasks.signatures`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tasks import signatures
from tasks.shards import ShardRef, input_files
from tasks.store import Store

ROWS_AT_ONCE = 1 << 23  # of one dump's site: 16 bytes a row are held, and about as many again while they are sorted


@dataclass
class Change:
    """A site's documents by id: those that are new, gone, edited (another text under the same id) and the same.

    All four are None where the documents of the dump before are not in the store any more.
    """

    source: str
    site: str
    new: int | None = 0
    gone: int | None = 0
    edited: int | None = 0
    same: int | None = 0

    @property
    def is_change(self) -> bool:
        return self.new is None or bool(self.new or self.gone or self.edited)


def change(store: Store, source: str, site: str, before: Sequence[str], after: Sequence[str]) -> Change:
    """Compare two sets of signature shards by their keys. An id that several documents have counts once, with all their texts."""
    found = Change(source, site)
    if any(store.record(signatures.STEP.name, key) is None for key in before):
        return Change(source, site, None, None, None, None)
    shards = [[input_files(store, ShardRef(signatures.STEP.name, key))[signatures.FILE] for key in keys] for keys in (before, after)]
    rows = max(sum(pq.read_metadata(path).num_rows for path in paths) for paths in shards)
    parts = max(1, -(-rows // ROWS_AT_ONCE))
    new = gone = edited = same = 0
    for part in range(parts):
        old_keys, old_texts = _documents(shards[0], part, parts)
        new_keys, new_texts = (old_keys, old_texts) if before == after else _documents(shards[1], part, parts)
        both, old_at, new_at = np.intersect1d(old_keys, new_keys, assume_unique=True, return_indices=True)
        differ = int(np.count_nonzero(old_texts[old_at] != new_texts[new_at]))
        new, gone = new + len(new_keys) - len(both), gone + len(old_keys) - len(both)
        edited, same = edited + differ, same + len(both) - differ
    found.new, found.gone, found.edited, found.same = new, gone, edited, same
    return found


def _documents(paths: Sequence[Path], part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys in ascending order, each once, with a hash of its texts; of the keys, which are hashes, those of one of `parts` equal ranges."""
    chunks = list(_rows(paths, part, parts))
    keys = np.concatenate([key for key, _ in chunks]) if chunks else np.zeros(0, np.uint64)
    texts = np.concatenate([text for _, text in chunks]) if chunks else np.zeros(0, np.uint64)
    if not len(keys):
        return keys, texts
    order = np.argsort(keys, kind="stable")
    keys, texts = keys[order], texts[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    return keys[starts], np.add.reduceat(texts, starts)  # sums wrap; their order does not matter


def _rows(paths: Sequence[Path], part: int, parts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    first, last = (np.uint64(((1 << 64) * edge // parts) - (1 if edge == parts else 0)) for edge in (part, part + 1))
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["key", "exact"]):
                keys, texts = batch.column("key").to_numpy(), batch.column("exact").to_numpy()
                here = (keys >= first) & ((keys <= last) if part + 1 == parts else (keys < last))
                yield keys[here], texts[here]
