"""Writing a mix out as contiguous token files, in instance order.

For runs on many nodes, where reading scattered extents would starve the GPUs, and for OLMo-core and dolma, which read just these files:
headerless little-endian uint32 `part-00000.npy`, and beside each a headerless `part-00000.csv.gz` with a line `start,end,id,src,loc` a
document.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tasks.errors import UserError

TOKEN = np.dtype("<u4")


def pack(
    extents: np.ndarray,
    files: Sequence[Path],
    documents: pa.Table,
    out: Path,
    sequence_length: int,
    max_file_tokens: int = 2**28,
) -> tuple[list[str], np.ndarray]:
    """Writes the token stream of `extents` into the folder `out`.

    Returns the names of the files and the mix's new extents, one a file (int64[n, 4]); the stream, and so every instance, stays the same.

    Each file but the last holds a multiple of `sequence_length` tokens, since OLMo-core cuts instances file by file and drops what is left
    of each; so it finds our instances, token for token. The last file keeps the tail, which OLMo-core drops as our trainer does. A document
    that goes over the end of a file is listed in both files, with its part in each. Equal input gives equal bytes.

    Args:
        extents: the mix, int64[m, 4]: file index, start, length, running total, in tokens; made of whole documents.
        files: token files by file index, headerless little-endian uint32.
        documents: the documents in those files, at least all of the mix, in any order: `file` (index), `start` and `length` in tokens,
            `key` (uint64), `source`, `row` (in the documents shard), and, if at hand, `id`. The last three become `loc`, `src` and `id` of
            the CSV; without ids it holds the keys in hexadecimal.
        out: folder for the files.
        sequence_length: tokens of an instance.
        max_file_tokens: largest size of a file (the default is 1 GiB), rounded down to a multiple of `sequence_length`.

    Raises:
        UserError: the mix is empty, a file would hold no instance, a token file is shorter than the extents say, or `documents` lacks some.
    """
    if not len(extents):
        raise UserError("the mix to pack has no tokens: loosen the filters of its sources")
    file_tokens = max_file_tokens // sequence_length * sequence_length
    if not file_tokens:
        raise UserError(f"packed files of {max_file_tokens} tokens hold no instance of {sequence_length}: raise max_file_tokens")
    bases = _file_bases(extents, files)
    index = _Index(documents, bases)
    total = int(extents[-1, 3])
    out.mkdir(parents=True, exist_ok=True)
    begins = np.arange(0, total, file_tokens)
    names = [f"part-{number:05d}" for number in range(len(begins))]
    for name, begin in zip(names, begins.tolist(), strict=True):
        pieces = _cut(extents, begin, min(begin + file_tokens, total))
        _write_tokens(out / f"{name}.npy", pieces, files)
        _write_documents(out / f"{name}.csv.gz", index.inside(pieces))
    lengths = np.diff(np.append(begins, total))
    packed = np.column_stack([np.arange(len(begins)), np.zeros_like(begins), lengths, begins + lengths])
    return [f"{name}.npy" for name in names], packed


class _Index:
    """The documents of the mix's files, sorted by where they lie; finds those that a run of pieces holds."""

    def __init__(self, documents: pa.Table, bases: np.ndarray) -> None:
        # One number line through all files: a file's base plus the place in the file.
        position = bases[documents["file"].to_numpy()] + documents["start"].to_numpy()
        order = np.argsort(position, kind="stable")
        self.position = position[order]
        self.length = documents["length"].to_numpy()[order].astype(np.int64)
        self.rows = order
        self.documents = documents
        self.bases = bases

    def inside(self, pieces: np.ndarray) -> pa.Table:
        """Columns start, end (in tokens of the file that the pieces make up), id, src, loc of the documents in `pieces`, cut to them."""
        begin = self.bases[pieces[:, 0]] + pieces[:, 1]
        first = np.searchsorted(self.position, begin, side="right") - 1  # the document that a piece begins in
        last = np.searchsorted(self.position, begin + pieces[:, 2], side="left")
        counts = last - first
        piece = np.repeat(np.arange(len(pieces)), counts)
        found = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[piece]
        # From places on the number line to places in the packed file.
        shift = pieces[piece, 3] - pieces[piece, 2] - begin[piece]
        start = np.maximum(self.position[found], begin[piece]) + shift
        end = np.minimum(self.position[found] + self.length[found], begin[piece] + pieces[piece, 2]) + shift
        if (start >= end).any() or (end - start).sum() != pieces[-1, 3]:
            raise UserError("the index of documents does not cover the mix that is to be packed: tokenize its sources again")
        taken = self.documents.take(pa.array(self.rows[found]))
        names = taken["id"] if "id" in taken.column_names else _hexadecimal(taken["key"].to_numpy())
        # A newline in an id would end the line for a reader that, like OLMo-core's, splits lines before it looks for quotes.
        names = pc.replace_substring_regex(names, r"[\r\n]+", " ")
        return pa.table({"start": start, "end": end, "id": names, "src": taken["source"], "loc": taken["row"]})


def _file_bases(extents: np.ndarray, files: Sequence[Path]) -> np.ndarray:
    """Tokens in all files before each, int64[len(files)]; checks that no extent goes over the end of its file."""
    sizes = np.array([path.stat().st_size // TOKEN.itemsize for path in files], np.int64)
    needed = np.zeros(len(files), np.int64)
    np.maximum.at(needed, extents[:, 0], extents[:, 1] + extents[:, 2])
    for number in np.flatnonzero(needed > sizes).tolist():
        held, wanted = sizes[number], needed[number]
        raise UserError(f"the token file {files[number]} holds {held} tokens, but the mix reads up to {wanted}: tokenize its source again")
    return np.cumsum(sizes) - sizes


def _cut(extents: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The part of the stream from token `begin` to `end`, as extents with a running total of its own."""
    first, last = np.searchsorted(extents[:, 3], [begin, end], side="right")
    pieces = extents[first : last + 1].copy()
    lead = begin - (pieces[0, 3] - pieces[0, 2])
    pieces[0, 1:3] += (lead, -lead)
    pieces[-1, 2] -= max(int(pieces[-1, 3]) - end, 0)
    pieces = pieces[pieces[:, 2] > 0]
    pieces[:, 3] = np.cumsum(pieces[:, 2])
    return pieces


def _write_tokens(path: Path, pieces: np.ndarray, files: Sequence[Path]) -> None:
    # Pieces mostly come file by file; more open maps would only meet the system's limit.
    opened = lru_cache(maxsize=64)(lambda number: np.memmap(files[number], TOKEN, mode="r"))
    with path.open("wb", buffering=1 << 20) as file:
        for number, start, length, _ in pieces.tolist():
            file.write(opened(number)[start : start + length].data)


def _write_documents(path: Path, documents: pa.Table) -> None:
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as file:
        pyarrow.csv.write_csv(documents, file, pyarrow.csv.WriteOptions(include_header=False))


def _hexadecimal(keys: np.ndarray) -> pa.Array:
    """16 hexadecimal digits for each uint64."""
    digits = keys.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, 16 * len(keys) + 1, 16, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(digits))
