"""`olmoflow gc`: what of a store would go, and with `delete` its removal. What is kept, and why, stands in docs/storage.md."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.pipeline import Pipeline
from flows.recipe import load
from flows.show import find_artifact
from flows.uses import Readers
from flows.why import everything
from tasks.engine import LocalEngine
from tasks.garbage import Garbage, Item, Wanted, find, remove
from tasks.readable import size
from tasks.shards import Runner
from tasks.store import Store


class Collection:
    """What is wanted of a store, and what is not. grace_hours: what is younger is kept."""

    def __init__(self, url: str, keep: Sequence[str], grace_hours: float) -> None:
        """Raises UserError where `keep` has what is neither an artifact of the store nor a recipe that can be planned."""
        self.store = Store(url)
        self.young_after = time.time() - 3600 * grace_hours
        self.readers = Readers(self.store)
        self.keys: dict[str, list[str]] = {}  # of artifacts by id, which never change
        self.asked = Wanted()
        for each in keep:
            self._keep(url, each)

    def _keep(self, url: str, what: str) -> None:
        if what.endswith((".yaml", ".yml")):
            recipe = load(Path(what), [f"store={url}"])
            plan = Runner(self.store, LocalEngine(1), plan_only=True)
            everything(Pipeline(recipe, plan))
            for artifact in plan.artifacts.values():
                self.asked.add(artifact.id, artifact.step, artifact.keys, f"--keep {what}")
        else:
            manifest = find_artifact(self.store, what, self.store.manifests())
            self.asked.add(manifest["id"], manifest["step"], manifest["shards"], f"--keep {what}")

    def wanted(self) -> Wanted:
        """By now."""
        wanted = Wanted(dict(self.asked.artifacts), dict(self.asked.shards))
        for identity, using in self.readers.now(self.young_after)[0].items():
            wanted.add(identity, using.step, using.keys or self._keys(using.step, identity), using.why)
        return wanted

    def _keys(self, step: str, identity: str) -> list[str]:
        if identity not in self.keys:
            manifest = json.loads(self.store.read_text(f"artifacts/{step}/{identity}.json") or "{}")
            self.keys[identity] = manifest.get("shards", [])
        return self.keys[identity]

    def garbage(self) -> Garbage:
        found = find(self.store, self.wanted(), self.young_after)
        if runs := self.readers.now(self.young_after)[1]:
            why = "what earlier runs of a flow used, of which a later one finished"
            found.items.append(Item("runs", "", f"{len(runs):,} files", why, sum(runs.values()), paths=list(runs)))
            found.kept_bytes -= sum(runs.values())
        return found

    def delete(self, garbage: Garbage, console: Console | None) -> int:
        """Bytes that are gone."""
        tell = (lambda item: console.print(f"deleted {escape(_called(item))}")) if console else (lambda item: None)
        return remove(self.store, garbage.items, self.wanted, tell)


def _called(item: Item) -> str:
    return " ".join(part for part in (item.kind if item.kind != "artifact" else "", item.step, item.name, item.id or "") if part)


def collect(console: Console, url: str, keep: Sequence[str], grace_hours: float, delete: bool, as_json: bool) -> None:
    """Print what would go, or what goes."""
    collection = Collection(url, keep, grace_hours)
    garbage = collection.garbage()
    if as_json:
        gone = collection.delete(garbage, None) if delete else 0
        print(json.dumps({**_as_json(garbage), "deleted": delete, "deleted_bytes": gone}))
        return
    _print(console, garbage)
    if not garbage.items:
        return
    if delete:
        console.print(f"{size(collection.delete(garbage, console))} are gone")
    else:
        console.print("nothing was deleted; the same command with --delete does it")


def _as_json(garbage: Garbage) -> dict[str, Any]:
    items = [{**asdict(item), "is_model": item.is_model, "shards": [key for _, key in item.shards]} for item in garbage.items]
    bytes_in_all = sum(item.bytes for item in garbage.items)
    return {"items": items, "bytes": bytes_in_all, "kept_bytes": garbage.kept_bytes, "kept": garbage.kept_artifacts}


def _print(console: Console, garbage: Garbage) -> None:
    if not garbage.items:
        console.print(f"nothing to delete: all of {size(garbage.kept_bytes)} is used, or young")
        return
    table = Table("what", "name", "id", "shards", "bytes", "made", "why it may go", box=None, header_style="bold")
    for item in garbage.items:
        what = item.step if item.kind == "artifact" else f"{item.kind} {item.step}".strip()
        shards = f"{len(item.shards):,}" if item.shards else ""
        table.add_row(what, escape(item.name), item.id or "", shards, f"{item.bytes:,}", item.created or "", item.why)
    console.print(table)
    models = [item for item in garbage.items if item.is_model]
    if models:
        console.print(f"\n[bold red]{len(models)} checkpoints or models are among them[/], which only training makes again:")
        for item in models:
            console.print(f"  {escape(_called(item))}, {size(item.bytes)}")
    total = sum(item.bytes for item in garbage.items)
    console.print(f"\n{size(total)} in all; {size(garbage.kept_bytes)} in {len(garbage.kept_artifacts):,} artifacts and beside them stay")
