"""What of a store nothing needs any more, and its removal.

Kept is what the caller says, what is young (a run may be under way that this store knows nothing of), a training whose folder a process of
this machine holds, and all that any of it descends from. Answers of language models are never garbage: they were paid for.

A removal may be killed at any moment: records go before files, since a shard without its record counts as not made, and of artifacts those that
were made of others before these. A run that begins meanwhile says what it wants before it looks for it; after the records are gone the removal
looks again at what is wanted, and puts a wanted record back before it touches a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from tasks import shard_tasks
from tasks.store import Record, Store

ShardKey = tuple[str, str]  # step, key
MODELS = ("train", "soup", "model")  # steps whose artifacts take long to make again
TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{32}$")  # what a kill leaves of `Store.replace` and `Store.create`


@dataclass
class Wanted:
    """What is to be kept, each with the reason in words: artifacts by id, and shards that may be in no artifact yet."""

    artifacts: dict[str, str] = field(default_factory=dict)
    shards: dict[ShardKey, str] = field(default_factory=dict)

    def add(self, identity: str, step: str, keys: Iterable[str], why: str) -> None:
        """An artifact, whether it has a manifest by now or not, with its shards."""
        self.artifacts.setdefault(identity, why)
        for key in keys:
            self.shards.setdefault((step, key), why)


@dataclass
class Item:
    """One thing that would go. kind: artifact, unfinished shards of a step, leftovers, ..."""

    kind: str
    step: str
    name: str
    why: str
    bytes: int = 0
    id: str | None = None
    created: str | None = None
    shards: list[ShardKey] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def is_model(self) -> bool:
        """Whether somebody would miss it dearly: checkpoints and models, of a finished run or not."""
        return self.step in MODELS and self.kind != "leftovers"


@dataclass
class Garbage:
    """items: what would go; those that are made of others first."""

    items: list[Item]
    kept_bytes: int
    kept_artifacts: dict[str, str]


@dataclass
class _Shard:
    files: dict[str, int] = field(default_factory=dict)  # bytes by path below the store
    newest: float | None = None  # seconds since the epoch, where the storage tells
    record: Record | None = None

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def find(store: Store, wanted: Wanted, young_after: float) -> Garbage:
    """What is not wanted and not younger than `young_after` (seconds since the epoch, by the storage's clock)."""
    return _Search(store, wanted, young_after).garbage()


class _Search:
    def __init__(self, store: Store, wanted: Wanted, young_after: float) -> None:
        self.store, self.young_after = store, young_after
        self.manifests = {manifest["id"]: manifest for manifest in store.manifests()}
        self.files = _listed(store)
        self.shards: dict[ShardKey, _Shard] = {}
        for path, (size, at) in self.files.items():
            parts = path.split("/")
            if parts[0] == "shards" and len(parts) > 3:
                shard = self.shards.setdefault((parts[1], parts[2]), _Shard())
                shard.files[path] = size
                shard.newest = max(shard.newest or at or 0.0, at or 0.0) if at is not None else shard.newest
        self.artifacts: dict[str, str] = {}
        self.kept: dict[ShardKey, str] = {}
        self._keep(wanted)

    # -- what is kept ------------------------------------------------------------------------------------------------------------

    def _keep(self, wanted: Wanted) -> None:
        self.of_shard: dict[ShardKey, list[str]] = {}
        for identity, manifest in self.manifests.items():
            for key in manifest["shards"]:
                self.of_shard.setdefault((manifest["step"], key), []).append(identity)
        for place, why in wanted.shards.items():
            self.kept.setdefault(place, why)
        for place, shard in self.shards.items():
            if shard.newest is None or shard.newest > self.young_after:
                self.kept.setdefault(place, "it is young")
            elif self._is_trained(place):
                self.kept.setdefault(place, "a process holds its folder")
        young = {identity: "it is young" for identity, manifest in self.manifests.items() if self._is_young(_manifest_path(manifest))}
        self._descend({**young, **wanted.artifacts})

    def _descend(self, artifacts: Mapping[str, str]) -> None:
        waiting = list(artifacts.items())
        while waiting:
            identity, why = waiting.pop()
            if identity in self.artifacts:
                continue
            self.artifacts[identity] = why
            manifest = self.manifests.get(identity)
            if manifest is None:
                continue
            for key in manifest["shards"]:
                self.kept.setdefault((manifest["step"], key), why)
            below = f"{manifest['step']} {manifest['name']} ({identity}) is made of it"
            waiting += [(each, below) for each in manifest["inputs"]]
            tasks = shard_tasks.read(self.store, manifest["step"], identity)
            known = {
                (self.manifests[each]["step"], key)
                for each in manifest["inputs"]
                if each in self.manifests
                for key in self.manifests[each]["shards"]
            }
            for place in {place for task in (tasks.shards if tasks else ()) for place in task.shards()} - known:
                if place not in self.kept and place in self.of_shard:  # in none of its inputs: whose it is has what it descends from
                    waiting.append((min(self.of_shard[place], key=lambda each: len(self.manifests[each]["shards"])), below))
                self.kept.setdefault(place, below)

    def _is_young(self, path: str) -> bool:
        at = self.files.get(path, (0, None))[1]
        return path in self.files and (at is None or at > self.young_after)

    def _is_trained(self, place: ShardKey) -> bool:
        """Whether a process of this machine trains there."""
        locks = [path for path in self.shards[place].files if path.endswith("/.lock")]
        return self.store.is_local and any(not _free(Path(self.store.full(path))) for path in locks)

    # -- what is not -------------------------------------------------------------------------------------------------------------

    def garbage(self) -> Garbage:
        items = [self._artifact(manifest) for manifest in self._order() if manifest["id"] not in self.artifacts]
        taken = {place for item in items for place in item.shards}
        items += self._without_artifact(taken)
        taken |= {place for item in items for place in item.shards}
        items += [item for item in (self._leftovers(taken), self._small(taken)) if item is not None]
        gone = sum(item.bytes for item in items)
        return Garbage(items, sum(size for size, _ in self.files.values()) - gone, self.artifacts)

    def _order(self) -> list[dict[str, Any]]:
        """Manifests, those of what is made of others first."""
        graph = {identity: [each for each in manifest["inputs"] if each in self.manifests] for identity, manifest in self.manifests.items()}
        return [self.manifests[identity] for identity in reversed(list(TopologicalSorter(graph).static_order()))]

    def _artifact(self, manifest: dict[str, Any]) -> Item:
        step, identity = manifest["step"], manifest["id"]
        own = [(step, key) for key in manifest["shards"] if (step, key) in self.shards and (step, key) not in self.kept]
        paths = [path for path in (_manifest_path(manifest), shard_tasks.path_of(step, identity)) if path in self.files]
        shards = [place for place in own if not self._claimed(place, identity)]
        size = sum(self.shards[place].bytes for place in shards) + sum(self.files[path][0] for path in paths)
        why = "no newest run and no kept artifact uses it"
        return Item("artifact", step, manifest["name"], why, size, identity, manifest["created"], shards, paths)

    def _claimed(self, place: ShardKey, identity: str) -> bool:
        """Whether a shard that several artifacts have is told with another of them: the last by id."""
        return max(self.of_shard[place]) != identity

    def _without_artifact(self, taken: set[ShardKey]) -> Iterator[Item]:
        """Shards that are in no artifact: of runs that stopped, of artifacts whose manifest is gone."""
        by_kind: dict[tuple[str, str], list[ShardKey]] = {}
        for place, shard in self.shards.items():
            if place not in self.kept and place not in taken:
                made = f"shards/{place[0]}/{place[1]}/record.json" in shard.files
                by_kind.setdefault((place[0], "orphans" if made else "unfinished"), []).append(place)
        for (step, kind), places in sorted(by_kind.items()):
            why = "in no artifact of the store" if kind == "orphans" else "begun, never finished, and nothing works on it"
            for shards in [[place] for place in places] if step in MODELS else [places]:
                name = ", ".join(key for _, key in shards) if step in MODELS else f"{len(shards):,} shards"
                yield Item(kind, step, name, why, sum(self.shards[place].bytes for place in shards), shards=shards)

    def _leftovers(self, taken: set[ShardKey]) -> Item | None:
        """What other attempts than the one that won have left in shards that stay."""
        paths = []
        for place, shard in self.shards.items():
            folder = f"shards/{place[0]}/{place[1]}"
            if place in taken or not _may_have_leftovers(shard.files) or self._is_trained(place):
                continue
            text = self.store.read_text(f"{folder}/record.json")
            if text is None:
                continue
            record = Record.from_json(text)
            own, checkpoints = {stored.path for stored in record.files}, f"{folder}/{record.attempt}/checkpoints/"
            for path in shard.files:
                other = not path.startswith((f"{folder}/record.json", f"{folder}/{record.attempt}/"))
                if (other or (path.startswith(checkpoints) and path not in own)) and not self._is_young(path):
                    paths.append(path)
        return self._item("leftovers", "of attempts that were killed or came second", paths)

    def _small(self, taken: set[ShardKey]) -> Item | None:
        there = set(self.shards) - taken
        paths = []
        for path in self.files:
            folder, _, rest = path.partition("/")
            parts = rest.split("/")
            if self._is_young(path):
                continue
            if folder == "quarantine" and len(parts) == 2:
                gone = (parts[0], parts[1].removesuffix(".jsonl")) not in there
            elif folder == "families" and len(parts) == 3:
                gone = (parts[0], parts[2]) not in there
            elif folder == "tasks" and len(parts) == 2:
                gone = parts[1].removesuffix(".json") not in self.manifests
            elif folder == "leases":
                gone = True  # of a process that has ended: who lives writes it again every few seconds
            elif folder == "cache":
                gone = self._is_stale(path)
            else:
                gone = folder != "shards" and TEMPORARY.match(parts[-1]) is not None
            if gone:
                paths.append(path)
        return self._item("bookkeeping", "quarantine, families, tasks, leases and caches of what is gone or goes", paths)

    def _is_stale(self, path: str) -> bool:
        """A remembered hash of a file that is not there any more as it was."""
        told = json.loads(self.store.read_text(path) or "{}")
        if "path" not in told:
            return False
        try:
            state = Path(told["path"]).stat()
        except OSError:
            return True
        return (state.st_size, state.st_mtime_ns) != (told.get("size"), told.get("mtime_ns"))

    def _item(self, kind: str, why: str, paths: list[str]) -> Item | None:
        if not paths:
            return None
        return Item(kind, "", f"{len(paths):,} files", why, sum(self.files[path][0] for path in paths), paths=sorted(paths))


def _may_have_leftovers(files: Iterable[str]) -> bool:
    """Whether it is worth reading the record: there are more attempts than one, or checkpoints."""
    names = {path.split("/")[3] for path in files}
    return "record.json" in names and (len(names) > 2 or any("/checkpoints/" in path for path in files))


def _manifest_path(manifest: Mapping[str, Any]) -> str:
    return f"artifacts/{manifest['step']}/{manifest['id']}.json"


def _listed(store: Store) -> dict[str, tuple[int, float | None]]:
    """Bytes and time of the last change, in seconds since the epoch, of every file of a store by its path."""
    found = store.fs.find(store.root, detail=True)
    return {str(path).removeprefix(f"{store.root}/"): (int(info["size"]), changed(info)) for path, info in found.items()}


def changed(info: Mapping[str, Any]) -> float | None:
    """When a file was last changed, by what its storage tells of it; None where it does not tell."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float) and value:
            return float(value)
    return None


def _free(lock: Path) -> bool:
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


# -- removal -------------------------------------------------------------------------------------------------------------------------


def remove(store: Store, items: Iterable[Item], wanted: Callable[[], Wanted], tell: Callable[[Item], None] = lambda item: None) -> int:
    """Remove items, in their order. `wanted()`: what is wanted by now, asked for anew of each item. Returns the bytes that are gone."""
    gone = 0
    for item in items:
        before = wanted()
        if item.id in before.artifacts:
            continue
        shards = [place for place in item.shards if place not in before.shards]
        records = dict(zip(shards, store.fs.each(lambda place: _take_record(store, place), shards), strict=True))
        after = wanted()  # a run that has seen a record had said so before
        saved = [place for place in shards if place in after.shards]
        for place in saved:
            text = records[place]
            if text is not None:
                store.create(_record_path(place), text)
        if item.id not in after.artifacts:
            store.fs.each(lambda path: _delete(store, path), [path for path in item.paths if not _is_needed(store, path)])
        store.fs.each(lambda place: _remove_files(store, place), [place for place in shards if place not in after.shards])
        if not saved and len(shards) == len(item.shards):
            gone += item.bytes
            tell(item)
    return gone


def _is_needed(store: Store, path: str) -> bool:
    """Whether what a small file belongs to has come back."""
    folder, _, rest = path.partition("/")
    parts = rest.split("/")
    if folder in ("quarantine", "families"):
        return store.read_text(_record_path((parts[0], parts[-1].removesuffix(".jsonl")))) is not None
    return False


def _record_path(place: ShardKey) -> str:
    return f"shards/{place[0]}/{place[1]}/record.json"


def _take_record(store: Store, place: ShardKey) -> str | None:
    text = store.read_text(_record_path(place))
    store.forget(*place)
    return text


def _remove_files(store: Store, place: ShardKey) -> None:
    """Of a shard whose record is gone; not where a process trains in it or another has made it meanwhile."""
    if store.read_text(_record_path(place)) is not None:
        return
    with contextlib.ExitStack() as held:
        for lock in Path(store.full(f"shards/{place[0]}/{place[1]}")).glob("*/.lock") if store.is_local else ():
            stream = held.enter_context(lock.open("rb"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
        with contextlib.suppress(FileNotFoundError):
            store.fs.rm(store.full(f"shards/{place[0]}/{place[1]}"), recursive=True)


def _delete(store: Store, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        store.fs.rm_file(store.full(path))
