"""The documents artifact: Parquet shards whose rows every score, selection and token index is aligned with."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.progress import Report, ignore

Parquet = Path | BinaryIO

FILE = "documents.parquet"
ROW_GROUP_BYTES = 16 << 20  # of text; with ROW_GROUP_ROWS it bounds a reader's memory whatever the shard's size
ROW_GROUP_ROWS = 16_384
BASE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("added", pa.string()),
        pa.field("created", pa.string()),
        pa.field("metadata", pa.string()),
    ]
)


def document_key(source: str, identifier: str) -> int:
    """64-bit key of a document: BLAKE2b of its source and id, so that the same document has the same key on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{source}\0{identifier}".encode(), digest_size=8).digest(), "little")


def utf8_bytes(text: str) -> int:
    """The bytes of a text in UTF-8; an ASCII text, of which most are, need not be encoded to tell."""
    return len(text) if text.isascii() else len(text.encode())


def duplicates(keys: np.ndarray) -> int:
    """How many of the keys (uint64) stand earlier among them. Two ids share a key by chance in one of 2^64 pairs."""
    ordered = np.sort(keys)
    return int((ordered[1:] == ordered[:-1]).sum())


class DocumentWriter:
    """Writes documents in row groups of bounded size.

    columns: the typed columns that the source promises, by name.
    """

    def __init__(self, path: Path, source: str, columns: dict[str, pa.DataType]) -> None:
        clash = set(columns) & set(BASE_SCHEMA.names)
        if clash:
            raise UserError(
                f"source {source}: the column {min(clash)} is one that every document has; give it another name in fields.columns"
            )
        self.source = source
        self.schema = pa.schema([*BASE_SCHEMA, *(pa.field(name, kind) for name, kind in columns.items())])
        self.typed = list(columns)
        # Dictionaries are for what repeats; texts and ids do not, and are read almost twice as fast without one.
        self.writer = pq.ParquetWriter(path, self.schema, compression="zstd", use_dictionary=["source", *self.typed])
        self.rows: list[tuple[Any, ...]] = []
        self.keys = array("Q")
        self.bytes = 0

    def write(
        self, identifier: str, text: str, added: str | None, created: str | None, metadata: dict[str, Any], columns: dict[str, Any]
    ) -> int:
        """Add a document; returns the bytes of its text."""
        size, key = utf8_bytes(text), document_key(self.source, identifier)
        notes = json.dumps(metadata, ensure_ascii=False, default=str) if metadata else None
        row = (identifier, key, text, self.source, added, created, notes)
        self.rows.append(row + tuple(columns.get(name) for name in self.typed))
        self.keys.append(key)
        self.bytes += size + (len(notes) if notes and len(notes) >= ROW_GROUP_BYTES else 0)
        if self.bytes >= ROW_GROUP_BYTES or len(self.rows) >= ROW_GROUP_ROWS:
            self.flush()
        return size

    def flush(self) -> None:
        if self.rows:
            columns = [pa.array(values, field.type) for values, field in zip(zip(*self.rows, strict=True), self.schema, strict=True)]
            table = pa.Table.from_arrays(columns, schema=self.schema)
            self.writer.write_table(table, row_group_size=len(self.rows))
            self.rows, self.bytes = [], 0

    def close(self) -> None:
        self.flush()
        self.writer.close()

    @property
    def duplicate_ids(self) -> int:
        """Documents whose id an earlier one has."""
        return duplicates(np.frombuffer(self.keys, np.uint64))


def texts(path: Path, progress: Report = ignore) -> Iterator[tuple[int, list[str]]]:
    """Row groups of a shard as (first row, texts); `progress` hears of each when the next is asked for."""
    with pq.ParquetFile(path) as file:
        row, done = 0, 0
        text = file.schema_arrow.get_field_index("text")
        for group in range(file.num_row_groups):
            column: list[str] = file.read_row_group(group, columns=["text"]).column("text").to_pylist()
            yield row, column
            row += len(column)
            done += file.metadata.row_group(group).column(text).total_uncompressed_size
            progress(row, done, row / file.metadata.num_rows)


def read_rows(path: Path, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """Some rows of a shard, int64[n] in ascending order; row groups that hold none of them are not read."""
    taken = []
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            here = rows[(rows >= start) & (rows < start + size)] - start
            if len(here):
                taken.append(file.read_row_group(group, columns=columns).take(here))
            start += size
        return pa.concat_tables(taken) if taken else file.schema_arrow.empty_table().select(columns)


def load_columns(
    documents: Parquet, aligned: Sequence[Parquet], index: Parquet | None = None, names: Collection[str] | None = None
) -> pa.Table:
    """Everything known of a shard's documents but their text: typed columns, scores, and from the token index `repeated` and `tokens`.

    Rows are the shard's rows; what was not tokenized has nulls from the index. `names`: read only these columns, and `key`.
    """
    wanted = None if names is None else {"key", *names}
    there = [name for name in pq.read_schema(documents).names if name not in ("text", "metadata") and (wanted is None or name in wanted)]
    table = pq.read_table(documents, columns=there)
    for file in aligned:
        columns = None if wanted is None else [name for name in pq.read_schema(file).names if name in wanted]
        scores = pq.read_table(file, columns=columns)
        for name in scores.column_names:
            if name in table.column_names:
                raise UserError(
                    f"two columns are called {name}: rename the scorer or the source's column, so that filters know which is meant"
                )
            table = table.append_column(name, scores.column(name))
    return table if index is None else _with_index(table, index)


def _with_index(table: pa.Table, index: Parquet) -> pa.Table:
    entries = pq.read_table(index, columns=["row", "length", "repeated"])
    rows = entries.column("row").to_numpy()
    absent = np.ones(table.num_rows, bool)
    absent[rows] = False
    for name, source, kind in (("tokens", "length", np.int64), ("repeated", "repeated", bool)):
        values = np.zeros(table.num_rows, kind)
        values[rows] = entries.column(source).to_numpy(zero_copy_only=False)
        table = table.append_column(name, pa.array(values, mask=absent))
    return table
