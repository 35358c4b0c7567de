"""Dolma documents (`*.jsonl.gz`): `id`, `text` and `source` are required; `added`, `created` and `metadata` may be there."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.sources.base import Item, RawFile
from tasks.sources.config import Fields, SourceConfig
from tasks.sources.fields import Rules
from tasks.sources.jsonl import read_lines


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item a line. The document's own `source` goes to its metadata: the recipe's name of the source is the column."""
    return read_lines(file, Rules(Fields(), required=("id", "source")))
