"""The store: shards committed by exclusive records, artifacts as manifests over them.

Layout below the store's URL (a folder or any fsspec URL):

    shards/STEP/KEY/record.json      created only if none is there; names the attempt that won
    shards/STEP/KEY/ATTEMPT/...      what that attempt wrote; attempts that lost are leftovers, swept by the next run of the shard
    quarantine/STEP/KEY.jsonl
    artifacts/STEP/ID.json           a manifest over the records of an artifact's shards
    tasks/STEP/ID.json               the config, hints and inputs of each of those shards (see tasks.shard_tasks)
    families/STEP/FAMILY/KEY         siblings: shards that differ only in which rows they computed (see tasks.score)
    held-out/TIME-....json           that somebody looked at the held-out tasks (see tasks.downstream)
    answers/XX/HASH.json             a language model's answer to a request, by the request's hash (see tasks.asking)
    dumps/RECIPE/...                 Stack Exchange dumps that were looked at and that are done (see tasks.dump_record)
    leases/STEP/KEY.json             who makes a shard, while it is made (see tasks.leases)
    cordoned/HOST.json               a host that failed a health check (see tasks.cordon)
    runs/RECIPE.json                 what the newest run of a recipe used and made
    runs/RECIPE/TIME-....json        what a run uses, also while it runs (see flows.uses)
    cache/raw/...                    content hashes of raw files by path, size and modification time

Nothing is renamed and nothing is unpickled: JSON, Parquet, npy and safetensors only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks import scratch
from tasks.storage import Storage, StorageError, steady

KEY_CHARACTERS = 32  # 128 bits of SHA-256 in hex


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value, in hex, cut to `KEY_CHARACTERS`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:KEY_CHARACTERS]


@dataclass
class Books:
    """What became of a shard's input, in the step's own unit: read = kept + dropped + quarantined.

    `counts` holds further totals that need not balance (tokens, documents scored, unreadable bytes, ...).
    """

    unit: str = "documents"
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, units: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + units

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + int(number)

    def balance(self, what: str) -> None:
        """Raise ValueError unless the books balance: a step that loses documents must not commit."""
        accounted = self.kept + sum(self.dropped.values()) + self.quarantined
        if accounted != self.read:
            raise ValueError(f"{what}: the books do not balance, {self.read} {self.unit} read but {accounted} accounted for")

    def __add__(self, other: Books) -> Books:
        return Books(
            unit=self.unit if self.read or not other.read else other.unit,
            read=self.read + other.read,
            kept=self.kept + other.kept,
            dropped=_add(self.dropped, other.dropped),
            quarantined=self.quarantined + other.quarantined,
            counts=_add(self.counts, other.counts),
        )


def _add(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in [*left, *(name for name in right if name not in left)]}


@dataclass(frozen=True)
class StoredFile:
    """One file of a shard: its name within the shard, its path below the store, bytes, rows (Parquet only) and SHA-256."""

    name: str
    path: str
    bytes: int
    sha256: str
    rows: int | None = None


@dataclass
class Record:
    """The commit of one shard."""

    step: str
    key: str
    name: str
    attempt: str
    files: list[StoredFile]
    books: Books
    seconds: float
    quarantine: dict[str, Any] | None = None  # {"path", "count", "first": "FILE, POSITION: CAUSE"}

    def file(self, name: str) -> StoredFile:
        for stored in self.files:
            if stored.name == name:
                return stored
        raise KeyError(f"shard {self.step}/{self.key} has no file {name}")

    @staticmethod
    def from_json(text: str | bytes) -> Record:
        raw = json.loads(text)
        raw["files"] = [StoredFile(**stored) for stored in raw["files"]]
        raw["books"] = Books(**raw["books"])
        return Record(**raw)


class Store:
    """A folder or fsspec URL that holds shards, records and manifests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs = Storage(url)
        self.root = self.fs.path.rstrip("/")
        self.is_local = self.fs.is_local

    def full(self, path: str) -> str:
        return f"{self.root}/{path}"

    # -- small JSON files --------------------------------------------------------------------------------------------------------

    def read_text(self, path: str) -> str | None:
        try:
            if self.is_local:
                return Path(self.full(path)).read_bytes().decode()
            content: bytes = self.fs.cat_file(self.full(path), start=0)  # without it s3fs asks for the size first
        except FileNotFoundError:
            return None
        return content.decode()

    def create(self, path: str, text: str) -> bool:
        """Create a small file only if none is there, whole or not at all; False where another was first."""
        if not self.is_local:
            try:
                self.fs.pipe_file(self.full(path), text.encode(), mode="create")
            except (FileExistsError, StorageError):  # not every server says in s3fs's words that the file exists
                there = self.read_text(path)
                if there is None:
                    raise
                return there == text  # an attempt whose answer was lost has created it
            return True
        target = Path(self.full(path))
        with _temporary(target, text) as temporary:
            try:
                os.link(temporary, target)  # atomic, and fails where the target exists: rename would overwrite it
            except FileExistsError:
                return False
            except FileNotFoundError:  # swept away by the one that was first
                if target.exists():
                    return False
                raise
        return True

    def replace(self, path: str, text: str) -> None:
        """Write a small mutable file (a run's summary, a cache entry); a reader sees the old or the new one, never half."""
        if not self.is_local:
            self.fs.pipe_file(self.full(path), text.encode())
            return
        target = Path(self.full(path))
        with _temporary(target, text) as temporary:
            temporary.replace(target)

    def take(self, file: Path, path: str) -> None:
        """Move a local file, of any size, into the store; in a local store it must lie there already, under another name."""
        if self.is_local:
            target = Path(self.full(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
            return
        self.fs.put_file(str(file), self.full(path))
        file.unlink()

    def names(self, path: str) -> list[str]:
        """Names directly below a path, sorted; empty where there is nothing."""
        try:
            found = self.fs.ls(self.full(path), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found if not str(name).rsplit("/", 1)[-1].startswith("."))

    # -- shards ------------------------------------------------------------------------------------------------------------------

    def record(self, step: str, key: str, sweep: bool = False) -> Record | None:
        """The record of a shard whose files are all there in full, else None (a damaged shard counts as not made).

        sweep: remove what other attempts at a shard that is there have left behind.
        """
        folder = f"shards/{step}/{key}"
        text = self.read_text(f"{folder}/record.json")
        if text is None:
            return None
        record = Record.from_json(text)
        sizes = self._sizes_of(record) if self.is_local else self._sizes_below(folder)
        if any(sizes.get(stored.path) != stored.bytes for stored in record.files):
            return None
        if sweep:
            # a killed attempt may have left an empty folder, which only a disk has
            below = (path.removeprefix(f"{folder}/").split("/", 1)[0] for path in sizes)
            there = {path.name for path in Path(self.full(folder)).iterdir()} if self.is_local else set(below)
            for name in there - {"record.json", record.attempt}:
                with contextlib.suppress(OSError, StorageError):  # another process may be writing there or sweeping too
                    self.fs.rm(self.full(f"{folder}/{name}"), recursive=True)
        return record

    def records(self, step: str, keys: Iterable[str], sweep: bool = False) -> list[Record | None]:
        """The `record` of each shard."""
        return self.fs.each(lambda key: self.record(step, key, sweep), keys)

    def _sizes_of(self, record: Record) -> dict[str, int | None]:
        """Bytes of a shard's files by their path; None of one that is not on the disk. Of so few files, a disk is sooner asked than listed."""
        sizes: dict[str, int | None] = {}
        for stored in record.files:
            try:
                sizes[stored.path] = os.stat(self.full(stored.path)).st_size  # noqa: PTH116 (making a Path takes longer than the call)
            except (FileNotFoundError, NotADirectoryError):
                sizes[stored.path] = None
        return sizes

    def _sizes_below(self, folder: str) -> dict[str, int | None]:
        """Bytes of every file below a folder by its path, in one listing; a fault is the storage's, and says nothing about a shard."""
        found = self.fs.find(self.full(folder), detail=True)
        return {str(path).removeprefix(f"{self.root}/"): int(info["size"]) for path, info in found.items()}

    def forget(self, step: str, key: str) -> None:
        """Remove a shard's record, so that the shard is made again."""
        try:
            self.fs.rm_file(self.full(f"shards/{step}/{key}/record.json"))
        except FileNotFoundError:
            return

    def forget_damaged(self, step: str, key: str) -> None:
        """Remove the record of a shard whose files are not all there, so that another can be committed."""
        if self.read_text(f"shards/{step}/{key}/record.json") is not None and self.record(step, key) is None:
            self.forget(step, key)

    def remove(self, step: str, key: str) -> None:
        """Remove a shard, record first, and whatever attempts at it have left."""
        self.forget(step, key)
        for name in self.names(f"shards/{step}/{key}"):
            self.fs.rm(self.full(f"shards/{step}/{key}/{name}"), recursive=True)

    def fetch(self, path: str, sha256: str | None = None) -> Path:
        """A local path with the file's bytes: the file itself in a local store, else a copy in the scratch folder.

        Raises StorageError where what arrives does not have the checksum `sha256`.
        """
        if self.is_local:
            return Path(self.full(path))
        target = self._fetched / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
            try:
                steady(f"{self.url.rstrip('/')}/{path}", lambda: self._get(path, partial, sha256))
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def _get(self, path: str, target: Path, sha256: str | None) -> None:
        self.fs.fs.get_file(self.full(path), str(target))
        if sha256 is not None and sha256_of(target) != sha256:
            raise OSError("its bytes are not those that were committed")

    def keep_fetched(self, paths: Iterable[Path]) -> None:
        """Remove the copies of all other files, so that a worker's disk holds the inputs of one shard and not of all it has made."""
        kept = set(paths)
        for path in () if self.is_local else list(self._fetched.rglob("*")):
            if path.is_file() and path not in kept:
                path.unlink()

    @property
    def _fetched(self) -> Path:
        return scratch.folder() / "fetched" / fingerprint(self.url)

    # -- artifacts ---------------------------------------------------------------------------------------------------------------

    def manifests(self) -> Iterable[dict[str, Any]]:
        for step in self.names("artifacts"):
            for name in self.names(f"artifacts/{step}"):
                text = self.read_text(f"artifacts/{step}/{name}")
                if text is not None:
                    yield json.loads(text)


@contextlib.contextmanager
def _temporary(target: Path, text: str) -> Iterator[Path]:
    """A file with a text beside a target, for a moment."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        path.write_text(text)
        yield path
    finally:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Attempt:
    """The folder that one attempt at a shard writes into, and its commit.

    In a local store it lies in its final place; for any other store it is a temporary folder that `commit` uploads.
    """

    def __init__(self, store: Store, step: str, key: str, name: str, attempt: str | None = None) -> None:
        self.store, self.step, self.key, self.name = store, step, key, name
        self.attempt = attempt or f"attempt-{uuid.uuid4().hex[:12]}"
        self.base = f"shards/{step}/{key}/{self.attempt}"
        self.folder = Path(store.full(self.base)) if store.is_local else scratch.folder() / self.base
        self.folder.mkdir(parents=True, exist_ok=True)

    def commit(self, books: Books, seconds: float, quarantine: dict[str, Any] | None = None, only: Iterable[Path] | None = None) -> Record:
        """Write the record, exclusively; whoever was first wins, and its record is returned."""
        books.balance(f"step {self.step}, shard {self.name}")
        paths = sorted(only if only is not None else (path for path in self.folder.rglob("*") if path.is_file()))
        files = [self._stored(path) for path in paths]
        quarantine = self._file_quarantine(quarantine)
        files = [stored for stored in files if stored.name != "quarantine.jsonl"]
        record = Record(self.step, self.key, self.name, self.attempt, files, books, round(seconds, 3), quarantine)
        if not self.store.is_local:
            for stored in files:
                self.store.fs.put_file(str(self.folder / stored.name), self.store.full(stored.path))
        self.store.forget_damaged(self.step, self.key)
        self.store.create(f"shards/{self.step}/{self.key}/record.json", json.dumps(asdict(record), indent=1))
        if not self.store.is_local:
            shutil.rmtree(self.folder)
        winner = self.store.record(self.step, self.key, sweep=True)
        if winner is None:
            raise RuntimeError(f"shard {self.step}/{self.key} was committed and is gone: is something else deleting from {self.store.url}?")
        return winner

    def discard(self) -> None:
        """Remove what a failed attempt has written on the local disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stored(self, path: Path) -> StoredFile:
        name = path.relative_to(self.folder).as_posix()
        return StoredFile(name, f"{self.base}/{name}", path.stat().st_size, sha256_of(path), _parquet_rows(path))

    def _file_quarantine(self, quarantine: dict[str, Any] | None) -> dict[str, Any] | None:
        source = self.folder / "quarantine.jsonl"
        if quarantine is None or not source.exists():
            return None
        path = f"quarantine/{self.step}/{self.key}.jsonl"
        self.store.take(source, path)
        return {"path": path, **quarantine}


def _parquet_rows(path: Path) -> int | None:
    if path.suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
