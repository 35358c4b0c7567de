"""Ranks by fork: a process that has imported torch forks each rank of a run, which then need no seconds each for the import.

A script: `conftest.py` starts it and writes a JSON line a run, and reads one back with the ranks' exit codes.
"""

import contextlib
import ctypes
import json
import os
import runpy
import signal
import sys
import traceback
from typing import Any

_PR_SET_PDEATHSIG = 1


def _serve() -> None:
    import trainer.train  # noqa: F401 (what the ranks would import)

    for line in sys.stdin:
        work = json.loads(line)
        ranks = {_fork(work, rank): rank for rank in range(work["ranks"])}
        codes = [0] * work["ranks"]
        while ranks:
            pid, status = os.wait()
            codes[ranks.pop(pid)] = code = os.waitstatus_to_exitcode(status)
            for other in ranks if code else ():  # the others would wait for it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, signal.SIGTERM)
        print(json.dumps(codes), flush=True)
    os._exit(0)  # to take torch down in order takes a second


def _fork(work: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": work["ranks"], "LOCAL_WORLD_SIZE": work["ranks"]}
        os.environ |= {**{key: str(value) for key, value in where.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(work["port"])}
        os.chdir(work["folder"])
        log = os.open(work["log"], os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = [work["module"], *work["arguments"]]
        sys.path.insert(0, work["folder"])  # as `python -m` does
        runpy.run_module(work["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
