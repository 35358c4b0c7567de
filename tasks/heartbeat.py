"""Jobs elsewhere that end where nobody waits for them any more.

Who waits for a job writes a file now and then (`Heartbeat`). On the job's machine `python -m tasks.heartbeat FILE SECONDS THREADS COMMAND ...`
runs the command and asks it to end, with time to save, when the file has not changed for so long: the one who waited was killed. It looks at
changes and never at times of files, since clocks differ between machines.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tasks.processes import child_environment, die_with_parent

LOOK_SECONDS = 5.0
GRACE_SECONDS = 30  # as torchelastic gives its workers after SIGTERM
ALONE = 79  # exit code: nobody waits for the job
TERMINATED = 128 + signal.SIGTERM  # exit code: somebody asked it to end


class Heartbeat:
    """The waiting side: `beat` changes the file, at most once in a quarter of `seconds`."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.next = 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + self.seconds / 4
            partial = self.path.with_name(f"{self.path.name}.partial")
            partial.write_text(uuid.uuid4().hex)
            partial.replace(self.path)


def run_awaited(path: Path, seconds: float, threads: int, command: list[str]) -> int:
    """Run a command to its end, or until the file has been the same for so long; its exit code, `ALONE` or `TERMINATED`."""
    asked: list[int] = []
    # Slurm signals every process of a job: the command has its own SIGTERM, and a second one would cut its end short
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    here = os.getpid()
    child = subprocess.Popen(command, env=child_environment(threads), preexec_fn=lambda: die_with_parent(here))
    seen, changed = _read(path), time.monotonic()
    while True:
        try:
            code = child.wait(min(LOOK_SECONDS, seconds / 4))
            return TERMINATED if asked and code else code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            now = _read(path)
        if now is not None and now != seen:
            seen, changed = now, time.monotonic()
        elif time.monotonic() - changed >= seconds:
            _end(child)
            print(f"error: nobody has waited for this job for {seconds:g} seconds, so it ended", file=sys.stderr, flush=True)
            return ALONE


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:  # gone, or a file system that is away for a moment
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(run_awaited(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
