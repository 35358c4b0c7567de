"""Readers of raw dumps, one module a format. Each is a generator over one file whose books balance (see `base`)."""

from __future__ import annotations

import fnmatch

import pyarrow as pa

from tasks.sources import arithmetic, dclm, dolma, json_file, jsonl, parquet, stackexchange, starcoder, text, warc
from tasks.sources.base import Bad, Dropped, Item, RawFile, Reader, Record
from tasks.sources.config import Column, Fields, Format, SourceConfig
from tasks.sources.fields import arrow_types
from tasks.sources.synthesis import synthesized
from tasks.sources.synthetic import ReplaceNumbers

__all__ = [
    "READERS",
    "Bad",
    "Column",
    "Dropped",
    "Fields",
    "Item",
    "RawFile",
    "Reader",
    "Record",
    "SourceConfig",
    "belongs",
    "place",
    "typed_columns",
    "unit",
]

READERS: dict[Format, Reader] = {
    "dclm": dclm.read,
    "dolma": dolma.read,
    "starcoder": starcoder.read,
    "stackexchange": stackexchange.read,
    "jsonl": synthesized(jsonl.read),
    "json": synthesized(json_file.read),
    "parquet": synthesized(parquet.read),
    "text": text.read,
    "warc": warc.read,
    "arithmetic": arithmetic.read,
}

# Which files of a folder are a format's: a dump's side tables and its README are not.
_JSON = ("*.json", "*.json.*", "*.jsonl", "*.jsonl.*", "*.ndjson", "*.ndjson.*")
_PATTERNS: dict[Format, tuple[str, ...]] = {
    "dclm": _JSON,
    "dolma": _JSON,
    "jsonl": _JSON,
    "json": _JSON,
    "starcoder": ("*.parquet",),
    "parquet": ("*.parquet",),
    "text": ("*.txt", "*.txt.*", "*.tex", "*.tex.*", "*.tar", "*.tar.*", "*.tgz"),
    "stackexchange": ("Posts.xml", "Posts.xml.*", "*.7z"),
    "warc": ("*.warc", "*.warc.*", "*.wet", "*.wet.*"),
    "arithmetic": (),
    "rewrite": (),
}


def belongs(name: str, format: Format) -> bool:
    """Whether a file met in a folder (not named by itself) is one of the format's. Of archives of one table only Posts is."""
    if format == "stackexchange" and fnmatch.fnmatchcase(name, "*-*.7z"):
        table = name.rsplit("-", 1)[1].removesuffix(".7z")
        if table in ("Badges", "Comments", "PostHistory", "PostLinks", "Tags", "Users", "Votes"):
            return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS[format])


def place(file: RawFile, config: SourceConfig) -> str | None:
    """What of a file's place goes into its records, and so into the key of its shard: the site of a Stack Exchange dump, else nothing."""
    return stackexchange.site_of(file, config) if config.format == "stackexchange" else None


def unit(config: SourceConfig) -> str:
    """What a reader's `units` count."""
    if config.format == "stackexchange":
        return "posts"
    return "variants" if isinstance(config.synthetic, ReplaceNumbers) and config.synthetic.variants > 1 else "records"


def typed_columns(config: SourceConfig) -> dict[str, pa.DataType]:
    """The typed columns that each Record of the source has in `columns` (any value may be null)."""
    if config.format == "dclm":
        return {"url": pa.string(), "fasttext_score": pa.float64()}
    if config.format == "starcoder":
        return arrow_types(starcoder.COLUMNS)
    if config.format == "stackexchange":
        return dict(stackexchange.COLUMNS)
    if config.format == "warc":
        return dict(warc.COLUMNS)
    return arrow_types(config.fields.columns)
