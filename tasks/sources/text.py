"""Plain text, one document a file. Project Gutenberg's header and licence are taken off where its markers stand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tasks.sources.base import Bad, Dropped, Item, RawFile, Record, positional_id
from tasks.sources.config import SourceConfig
from tasks.sources.stream import StreamFault, blocks

_START = re.compile(r"\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG EBOOK[^*]*\*\*\*")
_END = re.compile(r"(?:\n *End of (?:the |this )?Project Gutenberg[^\n]*\n\s*)?\*\*\* ?END OF (?:THIS|THE) PROJECT GUTENBERG EBOOK")


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item: the file. A document that is cut off is no document, so a damaged stream is one Bad."""
    parts: list[bytes] = []
    try:
        parts.extend(blocks(file))
    except StreamFault as fault:
        fault.rest = b"".join(parts)
        yield fault.bad()
        return
    raw = b"".join(parts)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield Bad(f"byte {error.start}", "bad UTF-8", raw)
        return
    text = without_gutenberg(text.replace("\r\n", "\n").replace("\r", "\n"))
    if not text.strip():
        yield Dropped("empty text")
        return
    yield Record(position="file", id=positional_id(file, 1), text=text)


def without_gutenberg(text: str) -> str:
    """What stands between Project Gutenberg's START and END markers; the text itself where it does not have both."""
    start = _START.search(text)
    end = _END.search(text, start.end()) if start else None
    return text[start.end() : end.start()].strip("\n") + "\n" if start and end else text
