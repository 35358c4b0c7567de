"""The store: shards committed by exclusive records, artifacts as manifests over them.

Layout below the store's URL (a folder or any fsspec URL):

    shards/STEP/KEY/record.json      created only if none is there; names the attempt that won
    shards/STEP/KEY/ATTEMPT/...      what that attempt wrote; attempts that lost are leftovers, swept by the next run of the shard
    quarantine/STEP/KEY.jsonl
    artifacts/STEP/ID.json           a manifest over the records of an artifact's shards
    families/STEP/FAMILY/KEY         siblings: shards that differ only in which rows they computed (see tasks.score)
    runs/RECIPE.json                 what the newest run of a recipe used and made
    cache/raw/...                    content hashes of raw files by path, size and modification time

Nothing is renamed and nothing is unpickled: JSON, Parquet, npy and safetensors only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from tasks.errors import UserError

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
        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"the store {url} cannot be used: {error}") from error
        self.url = url
        self.root = str(root).rstrip("/")
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def full(self, path: str) -> str:
        return f"{self.root}/{path}"

    # -- small JSON files --------------------------------------------------------------------------------------------------------

    def read_text(self, path: str) -> str | None:
        try:
            with self.fs.open(self.full(path), "rb") as stream:
                return stream.read().decode()
        except FileNotFoundError:
            return None

    def create(self, path: str, text: str) -> bool:
        """Create a small file only if none is there, whole or not at all; False where another was first."""
        if not self.is_local:
            try:
                self.fs.pipe_file(self.full(path), text.encode(), mode="create")
            except FileExistsError:
                return False
            return True
        target = Path(self.full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        temporary.write_text(text)
        try:
            os.link(temporary, target)  # atomic, and fails where the target exists: rename would overwrite it
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def replace(self, path: str, text: str) -> None:
        """Write a small mutable file (a run's summary, a cache entry); a reader sees the old or the new one, never half."""
        if not self.is_local:
            self.fs.pipe_file(self.full(path), text.encode())
            return
        target = Path(self.full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        temporary.write_text(text)
        temporary.replace(target)

    def names(self, path: str) -> list[str]:
        """Names directly below a path, sorted; empty where there is nothing."""
        try:
            found = self.fs.ls(self.full(path), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found if not str(name).rsplit("/", 1)[-1].startswith("."))

    # -- shards ------------------------------------------------------------------------------------------------------------------

    def record(self, step: str, key: str) -> Record | None:
        """The record of a shard whose files are all there in full, else None (a damaged shard counts as not made)."""
        text = self.read_text(f"shards/{step}/{key}/record.json")
        if text is None:
            return None
        record = Record.from_json(text)
        return record if all(self._is_whole(stored) for stored in record.files) else None

    def _is_whole(self, stored: StoredFile) -> bool:
        try:
            return int(self.fs.size(self.full(stored.path))) == stored.bytes
        except FileNotFoundError:  # any other fault is the storage's, and says nothing about the shard
            return False

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

    def sweep(self, step: str, key: str, keep: str) -> None:
        """Remove what attempts other than `keep` left behind in a shard that is committed."""
        for name in self.names(f"shards/{step}/{key}"):
            if name not in ("record.json", keep):
                with contextlib.suppress(OSError):  # another process may be writing there or sweeping too
                    self.fs.rm(self.full(f"shards/{step}/{key}/{name}"), recursive=True)

    def fetch(self, path: str) -> Path:
        """A local path with the file's bytes: the file itself in a local store, else a copy that lives as long as the process."""
        if self.is_local:
            return Path(self.full(path))
        target = _download_folder() / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
            self.fs.get_file(self.full(path), str(partial))
            partial.replace(target)
        return target

    # -- artifacts ---------------------------------------------------------------------------------------------------------------

    def manifests(self) -> Iterable[dict[str, Any]]:
        for step in self.names("artifacts"):
            for name in self.names(f"artifacts/{step}"):
                text = self.read_text(f"artifacts/{step}/{name}")
                if text is not None:
                    yield json.loads(text)


@functools.cache
def _download_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="olmoflow-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


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
        self.folder = Path(store.full(self.base)) if store.is_local else Path(tempfile.mkdtemp(prefix="olmoflow-attempt-"))
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
        winner = self.store.record(self.step, self.key)
        if winner is None:
            raise RuntimeError(f"shard {self.step}/{self.key} was committed and is gone: is something else deleting from {self.store.url}?")
        self.store.sweep(self.step, self.key, keep=winner.attempt)
        return winner

    def _stored(self, path: Path) -> StoredFile:
        name = path.relative_to(self.folder).as_posix()
        return StoredFile(name, f"{self.base}/{name}", path.stat().st_size, sha256_of(path), _parquet_rows(path))

    def _file_quarantine(self, quarantine: dict[str, Any] | None) -> dict[str, Any] | None:
        source = self.folder / "quarantine.jsonl"
        if quarantine is None or not source.exists():
            return None
        path = f"quarantine/{self.step}/{self.key}.jsonl"
        self.store.replace(path, source.read_text())
        source.unlink()
        return {"path": path, **quarantine}


def _parquet_rows(path: Path) -> int | None:
    if path.suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)
