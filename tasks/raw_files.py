"""Raw files of a source: found by glob, known by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from tasks.errors import UserError
from tasks.sources import SourceConfig, belongs
from tasks.sources.base import RawFile
from tasks.store import Store, fingerprint, sha256_of


class Unreachable(UserError):
    """The place of raw files does not answer: no network, no credentials, a server that is down."""


def find_source(store: Store, source: str, config: SourceConfig) -> tuple[list[RawFile], list[RawFile]]:
    """The files of a source; of a folder, those that belong to its format."""
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
        try:
            urls = _expand(path, wanted)
        except UserError:
            raise
        except FileNotFoundError:
            urls = []
        except Exception as error:  # each file system raises what its own client library does
            if _is_local(path):
                raise
            raise Unreachable(f"{source}: {path} cannot be listed: {error}") from error
        if not urls:
            raise UserError(f"{source}: no file matches {path}; check its `paths` in the recipe")
        base = _base(path)
        found |= {url: _describe(store, url, base) for url in urls if url not in found}
    unique: dict[str, RawFile] = {}
    copies = []
    for raw in sorted(found.values(), key=lambda raw: (raw.name, raw.url)):
        if raw.content_id in unique:
            copies.append(raw)
        unique.setdefault(raw.content_id, raw)
    return list(unique.values()), copies


def _expand(path: str, wanted: Callable[[str], bool]) -> list[str]:
    fs, root = _split(path)
    if any(sign in path for sign in "*?[") and not fs.exists(root):  # a file may have such a sign in its name
        names = [name for name in fs.glob(root) if not _file_name(name).startswith(".")]  # as a shell does
    elif fs.isdir(root):
        names = [name for name in fs.find(root) if not _file_name(name).startswith(".") and wanted(_file_name(name))]
    else:
        names = [root] if fs.exists(root) else []
    return sorted(fs.unstrip_protocol(name) for name in names if not fs.isdir(name))


def _split(path: str) -> tuple[Any, str]:
    """The file system of a path and the path on it; `..` is resolved on a local one, so that one file has one name."""
    try:
        fs, root = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return fs, os.path.normpath(root) if _is_local(path) else root


def _is_local(path: str) -> bool:
    return fsspec.utils.get_protocol(path) in ("file", "local")


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _base(path: str) -> str:
    """The folder that names are told relative to: what stands before the first wildcard."""
    fs, root = _split(path)
    literal = root
    for sign in "*?[":
        literal = literal.split(sign, 1)[0]
    folder = literal if literal == root and fs.isdir(root) else literal.rsplit("/", 1)[0]
    return str(fs.unstrip_protocol(folder.rstrip("/")))


def _describe(store: Store, url: str, base: str) -> RawFile:
    name = url.removeprefix(base).lstrip("/") or url.rsplit("/", 1)[-1]
    fs, path = fsspec.core.url_to_fs(url)
    info = fs.info(path)
    size = int(info["size"])
    tag = info.get("ETag") or info.get("etag") or info.get("blob_id")  # the last is the Hugging Face hub's: git's hash of the content
    if tag:
        return RawFile(url, name, size, fingerprint({"etag": str(tag).strip('"'), "size": size}))
    if url.startswith("file://"):
        return RawFile(url, name, size, _content_hash(store, Path(path), info))
    with fs.open(path, "rb") as stream:
        return RawFile(url, name, size, hashlib.file_digest(stream, "sha256").hexdigest())


def _content_hash(store: Store, path: Path, info: dict[str, Any]) -> str:
    """SHA-256 of a local file, remembered by path, size and modification time."""
    state = {"path": str(path.resolve()), "size": int(info["size"]), "mtime_ns": path.stat().st_mtime_ns}
    cached = f"cache/raw/{fingerprint(state['path'])}.json"
    known = json.loads(store.read_text(cached) or "{}")
    if {name: known.get(name) for name in state} == state:
        return str(known["sha256"])
    digest = sha256_of(path)
    store.replace(cached, json.dumps({**state, "sha256": digest}))
    return digest
