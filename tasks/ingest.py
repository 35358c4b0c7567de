"""Ingest: a raw file becomes a shard of documents. What cannot be parsed is quarantined, what is not wanted is dropped with a reason."""

from __future__ import annotations

from typing import Any

from tasks import masking
from tasks.documents import FILE, DocumentWriter
from tasks.shards import Shard, ShardTask, Step
from tasks.sources import READERS, SourceConfig, place, typed_columns
from tasks.sources.base import Bad, Dropped, RawFile, WatchedFile
from tasks.store import Books

STEP = Step("ingest", 2, "tasks.ingest", ("resiliparse", "lxml"))


def task(source: str, config: SourceConfig, raw: RawFile, mask: bool = False) -> ShardTask:
    """The shard of one raw file. Where it lies is no part of the key, save what of it the reader writes into documents (a dump's site).

    mask: put masking tokens for the personal data in the texts (`tasks.masking`); ids, columns and metadata stay as they are.
    """
    settings: dict[str, Any] = {"source": source, "reader": config.output_config(), "place": place(raw, config)}
    if mask:
        settings["mask_personal_data"] = masking.VERSION
    return ShardTask(raw.name, settings, {"raw": [raw]}, weight=raw.size)


def run(shard: Shard) -> Books:
    """raw: one file -> documents.parquet."""
    raw: RawFile = shard.one("raw")
    source = shard.config["source"]
    config = SourceConfig.model_validate({**shard.config["reader"], "paths": [raw.url]})
    books = Books(unit="posts" if config.format == "stackexchange" else "records")
    writer = DocumentWriter(shard.folder / FILE, source, typed_columns(config))
    for item in READERS[config.format](_watched(raw, shard, books), config):
        books.read += item.units
        if isinstance(item, Dropped):
            books.drop(item.reason, item.units)
        elif isinstance(item, Bad):
            books.quarantined += item.units
            books.count("unreadable_bytes", item.unreadable_bytes)
            shard.quarantine(raw.url.removeprefix("file://"), item.position, item.cause, item.raw, item.units, item.unreadable_bytes)
        else:
            text, masked = masking.mask(item.text) if "mask_personal_data" in shard.config else (item.text, {})
            books.kept += item.units
            books.count("documents")
            for kind, number in masked.items():
                books.count(f"masked_{kind}", number)
            books.count("bytes", writer.write(item.id, text, item.added, item.created, item.metadata, item.columns))
            books.count("repaired_surrogates", int(item.repaired))
    writer.close()
    shard.progress(books.counts.get("documents", 0), 0, 1.0)
    return books


def _watched(raw: RawFile, shard: Shard, books: Books) -> RawFile:
    """The file, with the shard's progress told whenever a piece of it is read: often enough, and free of cost for a record."""
    done = 0

    def read(piece: int) -> None:
        nonlocal done
        done += piece
        # how much of a dump that is read in several passes is done cannot be told from what was read
        share = 0.0 if shard.config["reader"]["format"] == "stackexchange" else done / max(raw.size, 1)
        shard.progress(books.counts.get("documents", 0), done, share)

    return WatchedFile(raw.url, raw.name, raw.size, raw.content_id, read)
