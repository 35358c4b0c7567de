"""This process's scratch folder on the local disk: gone when the process ends, and swept by the next one where it was killed."""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "olmoflow-scratch-"


def folder() -> Path:
    """The folder, made at its first mention."""
    return _folder(os.getpid())


@functools.cache
def _folder(process: int) -> Path:
    _sweep()
    while True:
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = _lock(made)
        if lock is not None and made.exists():  # else another process took it for one that was left behind
            break
    _held[process] = lock
    atexit.register(_remove, made, process)
    return made


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # a fork inherits what is registered
        shutil.rmtree(path, ignore_errors=True)


_held: dict[int, int] = {}  # the locks, held as long as the process lives; the kernel lets go of them however it ends


def _lock(path: Path) -> int | None:
    """A lock on a folder, None where another process holds it or has removed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep() -> None:
    """Remove the folders of processes that are no more."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        descriptor = _lock(path)
        if descriptor is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
