"""Bytes of a raw file: compression found by its magic, streamed in bounded blocks, and cut into records.

A damaged or cut-off stream gives everything that can still be decoded, and only then raises StreamFault.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

import zstandard
from isal import igzip_lib

from tasks.sources.base import Bad, RawFile

CHUNK_BYTES = 1 << 17  # compressed bytes handed to a decoder at once
BLOCK_BYTES = 1 << 20  # decoded bytes handed on at once, at least
MAX_PIECE_BYTES = 1 << 28  # of a line (or a row of a dump): a longer one is quarantined
KEPT_BYTES = 1 << 20  # of such a one
MAX_DECODED_BYTES = 1 << 22  # decoded bytes asked of a decoder at once: a bomb must not fill the memory

# zstd and isal raise their own errors; bz2 raises OSError, so only the call of the decoder stands under this.
DECODE_ERRORS: tuple[Any, ...] = (zstandard.ZstdError, igzip_lib.IsalError, lzma.LZMAError, OSError, EOFError, ValueError)


class StreamFault(Exception):
    """The stream cannot be read on from compressed byte `offset`; `rest` is the decoded beginning of the record that it cut off."""

    def __init__(self, cause: str, offset: int, unreadable_bytes: int) -> None:
        super().__init__(cause)
        self.cause = cause
        self.offset = offset
        self.unreadable_bytes = unreadable_bytes
        self.rest = b""

    def bad(self) -> Bad:
        """The fault for the quarantine, as one record."""
        return Bad(f"byte {self.offset}", self.cause, self.rest, unreadable_bytes=self.unreadable_bytes)


class _Decoder(Protocol):
    """The interface that bz2, lzma and isal share: it decodes one member of a stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _ZstdDecoder:
    """zstandard's decoder of one frame, with that interface; it knows no limit on its output, but blocks of zstd are small."""

    needs_input = True

    def __init__(self) -> None:
        # Files written with --long need windows of up to 2 GiB.
        self._decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decoder.decompress(data)


def _gzip_decoder() -> _Decoder:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def codec(head: bytes) -> tuple[str, Callable[[], _Decoder]] | None:
    """Name and decoder of the compression that a file's first bytes show; None for none."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip", _gzip_decoder
    # The second zstd magic is a skippable frame, with which pzstd begins.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[:1] and head[0] & 0xF0 == 0x50):
        return "zstd", _ZstdDecoder
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bz2", bz2.BZ2Decompressor
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz", lzma.LZMADecompressor
    return None


def blocks(file: RawFile) -> Iterator[bytes]:
    """The decoded content in blocks of 1 to 5 MiB (zstd: up to what one chunk holds). Raises StreamFault after the last good byte."""
    with file.open() as stream:
        found = codec(stream.read(16))
    if found is None:
        yield from _whole_blocks(_chunks(file))
        return
    name, new_decoder = found
    decoded = 0
    try:
        for block in _whole_blocks(_decode(_chunks(file), name, new_decoder, file.size)):
            decoded += len(block)
            yield block
    except StreamFault as fault:
        if fault.offset >= file.size:
            raise
        coarse = fault.offset
    else:
        return
    # A decoder that raises throws away what it decoded of that chunk. Decode again, byte by byte from there, for the last good lines.
    for piece in _whole_blocks(_decode(_chunks(file, coarse), name, new_decoder, file.size)):
        fresh = piece[decoded:] if decoded < len(piece) else b""
        decoded = max(0, decoded - len(piece))
        if fresh:
            yield fresh


def _chunks(file: RawFile, singly_from: int | None = None) -> Iterator[bytes]:
    """The file's bytes in chunks; one by one from byte `singly_from` on."""
    with file.open() as stream:
        left = singly_from
        while left is None or left > 0:
            chunk = stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk
        yield from _singly(stream)


def _singly(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        for at in range(len(chunk)):
            yield chunk[at : at + 1]


def _decode(chunks: Iterator[bytes], name: str, new_decoder: Callable[[], _Decoder], size: int) -> Iterator[bytes]:
    """Decodes the members of a stream one after another. A fault's offset is the start of the chunk it lies in."""
    decoder: _Decoder | None = None
    offset = 0
    for chunk in chunks:
        data = chunk
        while True:
            if decoder is None:
                data = data.lstrip(b"\0")  # padding between or after members
                if not data:
                    break
                decoder = new_decoder()
            try:
                decoded = decoder.decompress(data, MAX_DECODED_BYTES)
            except DECODE_ERRORS as error:
                raise StreamFault(f"the {name} stream is damaged and ends early: {error}", offset, size - offset) from None
            if decoded:
                yield decoded
            if decoder.eof:
                data, decoder = decoder.unused_data, None
            elif decoder.needs_input:
                break
            else:
                data = b""  # it holds more than MAX_DECODED_BYTES of what it was given
        offset += len(chunk)
    if decoder is not None:
        raise StreamFault(f"the {name} stream ends early: the file is cut off", size, 0)


def _whole_blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Joins small pieces into blocks; what was gathered before a fault is given first."""
    gathered: list[bytes] = []
    fault: StreamFault | None = None
    try:
        length = 0
        for piece in pieces:
            gathered.append(piece)
            length += len(piece)
            if length >= BLOCK_BYTES:
                yield b"".join(gathered)
                gathered, length = [], 0
    except StreamFault as caught:
        fault = caught
    if gathered:
        yield b"".join(gathered)
    if fault is not None:
        raise fault


class TooLong(bytes):
    """The beginning of a piece that is longer than MAX_PIECE_BYTES; what follows up to its end was read and let go."""


def split(file: RawFile, separator: bytes) -> Iterator[bytes]:
    """The decoded content cut at each `separator`, which is left out. A StreamFault carries the unfinished last piece in `rest`.

    A piece over MAX_PIECE_BYTES is given as TooLong, so that one endless line does not fill the memory.
    """
    rest = _Piece()
    overlap = len(separator) - 1  # a separator may lie across the edge of two blocks
    try:
        for block in blocks(file):
            first, *others = (rest.cut(overlap) + block).split(separator)
            rest.add(first)
            if others:
                yield rest.take()
                yield from others[:-1]
                rest.add(others[-1])
    except StreamFault as fault:
        fault.rest = rest.take()
        raise
    yield rest.take()


class _Piece:
    """A piece in the making, in parts: joined once, since a line may be as large as many blocks."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0
        self._head: bytes | None = None  # of a piece that is too long

    def add(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > MAX_PIECE_BYTES:
            if self._head is None:
                self._head = b"".join([*self._parts, part])[:KEPT_BYTES]
            self._parts = []
        self._parts.append(part)

    def cut(self, length: int) -> bytes:
        """Take the last `length` bytes off again."""
        if not self._parts or not length:
            return b""
        last = self._parts.pop()
        end = last[-length:]
        self._parts.append(last[: len(last) - len(end)])
        self._length -= len(end)
        return end

    def take(self) -> bytes:
        piece = b"".join(self._parts) if self._head is None else TooLong(self._head)
        self._parts, self._length, self._head = [], 0, None
        return piece


def lines(file: RawFile) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end) of each line that is not blank; a byte order mark is left out. Raises StreamFault."""
    for number, line in enumerate(split(file, b"\n"), 1):
        if isinstance(line, TooLong):
            yield number, line
            continue
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.isspace() and content:
            yield number, content.removesuffix(b"\r")
