"""Texts in parts of some size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def parts(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Lists of texts in a row, each ended by the text with which it has `characters` or more."""
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= characters:
            yield part
            part, size = [], 0
    if part:
        yield part
