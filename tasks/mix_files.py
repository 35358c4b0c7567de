"""The files of a mix that have a row a document or an extent, written as streams."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import mix_plan

EXTENT = 4 * 8  # bytes
AT_ONCE = 1 << 18  # extents
ROW_GROUP = 1 << 17  # documents of a plan, at least


class ExtentsFile:
    """Extents, int64[n, 4], as a .npy file; what touches across two calls is one extent.

    file: empty, open for writing and reading.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written = 0
        self._last = np.empty((0, 4), np.int64)  # not written yet: the next one may go on where it ends
        self._header(0)
        self._begin = file.tell()

    def __len__(self) -> int:
        return self._written + len(self._last)

    def append(self, extents: np.ndarray) -> None:
        """Goes on with these extents; so does the running total."""
        joined = mix_plan.join_extents([self._last, extents])
        self._file.write(joined[:-1].data)
        self._written += max(len(joined) - 1, 0)
        self._last = joined[-1:]

    def repeat(self, first: int, times: int) -> None:
        """Goes on with all extents from the row `first`, so many times."""
        stop = len(self)
        for _ in range(times):
            for extents in self._rows(first, stop):
                self.append(extents)

    def extend(self, other: ExtentsFile) -> None:
        for extents in other._rows(0, len(other)):
            self.append(extents)

    def close(self) -> None:
        self._file.write(self._last.data)
        self._file.seek(0)
        self._header(len(self))

    def _rows(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Extents, int64[n, 4], of which only the last may not be written yet."""
        last, written = self._last, min(stop, self._written)
        self._file.flush()
        for begin in range(first, written, AT_ONCE):
            size = (min(begin + AT_ONCE, written) - begin) * EXTENT
            yield np.frombuffer(os.pread(self._file.fileno(), size, self._begin + begin * EXTENT), np.int64).reshape(-1, 4)
        if max(first, written) < stop:
            yield last

    def _header(self, rows: int) -> None:
        # numpy leaves room in it for a longer first dimension, so that it has one size
        np.lib.format.write_array_header_1_0(self._file, {"descr": "<i8", "fortran_order": False, "shape": (rows, 4)})


class PlanFile:
    """`plan.parquet`: the documents that a mix takes: source, key, file (position in its list of token files), row, start, length, copies."""

    def __init__(self, path: Path, sources: Sequence[str]) -> None:
        self._sources = list(sources)
        self._schema = pa.schema(
            [
                ("source", pa.dictionary(pa.int32(), pa.string())),
                ("key", pa.uint64()),
                ("file", pa.int32()),
                ("row", pa.int64()),
                ("start", pa.int64()),
                ("length", pa.int64()),
                ("copies", pa.uint16()),
            ]
        )
        # Keys do not repeat, and of what rises the differences are small: dictionaries would take three times as long to write. What is left
        # does not compress.
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="none",
            use_dictionary=["source", "file", "copies"],
            column_encoding=dict.fromkeys(["row", "start", "length"], "DELTA_BINARY_PACKED"),
        )
        self._waiting: list[pa.Table] = []
        self._pool = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None  # the row group that is being written

    def append(self, source: str, documents: Mapping[str, np.ndarray], copies: np.ndarray) -> None:
        number = np.full(len(copies), self._sources.index(source), np.int32)
        columns = [documents[name] for name in self._schema.names[1:-1]]
        self._waiting.append(pa.table([pa.DictionaryArray.from_arrays(number, self._sources), *columns, copies], schema=self._schema))
        if sum(map(len, self._waiting)) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        with self._pool:
            self._flush()
            self._wait()
        self._writer.close()

    def _flush(self) -> None:
        self._wait()
        if any(map(len, self._waiting)):
            self._written = self._pool.submit(self._writer.write_table, pa.concat_tables(self._waiting))
        self._waiting = []

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()
