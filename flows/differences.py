"""Two configs, or two sets of raw files, compared for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_CHARACTERS, SHOWN_NAMES = 60, 5
ABSENT = "(not there)"


@dataclass(frozen=True)
class Difference:
    """A key whose value differs, as a dotted path; `old` or `new` is JSON, shortened, or says that it was not there."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


Config = tuple[str, dict[str, Any]]


def differences(new: Sequence[Config], old: Sequence[Config]) -> list[Difference]:
    """What differs between the configs of an artifact's shards, by the shards' names where both sides have them; each difference once."""
    found: dict[Difference, None] = {}
    for one, other in _pairs(new, old):
        for difference in _differences("", one, other):
            found.setdefault(difference)
    return list(found)


def _pairs(new: Sequence[Config], old: Sequence[Config]) -> Iterator[tuple[Any, Any]]:
    """(old, new): by name where a name is one shard's, else the distinct ones in their order."""
    by_name = dict(old)
    if len(by_name) == len(old) and len(dict(new)) == len(new) and any(name in by_name for name, _ in new):
        yield from ((by_name[name], config) for name, config in new if name in by_name)
        return
    distinct = [list({json.dumps(config, sort_keys=True): config for _, config in each}.values()) for each in (old, new)]
    yield from zip(*distinct, strict=False)


def _differences(key: str, old: Any, new: Any) -> Iterator[Difference]:
    if old == new and type(old) is type(new):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(f"{key}.{name}" if key else name, old.get(name, ABSENT), new.get(name, ABSENT))
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new):
            for place, (one, other) in enumerate(zip(old, new, strict=True)):
                yield from _differences(f"{key}.{place}", one, other)
        else:
            yield from (Difference(key, _shown(item), ABSENT) for item in old if item not in new)
            yield from (Difference(key, ABSENT, _shown(item)) for item in new if item not in old)
    else:
        yield Difference(key, *_both(old, new))


def _both(old: Any, new: Any) -> tuple[str, str]:
    """Long texts from a little before the place where they part."""
    if isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > SHOWN_CHARACTERS:
        parted = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        start = max(0, parted - SHOWN_CHARACTERS // 3)
        before = "…" if start else ""
        return _shown(before + old[start:]), _shown(before + new[start:])
    return _shown(old), _shown(new)


def _shown(value: Any) -> str:
    if value == ABSENT:
        return ABSENT
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


RawFiles = Sequence[Mapping[str, Any]]  # as manifests tell them


def files_differ(new: RawFiles, old: RawFiles) -> list[str]:
    """At most one sentence. A file that was renamed or moved is the same."""
    names = {file["name"] for file in old}, {file["name"] for file in new}
    contents = {file["content_id"] for file in old}, {file["content_id"] for file in new}
    fresh = {file["name"] for file in new if file["content_id"] not in contents[0]}
    left = {file["name"] for file in old if file["content_id"] not in contents[1]}
    edited = fresh & names[0] & left
    kinds = (
        (fresh - edited, "is new", "are new"),
        (left - edited, "is gone", "are gone"),
        (edited, "has other content", "have other content"),
    )
    parts = [f"{len(found):,} {one if len(found) == 1 else many} ({_names(found)})" for found, one, many in kinds if found]
    return [f"of its raw files {', '.join(parts)}"] if parts else []


def _names(found: set[str]) -> str:
    shown = sorted(found)[:SHOWN_NAMES]
    return ", ".join(shown) + (f" and {len(found) - len(shown):,} more" if len(found) > len(shown) else "")
