"""The tasks of an artifact's shards, kept beside its manifest: each shard's own config, hints and inputs.

A manifest is what people read; this is what `olmoflow why`, `gc` and `replay` need beside it. Configs and hints that are equal are written
once, so that ten thousands of shards take some megabytes. Without what is of one run only: earlier scores to take over, and the store's URL;
and without secrets, in whose place their names stand (`tasks.secrets`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tasks.secrets import hidden, hider
from tasks.sources.base import RawFile
from tasks.store import Store, canonical_json

PASSING_HINTS = ("earlier", "store", "afresh")


@dataclass(frozen=True)
class TaskInput:
    """An input of a shard: a shard of an earlier step, or (`step` empty) a raw file as a manifest tells it.

    content: what of it is part of the key.
    """

    step: str
    key: str
    content: str
    raw: Mapping[str, Any] | None = None


@dataclass
class StoredTask:
    """One shard as it was asked for."""

    name: str
    config: dict[str, Any]
    hints: dict[str, Any]
    inputs: dict[str, list[TaskInput]]

    def all_inputs(self) -> Iterator[TaskInput]:
        for items in self.inputs.values():
            yield from items

    def shards(self) -> Iterator[tuple[str, str]]:
        """(step, key) of every shard that it reads, those that only its hints name included."""
        yield from ((item.step, item.key) for item in self.all_inputs() if item.step)
        yield from _refs(self.hints)


@dataclass
class StoredTasks:
    """libraries: versions that are part of the keys. job: the settings of a GPU job that are no part of them."""

    libraries: dict[str, str]
    job: dict[str, Any]
    shards: list[StoredTask] = field(default_factory=list)


def path_of(step: str, identity: str) -> str:
    return f"tasks/{step}/{identity}.json"


def stored(tasks: Sequence[Any]) -> list[StoredTask]:
    """`ShardTask`s as they are stored."""
    found, hide = [], hider()
    for task in tasks:
        inputs = {role: [_input(item, hide) for item in items] for role, items in task.inputs.items()}
        # without the inputs, of which a mix has a hundred thousand
        hints = asdict(replace(task, config={}, inputs={}))["hints"] if task.hints else {}
        hints = {name: value for name, value in hints.items() if name not in PASSING_HINTS}
        found.append(StoredTask(task.name, hide(task.config), hide(hints), inputs))
    return found


def _input(item: Any, hide: Callable[[Any], Any]) -> TaskInput:
    if isinstance(item, RawFile):
        return TaskInput("", "", item.content_id, hide(item.told()))
    return TaskInput(item.step, item.key, item.content or item.key)


def write(store: Store, step: str, identity: str, libraries: Mapping[str, str], job: Mapping[str, Any], tasks: Sequence[Any]) -> None:
    configs, hints, shards = _Once(), _Once(), []
    for task in stored(tasks):
        inputs = {role: [_flat(item) for item in items] for role, items in task.inputs.items()}
        shards.append([task.name, configs.place(task.config), hints.place(task.hints), inputs])
    told = {"libraries": dict(libraries), "job": hidden(dict(job)), "configs": configs.values, "hints": hints.values, "shards": shards}
    store.replace(path_of(step, identity), canonical_json(told))


class _Once:
    """A list that holds equal values once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        text = canonical_json(value)
        if text not in self.places:
            self.places[text] = len(self.values)
            self.values.append(value)
        return self.places[text]


def _flat(item: TaskInput) -> Any:
    return dict(item.raw) if item.raw is not None else [item.step, item.key, *([item.content] if item.content != item.key else [])]


def read(store: Store, step: str, identity: str) -> StoredTasks | None:
    """The tasks of an artifact; None of one that was made before they were kept."""
    text = store.read_text(path_of(step, identity))
    if text is None:
        return None
    told = json.loads(text)
    shards = [
        StoredTask(
            name, told["configs"][config], told["hints"][hints], {role: [_thick(item) for item in items] for role, items in inputs.items()}
        )
        for name, config, hints, inputs in told["shards"]
    ]
    return StoredTasks(told["libraries"], told["job"], shards)


def _thick(item: Any) -> TaskInput:
    if isinstance(item, dict):
        return TaskInput("", "", item["content_id"], item)
    return TaskInput(item[0], item[1], item[-1])


def delete(store: Store, step: str, identity: str) -> None:
    try:
        store.fs.rm_file(store.full(path_of(step, identity)))
    except FileNotFoundError:
        return


def _refs(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if is_ref(value):
            yield value["step"], value["key"]
        else:
            for each in value.values():
                yield from _refs(each)
    elif isinstance(value, list):
        for each in value:
            yield from _refs(each)


def is_ref(value: Any) -> bool:
    """Whether a value of hints stands for a shard."""
    return isinstance(value, dict) and value.keys() == {"step", "key", "content"}
