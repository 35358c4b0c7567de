"""`olmoflow show`: an artifact's books, and samples of the documents in it by what became of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tasks.errors import UserError
from tasks.look import KEPT, QUARANTINED, Samples, samples
from tasks.store import Store

WITH_DOCUMENTS = ("ingest", "rewrite", "score", "tokenize", "select")
COLOURS = {KEPT: "green", QUARANTINED: "red"}
TEXT_LINES = 12
PIPE_COLUMNS = 120  # width of panels where there is no terminal


def show_artifact(console: Console, url: str, beginning: str, number: int, reason: str | None, as_json: bool) -> None:
    """Print the artifact whose id starts so. `number`: samples of each fate; `reason`: of these fates only."""
    store = Store(url)
    manifest = find_artifact(store, beginning, store.manifests())
    if reason is not None and manifest["step"] not in WITH_DOCUMENTS:
        raise UserError(f"{manifest['id']} holds no documents to sample; {', '.join(WITH_DOCUMENTS)} artifacts do")
    sampled = samples(store, manifest, number, reason) if number and manifest["step"] in WITH_DOCUMENTS else Samples([], 0, 0)
    if as_json:
        print(json.dumps({**manifest, "samples": sampled.entries}))
        return
    _print_manifest(console, manifest)
    _print_samples(console, sampled)


def find_artifact(store: Store, beginning: str, manifests: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The one of a store's manifests whose id is this or begins so; raises UserError where there is none, or more than one."""
    found = {manifest["id"]: manifest for manifest in manifests if manifest["id"].startswith(beginning)}
    if beginning in found:
        return found[beginning]
    if len(found) != 1:
        raise UserError(f"{len(found)} artifacts of the store {store.url} begin with {beginning}; `olmoflow ls` lists them")
    return next(iter(found.values()))


def _print_manifest(console: Console, manifest: dict[str, Any]) -> None:
    books = manifest["books"]
    console.print(f"[bold]{manifest['id']}[/]  {escape(manifest['name'])}, made {manifest['created']} in {manifest['seconds']:.1f} s")
    table = Table(show_header=False, box=None)
    table.add_row("read", f"{books['read']:,} {books['unit']}")
    table.add_row("kept", f"{books['kept']:,}")
    for reason, number in books["dropped"].items():
        table.add_row("dropped", f"{number:,}  {escape(reason)}")
    table.add_row("quarantined", f"{books['quarantined']:,}")
    for name, number in books["counts"].items():
        table.add_row(name.replace("_", " "), f"{number:,}")
    console.print(table)
    for heading, value in (("config", manifest["config"]), ("inputs", manifest["inputs"]), ("software", manifest["software"])):
        console.print(f"[bold]{heading}[/]")
        console.print_json(data=value)
    files = Table("file", "bytes", "rows", "sha256", box=None, header_style="bold")
    for file in manifest["files"]:
        rows = "" if file["rows"] is None else f"{file['rows']:,}"
        files.add_row(escape(file["path"]), f"{file['bytes']:,}", rows, file["sha256"][:16])
    console.print(files)


def _print_samples(console: Console, sampled: Samples) -> None:
    width = console.width if console.is_terminal else PIPE_COLUMNS
    if sampled.shards < sampled.shards_in_all:
        console.print(f"\nsamples from {sampled.shards:,} of {sampled.shards_in_all:,} shards")
    for fate, entries in itertools.groupby(sampled.entries, key=lambda entry: entry["fate"]):
        console.print(f"\n[bold {COLOURS.get(fate, 'yellow')}]{escape(fate)}[/]")
        for entry in entries:
            console.print(_panel(entry, width), soft_wrap=False)


def _panel(entry: dict[str, Any], width: int) -> Panel:
    if entry["fate"] == QUARANTINED:
        title, facts = f"{entry['file']}, {entry['position']}", entry["cause"]
    else:
        title = f"{entry['source']}  {entry['id']}"
        facts = "  ".join(f"{name} {_short(value)}" for name, value in entry["columns"].items())
    # Text, not markup: a document may hold anything, also what a terminal would take for a command
    parts = [Text(_printable(facts), "dim")] if facts else []
    return Panel(Group(*parts, Text(_printable(_beginning(entry["text"])))), title=Text(_printable(title)), title_align="left", width=width)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def _beginning(text: str) -> str:
    lines = text.splitlines()
    return "\n".join([*lines[:TEXT_LINES], *(["…"] if len(lines) > TEXT_LINES else [])])


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() or character == "\n" else " " if character == "\t" else "·" for character in text)
