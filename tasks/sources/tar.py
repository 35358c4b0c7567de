"""The files in a tar archive, in any compression, as a stream: nothing is unpacked to the disk, so a member's name is only a name."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import cast

from tasks.sources.base import Bad, Dropped, RawFile
from tasks.sources.stream import StreamFault, blocks

MAGIC, MAGIC_AT = b"ustar", 257


def is_tar(file: RawFile) -> bool:
    """Whether the decoded file is a tar archive (POSIX or GNU)."""
    try:
        first = next(blocks(file), b"")
    except StreamFault:
        return False
    return first[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC


def members(file: RawFile) -> Iterator[tuple[str, bytes] | Dropped | Bad]:
    """(name, content) of each file in the archive; what is no file is dropped, save folders, and what cannot be read is one Bad."""
    stream = _Forward(file)
    where = "the beginning"
    try:
        with tarfile.open(fileobj=cast(io.BufferedReader, stream), mode="r:") as archive:
            for member in archive:
                where = f"member {member.name}"
                if member.isfile():
                    yield member.name, cast(io.BufferedReader, archive.extractfile(member)).read()
                elif not member.isdir():
                    yield Dropped("link or device in an archive")
                where = f"after member {member.name}"
        stream.check_end()
    except StreamFault as fault:
        yield Bad(where, fault.cause, fault.rest, unreadable_bytes=fault.unreadable_bytes)
    except tarfile.TarError as error:
        yield Bad(where, f"damaged tar archive: {error}", stream.last, unreadable_bytes=stream.unread_bytes())


class _Forward(io.RawIOBase):
    """The decoded bytes of a file as something that tarfile can seek in, which it only does forwards."""

    def __init__(self, file: RawFile) -> None:
        self.size = file.size
        self.blocks = blocks(file)
        self.rest = b""
        self.at = 0
        self.last = b""  # what was read last: a header, or the end mark

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self.at:
            raise io.UnsupportedOperation("a stream is read forwards")
        while self.at < offset and self.read(min(offset - self.at, 1 << 20)):
            pass
        return self.at

    def read(self, size: int = -1) -> bytes:
        parts = [self.rest]
        have = len(self.rest)
        while (size < 0 or have < size) and (block := next(self.blocks, None)) is not None:
            parts.append(block)
            have += len(block)
        everything = b"".join(parts)
        cut = len(everything) if size < 0 else size
        self.last, self.rest = everything[:cut], everything[cut:]
        self.at += len(self.last)
        return self.last

    def check_end(self) -> None:
        """tarfile takes a damaged header for the end. An archive ends with blocks of zeros, and after them there is nothing else."""
        if not self.last:
            raise tarfile.ReadError("it has no end mark, so it may be cut off")
        if self.last.strip(b"\0"):
            raise tarfile.ReadError("a member's header cannot be read")

    def unread_bytes(self) -> int:
        """The raw bytes from the last header on; an estimate by proportion where the archive is compressed."""
        done = self.at - len(self.last)
        left = len(self.last) + len(self.rest) + sum(len(block) for block in self.blocks)
        return self.size * left // (done + left) if left else 0
