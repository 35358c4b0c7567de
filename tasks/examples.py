"""Labelled texts for the steps that train a classifier, a regressor or a tokenizer, read through the same readers as the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pydantic import ConfigDict, Field, model_validator

from tasks.errors import UserError
from tasks.shards import Shard
from tasks.sources import READERS, SourceConfig
from tasks.sources.base import Bad, Dropped, RawFile, Record
from tasks.store import Books


class Examples(SourceConfig):
    """A set of raw files whose texts all have one label, or each the label in a column of theirs."""

    model_config = ConfigDict(extra="forbid")
    label: str | float | None = Field(default=None, description="The label of every text of these files.")
    label_column: str | None = Field(default=None, description="Or the column (see fields.columns) that holds each text's label.")
    max_documents: int | None = Field(default=None, ge=1, description="Take at most this many texts, by hash of the text.")

    @model_validator(mode="after")
    def _one_label(self) -> Examples:
        if self.label is not None and self.label_column is not None:
            raise ValueError("give label or label_column, not both")
        if self.format == "rewrite":
            raise ValueError("examples are read from files, and the format rewrite reads another source: give the files of examples")
        if self.warc.url_filter is not None:
            raise ValueError("examples take no `url_filter`: a changed list would not train anew; give examples that are filtered already")
        return self

    def reader(self) -> SourceConfig:
        return SourceConfig.model_validate({name: getattr(self, name) for name in SourceConfig.model_fields})


def load(shard: Shard, sets: list[Examples], books: Books) -> list[tuple[str, str | float | None]]:
    """(text, label) of every set, in the order of a hash of the text: the same whatever the order of the files. Booked in `books`.

    An example that cannot be read stops the step: a classifier trained on half its examples would be wrong without a word.
    """
    found: list[tuple[str, str | float | None]] = []
    for number, examples in enumerate(sets):
        mine = sorted((pair for raw in shard.inputs[f"examples:{number}"] for pair in _read(raw, examples, books)), key=_hash)
        taken = mine[: examples.max_documents]
        books.read += len(mine)
        books.kept += len(taken)
        if len(taken) < len(mine):
            books.drop("over max_documents", len(mine) - len(taken))
        found += taken
    return sorted(found, key=_hash)


def _hash(pair: tuple[str, object]) -> tuple[bytes, str]:
    return hashlib.blake2b(pair[0].encode(), digest_size=8).digest(), str(pair[1])


def _read(raw: RawFile, examples: Examples, books: Books) -> Iterator[tuple[str, str | float | None]]:
    reader = examples.reader()
    for item in READERS[reader.format](raw, reader):
        if isinstance(item, Bad):
            raise UserError(f"{raw.shown}, {item.position}: {item.cause} (an example to train on; mend the file)")
        if isinstance(item, Dropped):
            books.read += item.units
            books.drop(item.reason, item.units)
        elif isinstance(item, Record):
            if examples.label_column is None:
                yield item.text, examples.label
                continue
            label = item.columns.get(examples.label_column)
            if label is None:
                raise UserError(f"{raw.shown}, {item.position}: no label in the column {examples.label_column}")
            yield item.text, label
