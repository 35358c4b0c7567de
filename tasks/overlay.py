"""A store over another one, for shards that are made anew beside those that are there (see tasks.replay)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.store import Record, Store


class Overlay(Store):
    """A store of its own over another one, whose shards it reads but for those that are made anew."""

    def __init__(self, url: str, behind: Store, anew: Iterable[tuple[str, str]]) -> None:
        super().__init__(url)
        self.behind, self.anew = behind, set(anew)

    def record(self, step: str, key: str, sweep: bool = False) -> Record | None:
        if (step, key) in self.anew:
            return super().record(step, key, sweep)
        return self.behind.record(step, key)

    def fetch(self, path: str, sha256: str | None = None) -> Path:
        _, step, key, *_ = path.split("/")
        return super().fetch(path, sha256) if (step, key) in self.anew else self.behind.fetch(path, sha256)

    def keep_fetched(self, paths: Iterable[Path]) -> None:
        self.behind.keep_fetched(paths)


def store_of(plan: dict[str, Any]) -> Store:
    """The store of a plan for an engine; of one with `behind`, over that."""
    if "behind" not in plan:
        return Store(plan["store"])
    return Overlay(plan["store"], Store(plan["behind"]), [(plan["step"]["name"], spec["key"]) for spec in plan["shards"]])
