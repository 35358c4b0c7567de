"""What every reader shares: the raw file it is given, and the three things it may yield about each raw record.

The books: the units of everything a reader yields for a file sum to the raw records in that file. A blank line is no record.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import fsspec

from tasks.sources.config import SourceConfig


@dataclass(frozen=True)
class RawFile:
    """One raw file. `url` is a local path or any fsspec URL, `size` its bytes, `content_id` a hash of its content (never of its place)."""

    url: str
    name: str
    size: int
    content_id: str

    def open(self) -> BinaryIO:
        """A seekable stream of the file's bytes as they lie there (still compressed)."""
        return cast(BinaryIO, fsspec.open(self.url, "rb").open())


@dataclass(frozen=True)
class WatchedFile(RawFile):
    """A raw file that tells `read(bytes)` of each piece that is read of it, as it lies there."""

    read: Callable[[int], None] = field(compare=False)

    def open(self) -> BinaryIO:
        return cast(BinaryIO, _WatchedStream(super().open(), self.read))


class _WatchedStream(io.BufferedIOBase):
    def __init__(self, stream: BinaryIO, told: Callable[[int], None]) -> None:
        self._stream, self._told = stream, told

    def read(self, size: int | None = -1, /) -> bytes:
        piece = self._stream.read(-1 if size is None else size)
        self._told(len(piece))
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()


@dataclass
class Record:
    """One document. `units` raw records went into it (2 for a question with its answer); `columns` holds the source's typed columns."""

    position: str
    id: str
    text: str
    added: str | None = None
    created: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    units: int = 1
    repaired: bool = False  # lone surrogates were replaced by U+FFFD


@dataclass(frozen=True)
class Dropped:
    """`units` raw records that were read well and are left out for `reason`."""

    reason: str
    units: int = 1


@dataclass(frozen=True)
class Bad:
    """What cannot be read: for the quarantine. `raw` is the record as it lies in the file, or its beginning where it has no end.

    `unreadable_bytes` counts the bytes of the raw file, as it lies there, that nobody could read on from the fault.
    """

    position: str
    cause: str
    raw: bytes
    units: int = 1
    unreadable_bytes: int = 0


Item = Record | Dropped | Bad
Reader = Callable[[RawFile, SourceConfig], Iterator[Item]]


class FieldError(ValueError):
    """A record that cannot become a document; its message is the cause in the quarantine."""


def repair(text: str) -> str:
    """Lone surrogates become U+FFFD and pairs one character, exactly as tiktoken does before it encodes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def positional_id(file: RawFile, number: int) -> str:
    """The id of record `number` (from 1) that brings none: made of the content, so that it does not depend on where the file lies."""
    return f"{file.content_id[:16]}:{number}"
