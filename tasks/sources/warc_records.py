"""A WARC file (ISO 28500) cut into records, every byte of it accounted for.

fastwarc hands out a record that was cut off as if it were whole, and cannot go on behind a fault. So records are cut here, with their
places; fastwarc then parses one at a time. Behind a fault the next record is looked for: the next member of a compressed file that begins
with one, or the next place that looks like one's first lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tasks.sources.base import Bad, RawFile
from tasks.sources.stream import DECODE_ERRORS, MAX_DECODED_BYTES, codec

CHUNK_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20  # of a larger one only the beginning is kept
MAX_BEGINNING = 16  # bytes in which `_NEXT` finds the beginning of a record
RAW_BYTES = 1_000_000  # kept of what cannot be read

_MAGICS = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd"}
_BEGINNING = b"WARC/"
_NEXT = re.compile(rb"WARC/\d\.\d+\r?\n(?=[A-Za-z])")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n", re.IGNORECASE)


@dataclass(frozen=True)
class Cut:
    """One record: header and block. `position` names its place in the file; `is_whole` is false where it is over MAX_RECORD_BYTES."""

    position: str
    content: bytes
    is_whole: bool


@dataclass(frozen=True)
class _Piece:
    """Decoded bytes; `offset` is the place in the file where their member begins."""

    data: bytes
    offset: int
    begins_member: bool


@dataclass(frozen=True)
class _Hole:
    """Bytes of the file that cannot be decoded: a member from `start` on, found damaged from `fault` on, up to `end`."""

    start: int
    fault: int
    end: int
    cause: str
    raw: bytes


def records(file: RawFile) -> Iterator[Cut | Bad]:
    """Each record, or what stands in the place of some and cannot be read, in the file's order."""
    with file.open() as stream:
        found = codec(stream.read(16))
        stream.seek(0)
        window = _Window(_plain(stream) if found is None else _members(stream, file.size, *found), found is None)
        while (item := _next(window)) is not None:
            yield item


# -- decoding ------------------------------------------------------------------------------------------------------------------------


def _plain(stream: BinaryIO) -> Iterator[_Piece | _Hole]:
    while data := stream.read(CHUNK_BYTES * 16):
        yield _Piece(data, 0, False)


def _members(stream: BinaryIO, size: int, name: str, new_decoder: Callable[[], Any]) -> Iterator[_Piece | _Hole]:
    """Members of a compressed file one after another; a damaged one is a hole up to the next that holds a record."""
    data, end = b"", 0  # bytes that are read and not decoded yet, and where in the file they end
    while True:
        if not data:
            data = stream.read(CHUNK_BYTES)
            end += len(data)
            if not data:
                return
        data = data.lstrip(b"\0")  # padding between members
        if not data:
            continue
        start, first = end - len(data), True
        fault = start
        decoder = new_decoder()
        cause = None
        while not decoder.eof:
            try:
                decoded = decoder.decompress(data, MAX_DECODED_BYTES)
            except DECODE_ERRORS as error:
                cause = f"the {name} member is damaged: {error}"
                break
            if decoded:
                yield _Piece(decoded, start, first)
                first = False
            data = b""
            if decoder.needs_input and not decoder.eof:
                data = stream.read(CHUNK_BYTES)
                fault, end = end, end + len(data)
                if not data:
                    cause = f"the {name} member ends early: the file is cut off"
                    break
        if cause is None:
            data = decoder.unused_data
            continue
        end = _resume(stream, start + 1, size, name, new_decoder)
        stream.seek(start)
        yield _Hole(start, fault, end, cause, stream.read(min(RAW_BYTES, end - start)))
        stream.seek(end)
        data = b""


def _resume(stream: BinaryIO, start: int, size: int, name: str, new_decoder: Callable[[], Any]) -> int:
    """Where, from `start` on, the next member begins that decodes to the beginning of a record; the file's size where none does."""
    magic = _MAGICS.get(name)
    stream.seek(start)
    data, at = b"", start  # `at` is where in the file `data` begins
    while magic and (chunk := stream.read(CHUNK_BYTES)):
        data += chunk
        found = data.find(magic)
        while found >= 0:
            if len(data) - found < CHUNK_BYTES // 2:  # too little to try it, and the file may go on
                data += stream.read(CHUNK_BYTES)
            if _begins_record(data[found : found + CHUNK_BYTES // 2], new_decoder):
                return at + found
            found = data.find(magic, found + 1)
        kept = len(magic) - 1
        at += max(0, len(data) - kept)
        data = data[-kept:]
    return size


def _begins_record(data: bytes, new_decoder: Callable[[], Any]) -> bool:
    try:
        return bool(new_decoder().decompress(data, 64).startswith(_BEGINNING))
    except DECODE_ERRORS:
        return False


# -- cutting -------------------------------------------------------------------------------------------------------------------------


class _Window:
    """The decoded bytes ahead. It ends, for the time being, where a member begins with a new record, and at a hole."""

    def __init__(self, pieces: Iterator[_Piece | _Hole], is_plain: bool) -> None:
        self._pieces = pieces
        self._is_plain = is_plain
        self._buffer = bytearray()
        self._at = 0  # of the buffer: what lies before it is used up
        self._members: list[tuple[int, int]] = [(0, 0)]  # (place in the buffer, place in the file) of each member in sight
        self.hole: _Hole | None = None

    def want(self, count: int) -> int:
        """Reads until `count` bytes lie ahead; how many of them there are, fewer at an end."""
        while True:
            end = self._end()
            if end - self._at >= count or end < len(self._buffer) or not self._read():
                return min(count, end - self._at)

    def _end(self) -> int:
        for place, _ in self._members:
            if place > self._at and self._buffer.startswith(_BEGINNING, place):
                return place
        return len(self._buffer)

    def _read(self) -> bool:
        piece = None if self.hole else next(self._pieces, None)
        if isinstance(piece, _Hole):
            self.hole = piece
        if not isinstance(piece, _Piece):
            return False
        if self._at > CHUNK_BYTES:
            self._forget()
        if piece.begins_member:
            self._members.append((len(self._buffer), piece.offset))
        self._buffer += piece.data
        return True

    def _forget(self) -> None:
        del self._buffer[: self._at]
        self._members = [(place - self._at, offset) for place, offset in self._members]
        self._at = 0
        while len(self._members) > 1 and self._members[1][0] <= 0:
            del self._members[0]

    def peek(self, count: int) -> bytes:
        """At most `count` of the bytes ahead, as far as they are read."""
        return bytes(self._buffer[self._at : min(self._at + count, self._end())])

    def skip(self, count: int) -> None:
        self._at += count
        while len(self._members) > 1 and self._members[1][0] <= self._at:
            del self._members[0]

    def position(self) -> str:
        """Where the next byte lies: in the file, or in the decoded content of the member that begins there."""
        place, offset = self._members[0]
        inside = self._at - place
        if self._is_plain:
            return f"byte {inside}"
        return f"byte {offset}" + (f", {inside} into its content" if inside else "")


def _next(window: _Window) -> Cut | Bad | None:
    while window.want(1) and window.peek(1) in b"\r\n":
        window.skip(1)
    position = window.position()
    if not window.want(1):
        return _hole(window, position, b"") if window.hole else None
    header = _header(window)
    if header is None:
        return _lost(window, position, "no WARC record begins here", 1)
    if _NEXT.search(header, 1):
        return _lost(window, position, "the record has no end and the next one begins in its header", 1)
    length = _LENGTH.search(header)
    if length is None:
        return _lost(window, position, "the record's header has no Content-Length", len(header))
    return _cut(window, position, len(header), int(length[1]))


def _header(window: _Window) -> bytes | None:
    """The header with the empty line behind it; None where there is none."""
    size = 4096
    while size <= MAX_HEADER_BYTES:
        there = window.want(size)
        data = window.peek(there)
        if not data.startswith(_BEGINNING[: len(data)]):
            return None
        if end := _HEADER_END.search(data):
            return data[: end.end()]
        if there < size:
            return None
        size *= 2
    return None


def _cut(window: _Window, position: str, header: int, length: int) -> Cut | Bad:
    size = header + length
    if size > MAX_RECORD_BYTES:
        return _cut_large(window, position, size)
    there = window.want(size)
    if there < size:
        return _lost(window, position, f"the record ends {size - there} bytes short of its Content-Length", header)
    behind = window.want(size + 16) - size
    tail = window.peek(size + behind)[size:]
    # Two line ends are due, but some writers leave them out; a member may end with the record.
    if not tail or tail.startswith((b"\r\n\r\n", b"\n\n")) or tail.lstrip(b"\r\n").startswith(_BEGINNING) or not tail.strip(b"\r\n"):
        content = window.peek(size)
        window.skip(size)
        return Cut(position, content, True)
    return _lost(window, position, f"no record ends where its Content-Length ({length}) says", header)


def _cut_large(window: _Window, position: str, size: int) -> Cut | Bad:
    content, left = b"", size
    while left:
        there = window.want(min(left, CHUNK_BYTES * 16))
        if not there:
            return (
                _hole(window, position, content) if window.hole else Bad(position, f"the file ends {left} bytes before the record", content)
            )
        content = content or window.peek(there)
        window.skip(there)
        left -= there
    return Cut(position, content, False)


def _lost(window: _Window, position: str, cause: str, known: int) -> Bad:
    """What lies ahead is no record: it is set aside up to the next one, which does not begin in the first `known` bytes."""
    raw, lost = b"", 0
    while there := window.want(CHUNK_BYTES * 16):
        data = window.peek(there)
        found = _NEXT.search(data, known)
        is_last = found is not None or there < CHUNK_BYTES * 16
        count = found.start() if found else there if is_last else there - MAX_BEGINNING
        raw += data[: min(count, RAW_BYTES - len(raw))]
        window.skip(count)
        lost += count
        known = 1
        if is_last:
            break
    if window.hole and not window.want(1):
        return _hole(window, position, raw)
    return Bad(position, cause, raw)


def _hole(window: _Window, position: str, raw: bytes) -> Bad:
    """The hole ahead, and with it the beginning of the record that it cuts off."""
    hole, window.hole = window.hole, None
    assert hole is not None
    if not raw or position == f"byte {hole.start}":  # the member held this record alone
        return Bad(f"byte {hole.start}", hole.cause, raw or hole.raw, unreadable_bytes=hole.end - hole.start)
    return Bad(position, hole.cause, raw, unreadable_bytes=hole.end - hole.fault)
