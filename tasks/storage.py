"""Storage behind URLs: the one place that makes file systems, and calls and streams that outlive a storage that stumbles.

A client library tries a request again by itself (botocore: 5 times in some seconds, see AWS_MAX_ATTEMPTS); what is here stands around whole
calls, so that a server may be away for about a minute. The disk of this machine is never tried again: its faults do not pass by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import io
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from tasks.errors import UserError

WAITS_SECONDS: tuple[float, ...] = (1, 2, 4, 8, 15, 30)  # between the attempts at a call
BUFFER_BYTES = 1 << 17
AT_ONCE = 64  # calls to a server that wait for their answers side by side

T = TypeVar("T")
R = TypeVar("R")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What another attempt may get over. s3fs gives EREMOTEIO for 500, EBUSY for 503, EIO for codes that it does not know.
_PASSING = (
    *(errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED),
    *(errno.ECONNABORTED, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN),
)


class StorageError(UserError):
    """A storage that refuses a call, or does not answer however often it is asked."""


class Storage:
    """An fsspec file system. Calls that a remote one fails in passing are made again; what it refuses is a StorageError with the path.

    FileNotFoundError and FileExistsError pass: they are answers. Listings are never cached: other processes write too.
    """

    def __init__(self, url: str) -> None:
        """Raises UserError where no file system goes by the URL's protocol."""
        try:
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **_connections(url))
        except (ValueError, ImportError) as error:
            raise UserError(f"{shown(url)} cannot be used: {error}") from error
        self.fs, self.path = fs, str(path)
        self.is_local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))

    def there(self) -> dict[str, Any] | None:
        """What the storage tells of the path; None where nothing is there. (fsspec's `exists` takes any fault for that.)"""
        try:
            info: dict[str, Any] = self.info(self.path)
        except FileNotFoundError:
            return None
        return info

    def each(self, call: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`call` for each item, in order; where it asks a server, many side by side: one after the other, ten thousand would take many minutes."""
        if self.is_local:
            return [call(item) for item in items]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(call, items))

    def __getattr__(self, name: str) -> Any:
        """A method of the file system, made steady."""
        method = getattr(self.fs, name)
        if self.is_local or not callable(method):
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            path = arguments[1] if name == "put_file" else arguments[0]
            return steady(self.fs.unstrip_protocol(path), lambda: method(*arguments, **named))

        return call


def _connections(url: str) -> dict[str, Any]:
    """Settings of a file system that let `AT_ONCE` calls reach its server at once; botocore holds all but ten back."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    return {"config_kwargs": {"max_pool_connections": AT_ONCE, **fsspec.config.conf.get("s3", {}).get("config_kwargs", {})}}


def steady(url: str, call: Callable[[], T]) -> T:
    """Make a call to a remote storage about `url`, again and again while it fails in passing."""
    waits = iter(WAITS_SECONDS)
    while True:
        try:
            return call()
        except Exception as raised:
            # fsspec's HTTP tells of a server that does not answer as of a file that is not there
            error = raised.__cause__ if isinstance(raised, FileNotFoundError) and isinstance(raised.__cause__, Exception) else raised
            passing = _is_passing(error)
            if passing is None:
                raise
            if not passing:
                raise StorageError(f"{shown(url)}: the storage refuses it: {_words(error)}") from error
            wait = next(waits, None)
            if wait is None:
                raise StorageError(
                    f"{shown(url)}: the storage failed {len(WAITS_SECONDS) + 1} times, at last with: {_words(error)}; "
                    "when it works again, the same command goes on where this one stopped"
                ) from error
            time.sleep(wait)


@contextlib.contextmanager
def asking_once() -> Iterator[None]:
    """Within it no call is made again, in any thread: for who only wants to know whether a place answers."""
    global WAITS_SECONDS
    waits, WAITS_SECONDS = WAITS_SECONDS, ()
    try:
        yield
    finally:
        WAITS_SECONDS = waits


def _is_passing(error: Exception) -> bool | None:
    """True for what another attempt may get over, False for a refusal, None for what is no fault of a storage."""
    from aiohttp import ClientError, ClientResponseError
    from botocore.exceptions import BotoCoreError, ConnectionError, HTTPClientError, IncompleteReadError
    from botocore.parsers import ResponseParserError
    from httpx import TransportError

    if isinstance(error, FileNotFoundError | FileExistsError):
        return None  # an answer
    if isinstance(error, ClientResponseError):
        return True if error.status >= 500 or error.status == 429 else None if error.status in (404, 410) else False
    if isinstance(
        error, TimeoutError | ClientError | ConnectionError | HTTPClientError | IncompleteReadError | ResponseParserError | TransportError
    ):
        return True
    if isinstance(error, BotoCoreError | PermissionError):
        return False
    if isinstance(error, OSError):
        if error.errno in FULL:
            return None  # the disk of this machine, where a file is fetched to
        return error.errno is None or error.errno in _PASSING
    return None


def _words(error: Exception) -> str:
    """An error on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).split()) or type(error).__name__


def public(url: str) -> str:
    """A URL as it may be written down: without a password and without a signed query."""
    if "://" not in url or not ("@" in url or "?" in url) or url.startswith("file://"):
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def shown(url: str) -> str:
    """A URL as it is told: public, and a local one as a plain path."""
    return public(url).removeprefix("file://")


_VERSIONS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created")


def stamp(info: dict[str, Any]) -> str:
    """What a storage says of a file's version, from its `info`: an ETag, or the time of its last change. Empty where it says nothing."""
    version = (info.get(name) for name in _VERSIONS)
    return next((str(value) for value in version if value), "")


def open_file(url: str, size: int, check: Callable[[], None] = lambda: None) -> io.BufferedReader:
    """A seekable stream of a file's first `size` bytes. A remote one goes on where a connection broke, and never ends there.

    `check` raises where the file is not any more what it was: called before a broken stream is opened again.
    """
    storage = Storage(url)
    if storage.is_local:
        return Path(storage.path).open("rb")
    return io.BufferedReader(_RemoteFile(storage, url, size, check), BUFFER_BYTES)


class _RemoteFile(io.RawIOBase):
    """The bytes of a remote file. After a fault it is opened again, at the place where it stood."""

    def __init__(self, storage: Storage, url: str, size: int, check: Callable[[], None]) -> None:
        self._storage, self._url, self._size, self._check = storage, url, size, check
        self._at, self._broken = 0, False
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = steady(self._url, lambda: self._read(wanted))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, wanted: int) -> bytes:
        try:
            if self._stream is None:
                if self._broken:
                    self._check()
                self._stream = self._storage.fs.open(self._storage.path, "rb")
            self._stream.seek(self._at)
            data: bytes = self._stream.read(wanted)
            if not data:
                raise OSError(f"no byte came after byte {self._at} of {self._size}")
        except ValueError as error:  # fsspec's HTTP, of a server that knows no ranges
            self._drop()
            raise StorageError(f"{shown(self._url)}: its server serves no parts of files; copy it to a place that does") from error
        except Exception:
            self._broken = True
            self._drop()
            raise
        return data

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        self._drop()
        super().close()


ROOM = "make room and run the same command again; it goes on where it stopped"


def is_full(error: BaseException) -> bool:
    """Whether a disk of this machine (or a quota on it) has no room left."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in FULL
