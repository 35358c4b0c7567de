"""GPUs of this machine, lent to one job at a time: a lock a GPU, which the kernel takes back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from tasks.errors import UserError

LOOK_SECONDS = 2.0
FOLDER = Path(tempfile.gettempdir()) / "olmoflow-gpus"  # of all users, who share the GPUs


@contextmanager
def lent(names: Sequence[str], count: int, told: Callable[[], None], folder: Path = FOLDER) -> Iterator[list[str]]:
    """`count` of the GPUs `names` (as CUDA_VISIBLE_DEVICES has them) that no other job here holds; waits for them.

    told: called once where it has to wait. Raises UserError where there are not as many.
    """
    if count > len(names):
        raise UserError(f"the job takes {count} GPUs, but there are {len(names)} for it here: take fewer, or send it to another machine")
    with _open(folder, "all") as turn, ExitStack() as held:
        waited = False
        while True:
            fcntl.flock(turn, fcntl.LOCK_EX)  # else two jobs could each hold half of what both need
            mine = _take(names, count, folder, held)
            fcntl.flock(turn, fcntl.LOCK_UN)
            if len(mine) == count:
                break
            if not waited:
                told()
            waited = True
            time.sleep(LOOK_SECONDS)
        yield mine


def _take(names: Sequence[str], count: int, folder: Path, held: ExitStack) -> list[str]:
    """The first `count` that are free, locked; nothing is locked where there are fewer."""
    with ExitStack() as tried:
        mine: list[str] = []
        for name in names:
            stream = tried.enter_context(_open(folder, name))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            mine.append(name)
            if len(mine) == count:
                held.push(tried.pop_all())
                break
        return mine


def _open(folder: Path, name: str) -> IO[str]:
    path = folder / f"{name.replace('/', '-')}.lock"
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    if not path.exists():
        path.touch()
        path.chmod(0o666)
    return path.open("r" if not os.access(path, os.W_OK) else "r+")
