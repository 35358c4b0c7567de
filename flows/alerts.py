"""What somebody should look at while a run goes on: a spike, a stall, a straggler, a disk that fills up (report, section 6.3).

Each is a warning in the run's log and an event `olmoflow.alert.KIND` of Prefect, which an automation may pass on (`flows/automations.py`).
The same is told again after half an hour at the earliest, with how often it was seen meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from tasks.readable import duration, size

AGAIN_SECONDS = 1800.0
STALL_SECONDS, STALL_TIMES = 60.0, 3.0  # no step for so long, and for so many times as long as one should take to be heard of
STRAGGLER_OVER_MEDIAN, STRAGGLER_STEPS = 1.2, 50  # a rank so much slower than its peers' median, for so many steps in a row
DISK_SHARE, DISK_BYTES = 0.05, 50 * 2**30  # a disk is nearly full where less than both is free
LOOK_SECONDS = 60.0  # between two looks at the disks
STEPS_KEPT = 101  # whose time says how long a step takes

Alert = Callable[[str, str, str], None]  # kind, what it is about, one sentence


class NowAndThen:
    """Passes an alert on, but the same one (kind and what it is about) only now and then."""

    def __init__(self, alert: Alert, clock: Callable[[], float] = time.monotonic) -> None:
        self.alert, self.clock = alert, clock
        self.next: dict[tuple[str, str], float] = {}
        self.untold: dict[tuple[str, str], int] = {}

    def __call__(self, kind: str, about: str, sentence: str) -> None:
        which, now = (kind, about), self.clock()
        if now < self.next.get(which, now):
            self.untold[which] = self.untold.get(which, 0) + 1
            return
        self.next[which] = now + AGAIN_SECONDS
        more = self.untold.pop(which, 0)
        self.alert(kind, about, sentence + (f" ({more} more since the last alert)" if more else ""))


class Disks:
    """Looks now and then whether the disks of some folders fill up; folders that are not there yet count where they will be."""

    def __init__(self, folders: Iterable[Path], alert: Alert, clock: Callable[[], float] = time.monotonic) -> None:
        self.folders, self.alert, self.clock = list(folders), NowAndThen(alert, clock), clock
        self.next = -1.0

    def __call__(self) -> None:
        if self.clock() < self.next:
            return
        self.next = self.clock() + LOOK_SECONDS
        looked_at = set()
        for folder in self.folders:
            there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
            with contextlib.suppress(OSError):  # a file system that is away says so where it is written to
                disk, use = there.stat().st_dev, shutil.disk_usage(there)
                if disk not in looked_at and use.free < min(DISK_SHARE * use.total, DISK_BYTES):
                    left = f"{size(use.free)} of {size(use.total)} are left"
                    self.alert("disk", str(folder), f"the disk of {folder} is nearly full: {left}; make room, or `olmoflow gc`")
                looked_at.add(disk)


class TrainingAlerts:
    """Called every few seconds while a training runs, reads what is new in its `metrics.jsonl` and tells what is wrong."""

    def __init__(self, name: str, folder: Path, alert: Alert, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.metrics, self.ranks = name, folder / "metrics.jsonl", folder / "ranks.json"
        self.alert, self.clock = NowAndThen(alert, clock), clock
        self.file, self.read = -1, 0  # which file it was, and how much of it was read
        self.step = 0  # the newest that was seen
        self.seconds: deque[float] = deque(maxlen=STEPS_KEPT)
        self.pause, self.together = 0.0, 1  # the longest stop between steps, and the most steps that came at once
        self.heard: float | None = None  # when a step came last; none has come before this run's first
        self.stalled = False
        self.slow, self.slow_steps = -1, 0  # the rank that was behind the others, for so many steps
        self._new_lines()  # a run that goes on has lines, which were told of

    def __call__(self) -> None:
        lines, now = self._new_lines(), self.clock()
        for line in lines:
            self._spike(line)
            self._straggler(line)
            self.seconds.append(line["seconds"])
            self.pause = max(self.pause, line["checkpoint_seconds"] + line["held_out_seconds"])
        if lines:
            self.together = max(self.together, len(lines)) if self.heard is not None else 1
            self.heard, self.stalled = now, False
        elif self.heard is not None:
            self._stall(now - self.heard)

    def _new_lines(self) -> list[dict[str, Any]]:
        """Whole lines of steps that were not seen yet. A run that goes on from a checkpoint has another file, cut back to it."""
        try:
            with self.metrics.open("rb") as stream:
                file = os.fstat(stream.fileno()).st_ino
                if file != self.file:
                    self.file, self.read = file, 0
                stream.seek(self.read)
                whole = stream.read().rpartition(b"\n")[0]
        except OSError:  # not there yet
            return []
        self.read += len(whole) + 1 if whole else 0
        lines = [line for line in map(json.loads, whole.splitlines()) if line["step"] > self.step]
        self.step = lines[-1]["step"] if lines else self.step
        return lines

    def _spike(self, line: dict[str, Any]) -> None:
        for key, words in (("loss", "loss"), ("grad_norm", "gradient norm")):
            if line.get(f"{key}_spike"):
                far = "at least 7 standard deviations from the mean of the 1,000 steps before it"
                self.alert("spike", f"{self.name} {words}", f"{self.name}: the {words} of step {line['step']:,} is {line[key]:.4g}, {far}")

    def _straggler(self, line: dict[str, Any]) -> None:
        rank, times = line.get("slowest_rank", -1), line.get("slowest_rank_over_median", 0.0)
        if times < STRAGGLER_OVER_MEDIAN:
            self.slow, self.slow_steps = -1, 0
            return
        self.slow_steps = self.slow_steps + 1 if rank == self.slow else 1
        self.slow = rank
        if self.slow_steps % STRAGGLER_STEPS == 0:
            behind = f"takes {times:.2f} times as long as the median of the other ranks, for {self.slow_steps:,} steps now"
            self.alert("straggler", f"{self.name} rank {rank}", f"{self.name}: rank {rank}{self._where(rank)} {behind}")

    def _where(self, rank: int) -> str:
        try:
            its = json.loads(self.ranks.read_text())[rank]
        except (OSError, ValueError, IndexError):
            return ""
        return f" ({its['device']} of {its['host']})"

    def _stall(self, silent: float) -> None:
        step = median(self.seconds)
        if not self.stalled and silent >= max(STALL_SECONDS, STALL_TIMES * (step * max(self.together, 10) + self.pause)):
            self.stalled = True
            self.alert(
                "stall",
                self.name,
                f"{self.name}: no step for {duration(silent)} after step {self.step:,}; one takes {step:.2g} s otherwise",
            )
