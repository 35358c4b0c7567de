"""The local launcher: starts `torchrun -m trainer` (or a tool beside it) in a process group of its own and leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.launch import LauncherConfig, failed
from tasks.processes import PR_SET_PDEATHSIG, child_environment, group_is_alive

GRACE_SECONDS = 30  # torchelastic gives its workers as long after SIGTERM
POLL_SECONDS = 2


def run(
    module: str,
    config: Path,
    folder: Path,
    launcher: LauncherConfig,
    progress: Callable[[], None],
    gpus: Sequence[str],
    cordon: Cordon | None,
) -> None:
    """See `tasks.launch.launch`; `config` is the file."""
    name = module.rsplit(".", 1)[-1]
    gpus = _sound(launcher, gpus, cordon)
    command = [sys.executable, "-m", module, str(config)]
    if launcher.processes > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={launcher.processes}",
            "-m",
            module,
            str(config),
        ]
    log = folder / f"{name}.log"
    with log.open("ab") as stream:
        start = stream.tell()
        process = start_group(command, stream, launcher.threads_per_rank, {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
        try:
            code = _wait(process, progress)
        finally:
            end_group(process)
    if code != 0:
        raise failed(module, code, log, start)


def start_group(command: list[str], output: IO[bytes], threads: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A command in a process group of its own, which dies with this process; `environment` is added to a worker's."""
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**child_environment(threads), **environment},
        preexec_fn=_die_with_parent_hook(),
    )


def visible_gpus(device: str) -> list[str]:
    """Names of this machine's GPUs for `CUDA_VISIBLE_DEVICES`; none where jobs run on the CPU."""
    if device == "cpu":
        return []
    count = gpu_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (seen.split(",") if seen else [str(number) for number in range(count)])[:count]


def gpu_count() -> int:
    """How many GPUs torch sees on this machine; where there is no driver it is not asked, as its import takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    import torch

    return torch.cuda.device_count()


def _sound(launcher: LauncherConfig, gpus: Sequence[str], cordon: Cordon | None) -> Sequence[str]:
    """The GPUs that a job may see: those given, or where some are cordoned as many of the others as it has ranks."""
    here = cordon.here() if cordon else None
    if cordon is None or here is None:
        return gpus
    mend = f"mend it and run `olmoflow doctor --store {cordon.store.url} --uncordon {here.host}`"
    if "cpu" in here.devices:
        raise UserError(f"this host is cordoned: {here}; run on another one, or {mend}")
    names = list(gpus) or visible_gpus(launcher.device)
    left = [name for name in names if name not in here.devices]
    if len(left) == len(names):
        return gpus
    if len(left) < launcher.processes:
        raise UserError(
            f"GPUs of this host are cordoned: {here}; {len(left)} are left and the job takes {launcher.processes}: take fewer, or {mend}"
        )
    return left[: launcher.processes]


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


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a command's group: SIGTERM, time to save, SIGKILL."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        # a rank that still saves may outlive the process that started it
        while (process.poll() is None or group_is_alive(process.pid)) and time.monotonic() < until:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # whoever of the group is left, though its first process has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
