"""A child process for library code that may hang, crash or eat the memory on hostile input: one bad page must not take its shard along."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tasks.processes import die_with_parent

START_SECONDS = 120.0  # for importing what the function needs, on a busy machine


class Refused(Exception):
    """The call gave no result; the message says why: it timed out, or the process ended, or the function raised."""


class Sandbox:
    """Calls one function, given by a top-level name so that the child can import it, in a child process that is replaced when it fails.

    A child is spawned, not forked: it inherits no lock and no end of a pipe, so it leaves when its parent is gone.
    """

    def __init__(self, function: Callable[..., Any], timeout_seconds: float, warm_up: tuple[Any, ...]) -> None:
        """warm_up: arguments of a first call in each child, whose imports are no part of a page's time."""
        self._function = function
        self._warm_up = warm_up
        self._timeout = timeout_seconds
        self._process: Any = None
        self._connection: Connection[Any, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def call(self, *arguments: Any) -> Any:
        """The function's result. Raises Refused where there is none."""
        connection = self._started()
        try:
            connection.send(arguments)
            answer = self._answer(connection, self._timeout)
        except (EOFError, OSError):
            raise Refused(self._ending()) from None
        if answer is None:
            self._stop()
            raise Refused("timed out")
        result, error = answer
        if error is not None:
            raise Refused(f"failed with {error}")
        return result

    def _answer(self, connection: Connection[Any, Any], seconds: float) -> Any:
        """What the child sends; None after `seconds` without anything."""
        ready = wait([connection, self._process.sentinel], seconds)
        if not ready:
            return None
        if connection not in ready and not connection.poll():
            raise EOFError
        return connection.recv()

    def _started(self) -> Connection[Any, Any]:
        if self._connection is not None and self._process.is_alive():
            return self._connection
        self._stop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._function, self._warm_up, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()
        self._connection = ours
        try:
            started = self._answer(ours, START_SECONDS) is not None
        except (EOFError, OSError):
            started = False
        if not started:
            self._stop()
            raise RuntimeError(f"the process that is to call {self._function.__name__} did not start")
        return ours

    def _ending(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        self._stop()
        return f"crashed with signal {-code}" if code is not None and code < 0 else "crashed"

    def _stop(self) -> None:
        if self._connection is None:
            return
        self._connection.close()
        self._process.kill()
        self._process.join()
        self._process.close()
        self._process = self._connection = None


def _serve(connection: Connection[Any, Any], function: Callable[..., Any], warm_up: tuple[Any, ...], parent: int) -> None:
    die_with_parent(parent)
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process is to go, not the shard's
    function(*warm_up)
    connection.send("ready")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, str | None] = (function(*arguments), None)
        except Exception as error:
            answer = (None, f"{type(error).__name__}: {error}"[:200])
        connection.send(answer)
