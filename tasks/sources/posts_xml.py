"""Posts.xml of a Stack Exchange dump: one `<row/>` a post, streamed in bounded memory out of the archive or the file itself."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from lxml import etree

from tasks.sources import seven_zip
from tasks.sources.base import FieldError, RawFile
from tasks.sources.stream import StreamFault, blocks

POSTS = "Posts.xml"
QUESTION, ANSWER = 1, 2
MAX_ID = 2**32 - 1  # a 32-bit integer in the site's own database
MAX_ROW_BYTES = 2 << 20  # a body may have 30,000 characters, so a real row is far below this

_SEPARATOR = b"<row "
# What may stand around the rows: the declaration, the root element. Possessive, or a megabyte of spaces would take hours.
_AROUND = re.compile(rb"\s*+(?:<\?xml[^>]*+>)?+\s*+(?:</?posts\s*+/?>\s*+)*+", re.IGNORECASE)
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)


class NoPosts(Exception):
    """The whole file is refused or no dump at all. `head` is how it begins."""

    def __init__(self, cause: str, head: bytes = b"") -> None:
        super().__init__(cause)
        self.head = head


class Post(NamedTuple):
    """One post. `link` is a question's accepted answer or an answer's question, 0 for none; `get` gives any attribute as a string."""

    id: int
    kind: int
    score: int
    link: int
    get: Callable[..., Any]


def rows(file: RawFile) -> Iterator[bytes]:
    """What stands between `<row ` and the next one, for each row, the cut-off last one of a damaged file only where it has its end.

    `<row ` cannot stand within a row, so one bad row costs one row. Nothing but rows is ever given to a parser: no document type and no
    entity is read. Raises NoPosts, or StreamFault after the last row of a file that is cut off.
    """
    try:
        with contextlib.closing(_decoded(file)) as decoded:
            pieces = _pieces(decoded)
            _check_prologue(next(pieces))
            yield from pieces
    except seven_zip.ArchiveError as error:
        raise NoPosts(str(error)) from None
    except StreamFault as fault:
        if _end(fault.rest):
            yield fault.rest  # what it lacks is only the next one's beginning
            fault.rest = b""
        else:
            fault.rest = _SEPARATOR + fault.rest
        raise


def _decoded(file: RawFile) -> Generator[bytes, None, None]:
    yield from seven_zip.member_blocks(file, POSTS) if seven_zip.is_archive(file) else blocks(file)


def _pieces(decoded: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    try:
        for block in decoded:
            pieces = (rest + block).split(_SEPARATOR)
            rest = pieces.pop()
            yield from pieces
            if len(rest) > 2 * MAX_ROW_BYTES:
                # It is refused for its length anyway: keep of it what a separator could begin with.
                rest = rest[:MAX_ROW_BYTES] + rest[1 - len(_SEPARATOR) :]
    except StreamFault as fault:
        fault.rest = rest
        raise
    yield rest


def _check_prologue(piece: bytes) -> None:
    head = piece.removeprefix(b"\xef\xbb\xbf")
    if b"<!" in head:
        raise NoPosts("a document type or comment before the rows is refused", head[:1000])
    if not re.search(rb"<posts[\s/>]", head) or _AROUND.fullmatch(head) is None:
        raise NoPosts(f"this is no {POSTS} of a Stack Exchange dump in UTF-8", head[:1000])
    found = re.search(rb"""encoding=["']([^"']+)""", head)
    if found and found[1].lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise NoPosts(f"the encoding {found[1].decode(errors='replace')} is not UTF-8", head[:1000])


def _end(row: bytes) -> int:
    """Where the row's element ends; 0 where it does not."""
    end = row.rfind(b"/>") + 2
    return end if end >= 2 and _AROUND.fullmatch(row, end) else 0


def parse(row: bytes) -> Post:
    """The post of a row. Raises FieldError with what is wrong."""
    if len(row) > MAX_ROW_BYTES:
        raise FieldError(f"the row is longer than {MAX_ROW_BYTES >> 20} MiB, which no post of a dump is")
    end = row.rfind(b"/>") + 2
    if end < 2:
        raise FieldError("malformed XML: the row is cut off")
    if not _AROUND.fullmatch(row, end):
        raise FieldError("malformed XML: something else follows the row")
    try:
        attributes = etree.fromstring(_SEPARATOR + row[:end], _PARSER).attrib
    except etree.XMLSyntaxError as error:
        raise FieldError(f"malformed XML: {error.msg}") from None
    kind = _number(attributes, "PostTypeId")
    link = 0
    if kind in (QUESTION, ANSWER) and "Body" not in attributes:
        raise FieldError("the post has no Body")
    if kind == ANSWER:
        link = _id(attributes, "ParentId")
    if kind == QUESTION and "AcceptedAnswerId" in attributes:
        link = _id(attributes, "AcceptedAnswerId")
    return Post(_id(attributes, "Id"), kind, _number(attributes, "Score"), link, attributes.get)


def _number(attributes: Any, name: str) -> int:
    try:
        value = int(attributes[name])
    except KeyError:
        raise FieldError(f"the post has no {name}") from None
    except ValueError:
        raise FieldError(f"the post's {name} {attributes[name]!r:.40} is no number") from None
    if not -(2**63) <= value < 2**63:
        raise FieldError(f"the post's {name} {attributes[name]!r:.40} is no number that fits")
    return value


def _id(attributes: Any, name: str) -> int:
    value = _number(attributes, name)
    if not 1 <= value <= MAX_ID:
        raise FieldError(f"the post's {name} is {value}, not from 1 to {MAX_ID}")
    return value
