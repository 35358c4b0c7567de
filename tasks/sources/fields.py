"""From a raw record (a mapping) to a document: dotted paths, text rules, typed columns."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from tasks.sources.base import Bad, Dropped, FieldError, Item, RawFile, Record, positional_id
from tasks.sources.config import Column, ColumnType, Fields, SourceConfig, template_paths

MISSING: Any = object()
NULL_STRINGS = ("", "None", "null", "nan", "NaN")  # how Dolma's conversion and pandas write a null as a string

ARROW_TYPES: dict[ColumnType, pa.DataType] = {"float": pa.float64(), "int": pa.int64(), "string": pa.string(), "bool": pa.bool_()}


def find(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, MISSING where there is none. A part that is a number counts in a list."""
    if path in record:  # nearly all paths are plain names; and a name may hold a dot
        return record[path]
    value: Any = record
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def _text_at(record: Mapping[str, Any], path: str, join: str, numbers: bool) -> str:
    value = find(record, path)
    if value is MISSING:
        raise FieldError(f"the field {path!r} is missing")
    if isinstance(value, str):
        return value
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise FieldError(f"bad UTF-8 in the field {path!r} at byte {error.start}") from None
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return join.join(value)
    raise FieldError(f"the field {path!r} is {_kind(value)}, not a string")


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def text_rule(fields: Fields) -> Callable[[Mapping[str, Any]], str]:
    """A function from a raw record to its text; it raises FieldError where a field is missing, null or no string."""
    text, join = fields.text, fields.join
    if isinstance(text, list):
        paths, separator = text, fields.separator
        return lambda record: separator.join(part for path in paths if (part := _text_at(record, path, join, False)))
    if not template_paths(text):
        return lambda record: _text_at(record, text, join, False)
    parts = [(literal, path) for literal, path, _, _ in string.Formatter().parse(text)]

    def fill(record: Mapping[str, Any]) -> str:
        return "".join(literal + (_text_at(record, path, join, True) if path else "") for literal, path in parts)

    return fill


def convert(value: Any, kind: ColumnType, name: str) -> Any:
    """A raw value as a typed column; absent, null and the strings that mean null give None. Raises FieldError where it does not fit."""
    if value is MISSING or value is None or (kind != "string" and isinstance(value, str) and value.strip() in NULL_STRINGS):
        return None
    try:
        return _CONVERTERS[kind](value)
    except (ValueError, TypeError, OverflowError):
        raise FieldError(f"the value {value!r:.60} of the column {name!r} is no {kind}") from None


def _to_int(value: Any) -> int | None:
    if isinstance(value, float) and math.isnan(value):
        return None  # a null integer after pandas
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    try:
        number = int(value) if not isinstance(value, float) else value
    except ValueError:
        number = float(value)
    if number != int(number) or not -(2**63) <= number < 2**63:
        raise ValueError
    return int(number)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _to_bool(value: Any) -> bool:
    spelled = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(value, str) and value.strip().lower() in spelled:
        return spelled[value.strip().lower()]
    if value in (0, 1):
        return bool(value)
    raise ValueError


def _to_string(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


_CONVERTERS: dict[ColumnType, Callable[[Any], Any]] = {"int": _to_int, "float": _to_float, "bool": _to_bool, "string": _to_string}


def arrow_types(columns: Mapping[str, Column]) -> dict[str, pa.DataType]:
    """The Arrow types of configured columns."""
    return {name: ARROW_TYPES[column.type] for name, column in columns.items()}


FindId = Callable[[Mapping[str, Any]], str | None]


def _id_rule(path: str) -> FindId:
    def find_id(record: Mapping[str, Any]) -> str | None:
        value = find(record, path)
        if value is MISSING or value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise FieldError(f"the id {path!r} is {_kind(value)}, not a string")
        return str(value)

    return find_id


class Rules:
    """How one format's raw records become documents; made once a file."""

    def __init__(self, fields: Fields, find_id: FindId | None = None, required: tuple[str, ...] = (), parts: tuple[str, ...] = ()) -> None:
        """`find_id` gives None for a record without an id; `required` names top-level fields that must be there.

        parts: dotted paths of further texts that must be there, for `Record.parts`.
        """
        self.fields, self.parts = fields, parts
        self._text = text_rule(fields)
        self._find_id = find_id or _id_rule(fields.id)
        self._required = required
        paths = [
            *fields.text_paths(),
            *parts,
            fields.id,
            fields.added,
            fields.created,
            *(column.field for column in fields.columns.values()),
        ]
        # A whole top-level field that became a part of the document need not stand in its metadata once more.
        self._used = frozenset(path for path in paths if "." not in path)

    @classmethod
    def of(cls, config: SourceConfig) -> Rules:
        """The rules of a mapped format."""
        if config.synthetic is None:
            return cls(config.fields)
        question, *parts = config.synthetic.paths()
        return cls(config.fields.model_copy(update={"text": question}), parts=tuple(parts))

    def item(self, raw: Mapping[str, Any], number: int, position: str, source: bytes, file: RawFile, repaired: bool = False) -> Item:
        """The document of record `number` (from 1), or why there is none; `source` is the record as it lies in the file."""
        try:
            for name in self._required:
                if raw.get(name) in (None, ""):
                    raise FieldError(f"the field {name!r} is missing")
            text = self._text(raw)
            if not text or text.isspace():
                return Dropped("empty text")
            columns = {name: convert(find(raw, column.field), column.type, name) for name, column in self.fields.columns.items()}
            found = self._find_id(raw)
            parts = tuple(_text_at(raw, path, self.fields.join, False) for path in self.parts)
        except FieldError as error:
            return Bad(position, str(error), source)
        return Record(
            position=position,
            id=positional_id(file, number) if found is None else found,
            text=text,
            added=_date(find(raw, self.fields.added)),
            created=_date(find(raw, self.fields.created)),
            metadata=self._metadata(raw),
            columns=columns,
            repaired=repaired,
            parts=parts,
        )

    def _metadata(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are not in the document otherwise; those of a nested `metadata` stand on the same level and win."""
        rest = {name: value for name, value in raw.items() if name not in self._used}
        nested = rest.get("metadata")
        if isinstance(nested, dict):
            del rest["metadata"]
            return {**rest, **nested}
        return rest


def _date(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int | float) and value != "" else None
