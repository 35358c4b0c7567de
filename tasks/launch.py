"""The local launcher: starts `torchrun -m trainer` (or a tool beside it) in a process group of its own and leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UserError
from tasks.processes import PR_SET_PDEATHSIG, child_environment, group_is_alive

GRACE_SECONDS = 30  # torchelastic gives its workers as long after SIGTERM
POLL_SECONDS = 2


class LauncherConfig(BaseModel):
    """Where GPU jobs run. No part of any key: it may change a run's speed, not what it is."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["local"] = Field(default="local", description="local: torchrun on this machine.", json_schema_extra={"position": 0})
    processes: int = Field(
        default=1, ge=1, description="Ranks: one a GPU, or one a core or two on a CPU.", json_schema_extra={"position": 1}
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads a rank; the machine's cores shared out where left empty.",
        json_schema_extra={"position": 2},
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Device of the ranks.", json_schema_extra={"position": 3})
    work_folder: str = Field(
        default="olmoflow-work",
        description="Folder for running jobs where the store is remote; all ranks must see it.",
        json_schema_extra={"position": 4},
    )

    @property
    def threads_per_rank(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 1) // self.processes)


def launch(
    module: str,
    config: dict[str, Any],
    folder: Path,
    launcher: LauncherConfig,
    progress: Callable[[], None] = lambda: None,
    gpus: Sequence[str] = (),
) -> None:
    """Run `-m MODULE CONFIG` to its end; output goes to `MODULE.log` in the folder. `gpus`: the only ones that it sees, if not all.

    An exception here (Ctrl-C, a cancelled flow) passes on as SIGTERM to the whole group, and SIGKILL after the grace. Raises UserError
    with the log's last words where the job fails.
    """
    name = module.rsplit(".", 1)[-1]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", module, str(path)]
    if launcher.processes > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={launcher.processes}",
            "-m",
            module,
            str(path),
        ]
    log = folder / f"{name}.log"
    with log.open("ab") as stream:
        start = stream.tell()
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=child_environment(launcher.threads_per_rank) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}),
            preexec_fn=_die_with_parent_hook(),
        )
        try:
            code = _wait(process, progress)
        finally:
            _end_group(process)
    if code != 0:
        raise UserError(
            f"{module} ended with {code}: {_last_words(log, start)} (whole log: {log}); run the same command again to go on where it stopped"
        )


def _die_with_parent_hook() -> Callable[[], object]:
    """Set between fork and exec, since torchrun's own process is none of ours; prepared here so that the child only makes one call."""
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], progress: Callable[[], None]) -> int:
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            progress()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        # a rank that still saves may outlive the process that started it
        while (process.poll() is None or group_is_alive(process.pid)) and time.monotonic() < until:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # whoever of the group is left, though its first process has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(log: Path, start: int) -> str:
    """The error line that a person would look for in the log: the trainer's own sentence, else the last line."""
    with log.open("rb") as stream:
        stream.seek(start)
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    return told[-1].removeprefix("error: ").rstrip(".") if told else (lines[-1] if lines else "no output")
