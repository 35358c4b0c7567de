"""Who makes what, so that runs which start at once share the work: `leases/STEP/KEY.json` is there while a shard is being made.

A lease saves work and guards nothing: of two that make one shard the record lets one win, and the lock of a training's folder keeps two
trainings apart. Its holder writes it again every few seconds. Who waits for it takes it over once it has stayed the same for a while by the
waiter's own clock (those of two machines differ), or at once where its holder was a process of this machine that has ended.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.errors import UserError
from tasks.store import Store

BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0  # a holder of another machine that has not written for so long has ended
STUCK_SECONDS = 600.0  # one of this machine lives, but long work in a library may not let its thread write
LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """A process, as a lease tells of it. machine: its boot and name space of processes, in which `pid` and `started` mean something."""

    machine: str
    host: str
    user: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}"

    @property
    def has_ended(self) -> bool | None:
        """Whether it has; None where that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.pid) != self.started


def _here() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return Holder(_machine(), platform.node(), user, os.getpid(), _started(os.getpid()))


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return ""


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; nothing where it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]


class Lease:
    """A lease that is held, until `with` ends."""

    def __init__(self, store: Store, path: str, holder: Holder) -> None:
        self.store, self.path = store, path
        self.content: dict[str, Any] = {**vars(holder), "lease": uuid.uuid4().hex, "beat": 0}
        self.ended = threading.Event()

    def text(self) -> str:
        return json.dumps(self.content)

    def __enter__(self) -> Lease:
        threading.Thread(target=self._beat, name="lease", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        with contextlib.suppress(OSError, UserError):  # who waits for it sees that it is not written any more
            if self._is_ours():
                self.store.fs.rm_file(self.store.full(self.path))

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, UserError):  # a store that is away for a while must not end the work
                self.content["beat"] += 1
                if self._is_ours() and not self.ended.is_set():
                    self.store.replace(self.path, self.text())

    def _is_ours(self) -> bool:
        there = self.store.read_text(self.path)
        return there is not None and json.loads(there)["lease"] == self.content["lease"]


class Leases:
    """The leases on a step's shards, as one process sees them."""

    def __init__(self, store: Store, step: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self.step, self.clock = store, step, clock
        self.seen: dict[str, tuple[str, float]] = {}  # what a lease of somebody else held, and since when
        self.holders: dict[str, Holder] = {}

    def take(self, key: str) -> Lease | None:
        """The lease on a shard; None where somebody else has it, whom `holders` then tells."""
        path = f"leases/{self.step}/{key}.json"
        lease = Lease(self.store, path, _here())
        try:
            if self.store.create(path, lease.text()):
                return self._taken(key, lease)
        except FileExistsError:  # it was let go of between the two looks
            pass
        there = self.store.read_text(path)
        if there is None or self._is_over(key, there):
            self.store.replace(path, lease.text())
            return self._taken(key, lease)
        return None

    def _taken(self, key: str, lease: Lease) -> Lease:
        self.seen.pop(key, None)
        self.holders.pop(key, None)
        return lease

    def _is_over(self, key: str, there: str) -> bool:
        content, now = json.loads(there), self.clock()
        holder = self.holders[key] = Holder(**{name: content[name] for name in ("machine", "host", "user", "pid", "started")})
        before, since = self.seen.get(key, ("", now))
        if before != there:
            self.seen[key] = there, now
            since = now
        ended = holder.has_ended
        return ended or now - since >= (SILENT_SECONDS if ended is None else STUCK_SECONDS)


@contextlib.contextmanager
def held(store: Store, step: str, key: str, what: str, meanwhile: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lease on a job; where another run has it, wait until that has made it or lets go, and call `meanwhile` now and then.

    Gives whether the job is still to be made.
    """
    leases, told = Leases(store, step), False
    while True:
        lease = leases.take(key)
        if lease is not None:
            with lease:
                yield store.record(step, key) is None
            return
        if store.record(step, key) is not None:
            yield False
            return
        if not told:
            log.info("%s: another run makes it (%s); waiting for it", what, leases.holders[key])
        told = True
        meanwhile()
        time.sleep(LOOK_SECONDS)
