"""The Kubernetes launcher: a GPU job in the pods of the Job whose first pod runs this flow run (`tasks.pods`).

Nothing is asked of the cluster: Prefect's worker made the Job, with a pod a node. A pod that the cluster takes away is made anew by the Job, and
the launch, which waits for it, goes on from the run's newest whole checkpoint.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.heartbeat import TERMINATED
from tasks.launch import LauncherConfig, failed
from tasks.launch_local import GRACE_SECONDS, end_group, start_group
from tasks.pods import POLL_SECONDS, Call, Meeting

READY_SECONDS = 1800.0  # for the other pods to come, at first and after one was lost
AGAIN = 3  # times that a job which lost a pod is begun again

log = logging.getLogger(__name__)


def run(
    module: str, config: dict[str, Any], path: Path, launcher: LauncherConfig, progress: Callable[[], None], cordon: Cordon | None
) -> None:
    """See `tasks.launch.launch`; `path` is where the config is written."""
    meeting = Meeting.here()
    if launcher.nodes > meeting.pods:
        raise UserError(
            f"where.launcher.nodes is {launcher.nodes}, but this Job has {meeting.pods} pods: give the work pool's variable `nodes` the same number"
        )
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    gone: dict[int, dict[str, str]] = {}
    for left in reversed(range(AGAIN + 1)):
        pods = _wait_for_pods(meeting, launcher.nodes, gone, progress)
        _check_sound(pods, cordon)
        call = Call(uuid.uuid4().hex, launcher.nodes, launcher.processes, launcher.threads_per_rank, *_address(meeting), module, str(path))
        starts = [call.log(index).stat().st_size if call.log(index).exists() else 0 for index in range(call.nodes)]
        code, codes = _run(meeting, call, progress)
        if code == 0:
            return
        gone = {index: pods[index] for index in _lost(meeting, call, pods, progress)}
        if not gone or not left:
            index = _who_tells(call, starts)
            raise failed(module, code or max(codes.values(), default=1), call.log(index), starts[index])
        log.warning("%s: pods %s were taken away; it goes on when they are back", module, ", ".join(map(str, gone)))


def _wait_for_pods(meeting: Meeting, nodes: int, gone: dict[int, Any], progress: Callable[[], None]) -> dict[int, dict[str, str]]:
    """The first `nodes` pods once all are there, those that are `gone` as new ones. Raises UserError where they do not come."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        pods = {index: pod for index, pod in meeting.present().items() if index < nodes and pod != gone.get(index)}
        if len(pods) == nodes:
            return pods
        if time.monotonic() > deadline:
            absent = sorted(set(range(nodes)) - pods.keys())
            raise UserError(
                f"pods {', '.join(map(str, absent))} of the Job have not come within {READY_SECONDS / 60:.0f} minutes: has the cluster {nodes} free nodes "
                "(`kubectl get pods`), and do all pods see the volume?"
            )
        progress()
        time.sleep(POLL_SECONDS)


def _check_sound(pods: dict[int, dict[str, str]], cordon: Cordon | None) -> None:
    cordoned = cordon.hosts() if cordon else {}
    bad = [cordoned[pod["host"]] for pod in pods.values() if pod["host"] in cordoned]
    if bad:
        assert cordon is not None
        raise UserError(
            f"a pod of the Job is on a node that is cordoned: {bad[0]}; submit the flow again, which keeps away from it, or mend it and run "
            f"`olmoflow doctor --store {cordon.store.url} --uncordon {bad[0].host}`"
        )


def _address(meeting: Meeting) -> tuple[str, int]:
    """Where the ranks meet: this pod's address, and a port that is free here."""
    with socket.socket(socket.AF_INET6 if ":" in meeting.address else socket.AF_INET) as probe:
        probe.bind((meeting.address, 0))
        return meeting.address, probe.getsockname()[1]


def _run(meeting: Meeting, call: Call, progress: Callable[[], None]) -> tuple[int, dict[int, int]]:
    """Run a call until it has ended here or failed elsewhere; this pod's exit code, and those of the others that have ended."""
    with call.log(0).open("ab") as stream:
        process = start_group(call.command(0), stream, call.threads, {})
        try:
            meeting.call(call)
            while process.poll() is None and not any(meeting.told(call).values()):
                progress()
                _wait(process)
        finally:
            try:
                end_group(process)
            finally:
                meeting.call_off()
    return process.returncode, meeting.told(call)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _lost(meeting: Meeting, call: Call, pods: dict[int, dict[str, str]], progress: Callable[[], None]) -> list[int]:
    """Pods that were taken away during a call: one that another has replaced, or that tells nothing of its end, though it was called off."""
    deadline = time.monotonic() + 2 * GRACE_SECONDS
    others = range(1, call.nodes)
    while time.monotonic() < deadline:
        now, codes = meeting.present(), meeting.told(call)
        replaced = [index for index in others if now.get(index) != pods[index]]
        if replaced or all(index in codes for index in others):
            return replaced or [index for index, code in codes.items() if code == TERMINATED and meeting.leaves(index)]
        progress()
        time.sleep(POLL_SECONDS)
    return [index for index in others if index not in codes]


def _who_tells(call: Call, starts: list[int]) -> int:
    """The pod whose log has the trainer's own sentence about the failure, where one has: the others only lost it."""
    return next((index for index in range(call.nodes) if _has_error(call.log(index), starts[index])), 0)


def _has_error(path: Path, start: int) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as stream:
        stream.seek(start)
        return any(line.startswith(b"error: ") for line in stream)
