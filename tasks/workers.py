"""Worker processes that stay for the next step.

A Python process takes half a second to start and to import what steps import, and a step over a few small shards takes less than that. So a
worker that has made its shards waits for more, until `release`, or until the process that hired it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from tasks.processes import child_environment

LARGEST_BYTES = 1 << 30  # of a worker that may stay: what a step has left in its memory is nobody's any more
PATIENCE_SECONDS = 5.0

# The kernel's signal at a parent's death comes when the thread that started the child ends, so a thread that lives as long as we starts them.
_starter = ThreadPoolExecutor(1, "worker-starter")
_lock = threading.Lock()
_idle: list[Worker] = []


class Worker:
    """A process of `python -m tasks.shard --serve`: takes a plan and a rank a line, and answers with an exit code."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment, self.folder, self.stays = environment, Path.cwd(), False
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", "tasks.shard", "--serve", str(theirs)]
        start = _starter.submit(
            subprocess.Popen, command, env=environment, stdin=subprocess.PIPE, pass_fds=(theirs,), start_new_session=True, text=True
        )
        self.process: subprocess.Popen[str] = start.result()
        os.close(theirs)
        self.answers = os.fdopen(ours)

    def fits(self, environment: dict[str, str]) -> bool:
        return self.process.poll() is None and (self.environment, self.folder) == (environment, Path.cwd())

    def make(self, plan: str, rank: str) -> int:
        """Make a rank's shards of a plan; the exit code, also of a worker that died over it."""
        assert self.process.stdin
        self.stays = False
        try:
            self.process.stdin.write(json.dumps([plan, int(rank)]) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.answers.readline() or "null")
        except BrokenPipeError:
            answer = None
        if answer is None:
            return self.process.wait()
        self.stays = bool(answer["stays"])
        return int(answer["code"])

    def end(self, patience: float = 0.0) -> None:
        """End a worker: it leaves when its input ends, if it is idle, and is killed if it does not."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.answers.close()


def run_all(jobs: list[tuple[str, str]], threads: int, poll_seconds: float, watcher: Callable[[], None]) -> list[int]:
    """Make (plan, rank) jobs, each in a worker of its own with so many threads, and call the watcher meanwhile. Exit codes by job."""
    workers = _hire(len(jobs), child_environment(threads))
    # A thread for each worker sees its answer at once.
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            ends = [pool.submit(worker.make, *job) for worker, job in zip(workers, jobs, strict=True)]
            while wait(ends, poll_seconds).not_done:
                watcher()
            return [end.result() for end in ends]
        finally:
            _dismiss(workers)


def _hire(count: int, environment: dict[str, str]) -> list[Worker]:
    with _lock:
        fitting = [worker for worker in _idle if worker.fits(environment)][:count]
        for worker in fitting:
            _idle.remove(worker)
    return fitting + [Worker(environment) for _ in range(count - len(fitting))]


def _dismiss(workers: list[Worker]) -> None:
    for worker in workers:
        if worker.stays:
            with _lock:
                _idle.append(worker)
        else:
            worker.end()


def release() -> None:
    """Let all idle workers go."""
    with _lock:
        workers, _idle[:] = list(_idle), []
    for worker in workers:
        worker.end(PATIENCE_SECONDS)


def serve(make: Callable[[str, int], int], answers: int) -> None:
    """The worker's side: make what each line of standard input names, until it ends or there is too much left in the memory."""
    for line in sys.stdin:
        plan, rank = json.loads(line)
        answer = {"code": make(plan, rank), "stays": _resident_bytes() <= LARGEST_BYTES}
        os.write(answers, f"{json.dumps(answer)}\n".encode())
        if not answer["stays"]:
            return


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return 0
