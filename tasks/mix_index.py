"""The token indices of a mix's sources, read as streams, so that memory does not grow with the documents.

A source is surveyed once and read once more. The survey says what it has and writes the key and length of each document to a scratch file,
grouped by the first bits of the document's place in line: the place up to which a share of the source reaches is then found in one group, and
equal keys lie in one group too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow.parquet as pq

from tasks import mix_plan
from tasks.documents import duplicates
from tasks.errors import UserError
from tasks.mix_plan import HELD_OUT_SEED, Front

ROWS = 1 << 16  # of an index at once: what is worked on stays in the processor's cache
THREADS = 2  # Parquet, sorting and arithmetic run outside of Python's lock
GROUPS = 256
RECORD = np.dtype([("key", "<u8"), ("length", "<i4")])
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in the order of the items, a few of them made ahead on threads."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > THREADS + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Selection:
    """Which documents of a shard are selected, read when that is asked for first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def keep(self) -> np.ndarray:
        """bool[rows of the documents shard]"""
        with pq.ParquetFile(self.path) as file:
            return file.read(["keep"], use_threads=False).column("keep").to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Piece:
    """Some row groups of the index of one token file."""

    file: int  # position in the mix's list of token files
    index: Path
    metadata: pq.FileMetaData
    groups: Sequence[int]
    selection: Selection

    def read(self, *columns: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """These columns of all documents of the index, and which of them are selected, int64[n], in their order."""
        with pq.ParquetFile(self.index, metadata=self.metadata) as file:
            table = file.read_row_groups(self.groups, columns=list(dict.fromkeys(["row", *columns])), use_threads=False)
        found = {name: table.column(name).to_numpy() for name in table.column_names}
        return found, np.flatnonzero(self.selection.keep[found["row"]])


@dataclass(frozen=True)
class Source:
    """A source of a mix: the index and the selection of each of its shards, in the order of its token files from `first_file` on.

    others: the index of each shard under another tokenizer, whose tokens the mix takes; none where it takes these.
    """

    name: str
    first_file: int
    shards: Sequence[tuple[Path, Path]]
    others: Sequence[Path] = ()

    def pieces(self) -> Iterator[Piece]:
        for file, (index, path) in enumerate(self.shards, self.first_file):
            metadata, selection = pq.read_metadata(index), Selection(path)
            before = [0, *accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))]
            first = 0
            for group in range(1, len(before)):
                if before[group] - before[first] >= ROWS or group == metadata.num_row_groups:
                    yield Piece(file, index, metadata, range(first, group), selection)
                    first = group


class Survey:
    """What a source has, and where in line its documents stand.

    held: the front, in the line of HELD_OUT_SEED, of the documents that no mix may take.
    available: tokens of the others.
    """

    def __init__(self, source: Source, seed: int, held_share: float, held_tokens: int, scratch: BinaryIO) -> None:
        """Reads keys and lengths of the source. `seed` is the line's; `scratch` must stay open as long as fronts are asked for."""
        self.source, self.seed = source, seed
        self._scratch = scratch
        self._bounds: list[np.ndarray] = []  # int64[GROUPS + 1] of each piece: the records in the scratch file where its groups begin

        def look(piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            found, selected = piece.read("key", "length")
            keys, lengths = found["key"][selected], found["length"][selected]
            group = (mix_plan.order(keys, seed) >> np.uint64(56)).astype(np.uint8)
            line = np.argsort(group, kind="stable")
            records = np.empty(len(line), RECORD)
            records["key"], records["length"] = keys[line], lengths[line]
            candidates = np.flatnonzero(mix_plan.held_out(keys, held_share)) if held_share else line[:0]
            places = mix_plan.order(keys[candidates], HELD_OUT_SEED)
            return records, np.bincount(group, minlength=GROUPS), places, lengths[candidates]

        held = _HeldOut(held_tokens)
        for records, sizes, places, lengths in in_order(look, source.pieces()):
            self._bounds.append(scratch.tell() // RECORD.itemsize + np.concatenate([[0], np.cumsum(sizes)]))
            scratch.write(records.data)
            held.add(places, lengths)
        scratch.flush()
        self.held = held.front()
        counted = np.array(list(in_order(self._count, range(GROUPS))), np.int64)
        self._tokens = counted[:, 0]
        self.available, self.documents, self.held_documents, self.duplicates = counted.sum(axis=0).tolist()

    def front(self, tokens: float) -> Front:
        """Of the documents that are not held out, those first in line whose tokens come nearest to `tokens`."""
        ends = np.cumsum(self._tokens)
        group = min(int(np.searchsorted(ends, tokens)), GROUPS - 1)
        keys, lengths = self._group(group)
        free = ~self._is_held(keys)
        places = mix_plan.order(keys[free], self.seed)
        return mix_plan.nearest_front(places, lengths[free], tokens, int(ends[group] - self._tokens[group]))

    def _group(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and lengths of a group, in the order of the index."""
        size = RECORD.itemsize
        ranges = [bounds[group : group + 2].tolist() for bounds in self._bounds]
        parts = [os.pread(self._scratch.fileno(), (end - begin) * size, begin * size) for begin, end in ranges]
        records = np.frombuffer(b"".join(parts), RECORD)
        return records["key"].astype(np.uint64), records["length"].astype(np.int64)

    def _is_held(self, keys: np.ndarray) -> np.ndarray:
        return self.held.take(mix_plan.order(keys, HELD_OUT_SEED))[0]  # equal keys lie in one group: those before are no others

    def _count(self, group: int) -> tuple[int, int, int, int]:
        """Tokens that are not held out, documents, documents held out, duplicates."""
        keys, lengths = self._group(group)
        held = self._is_held(keys)
        return int(lengths[~held].sum()), len(keys), int(held.sum()), duplicates(keys)


class _HeldOut:
    """Finds, among candidates that come in the order of the index, the first in line up to the document that reaches `tokens`.

    Holds about twice as many as are held out in the end.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.places, self.lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        self.unsorted = 0

    def add(self, places: np.ndarray, lengths: np.ndarray) -> None:
        self.places.append(places)
        self.lengths.append(lengths)
        self.unsorted += len(places)
        if self.unsorted > ROWS + len(self.places[0]):
            self._forget()

    def front(self) -> Front:
        self._forget()
        return Front.of(np.sort(self.places[0]), len(self.places[0]))

    def _forget(self) -> None:
        """Let go of the candidates that have enough others before them."""
        places, lengths = np.concatenate(self.places), np.concatenate(self.lengths)
        line = np.argsort(places, kind="stable")
        before = np.cumsum(lengths[line]) - lengths[line]
        kept = line[: np.searchsorted(before, self.tokens)]  # sorted, but equal places still in the order of the index
        self.places, self.lengths, self.unsorted = [places[kept]], [lengths[kept]], 0


@dataclass(frozen=True)
class Documents:
    """Documents of one token file, in the order of its index."""

    file: int  # position in the mix's list of token files
    columns: dict[str, np.ndarray]  # of these and other documents
    which: np.ndarray  # int64[n]: those of the columns' rows that are meant
    places: np.ndarray  # uint64[n]: where they stand in line

    @property
    def tokens(self) -> int:
        return int(self.columns["length"][self.which].sum(dtype=np.int64))

    def take(self, chosen: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """Columns of the chosen documents: key, file, row (in the documents shard), start and length (tokens), bytes (of the text)."""
        rows = self.which[chosen]
        taken = {name: values[rows] for name, values in self.columns.items()}
        return taken | {"length": taken["length"].astype(np.int64), "file": np.full(len(rows), self.file, np.int32)}


def documents(survey: Survey, *, held: bool) -> Iterator[Documents]:
    """The selected documents of a source that are held out, or those that are not, in the order of the index."""

    source = survey.source

    def read(piece: Piece) -> tuple[Documents, np.ndarray]:
        columns, selected = piece.read("key", "row", "start", "length", "bytes")
        if source.others:
            columns = {name: values[selected] for name, values in columns.items()}  # the other may have no more than these
            selected = np.arange(len(selected))
            columns |= _encoded_as(source.others[piece.file - source.first_file], columns, source.name)
        keys = columns["key"][selected]
        return Documents(piece.file, columns, selected, mix_plan.order(keys, survey.seed)), mix_plan.order(keys, HELD_OUT_SEED)

    front = survey.held
    for found, places in in_order(read, source.pieces()):
        taken, front = front.take(places)
        chosen = np.flatnonzero(taken if held else ~taken)
        yield Documents(found.file, found.columns, found.which[chosen], found.places[chosen])


def _encoded_as(other: Path, columns: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """start and length of the same documents, by row and key, in another index of their shard."""
    index = _index_of(other)
    at = np.searchsorted(index["row"], columns["row"])
    there = at < len(index["row"])
    if not there.all() or (index["key"][at] != columns["key"]).any():
        raise UserError(f"the other tokenizer has not encoded the documents of {name} shard by shard: run it again")
    return {column: index[column][at] for column in ("start", "length")}


@lru_cache(maxsize=2)  # a shard is read piece by piece
def _index_of(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path, columns=["row", "key", "start", "length"])
    return {column: table.column(column).to_numpy() for column in table.column_names}
