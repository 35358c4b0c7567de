"""Parquet with a mapping of columns. Read batch by batch; a damaged row group costs its own unread rows, not the file."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.sources.base import Bad, Item, RawFile, Record
from tasks.sources.config import SourceConfig
from tasks.sources.fields import Rules

BATCH_ROWS = 512


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item a row. Raises UserError where a path that the recipe names is in no column of the file."""
    rules = Rules.of(config)
    fields = rules.fields
    wanted = [*fields.text_paths(), *rules.parts, *(column.field for column in fields.columns.values())]
    # Only what the recipe changed: a form sends the defaults back, and a file need not have those columns.
    wanted += [path for default in ("id", "added", "created") if (path := getattr(fields, default)) != default]
    return read_rows(file, rules, wanted)


def read_rows(file: RawFile, rules: Rules, wanted: list[str]) -> Iterator[Item]:
    """One item a row by `rules`; each of the dotted paths `wanted` must be in the schema."""
    with file.open() as stream:
        try:
            parquet = pq.ParquetFile(stream)
        except (pa.ArrowException, OSError) as error:
            if not _is_damage(error):
                raise
            yield Bad("byte 0", f"no readable Parquet file: {error}", b"", unreadable_bytes=file.size)
            return
        _check_schema(file, parquet.schema_arrow, wanted)
        first = 0
        for group in range(parquet.num_row_groups):
            yield from _read_group(parquet, group, first, file, rules)
            first += parquet.metadata.row_group(group).num_rows


def _is_damage(error: Exception) -> bool:
    """False for what the system or the network raised: that is worth another attempt, and no fault of the file."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def _check_schema(file: RawFile, schema: pa.Schema, wanted: list[str]) -> None:
    for path in wanted:
        if not _in_schema(schema, path):
            there = ", ".join(schema.names)
            raise UserError(
                f"{file.shown}: no column {path!r} in this Parquet file; it has {there}. Mend the source's `fields` or `paths`."
            )


def _in_schema(schema: pa.Schema, path: str) -> bool:
    head, *rest = path.split(".")
    if head not in schema.names:
        return False
    kind = schema.field(head).type
    for part in rest:
        if pa.types.is_map(kind):
            return True  # the names in a map are data
        if pa.types.is_struct(kind) and kind.get_field_index(part) >= 0:
            kind = kind.field(part).type
        elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and part.isdigit():
            kind = kind.value_type
        else:
            return False
    return True


def _read_group(parquet: pq.ParquetFile, group: int, first: int, file: RawFile, rules: Rules) -> Iterator[Item]:
    """The rows of one row group; `first` is the number of rows before it."""
    metadata = parquet.metadata.row_group(group)
    done = 0
    try:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group]):
            for row in range(batch.num_rows):
                yield _row_item(batch, row, first + done + 1, file, rules)
                done += 1
    except (pa.ArrowException, OSError) as error:
        if not _is_damage(error):
            raise
        left = metadata.num_rows - done
        unread = sum(metadata.column(index).total_compressed_size for index in range(metadata.num_columns))
        cause = f"damaged row group {group}: {error}"
        yield Bad(f"row {first + done + 1}", cause, b"", units=left, unreadable_bytes=unread * left // metadata.num_rows)


def _row_item(batch: pa.RecordBatch, row: int, number: int, file: RawFile, rules: Rules) -> Item:
    position = f"row {number}"
    try:
        raw = {name: _plain(batch.column(index)[row].as_py()) for index, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError as error:
        return Bad(position, f"bad UTF-8 at byte {error.start} of a value", bytes(error.object))
    item = rules.item(raw, number, position, b"", file)
    if isinstance(item, Bad):
        return Bad(position, item.cause, repr(raw).encode("utf-8", "backslashreplace"))
    if isinstance(item, Record):
        item.metadata = {name: _without_bytes(value) for name, value in item.metadata.items()}
    return item


def _plain(value: Any) -> Any:
    """A Parquet value in the types of JSON; bytes stay, for a text may be a column of bytes."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        # Arrow gives a map as a list of pairs.
        if value and all(isinstance(part, tuple) for part in value):
            return {str(name): _plain(part) for name, part in value}
        return [_plain(part) for part in value]
    return value


def _without_bytes(value: Any) -> Any:
    """Bytes as hexadecimal digits: metadata are JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _without_bytes(part) for name, part in value.items()}
    return [_without_bytes(part) for part in value] if isinstance(value, list) else value
