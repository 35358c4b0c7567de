"""Plain text, one document a file; a tar archive holds many files. Project Gutenberg's header and licence are taken off where its markers stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tasks.sources import tar
from tasks.sources.base import Bad, Dropped, Item, RawFile, Record, positional_id
from tasks.sources.config import SourceConfig
from tasks.sources.stream import StreamFault, blocks

_START = re.compile(r"\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG EBOOK[^*]*\*\*\*")
_END = re.compile(r"(?:\n *End of (?:the |this )?Project Gutenberg[^\n]*\n\s*)?\*\*\* ?END OF (?:THIS|THE) PROJECT GUTENBERG EBOOK")


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item: the file; or one for each file in a tar archive, in which a folder is no record."""
    if not tar.is_tar(file):
        yield _whole(file)
        return
    number = 0
    for member in tar.members(file):
        if not isinstance(member, tuple):
            yield member
            continue
        number += 1
        name, content = member
        yield _item(content, f"member {name}", positional_id(file, number), {"file": name})


def _whole(file: RawFile) -> Item:
    """A document that is cut off is no document, so a damaged stream is one Bad."""
    parts: list[bytes] = []
    try:
        parts.extend(blocks(file))
    except StreamFault as fault:
        fault.rest = b"".join(parts)
        return fault.bad()
    return _item(b"".join(parts), "file", positional_id(file, 1), {})


def _item(raw: bytes, position: str, identifier: str, metadata: dict[str, Any]) -> Item:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = f"byte {error.start}"
        return Bad(at if position == "file" else f"{position}, {at}", "bad UTF-8", raw)
    text = without_gutenberg(text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.strip():
        return Dropped("empty text")
    return Record(position=position, id=identifier, text=text, metadata=metadata)


def without_gutenberg(text: str) -> str:
    """What stands between Project Gutenberg's START and END markers; the text itself where it does not have both."""
    start = _START.search(text)
    end = _END.search(text, start.end()) if start else None
    return text[start.end() : end.start()].strip("\n") + "\n" if start and end else text
