"""What every reader shares: the raw file it is given, and the three things it may yield about each raw record.

The books: the units of everything a reader yields for a file sum to the raw records in that file. A blank line is no record.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from tasks.errors import UserError
from tasks.sources.config import SourceConfig
from tasks.storage import Storage, open_file, public, shown, stamp


@dataclass(frozen=True)
class RawFile:
    """One raw file. `url` is a local path or any fsspec URL, `size` its bytes, `content_id` a hash of its content (never of its place).

    `stamp` is what its storage said of its version when the content was looked at; empty for a file that nobody else can change.
    """

    url: str
    name: str
    size: int
    content_id: str
    stamp: str = ""

    @property
    def shown(self) -> str:
        """Where it lies, as it may be told and written down."""
        return shown(self.url)

    def told(self) -> dict[str, Any]:
        """The file for a manifest."""
        return {"url": public(self.url), "name": self.name, "size": self.size, "content_id": self.content_id}

    def open(self) -> BinaryIO:
        """A seekable stream of the file's bytes as they lie there (still compressed)."""
        return open_file(self.url, self.size, self.check)

    def check(self) -> None:
        """Raise UserError where the file is not any more what `content_id` was taken from."""
        if not self.stamp:
            return
        info = Storage(self.url).there() or {}
        if (int(info.get("size", -1)), stamp(info)) != (self.size, self.stamp):
            what = "has changed" if info else "is gone"
            raise UserError(f"{self.shown} {what} since this run looked at it: run the same command again when nothing writes to it")


@dataclass(frozen=True)
class WatchedFile(RawFile):
    """A raw file that tells `read(bytes)` of each piece that is read of it, as it lies there."""

    read: Callable[[int], None] = field(kw_only=True, compare=False)

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
    parts: tuple[str, ...] = ()  # further texts of the raw record, for what is made of it (`tasks.sources.synthesis`)


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
