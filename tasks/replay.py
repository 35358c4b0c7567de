"""Replay: an artifact's shards made again from what the store keeps of them, in a scratch store, and compared with those that are there.

Inputs are taken from the store as they are; raw files must lie where they lay, with the content that they had. (The report's section 6.2 asks
that what was done can be done again.)
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import environment, raw_files
from tasks.errors import UserError
from tasks.shard_tasks import StoredTask, StoredTasks, TaskInput, is_ref
from tasks.shards import Input, ShardRef, ShardTask, Step, library_version
from tasks.sources import arithmetic
from tasks.sources.base import RawFile
from tasks.storage import shown
from tasks.store import Record, Store

# Of metrics: how fast, and on what, never what
MEASURED = re.compile(r"seconds$|_per_second$|^peak_memory_bytes$|^ranks$|joules|watts|kwh|carbon|water|^mfu$|^gpu", re.IGNORECASE)
PLACE = re.compile(r"(/[^/\s]+){2,}")
COMPARED_BYTES = 1 << 20

SAME, SAME_ROWS, SAME_BUT, OTHER = "same bytes", "same rows, other bytes", "same but for places and times", "differs"


# -- what is asked for ---------------------------------------------------------------------------------------------------------------


def shard_tasks(store: Store, tasks: StoredTasks, launched: bool) -> list[ShardTask]:
    """The shards as tasks again. Raises UserError naming the first raw file that is gone or has other content.

    launched: of a GPU job, whose hints go to the trainer as they are; others are told where answers of language models lie.
    """
    found = {}
    for item in (item for task in tasks.shards for item in task.all_inputs() if item.raw is not None):
        url = item.raw["url"]  # type: ignore[index]
        if (url, item.content) not in found:
            found[url, item.content] = _raw_file(store, item)
    return [_task(store, task, found, launched) for task in tasks.shards]


def _task(store: Store, task: StoredTask, raw: dict[tuple[str, str], RawFile], launched: bool) -> ShardTask:
    inputs: dict[str, list[Input]] = {role: [_input(item, raw) for item in items] for role, items in task.inputs.items()}
    hints = _refs(task.hints) if launched else {**task.hints, "store": store.url, "afresh": False}
    return ShardTask(task.name, task.config, inputs, hints, sum(item.raw["size"] for item in task.all_inputs() if item.raw))


def _input(item: TaskInput, raw: dict[tuple[str, str], RawFile]) -> Input:
    if item.raw is not None:
        return raw[item.raw["url"], item.content]
    return ShardRef(item.step, item.key, item.content if item.content != item.key else "")


def _raw_file(store: Store, item: TaskInput) -> RawFile:
    assert item.raw is not None
    url, name, content = item.raw["url"], item.raw["name"], item.content
    if url.startswith(arithmetic.SCHEME):
        return RawFile(url, name, item.raw["size"], content)
    try:
        (there,), _ = raw_files.find(store, "replay", [url])
    except raw_files.Unreachable:
        raise
    except UserError as error:
        raise UserError(f"the raw file {shown(url)} is gone: put it back where it was to make the artifact again") from error
    if there.content_id != content:
        raise UserError(f"the raw file {shown(url)} has other content than when the artifact was made: put back what was there")
    return RawFile(there.url, name, there.size, content, there.stamp)


def _refs(value: Any) -> Any:
    if is_ref(value):
        return ShardRef(**value)
    return {name: _refs(each) for name, each in value.items()} if isinstance(value, dict) else value


# -- what it is made with ------------------------------------------------------------------------------------------------------------


def made_with_other(manifest: dict[str, Any], step: Step, libraries: dict[str, str]) -> list[str]:
    """In words, how this machine's software differs from that which made the artifact."""
    here = {name: platform.python_version() if name == "python" else library_version(name) for name in manifest["software"]}
    told = [f"{name} {there} -> {here[name]}" for name, there in manifest["software"].items() if here[name] != there]
    if step.version != manifest["version"]:
        told.insert(0, f"the step's version {manifest['version']} -> {step.version}")
    told += [
        f"{name} {there} -> {library_version(name)}"
        for name, there in libraries.items()
        if name not in here and library_version(name) != there
    ]
    for name, now in (("lock", environment.lock()), ("container", environment.container())):
        there = manifest.get(name)
        if there != now:
            told.append(f"{name} {_short(there)} -> {_short(now)}")
    return told


def _short(digest: str | None) -> str:
    return digest[:19] if digest else "unknown"


# -- comparing -----------------------------------------------------------------------------------------------------------------------


@dataclass
class FileComparison:
    """One file of one shard. verdict: one of `SAME`, `SAME_ROWS`, `SAME_BUT`, `OTHER`; where: the first difference, in words."""

    shard: str
    file: str
    verdict: str
    where: str = ""


@dataclass
class Comparison:
    files: list[FileComparison] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        return all(file.verdict != OTHER for file in self.files)

    def counts(self) -> dict[str, int]:
        return {
            verdict: number for verdict in (SAME, SAME_ROWS, SAME_BUT, OTHER) if (number := sum(f.verdict == verdict for f in self.files))
        }


def compare(old_store: Store, old: Record, new_store: Store, new: Record) -> Iterator[FileComparison]:
    """Each file of a shard against the one that was made anew; files that only one side has; and the books."""
    before, after = ({stored.name: stored for stored in record.files} for record in (old, new))
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield FileComparison(old.name, name, OTHER, "only the new one has it" if name in after else "the new one does not have it")
        elif before[name].sha256 == after[name].sha256:
            yield FileComparison(old.name, name, SAME)
        else:
            paths = old_store.fetch(before[name].path, before[name].sha256), new_store.fetch(after[name].path)
            yield FileComparison(old.name, name, *_compared(*paths))
    if old.books != new.books:
        yield FileComparison(old.name, "books", OTHER, f"{old.books} -> {new.books}")


def _compared(old: Path, new: Path) -> tuple[str, str]:
    if old.suffix == ".parquet":
        where = rows_differ(pq.ParquetFile(old), pq.ParquetFile(new))
        return (OTHER, where) if where else (SAME_ROWS, "")
    if old.suffix in (".json", ".jsonl"):
        where = _json_differs(old, new)
        return (OTHER, where) if where else (SAME_BUT, "")
    return OTHER, _bytes_differ(old, new)


def rows_differ(old: pq.ParquetFile, new: pq.ParquetFile) -> str:
    """The first difference of two tables in words, empty where there is none; whatever their row groups and encodings."""
    if old.schema_arrow != new.schema_arrow:
        return f"columns {', '.join(old.schema_arrow.names)} -> {', '.join(new.schema_arrow.names)}, or their types"
    if old.metadata.num_rows != new.metadata.num_rows:
        return f"{old.metadata.num_rows:,} rows -> {new.metadata.num_rows:,}"
    row = 0
    for one, other in zip(old.iter_batches(), new.iter_batches(), strict=True):  # batches of equal sizes, since the rows are as many
        if not one.equals(other) and (where := _row_of(one, other, row)):
            return where
        row += len(one)
    return ""


def _row_of(one: pa.RecordBatch, other: pa.RecordBatch, first: int) -> str:
    for row, (a, b) in enumerate(zip(one.to_pylist(), other.to_pylist(), strict=True), first):
        for name in a:
            if repr(a[name]) != repr(b[name]):
                return f"row {row:,}, column {name}: {str(a[name])[:60]!r} -> {str(b[name])[:60]!r}"
    return ""  # NaNs, which equal nothing


def _json_differs(old: Path, new: Path) -> str:
    sides = [path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()] for path in (old, new)]
    for number, (one, other) in enumerate(zip_longest(*sides), 1):
        if one is None or other is None:
            return f"{len(sides[0]):,} lines -> {len(sides[1]):,}"
        where = next(_differing("", *(_comparable(old.name, json.loads(text)) for text in (one, other))), None)
        if where:
            return f"line {number:,}, {where}" if old.suffix == ".jsonl" else where
    return ""


def _comparable(file: str, value: Any) -> Any:
    if file == "checkpoint.json":  # it has hashes of configs, in which there are places; they are compared themselves
        value = {**value, "files": {name: entry for name, entry in value.get("files", {}).items() if not name.endswith(".json")}}
    return _told(value)


def _told(value: Any) -> Any:
    """Without what was measured, and without places on a disk."""
    if isinstance(value, dict):
        return {name: _told(each) for name, each in value.items() if not MEASURED.search(name)}
    if isinstance(value, list):
        return [_told(each) for each in value]
    return "a place" if isinstance(value, str) and PLACE.fullmatch(value) else value


def _differing(key: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differing(f"{key}.{name}" if key else name, old.get(name), new.get(name))
    elif repr(old) != repr(new):
        yield f"{key or 'the value'}: {str(old)[:60]} -> {str(new)[:60]}"


def _bytes_differ(old: Path, new: Path) -> str:
    at = 0
    with old.open("rb") as one, new.open("rb") as other:
        while True:
            a, b = one.read(COMPARED_BYTES), other.read(COMPARED_BYTES)
            if a != b:
                first = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                return f"from byte {at + first:,} on ({old.stat().st_size:,} -> {new.stat().st_size:,} bytes)"
            if not a:
                return ""
            at += len(a)
