"""Progress of long work: how much is done, how fast, how long it will take. Nothing of it is part of any result.

A worker process leaves a small file (`Meter`), the engine that waits for the workers sums the files up (`Watcher`), and the faces decide
how often to tell (`Seldom`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.readable import duration, size

WRITE_SECONDS = 1.0  # between two versions of a worker's file
SPEED_SHARE, SPEED_BYTES = 1e-3, 100_000  # less work than this tells no speed

Report = Callable[[int, int, float], None]  # documents, bytes and share (0 to 1) of a shard so far
Watch = Callable[["Progress"], None]


def ignore(*_: object) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Progress:
    """How far one artifact is. `share` (0 to 1) weighs shards by their bytes; it was `begun` when this run took the work up."""

    step: str
    name: str
    done: int
    total: int
    unit: str  # of done and total: shards, or steps of training
    share: float
    seconds: float
    begun: float = 0.0
    documents: int = 0
    bytes: int = 0  # of input
    note: str = ""

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None before there is a speed to speak of."""
        moved = self.share - self.begun
        return self.seconds * (1 - self.share) / moved if moved >= SPEED_SHARE else None

    def detail(self, short: bool = False) -> str:
        """`3 of 12 shards, 120,400 documents, 34 MB/s, 2m 10s left`; without the documents where it is to be short."""
        parts = [f"{self.done:,} of {self.total:,} {self.unit}"]
        if self.documents and not short:
            parts.append(f"{self.documents:,} documents")
        if self.bytes >= SPEED_BYTES and self.seconds > 0:
            parts.append(f"{size(self.bytes / self.seconds)}/s")
        if self.note:
            parts.append(self.note)
        if self.seconds_left is not None and self.done < self.total:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.step} {self.name}: {self.detail()}"


class Seldom:
    """Says of a step's progress whether to tell it: once in so many seconds, and nothing of a step that is shorter."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.of, self.last, self.next = ("", ""), 0.0, 0.0

    def __call__(self, progress: Progress) -> bool:
        of = (progress.step, progress.name)
        if of != self.of or progress.seconds < self.last:
            self.of, self.next = of, self.seconds
        self.last = progress.seconds
        if progress.seconds < self.next:
            return False
        self.next = progress.seconds + self.seconds
        return True


class Meter:
    """A worker's side: sums up its shards and leaves the sums in a file, at most once a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = self.documents = self.bytes = 0  # of the shards that are finished
        self.weight = 0.0
        self.current = (0, 0, 0.0)
        self.current_weight = 0
        self.note = ""
        self.next = 0.0

    def begin(self, weight: int) -> Report:
        """Start a shard; what is returned takes its documents, bytes and share so far."""
        self.current_weight = max(weight, 1)
        return self._report

    def _report(self, documents: int, bytes_: int, share: float) -> None:
        before = self.current
        self.current = (max(before[0], documents), max(before[1], bytes_), max(before[2], min(share, 1.0)))
        if time.monotonic() >= self.next:
            self.write()

    def end(self, made: bool) -> None:
        """The shard is over; one that failed counts as tried, not as done."""
        documents, bytes_, _ = self.current
        self.documents, self.bytes, self.weight = self.documents + documents, self.bytes + bytes_, self.weight + self.current_weight
        self.done += made
        self.current, self.current_weight = (0, 0, 0.0), 0
        if time.monotonic() >= self.next:
            self.write()

    def write(self) -> None:
        documents, bytes_, share = self.current
        sums = {
            "done": self.done,
            "documents": self.documents + documents,
            "bytes": self.bytes + bytes_,
            "weight": self.weight + share * self.current_weight,
            "note": self.note,
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(sums))
        partial.replace(self.path)  # a reader sees the old or the new one
        self.next = time.monotonic() + WRITE_SECONDS


NOTHING: dict[str, Any] = {"done": 0, "documents": 0, "bytes": 0, "weight": 0.0, "note": ""}  # what a worker that has done nothing tells


def add(sums: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """The sums of what workers have told, with what one more tells: numbers add up, of notes the last stays."""
    return {key: told.get(key) or sums[key] if key == "note" else sums[key] + told.get(key, 0) for key in NOTHING}


class Watcher:
    """The waiting side: each call sums up the workers' files in `folder` and tells the progress of the whole."""

    def __init__(self, step: str, name: str, weights: list[int], folder: Path, watch: Watch) -> None:
        self.step, self.name, self.folder, self.watch = step, name, folder, watch
        self.shards, self.weight = len(weights), sum(max(weight, 1) for weight in weights)
        self.started = time.monotonic()

    def __call__(self) -> None:
        sums = NOTHING
        for path in self.folder.glob("progress-*.json"):
            sums = add(sums, json.loads(path.read_text()))
        self.watch(
            Progress(
                self.step,
                self.name,
                sums["done"],
                self.shards,
                "shards",
                min(1.0, sums["weight"] / self.weight),
                time.monotonic() - self.started,
                documents=sums["documents"],
                bytes=sums["bytes"],
                note=sums["note"],
            )
        )
