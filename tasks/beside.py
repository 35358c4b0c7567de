"""GPU jobs beside each other on one machine, each on GPUs of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from tasks.errors import UserError
from tasks.launch_local import visible_gpus
from tasks.progress import Progress, Watch
from tasks.shards import ShardTask

Job = Callable[[ShardTask, str], None]
# Makes the job of a slot: its number, who gets its progress, and what it must call now and then, which raises when it is to end.
MakeJob = Callable[[int, Watch, Callable[[], None]], Job]


class Stopped(Exception):
    """A job was ended since another one failed, or somebody stopped the run."""


class Beside:
    """Starts jobs `at_once` at a time and is itself a job that waits for the one it is asked for.

    Threads hold the processes; progress is told, and errors are raised, by the thread that waits. On the way out of `with`, jobs that still
    run are ended as a cancelled job is, with time to save, and those that wait are not begun.
    """

    def __init__(self, at_once: int, make_job: MakeJob, watch: Watch, settings: dict[str, Any] | None = None) -> None:
        self.at_once, self.make_job, self.watch = at_once, make_job, watch
        self.settings = settings or {}  # of its jobs, for the store
        self.told: SimpleQueue[Progress | None] = SimpleQueue()
        self.stopped = threading.Event()
        self.started: dict[str, Future[None]] = {}
        self.slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(at_once):
            self.slots.put(slot)
        self.pool = ThreadPoolExecutor(at_once, "beside")

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End what runs, and wait for it."""
        self.stopped.set()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def start(self, task: ShardTask, key: str) -> None:
        """Begin a job as soon as a slot is free; the same key is begun once."""
        if key not in self.started:
            self.started[key] = self.pool.submit(self._run, task, key)

    def __call__(self, task: ShardTask, key: str) -> None:
        """Wait for a job that was started, and begin one that was not."""
        self.start(task, key)
        future = self.started[key]
        future.add_done_callback(lambda _: self.told.put(None))
        try:
            while not future.done():
                told = self.told.get()
                if told is not None:
                    self.watch(told)
            future.result()
        except BaseException:  # who hears of a Ctrl-C may end this process at once: the jobs must have saved by then
            self.stop()
            raise

    def _run(self, task: ShardTask, key: str) -> None:
        slot = self.slots.get()
        try:
            self._check()
            self.make_job(slot, self.told.put, self._check)(task, key)
        finally:
            self.slots.put(slot)

    def _check(self) -> None:
        if self.stopped.is_set():
            raise Stopped


def gpus_of(slot: int, ranks: int, device: str, cordoned: Collection[str] = ()) -> list[str]:
    """Names of the GPUs of a slot for `CUDA_VISIBLE_DEVICES`, none of them cordoned; no names where jobs run on the CPU.

    Raises UserError where there are not enough: a job that sees no GPU would train on the CPU without a word.
    """
    names = visible_gpus(device)
    left = [name for name in names if name not in cordoned]
    first = slot * ranks
    if names and first + ranks > len(left):
        but = f"{len(left)} of the {len(names)} here are not cordoned" if len(left) < len(names) else f"there are {len(names)} here"
        raise UserError(f"where.micro_anneals.gpus asks for {first + ranks} GPUs or more, but {but}: lower it")
    return left[first : first + ranks]
