"""What a store remembers of dumps, by recipe: how a dump looked and since when, and which dumps are done, with their files and shards.

dumps/RECIPE/looks/DUMP.json     the last look at a dump that is not done
dumps/RECIPE/done/000001.json    a dump that is done; written last and only if no other has this number, so that of two runs one wins
"""

from __future__ import annotations

import functools
import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.dump_changes import Change
from tasks.dumps import Dump
from tasks.store import Store

DIGITS = 6
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class DoneFile:
    """A file of a source and the shards made of it.

    place: its URL below that of the dump; empty for a file that the source has beside the dump. documents: how many it gave.
    """

    name: str
    place: str
    size: int
    content_id: str
    stamp: str
    site: str
    ingest: str
    signatures: str
    documents: int


@dataclass
class DoneSource:
    """A source of a recipe as it was read. settings: of its reader, those that can change a document."""

    paths: list[str]
    settings: dict[str, Any]
    files: list[DoneFile] = field(default_factory=list)


@dataclass
class Done:
    """A dump that is done.

    path: where dumps appear. before: the dump that changes are told from. state: of the files that the sources read. changes: see `tasks.dump_changes`. artifacts: ids of all that the
    run made or used. mixes: tokens by name.
    """

    number: int
    recipe: str
    path: str
    dump: str
    date: str
    state: str
    finished: str
    before: str | None
    sources: dict[str, DoneSource]
    closed: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    shards_made: dict[str, int] = field(default_factory=dict)
    mixes: dict[str, int] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)

    @property
    def order(self) -> tuple[str, str]:
        return self.date, self.dump

    def of_dump(self, source: str) -> list[DoneFile]:
        """The files that a source read of the dump itself."""
        return [file for file in self.sources[source].files if file.place] if source in self.sources else []

    @staticmethod
    def from_json(text: str) -> Done:
        raw = json.loads(text)
        for name, source in raw["sources"].items():
            raw["sources"][name] = DoneSource(**{**source, "files": [DoneFile(**file) for file in source["files"]]})
        return Done(**{**raw, "changes": [Change(**each) for each in raw["changes"]]})


def last_done(store: Store, recipe: str) -> Done | None:
    """The newest record of a recipe's dumps."""
    folder = f"dumps/{recipe}/done"
    names = store.names(folder)
    text = store.read_text(f"{folder}/{names[-1]}") if names else None
    return Done.from_json(text) if text is not None else None


def write_done(store: Store, done: Done) -> bool:
    """Write a record under its number; False where another run has written one meanwhile."""
    return store.create(f"dumps/{done.recipe}/done/{done.number:0{DIGITS}}.json", json.dumps(asdict(done), indent=1))


# -- looks at a dump that says nothing of its end -----------------------------------------------------------------------------------------


def seconds_to_wait(store: Store, recipe: str, dump: Dump, settle_seconds: float) -> float:
    """How long a dump must still look as it does now to count as whole; from its first look on, or from now where it has changed.

    Counted by a clock that nobody sets: the machine's seconds since it started. Looks of another machine, or from before a restart, do not
    count.
    """
    path = f"dumps/{recipe}/looks/{dump.place.name}.json"
    seen = json.loads(store.read_text(path) or "{}")
    boot, now = _boot(), _seconds()
    if seen.get("state") == dump.state and seen.get("boot") == boot and seen["seconds"] <= now:
        return max(0.0, settle_seconds - (now - float(seen["seconds"])))
    told = datetime.now(UTC).isoformat(timespec="seconds")
    store.replace(path, json.dumps({"state": dump.state, "boot": boot, "seconds": now, "looked": told, "files": len(dump.files)}, indent=1))
    return settle_seconds


@functools.cache
def _boot() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else uuid.uuid4().hex


def _seconds() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
