"""The files that a source reads of a dump: of one that is being curated, and of the newest that is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from tasks import raw_files
from tasks.dump_checksums import Checksum, checksums
from tasks.dump_record import Done, last_done
from tasks.dumps import PLACEHOLDER, DumpFile, Place, base_of, is_web, look
from tasks.errors import UserError
from tasks.sources import SourceConfig, belongs
from tasks.sources.base import RawFile
from tasks.storage import Storage, open_file, public, shown
from tasks.store import Store, fingerprint


def raw_of(store: Store, files: Iterable[DumpFile], sums: Mapping[str, Checksum]) -> dict[str, RawFile]:
    """Files of a dump as raw files, by name; a file that did not change since another dump has the same content.

    On a web server that is told by its checksum, else by reading it once: its ETag is mostly made of the time of its upload.
    """
    found = {}
    for file in files:
        storage = Storage(file.url)
        if not is_web(storage):
            raw = raw_files.describe(store, storage, storage.path, dict(file.info), storage.path)
            found[file.name] = RawFile(file.url, file.name, file.size, raw.content_id, file.stamp)
            continue
        checksum = sums.get(file.name)
        content = fingerprint({checksum.algorithm: checksum.digest, "size": file.size}) if checksum else _content_of(store, file)
        found[file.name] = RawFile(file.url, file.name, file.size, content, file.stamp)
    return found


def _content_of(store: Store, file: DumpFile) -> str:
    """SHA-256 of a remote file, remembered by URL, size and version."""
    path = f"cache/raw/{fingerprint([public(file.url), file.size, file.stamp])}.json"
    known = json.loads(store.read_text(path) or "{}") if file.stamp else {}
    if known:
        return str(known["sha256"])
    raw = RawFile(file.url, file.name, file.size, "", file.stamp)
    with open_file(raw.url, raw.size, raw.check) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    raw.check()
    if file.stamp:
        store.replace(path, json.dumps({"url": public(file.url), "size": file.size, "stamp": file.stamp, "sha256": digest}))
    return digest


def joined(store: Store, source: str, config: SourceConfig, of_a_dump: Iterable[RawFile]) -> tuple[list[RawFile], list[RawFile]]:
    """The files of a dump and those that the source has beside it, without copies; and the copies."""
    others = [path for path in config.paths if not path.startswith(PLACEHOLDER)]
    beside, copies = raw_files.find(store, source, others, lambda name: belongs(name, config.format)) if others else ([], [])
    unique: dict[str, RawFile] = {}
    for raw in [*of_a_dump, *beside]:
        if raw.content_id in unique:
            copies.append(raw)
        unique.setdefault(raw.content_id, raw)
    return list(unique.values()), copies


def done_files(store: Store, recipe: str, path: str, source: str, config: SourceConfig) -> tuple[list[RawFile], list[RawFile]]:
    """The files of a source in the newest dump that is done: of this recipe, else of another whose dumps appear at the same path.

    Where the source's paths are those of the record, its files are those of the record too, even if the dump was changed or removed since;
    else they are listed anew in its folder. Raises UserError where no dump is done.
    """
    done = _newest_done(store, recipe, path)
    if done is None:
        raise UserError(
            f"{source}: no dump of {shown(path)} has been curated yet, so {PLACEHOLDER} stands for nothing: "
            "`olmoflow run recurate-stackexchange` first"
        )
    url = f"{base_of(path)}/{done.dump}" if done.date else base_of(path)
    for known in done.sources.values():
        if known.paths == config.paths:
            found = [
                RawFile(f"{url}/{file.place}", file.name, file.size, file.content_id, file.stamp) for file in known.files if file.place
            ]
            return joined(store, source, config, found)
    dump = look(Place(done.dump, url, done.date))
    sums, _ = checksums(dump)
    wanted = dump.wanted(config)
    if not wanted:
        raise UserError(f"{source}: the dump {done.dump} has no file that its `paths` name; check them")
    return joined(store, source, config, raw_of(store, wanted, sums).values())


def _newest_done(store: Store, recipe: str, path: str) -> Done | None:
    done = last_done(store, recipe)
    if done is not None and done.path == public(path):
        return done
    others = [other for name in store.names("dumps") if (other := last_done(store, name)) is not None and other.path == public(path)]
    return max(others, key=lambda other: (other.order, other.finished), default=None)
