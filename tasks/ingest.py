"""Ingest: a raw file becomes a shard of documents. What cannot be parsed is quarantined, what is not wanted is dropped with a reason."""

from __future__ import annotations

from typing import Any

from tasks import masking
from tasks.documents import FILE, DocumentWriter
from tasks.shards import Input, Shard, ShardTask, Step, library_version
from tasks.sources import READERS, SourceConfig, place, typed_columns, unit, warc
from tasks.sources.base import Bad, Dropped, RawFile, WatchedFile
from tasks.sources.config import URL_LISTS
from tasks.store import Books

STEP = Step("ingest", 2, "tasks.ingest", ("resiliparse", "lxml"))


def task(
    source: str, config: SourceConfig, raw: RawFile, mask: bool = False, url_lists: dict[str, list[RawFile]] | None = None
) -> ShardTask:
    """The shard of one raw file. Where it lies is no part of the key, save what of it the reader writes into documents (a dump's site).

    mask: put masking tokens for the personal data in the texts (`tasks.masking`); ids, columns and metadata stay as they are.
    url_lists: the files of a URL filter by the name of their list; they count by their content, too.
    """
    settings: dict[str, Any] = {"source": source, "reader": config.output_config(), "place": place(raw, config)}
    if mask:
        settings["mask_personal_data"] = masking.VERSION
    if config.format == "warc":
        settings["libraries"] = {name: library_version(name) for name in warc.libraries(config)}
    lists: dict[str, list[Input]] = {f"url_filter.{name}": list(files) for name, files in (url_lists or {}).items()}
    return ShardTask(raw.name, settings, {"raw": [raw], **lists}, weight=raw.size)


def run(shard: Shard) -> Books:
    """raw: one file -> documents.parquet."""
    raw: RawFile = shard.one("raw")
    source = shard.config["source"]
    config = _config(shard, raw)
    books = Books(unit=unit(config))
    writer = DocumentWriter(shard.folder / FILE, source, typed_columns(config))
    for item in READERS[config.format](_watched(raw, shard, books), config):
        books.read += item.units
        if isinstance(item, Dropped):
            books.drop(item.reason, item.units)
        elif isinstance(item, Bad):
            books.quarantined += item.units
            books.count("unreadable_bytes", item.unreadable_bytes)
            shard.quarantine(raw.shown, item.position, item.cause, item.raw, item.units, item.unreadable_bytes)
        else:
            text, masked = masking.mask(item.text) if "mask_personal_data" in shard.config else (item.text, {})
            books.kept += item.units
            books.count("documents")
            for kind, number in masked.items():
                books.count(f"masked_{kind}", number)
            books.count("bytes", writer.write(item.id, text, item.added, item.created, item.metadata, item.columns))
            books.count("repaired_surrogates", int(item.repaired))
    writer.close()
    if writer.duplicate_ids:  # kept: an id may come back where several dumps make up one source; told, for a file may stand there twice
        books.count("duplicate_ids", writer.duplicate_ids)
    shard.progress(books.counts.get("documents", 0), 0, 1.0)
    return books


def _config(shard: Shard, raw: RawFile) -> SourceConfig:
    config = SourceConfig.model_validate({**shard.config["reader"], "paths": [raw.url]})
    for name in URL_LISTS:
        if config.warc.url_filter is not None and (files := shard.inputs.get(f"url_filter.{name}")):
            setattr(config.warc.url_filter, name, [file.url for file in files])
    return config


def _watched(raw: RawFile, shard: Shard, books: Books) -> RawFile:
    """The file, with the shard's progress told whenever a piece of it is read: often enough, and free of cost for a record."""
    done = 0

    def read(piece: int) -> None:
        nonlocal done
        done += piece
        # how much of a dump that is read in several passes is done cannot be told from what was read
        share = 0.0 if shard.config["reader"]["format"] == "stackexchange" else done / max(raw.size, 1)
        shard.progress(books.counts.get("documents", 0), done, share)

    return WatchedFile(raw.url, raw.name, raw.size, raw.content_id, raw.stamp, read=read)
