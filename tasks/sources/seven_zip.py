"""One file of a .7z archive as a stream: decoded as it is read, in bounded memory, with nothing written to the disk."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import py7zr
from py7zr.io import Py7zIO, WriterFactory

from tasks.sources.base import RawFile

MAGIC = b"7z\xbc\xaf\x27\x1c"
PIECES_AHEAD = 2  # decoded before they are asked for; py7zr hands on what a megabyte of the archive holds, at most 128 MB


class ArchiveError(Exception):
    """The archive is damaged, or refused; the message says which."""


def is_archive(file: RawFile) -> bool:
    with file.open() as stream:
        return stream.read(len(MAGIC)) == MAGIC


def member_blocks(file: RawFile, name: str) -> Iterator[bytes]:
    """The decoded content of the archive's only file called `name`, in pieces. Raises ArchiveError, at the latest where its checksum fails.

    An archive with a member that would lie outside the archive's folder, or with a link, is refused before anything is decoded.
    """
    pieces: _Pieces = queue.Queue(PIECES_AHEAD)
    with file.open() as stream:
        decoder = threading.Thread(target=_decode, args=(stream, name, pieces), daemon=True)
        decoder.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stream.close()  # a decoder that nobody listens to any more fails at its next read
            while decoder.is_alive():
                with contextlib.suppress(queue.Empty):
                    pieces.get(timeout=0.01)  # or it waits for room


_Pieces = queue.Queue[bytes | Exception | None]


class _Hand(Py7zIO):
    """What py7zr writes a member into: hands each piece on, and waits while the reader has enough."""

    def __init__(self, pieces: _Pieces) -> None:
        self.pieces, self.written = pieces, 0

    def write(self, s: bytes | bytearray) -> int:
        self.pieces.put(bytes(s))
        self.written += len(s)
        return len(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        return

    def size(self) -> int:
        return self.written


class _Factory(WriterFactory):
    def __init__(self, hand: _Hand) -> None:
        self.hand = hand

    def create(self, filename: str) -> Py7zIO:
        return self.hand


def _decode(stream: BinaryIO, name: str, pieces: _Pieces) -> None:
    """py7zr pushes, a reader pulls: so py7zr gets a thread of its own, whose C code decodes while the reader works."""
    end: Exception | None = None
    try:
        with py7zr.SevenZipFile(stream) as archive:
            archive.extract(targets=[_member(archive, name)], factory=_Factory(_Hand(pieces)))
    except py7zr.exceptions.PasswordRequired:
        end = ArchiveError("the archive is locked with a password: unlock it first")
    except Exception as error:
        # py7zr meets a damaged header with any kind of error; what has an errno is the disk's or the network's.
        ours = isinstance(error, ArchiveError | MemoryError) or (isinstance(error, OSError) and error.errno is not None)
        end = error if ours else ArchiveError(f"damaged archive: {error or type(error).__name__}; fetch it again")
    pieces.put(end)


def _member(archive: py7zr.SevenZipFile, name: str) -> str:
    members = archive.list()
    unsafe = next((member.filename for member in members if _is_unsafe(member.filename)), None)
    if unsafe is not None:
        raise ArchiveError(f"the archive is refused: its member {unsafe!r} leads out of the archive's folder")
    link = next((member.filename for member in members if member.is_symlink), None)
    if link is not None:
        raise ArchiveError(f"the archive is refused: its member {link!r} is a link")
    names = [member.filename for member in members if PurePosixPath(member.filename).name == name]
    if len(names) != 1:
        raise ArchiveError(f"the archive holds {len(names)} files {name}, not one")
    return names[0]


def _is_unsafe(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    return ".." in parts or parts[0] == "" or parts[0].endswith(":")
