"""Child processes that never outlive what they were started for.

`python -m tasks.processes COMMAND ...` runs a command until it ends, or until standard input does: a pipe whose other end the parent holds
open as long as it lives. (The kernel's own signal at a parent's death comes when the thread that started the child ends, which may be sooner.)
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel (Linux) for SIGKILL when the parent dies; leave at once where it already has."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def group_is_alive(group: int) -> bool:
    """Whether a process of the group still runs. One that has ended and that nobody has asked for yet does not."""
    if sys.platform != "linux":
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True
    return any(_running_in(stat, group) for stat in Path("/proc").glob("[0-9]*/stat"))


def _running_in(stat: Path, group: int) -> bool:
    try:
        state, _, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
    except OSError:  # it ended meanwhile
        return False
    return int(its_group) == group and state not in "ZX"


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a worker: one process a core, so libraries must not start threads of their own for every core."""
    limits = {
        name: str(threads)
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "ARROW_NUM_THREADS")
    }
    # A thread that spins while it waits takes the core from one that works, where processes outnumber cores; one that never spins is
    # slow to wake. Tokens/s of a small model, 2 threads, idle and beside 2 busy processes: default 10,200 and 850, this 10,800 and 4,300,
    # no spinning 6,900 and 4,800.
    limits["GOMP_SPINCOUNT"] = "10000"
    # glibc may ask for huge pages: a page fault costs 16 microseconds in a virtual machine, and a worker's first shard a fifth of a second less.
    limits["GLIBC_TUNABLES"] = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), "glibc.malloc.hugetlb=1"]))
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **limits, **quiet, "OLMOFLOW_PARENT": str(os.getpid())}


def run_leashed(command: list[str]) -> int:
    """Run a command to its end, or to that of standard input; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command gets the terminal's own
    here = os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is ignored here would be there too, and a Prefect worker ends by it
        die_with_parent(here)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        child.kill()

    threading.Thread(target=watch, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(run_leashed(sys.argv[1:]))
