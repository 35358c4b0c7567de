"""Hosts that failed a health check, as files `cordoned/HOST.json` in the store: no later job runs on them until a person says so.

`olmoflow doctor` lists them, `olmoflow doctor --uncordon HOST` lets one in again.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.store import Store

FOLDER = "cordoned"


@dataclass(frozen=True)
class Cordoned:
    """A host, its devices that failed (`cpu`, or GPUs as CUDA_VISIBLE_DEVICES names them), why, and who ran which job there when it did."""

    host: str
    devices: list[str]
    why: str
    who: str
    when: str
    run: str

    def __str__(self) -> str:
        devices = ", ".join(device if device == "cpu" else f"GPU {device}" for device in self.devices)
        return f"{self.host} ({devices}: {self.why}; cordoned {self.when} by {self.who})"


class Cordon:
    """The cordoned hosts of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def hosts(self) -> dict[str, Cordoned]:
        """All of them by name."""
        texts = [self.store.read_text(f"{FOLDER}/{name}") for name in self.store.names(FOLDER) if name.endswith(".json")]
        found = [Cordoned(**json.loads(text)) for text in texts if text is not None]
        return {each.host: each for each in found}

    def add(self, faults: Sequence[dict[str, Any]], run: str) -> list[Cordoned]:
        """Cordon the hosts whose own devices failed (`trainer.health.Fault`); those that are new, or have new devices."""
        changed = []
        for host in dict.fromkeys(fault["host"] for fault in faults if fault["own"]):
            its = [fault for fault in faults if fault["host"] == host and fault["own"]]
            made = Cordoned(
                host,
                list(dict.fromkeys(fault["gpu"] or fault["device"] for fault in its)),
                its[0]["fault"],
                f"{_user()}@{socket.gethostname()}",
                datetime.now(UTC).isoformat(timespec="seconds"),
                run,
            )
            if self._write(made):
                changed.append(made)
        return changed

    def _write(self, made: Cordoned) -> bool:
        path = f"{FOLDER}/{made.host}.json"
        if self.store.create(path, json.dumps(asdict(made), indent=1)):
            return True
        there = Cordoned(**json.loads(self.store.read_text(path) or json.dumps(asdict(made))))
        devices = list(dict.fromkeys([*there.devices, *made.devices]))
        self.store.replace(path, json.dumps(asdict(there) | {"devices": devices}, indent=1))
        return devices != there.devices

    def lift(self, host: str) -> bool:
        """Let a host in again; False where it was not cordoned."""
        if self.store.read_text(f"{FOLDER}/{host}.json") is None:
            return False
        self.store.fs.rm_file(self.store.full(f"{FOLDER}/{host}.json"))
        return True

    def here(self) -> Cordoned | None:
        """What is cordoned of this host."""
        return self.hosts().get(socket.gethostname())


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        return "unknown"
