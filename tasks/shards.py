"""The shard map: which shards of a step are missing, run them on an engine, balance the books, write the manifest."""

from __future__ import annotations

import functools
import itertools
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks import environment, shard_tasks
from tasks.errors import UserError
from tasks.progress import Report, Watch, ignore
from tasks.secrets import hidden
from tasks.sources.base import RawFile
from tasks.storage import StorageError
from tasks.store import Books, Record, Store, canonical_json, fingerprint


@dataclass(frozen=True)
class Step:
    """A step's identity: a new `version` when its output changes for equal input, and the libraries whose versions matter.

    by_content: what reads a shard of this step depends on the bytes that it holds, not on what it was made from. For a step that sees all
    shards at once, of which one new file would else make everything after it anew.
    """

    name: str
    version: int
    module: str
    libraries: tuple[str, ...] = ()
    by_content: bool = False


@dataclass(frozen=True)
class ShardRef:
    """A shard of an earlier step, as an input. `content`, where it is given, stands for it in the keys of what reads it."""

    step: str
    key: str
    content: str = ""


MADE_WITH = ("created", "software", "lock", "container")  # of a manifest

Input = ShardRef | RawFile  # a raw file counts by its content; where it lies and what it is called are no part of a key


@dataclass
class ShardTask:
    """One shard to make: its key follows from the step, the config and the content of its inputs.

    `hints` may not change the output (batch sizes, earlier scores to take over); `weight` is its size in bytes, for balancing.
    """

    name: str
    config: dict[str, Any]
    inputs: dict[str, list[Input]]
    hints: dict[str, Any] = field(default_factory=dict)
    weight: int = 0

    def key(self, step: Step) -> str:
        return fingerprint(
            {
                "step": step.name,
                "version": step.version,
                "libraries": key_libraries(step),
                "config": self.config,
                "inputs": {role: [_content(item) for item in items] for role, items in self.inputs.items()},
            }
        )


def _content(item: Input) -> str:
    return item.content_id if isinstance(item, RawFile) else f"{item.step}:{item.content or item.key}"


def _digest(record: Record) -> str:
    return fingerprint({stored.name: stored.sha256 for stored in record.files})


@functools.cache
def library_version(name: str) -> str:
    """The installed version without a local label: a CPU and a CUDA build of one release count as one."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return "absent"


def key_libraries(step: Step) -> dict[str, str]:
    """Versions that are part of the keys of a step."""
    return {name: library_version(name) for name in step.libraries}


@dataclass
class Artifact:
    """An artifact: a step's output for one source, mix or model, as the list of its shards. Does not change once it is told of."""

    id: str
    step: str
    name: str
    keys: list[str]
    records: list[Record | None]
    made: int = 0
    inputs: list[str] = field(default_factory=list)
    raw_files: list[RawFile] = field(default_factory=list)  # of all shards, in their order
    by_content: bool = False

    @functools.cached_property
    def refs(self) -> list[ShardRef]:
        """The shards as inputs; one of a step `by_content` that is not made yet can only be told by its key."""
        contents = [_digest(record) if self.by_content and record else "" for record in self.records]
        return [ShardRef(self.step, key, content) for key, content in zip(self.keys, contents, strict=True)]

    @property
    def is_whole(self) -> bool:
        return all(record is not None for record in self.records)

    @functools.cached_property
    def books(self) -> Books:
        return sum((record.books for record in self.records if record), Books())

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records if record)

    @property
    def bytes(self) -> int:
        return sum(stored.bytes for record in self.records if record for stored in record.files)


class Engine:
    """Where shards run. `run` returns when every shard of the plan has been tried, and raises with what went wrong.

    `watch` gets the progress of the plan about once a second.
    """

    watch: Watch = staticmethod(ignore)

    def run(self, plan: dict[str, Any], weights: list[int], store: Store) -> None:
        raise NotImplementedError


@dataclass
class Runner:
    """Runs steps of one recipe run against a store and remembers what they made.

    plan_only: run nothing, only say what is missing. only: run just this (step, name or None), the rest must be there.
    force: make the shards of `only` again though they are there. label: stands behind the name of every artifact.
    wants: gets the id, step and shard keys of each artifact before the store is asked for them; `tell` gets each when it is there.
    """

    store: Store
    engine: Engine
    plan_only: bool = False
    only: tuple[str, str | None] | None = None
    force: bool = False
    tell: Callable[[Artifact], None] = lambda artifact: None
    wants: Callable[[str, str, list[str]], None] = lambda identity, step, keys: None
    label: str = ""
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    made_books: dict[str, Books] = field(default_factory=dict)
    made_shards: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)  # keys of shards that count as made here, though they may be there before `run` looks

    def run(
        self,
        step: Step,
        name: str,
        tasks: Sequence[ShardTask],
        *,
        inputs: Sequence[Artifact] = (),
        max_quarantined: float = 0.0,
        launch: Callable[[ShardTask, str], None] | None = None,
        prepare: Callable[[ShardTask], None] | None = None,
    ) -> Artifact:
        """Make what is missing of an artifact and return it.

        `launch(task, key)` replaces the engine for GPU jobs. `prepare(task)` is called before, of each shard that is missing. Over `max_quarantined` (a share of what was read) the shards stay
        committed and UserError names the first file and line.
        """
        name = f"{name} ({self.label})" if self.label else name
        keys = [task.key(step) for task in tasks]
        may_run = self._may_run(step.name, name)
        self.wants(artifact_id(step.name, keys), step.name, keys)
        if may_run and self.force and self.only:
            for key in keys:
                self.store.remove(step.name, key)
        records = self.store.records(step.name, keys, sweep=may_run)
        missing = {key: task for key, task, record in zip(keys, tasks, records, strict=True) if record is None or key in self.begun}
        if missing and may_run:
            if prepare is not None:
                self.store.fs.each(prepare, missing.values())
            self._make(step, name, missing, inputs, launch)
            self.begun -= missing.keys()
            made = iter(self.store.records(step.name, [key for key, record in zip(keys, records, strict=True) if record is None]))
            records = [record or next(made) for record in records]
        artifact = self._artifact(step, name, keys, records, len(missing) if may_run else 0, inputs)
        artifact.raw_files = [item for task in tasks for items in task.inputs.values() for item in items if isinstance(item, RawFile)]
        self.artifacts[artifact.id] = artifact
        if may_run:
            self._book(step, missing, artifact)
            if artifact.is_whole:
                self._write_manifest(step, tasks, artifact, getattr(launch, "settings", {}))
        self.tell(artifact)
        if artifact.is_whole:
            check_quarantine(artifact, max_quarantined)
        return artifact

    def begin(self, step: Step, name: str, task: ShardTask, inputs: Sequence[Artifact]) -> bool:
        """Whether this shard is missing and can be made. The caller then begins it, ahead of a `run` whose `launch` waits for it."""
        key = task.key(step)
        ready = self._may_run(step.name, name) and all(artifact.is_whole for artifact in inputs)
        if not ready or key in self.begun or self.store.record(step.name, key) is not None:
            return False
        self.begun.add(key)
        return True

    def _may_run(self, step: str, name: str) -> bool:
        return not self.plan_only and (self.only is None or (self.only[0] == step and self.only[1] in (None, name, name.split(":")[0])))

    def _make(
        self,
        step: Step,
        name: str,
        missing: dict[str, ShardTask],
        inputs: Sequence[Artifact],
        launch: Callable[[ShardTask, str], None] | None,
    ) -> None:
        absent = next((artifact for artifact in inputs if not artifact.is_whole), None)
        if absent is not None:
            raise UserError(
                f"{step.name} {name} needs {absent.step} {absent.name}, which is not made yet: `olmoflow rerun {absent.step}` makes it, or run the flow"
            )
        if launch is not None:
            for key, task in missing.items():
                launch(task, key)
            return
        shards = [{"key": key, **asdict(task), "inputs": inputs_json(task)} for key, task in missing.items()]
        self.engine.run(
            {"store": self.store.url, "step": asdict(step), "name": name, "software": software(step.libraries), "shards": shards},
            [t.weight for t in missing.values()],
            self.store,
        )

    def _artifact(
        self, step: Step, name: str, keys: list[str], records: list[Record | None], made: int, inputs: Sequence[Artifact]
    ) -> Artifact:
        # a shard's record remembers the name it was first made under; a raw file may have been renamed since
        sources = [artifact.id for artifact in inputs]
        return Artifact(artifact_id(step.name, keys), step.name, name, keys, records, made, sources, by_content=step.by_content)

    def _book(self, step: Step, missing: dict[str, ShardTask], artifact: Artifact) -> None:
        made = sum((record.books for record in artifact.records if record and record.key in missing), Books())
        self.made_books[step.name] = self.made_books.get(step.name, Books()) + made
        self.made_shards[step.name] = self.made_shards.get(step.name, 0) + len(missing)

    def _write_manifest(self, step: Step, tasks: Sequence[ShardTask], artifact: Artifact, job: dict[str, Any]) -> None:
        path = f"artifacts/{step.name}/{artifact.id}.json"
        there = json.loads(self.store.read_text(path) or "{}")
        raw_files = hidden([raw.told() for raw in artifact.raw_files])
        has_tasks = "tasks" in there
        if not artifact.made and has_tasks and there.get("raw_files") == raw_files:
            return
        # a file that was renamed, or tasks that an older olmoflow did not keep: what made the artifact stays as it was
        kept = {name: there.get(name) for name in MADE_WITH} if there and not artifact.made else {}
        if artifact.made or not has_tasks:
            shard_tasks.write(self.store, step.name, artifact.id, key_libraries(step), job, tasks)
        manifest = {
            "id": artifact.id,
            "step": step.name,
            "name": artifact.name,
            "version": step.version,
            "config": hidden(tasks[0].config) if tasks else {},
            "inputs": artifact.inputs,
            "raw_files": raw_files,
            "shards": artifact.keys,
            "files": [vars(stored) for record in artifact.records if record for stored in record.files],
            "books": asdict(artifact.books),
            "seconds": round(artifact.seconds, 3),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": software(step.libraries),
            "lock": environment.lock(),
            "container": environment.container(),
            "tasks": shard_tasks.path_of(step.name, artifact.id),
            **kept,
        }
        self.store.replace(path, json.dumps(manifest, indent=1))


def artifact_id(step: str, keys: list[str]) -> str:
    return f"{step}-{fingerprint({'step': step, 'shards': keys})[:12]}"


def inputs_json(task: ShardTask) -> dict[str, list[dict[str, Any]]]:
    return {role: [{"raw": isinstance(item, RawFile), **asdict(item)} for item in items] for role, items in task.inputs.items()}


def check_quarantine(artifact: Artifact, tolerated: float) -> None:
    """Raise UserError naming the first file and line where more than the tolerated share of an artifact was quarantined."""
    books = artifact.books
    if books.quarantined <= tolerated * books.read:
        return
    first = next(record.quarantine for record in artifact.records if record and record.quarantine)
    raise UserError(
        f"{first['first']} ({books.quarantined} of {books.read} {books.unit} of {artifact.name} are in the store's {first['path'].rsplit('/', 1)[0]}; "
        f"mend the file, or raise max_quarantined over {books.quarantined / books.read:.2g} in the recipe)"
    )


def software(libraries: Sequence[str]) -> dict[str, str]:
    """Versions that made an artifact."""
    names = dict.fromkeys(["olmoflow", "numpy", "pyarrow", *libraries])
    return {"python": platform.python_version(), **{name: library_version(name) for name in names}}


def check_software(plan: dict[str, Any], module: ModuleType) -> None:
    """Raise UserError where a worker's machine has other versions than the plan was made with: its bytes would bear the wrong key."""
    here = {name: library_version(name) for name in plan["software"] if name != "python"}
    steps = {step.name: step.version for step in vars(module).values() if isinstance(step, Step)}
    step, planned = plan["step"]["name"], dict(plan["software"])
    if step in steps:
        here[f"step {step}"], planned[f"step {step}"] = f"version {steps[step]}", f"version {plan['step']['version']}"
    for name, there in here.items():
        if there != planned[name]:
            raise UserError(
                f"{platform.node()} has {name} {there} where the run was planned with {planned[name]}: "
                "install the same olmoflow with the same constraints.txt on every machine"
            )


# -- inside a shard ------------------------------------------------------------------------------------------------------------------


@dataclass
class Shard:
    """What a step's function gets: its config, its inputs as local paths, and a folder to write into.

    Made by hand (`Shard(config, {"documents": [{"documents.parquet": path}]}, folder)`) it needs no store. Long work calls
    `progress(documents, bytes, share)` now and then with what it has done of the shard so far; that is cheap, but not for every document.
    The largest of each counts.
    """

    config: dict[str, Any]
    inputs: dict[str, list[Any]]  # role -> RawFile, or a mapping of file name to local path
    folder: Path
    name: str = ""
    hints: dict[str, Any] = field(default_factory=dict)
    progress: Report = ignore
    quarantined: int = 0
    first_quarantined: str | None = None

    def one(self, role: str) -> Any:
        (item,) = self.inputs[role]
        return item

    def quarantine(self, file: str, position: str, cause: str, raw: bytes, units: int = 1, unreadable_bytes: int = 0) -> None:
        """Set aside what cannot be parsed, with where it stood and why; the first megabyte of it is kept word for word."""
        entry = {"file": file, "position": position, "cause": cause, "units": units, "unreadable_bytes": unreadable_bytes}
        entry |= {"raw": raw[:1_000_000].decode("utf-8", "backslashreplace"), "raw_bytes": len(raw)}
        with (self.folder / "quarantine.jsonl").open("a") as stream:
            stream.write(canonical_json(entry) + "\n")
        self.quarantined += units
        self.first_quarantined = self.first_quarantined or f"{file}, {position}: {cause}"


def run_shard(
    store: Store, step: dict[str, Any], spec: dict[str, Any], function: Callable[[Shard], Books], progress: Report = ignore
) -> Record:
    """Make one shard and commit it, unless somebody has. Of an attempt that fails nothing stays on the local disk."""
    from tasks.store import Attempt

    done = store.record(step["name"], spec["key"])
    if done is not None:
        return done
    started = time.monotonic()
    inputs = {role: [_resolve(store, item) for item in items] for role, items in spec["inputs"].items()}
    hints = _resolve_hints(store, spec["hints"])
    store.keep_fetched([path for files in [*itertools.chain(*inputs.values()), *hints["earlier"]] for path in _paths(files)])
    raw_files = [item for items in inputs.values() for item in items if isinstance(item, RawFile)]
    attempt = Attempt(store, step["name"], spec["key"], spec["name"])
    shard = Shard(spec["config"], inputs, attempt.folder, spec["name"], hints, progress)
    try:
        books = function(shard)
        for raw in raw_files:  # the key names their content: what was read must be that
            raw.check()
        quarantine = {"count": shard.quarantined, "first": shard.first_quarantined} if shard.quarantined else None
        return attempt.commit(books, time.monotonic() - started, quarantine)
    except StorageError:
        attempt.discard()
        raise
    except Exception:
        attempt.discard()
        for raw in raw_files:
            raw.check()  # if it has changed, that is the reason
        won = store.record(step["name"], spec["key"])  # another run of the shard may have won and swept this attempt's folder away
        if won is None:
            raise
        return won


def _paths(files: Any) -> list[Path]:
    return [] if isinstance(files, RawFile) else list(files.values())


def _resolve(store: Store, item: dict[str, Any]) -> Any:
    fields = {name: value for name, value in item.items() if name != "raw"}
    if item["raw"]:
        return RawFile(**fields)
    return input_files(store, ShardRef(**fields))


def input_files(store: Store, ref: ShardRef) -> dict[str, Path]:
    """Local paths of a shard's files by name."""
    record = store.record(ref.step, ref.key)
    if record is None:
        raise UserError(f"shard {ref.step}/{ref.key} is gone from {store.url}: run the same command again to make it anew")
    return {stored.name: store.fetch(stored.path, stored.sha256) for stored in record.files}


def _resolve_hints(store: Store, hints: dict[str, Any]) -> dict[str, Any]:
    earlier = [input_files(store, ShardRef(**ref)) for ref in hints.get("earlier", [])]
    return {**hints, "earlier": earlier}
