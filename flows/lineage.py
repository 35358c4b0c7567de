"""`olmoflow lineage`: what an artifact descends from, to the raw files, or with `down` what descends from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from flows.show import find_artifact
from tasks.readable import size
from tasks.store import Store

SHOWN_NAMES = 5

Manifest = dict[str, Any]


@dataclass
class Node:
    """An artifact (by its manifest), or None where an input's manifest is not in the store any more.

    near: what it was made of, or what was made of it. A node that is met again on another way is the same object.
    """

    id: str
    manifest: Manifest | None
    near: list[Node] = field(default_factory=list)


def lineage(store: Store, beginning: str, down: bool) -> Node:
    """The artifact whose id starts so, with all it descends from, or all that descends from it. Raises UserError where it is not one."""
    known = {manifest["id"]: manifest for manifest in store.manifests()}
    start = find_artifact(store, beginning, known.values())["id"]
    near: dict[str, list[str]] = {name: list(dict.fromkeys(manifest["inputs"])) for name, manifest in known.items()}
    if down:
        near = _turned(near)
    nodes: dict[str, Node] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in nodes:
            nodes[name] = Node(name, known.get(name))
            waiting += near.get(name, [])
    for name, node in nodes.items():
        node.near = [nodes[other] for other in near.get(name, [])]
    return nodes[start]


def _turned(near: dict[str, list[str]]) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for name, items in sorted(near.items()):
        for item in items:
            users.setdefault(item, []).append(name)
    return users


@dataclass
class _Line:
    text: str
    below: list[_Line] = field(default_factory=list)


def tree(start: Node, down: bool) -> Tree:
    """For a terminal."""
    return _branch(_told(start, down, set()))


def _branch(line: _Line) -> Tree:
    drawn = Tree(escape(line.text))
    drawn.children = [_branch(each) for each in line.below]
    return drawn


def lines(start: Node, down: bool) -> Iterator[str]:
    """The same in plain text, two spaces a level."""
    waiting = [(0, _told(start, down, set()))]
    while waiting:
        depth, line = waiting.pop()
        yield f"{'  ' * depth}{line.text}"
        waiting += [(depth + 1, each) for each in reversed(line.below)]


def _told(node: Node, down: bool, seen: set[str]) -> _Line:
    """A node that was told before is only named: in a graph its branch would come again for each way to it."""
    manifest = node.manifest
    if manifest is None:
        return _Line(f"{node.id}: not in the store any more")
    called = f"{manifest['step']} {manifest['name']}  {node.id}"
    if node.id in seen:
        return _Line(f"{called}, see above")
    seen.add(node.id)
    files = [_Line(_files(manifest["raw_files"]))] if manifest["raw_files"] and not down else []
    return _Line(f"{called}  {_counts(manifest)}", [*files, *(_told(each, down, seen) for each in node.near)])


def _counts(manifest: Manifest) -> str:
    books, shards = manifest["books"], len(manifest["shards"])
    parts = [
        f"{books['kept']:,} of {books['read']:,} {books['unit']}"
        if books["kept"] != books["read"]
        else f"{books['kept']:,} {books['unit']}"
    ]
    parts = parts if books["read"] else []
    parts += [f"{shards:,} shard{'s' if shards != 1 else ''}", size(sum(file["bytes"] for file in manifest["files"]))]
    return f"{', '.join(parts)}, made {manifest['created']}"


def _files(raw_files: list[dict[str, Any]]) -> str:
    files = {file["url"]: file for file in raw_files}
    names = [file["name"] for file in files.values()]
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    total = size(sum(file["size"] for file in files.values()))
    return f"{len(names):,} raw file{'s' if len(names) != 1 else ''}, {total}: {', '.join(names[:SHOWN_NAMES])}{more}"


def as_json(start: Node, down: bool) -> dict[str, Any]:
    """The graph flat: each artifact once, with the ids it leads to; `null` facts for one whose manifest is not there."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node.id in found:
            continue
        manifest = node.manifest or {}
        told = {name: manifest.get(name) for name in ("step", "name", "created", "books", "raw_files")}
        shards, files = manifest.get("shards"), manifest.get("files")
        told |= {
            "shards": None if shards is None else len(shards),
            "bytes": None if files is None else sum(file["bytes"] for file in files),
        }
        found[node.id] = {"id": node.id, **told, "near": [each.id for each in node.near]}
        waiting += reversed(node.near)
    return {"id": start.id, "direction": "down" if down else "up", "artifacts": list(found.values())}
