"""JSON lines: one object a line, in any compression. Also the core of the formats made of JSON lines (dolma, dclm)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from tasks.sources.base import Bad, FieldError, Item, RawFile, repair
from tasks.sources.config import SourceConfig
from tasks.sources.fields import Rules
from tasks.sources.stream import MAX_PIECE_BYTES, StreamFault, TooLong, lines


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item a line, by the mapping `config.fields`."""
    return read_lines(file, Rules.of(config))


def read_lines(file: RawFile, rules: Rules) -> Iterator[Item]:
    """One item a line that is not blank; the unreadable rest of a damaged stream is one Bad."""
    try:
        for number, line in lines(file):
            yield _item(line, number, file, rules)
    except StreamFault as fault:
        yield fault.bad()


def _item(line: bytes, number: int, file: RawFile, rules: Rules) -> Item:
    position = f"line {number}"
    if isinstance(line, TooLong):
        return Bad(position, f"the line is longer than {MAX_PIECE_BYTES >> 20} MiB", line)
    try:
        value, repaired = parse(line)
    except FieldError as error:
        return Bad(position, str(error), line)
    if not isinstance(value, dict):
        return Bad(position, f"a JSON object was expected, not a {type(value).__name__}", line)
    return rules.item(value, number, position, line, file, repaired)


def parse(line: bytes) -> tuple[Any, bool]:
    """(value, whether lone surrogates in it were replaced). Raises FieldError for what is no JSON or no UTF-8."""
    try:
        return orjson.loads(line), False
    except orjson.JSONDecodeError as error:
        fault = error
    # orjson refuses lone surrogates and NaN, which Python's json takes in.
    try:
        return repaired_value(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        raise FieldError(f"bad UTF-8 at byte {error.start} of the line") from None
    except (ValueError, RecursionError):
        raise FieldError(f"malformed JSON: {fault}") from None


def repaired_value(value: Any) -> tuple[Any, bool]:
    """(value with every string in it repaired, whether any was changed)."""
    changed = False

    def walk(part: Any) -> Any:
        nonlocal changed
        if isinstance(part, str):
            mended = repair(part)
            changed = changed or mended != part
            return mended
        if isinstance(part, list):
            return [walk(item) for item in part]
        if isinstance(part, dict):
            return {walk(name): walk(item) for name, item in part.items()}
        return part

    return walk(value), changed
