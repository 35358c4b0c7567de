"""What each pod of a Kubernetes Job runs: `python -m tasks.pods COMMAND ...` (`deployments/kubernetes/base-job-template.json`).

The Job is indexed. Pod 0 runs the command, Prefect's for the flow run; the others wait for what its launches (`tasks.launch_kubernetes`) call
for, and run torchrun with their completion index as the node's rank. They meet in a folder of a volume that all pods see, by files that
are replaced as a whole: `pod-N.json` (who is pod N now), `call.json` (what to run), `CALL.N.code` (how it ended there), `heartbeat`, `end`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from tasks.errors import UserError
from tasks.heartbeat import ALONE, TERMINATED, Heartbeat
from tasks.launch_local import end_group, start_group
from tasks.processes import die_with_parent

INDEX, FOLDER, JOB, PODS = "JOB_COMPLETION_INDEX", "OLMOFLOW_MEETING", "OLMOFLOW_JOB", "OLMOFLOW_PODS"
ADDRESS, HOST = "OLMOFLOW_POD_ADDRESS", "OLMOFLOW_HOST"  # the pod's IP address, and its node's name
POLL_SECONDS = 0.5
ALONE_SECONDS = 600.0  # pod 0 may be taken from its node and started elsewhere meanwhile


@dataclass(frozen=True)
class Call:
    """What `nodes` pods run together: torchrun with `processes` ranks each, who meet at an address of pod 0; logs lie beside the config."""

    id: str
    nodes: int
    processes: int
    threads: int
    address: str
    port: int
    module: str
    config: str

    def command(self, index: int) -> list[str]:
        """The command of a pod. Ranks are ordered by node: pod n has the ranks from n * processes on."""
        if self.nodes * self.processes == 1:
            return [sys.executable, "-m", self.module, self.config]
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={self.nodes}", f"--nproc-per-node={self.processes}"]
        meet = [f"--node-rank={index}", f"--master-addr={self.address}", f"--master-port={self.port}"]
        return [*torchrun, *meet, "-m", self.module, self.config]

    def log(self, index: int) -> Path:
        """Where a pod's output goes: pod 0's to MODULE.log as on one machine, another's to MODULE.node-N.log."""
        return Path(self.config).with_suffix(f".node-{index}.log" if index else ".log")


class Meeting:
    """The folder where the pods of a Job meet, as one of them sees it."""

    def __init__(self, folder: Path, index: int, pods: int, address: str, host: str) -> None:
        self.folder, self.index, self.pods, self.address, self.host = folder, index, pods, address, host

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Meeting:
        """This pod's. Raises UserError where this is no pod of such a Job."""
        missing = [name for name in (INDEX, FOLDER, JOB, PODS, ADDRESS, HOST) if not environment.get(name)]
        if missing:
            raise UserError(
                f"where.launcher.kind is kubernetes, but this is no pod of a Job made from deployments/kubernetes/base-job-template.json ({missing[0]} "
                "is not set): submit the flow as a deployment, with a work pool `gpu` of that template (docs/kubernetes.md)"
            )
        folder = Path(environment[FOLDER]) / environment[JOB]
        # `4 pods`: Prefect's template would put a number alone in as a number, where the API takes text
        return cls(folder, int(environment[INDEX]), int(environment[PODS].split()[0]), environment[ADDRESS], environment[HOST])

    def check_in(self) -> None:
        """Say that this pod is here, under a name that no pod in its place had before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"leaves-{self.index}").unlink(missing_ok=True)
        self._write(f"pod-{self.index}.json", json.dumps({"id": uuid.uuid4().hex, "host": self.host}))

    def present(self) -> dict[int, dict[str, str]]:
        """The pods that have come, by index: `id` and `host` of each."""
        texts = {index: self._read(f"pod-{index}.json") for index in range(self.pods)}
        return {index: json.loads(text) for index, text in texts.items() if text}

    def call(self, call: Call) -> None:
        self._write("call.json", json.dumps(asdict(call)))

    def called(self) -> Call | None:
        text = self._read("call.json")
        return Call(**json.loads(text)) if text else None

    def call_off(self) -> None:
        (self.folder / "call.json").unlink(missing_ok=True)

    def tell(self, call: Call, code: int) -> None:
        self._write(f"{call.id}.{self.index}.code", str(code))

    def told(self, call: Call) -> dict[int, int]:
        """Exit codes of the other pods that have ended the call."""
        texts = {index: self._read(f"{call.id}.{index}.code") for index in range(1, call.nodes)}
        return {index: int(text) for index, text in texts.items() if text}

    def leave(self) -> None:
        """Say that this pod is being taken away, so that a launch waits for the one in its place."""
        self._write(f"leaves-{self.index}", "")

    def leaves(self, index: int) -> bool:
        return (self.folder / f"leaves-{index}").exists()

    def end(self) -> None:
        self._write("end", "")

    def ended(self) -> bool:
        return (self.folder / "end").exists()

    def _write(self, name: str, text: str) -> None:
        partial = self.folder / f"{name}.{self.index}.partial"
        partial.write_text(text)
        partial.replace(self.folder / name)

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text()
        except OSError:  # not there, or a file system that is away for a moment
            return None


def lead(meeting: Meeting, command: list[str]) -> int:
    """Pod 0: run the command to its end and tell the others of it; its exit code. SIGTERM is handed on, and no end of the Job's work."""
    meeting.check_in()
    meeting.call_off()  # of a pod 0 before this one
    asked: list[int] = []
    here = os.getpid()
    child = subprocess.Popen(command, preexec_fn=lambda: die_with_parent(here))

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        child.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    beat, over = Heartbeat(meeting.folder / "heartbeat", ALONE_SECONDS), threading.Event()
    beating = threading.Thread(target=_beat, args=(beat, over), daemon=True)
    beating.start()
    code = child.wait()
    over.set()
    beating.join()
    if not asked:
        meeting.end()
    return 128 - code if code < 0 else code


def _beat(beat: Heartbeat, over: threading.Event) -> None:
    while not over.wait(POLL_SECONDS):
        beat.beat()


def follow(meeting: Meeting, alone_seconds: float = ALONE_SECONDS) -> int:
    """Another pod: run what is called for until pod 0 has told the end. Returns 0 then, `ALONE` where it is gone, `TERMINATED` after SIGTERM."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    meeting.check_in()
    seen, changed, done = "", time.monotonic(), ""

    def stop() -> int | None:
        nonlocal seen, changed
        now = meeting._read("heartbeat")
        if now and now != seen:
            seen, changed = now, time.monotonic()
        if meeting.ended():
            return 0
        if asked:
            meeting.leave()
            return TERMINATED
        return ALONE if time.monotonic() - changed > alone_seconds else None

    while (code := stop()) is None:
        call = meeting.called()
        if call and call.id != done and meeting.index < call.nodes:
            done = call.id
            _run_part(meeting, call, lambda: stop() is not None)
        time.sleep(POLL_SECONDS)
    return code


def _run_part(meeting: Meeting, call: Call, stopped: Callable[[], bool]) -> None:
    """This pod's part of a call, to its end or until it is called off; its exit code is told."""
    with call.log(meeting.index).open("ab") as stream:
        process = start_group(call.command(meeting.index), stream, call.threads, {})
        try:
            while process.poll() is None:
                now = meeting.called()
                if stopped() or now is None or now.id != call.id:
                    break
                time.sleep(POLL_SECONDS)
            left = process.poll() is None
        finally:
            end_group(process)
    meeting.tell(call, TERMINATED if left else process.returncode)


def main(command: list[str]) -> int:
    """Run this pod; its exit code."""
    try:
        meeting = Meeting.here()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if meeting.index:
        return follow(meeting)
    return lead(meeting, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
