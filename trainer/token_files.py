"""Token files read piece by piece: raw little-endian uint32, memory-mapped from a disk or by ranged reads from an object store.

The pieces of a batch are asked for together. Of mapped files the kernel is told all pieces first, so that a cold disk works on many at once
and reads nothing around them. Behind a URL neighbours become one request, and the requests are under way at the same time.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import TrainerError

RANGE_WAITS_SECONDS: tuple[float, ...] = (1, 2, 4, 8, 15, 30)  # between the attempts at a ranged read
_OPEN_FILES = 512  # memory maps kept at once, well under Linux's limit of 65530 mappings a process
_GAP_BYTES = 1 << 16  # what lies between two pieces is up to here sooner read and thrown away than asked around
_REQUEST_BYTES = 1 << 23  # above this one request takes longer than two at once
_QUESTIONS = 32  # sizes asked for at once
NEVER = threading.Event()  # never set

Tokens = npt.NDArray[np.uint32]
Piece = tuple[int, int, int, int]  # file, first token in it, tokens, where they begin in the output


class TokenFiles:
    """The token files of a mix. Several threads may read at once.

    Attributes:
        number: of files.
        remote: whether some of them lie behind a URL.
    """

    def __init__(self, paths: Sequence[str], mix: str) -> None:
        """`paths`: of the disk, or URLs that fsspec knows; `mix` names the mix in errors. Opens nothing yet."""
        self._paths = paths
        self._mix = mix
        self._open = lru_cache(maxsize=_OPEN_FILES)(_MappedFile)
        self.number = len(paths)
        self.remote = any("://" in path for path in paths)

    def gather(self, pieces: list[Piece], out: Tokens, stopped: threading.Event = NEVER) -> None:
        """Read all pieces into `out`.

        Args:
            pieces: in any order; they may overlap in the files.
            out: shape (tokens,).
            stopped: ends the waiting between attempts at a storage that fails.

        Raises:
            TrainerError: a file is missing, ends too early or cannot be read; names it.
        """
        local, remote = pieces, []
        if self.remote:
            remote = [piece for piece in pieces if "://" in self._paths[piece[0]]]
            local = [piece for piece in pieces if "://" not in self._paths[piece[0]]]
        for file, start, length, _ in local:
            self._open(self._paths[file]).announce(start, length)
        for file, start, length, at in local:
            tokens = self._open(self._paths[file]).tokens[start : start + length]
            if len(tokens) != length:
                raise TrainerError(
                    f"{self._paths[file]} ends before token {start + length}, which the mix {self._mix} asks for; tokenize its source again."
                )
            out[at : at + length] = tokens
        if remote:
            _fetch(_requests([(self._paths[file], start, length, at) for file, start, length, at in remote]), out, stopped)

    def fault(self, needed: npt.NDArray[np.int64]) -> str | None:
        """What is wrong with the first file that is missing or has fewer tokens than `needed`, shape (files,), 0: not needed at all."""
        files = np.flatnonzero(needed).tolist()
        with ThreadPoolExecutor(_QUESTIONS) as pool:
            ask = pool.map if self.remote else map
            faults = ask(self._fault_in, files, needed[files].tolist())
            return next(filter(None, faults), None)

    def _fault_in(self, file: int, needed: int) -> str | None:
        path = self._paths[file]
        try:
            size = _size(path)
        except TrainerError as error:
            return str(error)
        if size is None:
            return f"token file {path} is not there; check data.files and the mix's folder {self._mix}, or tokenize its source again."
        if size < 4 * needed:
            return (
                f"token file {path} has {size} bytes, of which the mix {self._mix} needs {4 * needed}: it is cut short or another file; "
                "copy it again or tokenize its source again."
            )
        return None


class _MappedFile:
    """A token file mapped into memory; `tokens` is all of it."""

    def __init__(self, path: str) -> None:
        try:
            with Path(path).open("rb") as file:
                # An empty file cannot be mapped.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else None
        except (OSError, ValueError) as error:
            raise TrainerError(f"token file {path} cannot be read ({error}); check data.files and the mix's folder.") from None
        self.tokens = np.empty(0, np.uint32) if self._map is None else np.frombuffer(self._map, "<u4", len(self._map) // 4)
        if self._map is not None and hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)

    def announce(self, start: int, length: int) -> None:
        """Tell the kernel that these tokens will be read soon: it fetches what it does not hold, and nobody waits."""
        first = 4 * start // mmap.PAGESIZE * mmap.PAGESIZE
        last = 4 * min(start + length, len(self.tokens))
        if self._map is not None and first < last and hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED, first, last - first)


@dataclass
class _Request:
    """One ranged read: bytes [start, end) of a URL, and the pieces (first byte, tokens, where they begin in the output) that it brings."""

    url: str
    start: int
    end: int
    pieces: list[tuple[int, int, int]]
    content: bytes = b""


def _requests(pieces: list[tuple[str, int, int, int]]) -> list[_Request]:
    """Pieces (URL, first token, tokens, where they begin in the output), neighbours joined."""
    requests: list[_Request] = []
    for url, first, length, at in sorted(pieces):
        start, end = 4 * first, 4 * (first + length)
        last = requests[-1] if requests else None
        if last and last.url == url and start <= last.end + _GAP_BYTES and end <= last.start + _REQUEST_BYTES:
            last.end = max(last.end, end)
            last.pieces.append((start, length, at))
        else:
            requests.append(_Request(url, start, end, [(start, length, at)]))
    return requests


def _fetch(requests: list[_Request], out: Tokens, stopped: threading.Event) -> None:
    """Carry out all requests; those that fail or come short are asked for again."""
    left, waits = requests, iter(RANGE_WAITS_SECONDS)
    while True:
        faults = [(request, fault) for request, fault in _attempt(left) if fault]
        if not faults:
            break
        left = [request for request, _ in faults]
        _wait(waits, stopped, left[0].url, faults[0][1])
    for request in requests:
        for start, length, at in request.pieces:
            out[at : at + length] = np.frombuffer(request.content, "<u4", length, start - request.start)


def _attempt(requests: list[_Request]) -> Iterator[tuple[_Request, str]]:
    """Each request and what went wrong with it, if anything; all of them at once where the file system can."""
    by_system: dict[Any, list[tuple[_Request, str]]] = {}
    for request in requests:
        system, path = _locate(request.url)
        by_system.setdefault(system, []).append((request, path))
    for system, asked in by_system.items():
        starts, ends = [request.start for request, _ in asked], [request.end for request, _ in asked]
        try:
            contents = system.cat_ranges([path for _, path in asked], starts, ends, on_error="return")
        except Exception as error:  # clients of object stores raise whatever they like
            contents = [error] * len(asked)
        for (request, _), content in zip(asked, contents, strict=True):
            if isinstance(content, FileNotFoundError):
                raise TrainerError(f"token file {request.url} cannot be read ({content}); check data.files.")
            if isinstance(content, BaseException):
                yield request, f"{type(content).__name__}: {content}"
            elif len(content) != request.end - request.start:
                yield request, f"it has {len(content)} bytes where {request.end - request.start} were asked for"
            else:
                request.content = content
                yield request, ""


def _size(path: str) -> int | None:
    """Bytes of a file on a disk or behind a URL; None: it is not there."""
    if "://" not in path:
        try:
            return Path(path).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrainerError(f"token file {path} cannot be read ({error.strerror}); check data.files and the mix's folder.") from None
    system, inside = _locate(path)
    waits = iter(RANGE_WAITS_SECONDS)
    while True:
        try:
            return int(system.size(inside))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise TrainerError(f"token file {path} cannot be read ({error}); check data.files and the credentials.") from None
        except Exception as error:
            _wait(waits, NEVER, path, f"{type(error).__name__}: {error}")


def _locate(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        import fsspec  # the one optional dependency: only for token files that are not on a disk

        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise TrainerError(
            f"token file {url} cannot be read ({error}); install fsspec and its client for that storage, or check data.files."
        ) from None
    return system, path


def _wait(waits: Iterator[float], stopped: threading.Event, url: str, fault: str) -> None:
    """Until the next attempt. Raises TrainerError where there is none left, or where nobody needs the answer any more."""
    seconds = next(waits, None)
    if seconds is None or stopped.wait(seconds):
        raise TrainerError(f"token file {url} cannot be read ({fault}); check data.files and its storage, and start again.")
