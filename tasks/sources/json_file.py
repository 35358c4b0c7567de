"""A JSON file: an array of objects, or one object, or JSON lines after all. Arrays are streamed: one element at a time is in memory."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from tasks.sources.base import Bad, Item, RawFile
from tasks.sources.config import SourceConfig
from tasks.sources.fields import Rules
from tasks.sources.jsonl import read_lines, repaired_value
from tasks.sources.stream import StreamFault, blocks

MAX_ELEMENT_CHARACTERS = 1 << 28  # an element that has not ended by then is taken for malformed
KEPT_CHARACTERS = 1 << 16  # of a malformed rest, for the quarantine

_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _Malformed(Exception):
    pass


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item an element. After a malformed element the rest of an array is one Bad: where the next one begins nobody can tell."""
    rules = Rules.of(config)
    if not _is_one_value(file):
        yield from read_lines(file, rules)
        return
    text = _Text(file)
    number = 0
    try:
        for number, (source, value) in enumerate(_elements(text), 1):
            yield _item(source, value, number, file, rules)
    except StreamFault as fault:
        fault.rest = _raw(text.buffer[text.at :])
        yield fault.bad()
    except _Malformed as error:
        raw = _raw(text.buffer[text.at : text.at + KEPT_CHARACTERS])
        yield Bad(f"element {number + 1}", str(error), raw, unreadable_bytes=text.unread_bytes())


def _is_one_value(file: RawFile) -> bool:
    """True for an array, and for one object written over several lines; False for JSON lines."""
    try:
        first = next(blocks(file), b"")
    except StreamFault:
        return False
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"[") or start.split(b"\n", 1)[0].strip() == b"{"


def _item(source: str, value: Any, number: int, file: RawFile, rules: Rules) -> Item:
    position = f"element {number}"
    if not source.isascii():
        try:
            source.encode()
        except UnicodeEncodeError:
            return Bad(position, "bad UTF-8", _raw(source))
    if not isinstance(value, dict):
        return Bad(position, f"a JSON object was expected, not a {type(value).__name__}", _raw(source))
    repaired = False
    if _SURROGATE.search(source):
        value, repaired = repaired_value(value)
    return rules.item(value, number, position, _raw(source), file, repaired)


def _raw(source: str) -> bytes:
    return source.encode("utf-8", "surrogateescape")


class _Text:
    """The decoded text from the current element on. Bytes that are no UTF-8 stand in it as surrogates, to be found later."""

    def __init__(self, file: RawFile) -> None:
        self.buffer = ""
        self.at = 0
        self.ended = False
        self._size = file.size
        self._bytes = 0
        self._blocks = blocks(file)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")

    def more(self) -> None:
        """Reads on, at least as much as is there, so that an element is scanned a few times at most."""
        parts = [self.buffer[self.at :]]
        self.buffer, self.at, wanted = parts[0], 0, max(1, len(parts[0]))
        try:
            while wanted > 0 and not self.ended:
                block = next(self._blocks, None)
                self.ended = block is None
                self._bytes += len(block or b"")
                parts.append(self._decoder.decode(block or b"", self.ended))
                wanted -= len(parts[-1])
        finally:
            self.buffer = "".join(parts)

    def skip_space(self) -> str:
        """The next character that is no space, '' at the end."""
        while True:
            found = _SPACE.match(self.buffer, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self.more()

    def unread_bytes(self) -> int:
        """The bytes of the file from the current element on; an estimate by proportion in a compressed file."""
        rest = len(_raw(self.buffer[self.at :]))
        done = self._bytes - rest
        with contextlib.suppress(StreamFault):
            rest += sum(len(block) for block in self._blocks)
        return self._size * rest // (done + rest)


def _elements(text: _Text) -> Iterator[tuple[str, Any]]:
    """(source, value) of each element of the array, or of the one object. Raises StreamFault and _Malformed."""
    array = text.skip_space() == "["
    text.at += array
    if array and text.skip_space() == "]":
        text.at += 1
    else:
        while True:
            text.skip_space()
            yield _value(text)
            following = text.skip_space()
            if not array:
                break
            text.at += 1
            if following == "]":
                break
            if following != ",":
                found = repr(following) if following else "the end of the file"
                raise _Malformed(f"malformed JSON: {found} after an element of the array")
    if text.skip_space():
        raise _Malformed("malformed JSON: something follows the end of the value")


def _value(text: _Text) -> tuple[str, Any]:
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(text.buffer, text.at)
        except (ValueError, RecursionError) as error:
            if text.ended or len(text.buffer) - text.at > MAX_ELEMENT_CHARACTERS:
                raise _Malformed(f"malformed JSON: {error}") from None
        else:
            # A number that ends with the buffer may go on in the next block.
            if end < len(text.buffer) or text.ended or text.buffer[end - 1] in '}]"':
                source = text.buffer[text.at : end]
                text.at = end
                return source, value
        text.more()
