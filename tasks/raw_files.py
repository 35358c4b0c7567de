"""Raw files of a source: found by glob, known by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.secrets import hidden
from tasks.sources import SourceConfig, arithmetic, belongs
from tasks.sources.base import RawFile
from tasks.storage import Storage, open_file, shown, stamp
from tasks.store import Store, fingerprint, sha256_of


class Unreachable(UserError):
    """The place of raw files does not answer: no network, no credentials, a server that is down."""


def find_source(store: Store, source: str, config: SourceConfig) -> tuple[list[RawFile], list[RawFile]]:
    """The files of a source; of a folder, those that belong to its format. What is made up has parts instead of files."""
    if config.format == "arithmetic":
        if config.paths:  # not refused by the config itself: a shard's settings come back with the path of its one part
            raise UserError(f"{source}: arithmetic is made up, not read from files; leave its `paths` out")
        return arithmetic.parts(config), []
    return find(store, source, config.paths, lambda name: belongs(name, config.format))


def find(
    store: Store, source: str, paths: list[str], wanted: Callable[[str], bool] = lambda name: True
) -> tuple[list[RawFile], list[RawFile]]:
    """The files that paths name, sorted by name, and those left out because another has the same content.

    A path is a file, a folder (of which `wanted(file name)` are taken), a glob or an fsspec URL. Two files with the same bytes would give
    every document twice under one id.
    """
    found: dict[str, RawFile] = {}
    for path in paths:
        storage = _storage(path)
        try:
            infos = _expand(storage, path, wanted)
        except FileNotFoundError:
            infos = {}
        except Exception as error:  # each file system raises what its own client library does
            if storage.is_local:
                raise
            raise Unreachable(f"{source}: {shown(path)} cannot be listed: {error}") from error
        if not infos:
            raise UserError(f"{source}: no file matches {shown(path)}; check its `paths` in the recipe")
        base = _base(storage)
        for name, info in infos.items():
            url = storage.fs.unstrip_protocol(name)
            if url not in found:
                found[url] = describe(store, storage, name, info, base)
    unique: dict[str, RawFile] = {}
    copies = []
    for raw in sorted(found.values(), key=lambda raw: (raw.name, raw.url)):
        if raw.content_id in unique:
            copies.append(raw)
        unique.setdefault(raw.content_id, raw)
    return list(unique.values()), copies


def _storage(path: str) -> Storage:
    """Where a path lies; `..` is resolved on a disk, so that one file has one name."""
    storage = Storage(path)
    if storage.is_local:
        storage.path = os.path.normpath(storage.path)
    return storage


def _expand(storage: Storage, path: str, wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """What the storage tells of each file that a path names, in one listing where it can be: of many files one by one is slow."""
    root = storage.path
    there = storage.there()
    if there is None and any(sign in path for sign in _WILDCARDS):  # a file may have such a sign in its name
        infos = storage.glob(root, detail=True)
        chosen = {name: info for name, info in infos.items() if not _file_name(name).startswith(".")}  # as a shell does
    elif there is None:
        chosen = {}
    elif there["type"] == "directory":
        infos = storage.find(root, detail=True)
        chosen = {name: info for name, info in infos.items() if not _file_name(name).startswith(".") and wanted(_file_name(name))}
    else:
        chosen = {root: there}
    return {name: chosen[name] for name in sorted(chosen) if chosen[name]["type"] != "directory"}


_WILDCARDS = "*?["


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _base(storage: Storage) -> str:
    """The folder that names are told relative to: what stands before the first wildcard."""
    root = literal = storage.path
    for sign in _WILDCARDS:
        literal = literal.split(sign, 1)[0]
    is_folder = literal == root and (storage.there() or {}).get("type") == "directory"
    folder = literal if is_folder else literal.rsplit("/", 1)[0]
    return str(storage.fs.unstrip_protocol(folder.rstrip("/")))


def describe(store: Store, storage: Storage, path: str, info: dict[str, Any], base: str) -> RawFile:
    """A file that a storage tells of as `info`: its content by its ETag, else by reading it. base: the URL that its name is relative to."""
    url = str(storage.fs.unstrip_protocol(path))
    name = url.removeprefix(base).lstrip("/") or _file_name(url)
    if info.get("size") is None:  # a listing may tell less than a question about one file
        info = storage.info(path)
    if info.get("size") is None:
        raise UserError(f"{shown(url)}: its server does not say how large it is; copy it to a place that does")
    size = int(info["size"])
    tag = info.get("ETag") or info.get("etag") or info.get("blob_id")  # the last is the Hugging Face hub's: git's hash of the content
    if tag:
        content = fingerprint({"etag": str(tag).strip('"'), "size": size})
    elif storage.is_local:
        content = _content_hash(store, Path(path), info)
    else:
        with open_file(url, size) as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    return RawFile(url, name, size, content, stamp(info))


def _content_hash(store: Store, path: Path, info: dict[str, Any]) -> str:
    """SHA-256 of a local file, remembered by path, size and modification time."""
    whole = str(path.resolve())
    state = {"path": hidden(whole), "size": int(info["size"]), "mtime_ns": path.stat().st_mtime_ns}
    cached = f"cache/raw/{fingerprint(whole)}.json"
    known = json.loads(store.read_text(cached) or "{}")
    if {name: known.get(name) for name in state} == state:
        return str(known["sha256"])
    digest = sha256_of(path)
    store.replace(cached, json.dumps({**state, "sha256": digest}))
    return digest
