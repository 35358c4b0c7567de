"""HTML pages to text: the bytes decoded, then the main content taken out by resiliparse or trafilatura."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

Extractor = Literal["resiliparse", "trafilatura"]

_META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_META_BYTES = 4096  # where browsers look for a declaration: 1024, and some room for long heads
MAX_REPLACED_SHARE = 0.05  # of a page's characters


class Undecodable(ValueError):
    """No encoding makes text of the bytes."""


def page_text(extractor: Extractor, page: bytes, declared: str | None) -> tuple[str, str]:
    """(the main content, the page's encoding). `declared` is the encoding that the HTTP header names. Raises Undecodable."""
    html, encoding = decode(page, declared)
    return extract(extractor, html), encoding


def decode(page: bytes, declared: str | None) -> tuple[str, str]:
    """(text, encoding) of a page. Raises Undecodable.

    Bytes that are UTF-8 are taken for it whatever is declared: text in another encoding is UTF-8 by chance next to never, and wrong
    declarations are common. Otherwise the first encoding that fits is taken: of the HTTP header, the page's own `meta`, the one detected.
    Where none fits, the one with the fewest faults is taken and these become U+FFFD, as in a browser; a page with many is no text.
    """
    if page[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _with_fewest_replaced(page, ["utf-16"])
    encodings = list(dict.fromkeys(_encodings(page, declared)))
    for encoding in encodings:
        try:
            return page.decode(encoding), encoding.removesuffix("-sig")
        except UnicodeDecodeError:
            continue
    return _with_fewest_replaced(page, encodings or ["utf-8"])


def _encodings(page: bytes, declared: str | None) -> Iterator[str]:
    meta = _META.search(page[:_META_BYTES])
    named = [name for name in (declared, meta[1].decode() if meta else None) if name]
    if b"\x1b" not in page or not any(name.lower().startswith("iso-2022") for name in named):  # which is all ASCII
        yield "utf-8-sig"  # leaves out a byte order mark
    for name in named:
        yield from _known(map_encoding_to_html5(name, fallback_utf8=False))  # as browsers do: latin-1 means windows-1252
    yield from _known(detect_encoding(page))


def _known(encoding: str | None) -> list[str]:
    """The encoding, where Python has it and it is one of text."""
    try:
        return [encoding] if encoding and b"".decode(encoding) == "" else []
    except LookupError:
        return []


def _with_fewest_replaced(page: bytes, encodings: list[str]) -> tuple[str, str]:
    decoded = [(page.decode(encoding, "replace"), encoding.removesuffix("-sig")) for encoding in encodings]
    text, encoding = min(decoded, key=lambda pair: pair[0].count("\ufffd"))
    if text.count("\ufffd") > MAX_REPLACED_SHARE * len(text):
        raise Undecodable
    return text, encoding


def extract(extractor: Extractor, html: str) -> str:
    """The main content of a page as text, "" where there is none. resiliparse is what DCLM took, trafilatura what FineWeb took.

    `benchmarks/extraction.py` measures both; without alternative texts, comments and post data resiliparse finds as much and brings less else.
    """
    if extractor == "resiliparse":
        return extract_plain_text(html, main_content=True, alt_texts=False, comments=False, post_meta=False).strip()
    import trafilatura

    # Its own de-duplication remembers the pages before, so that a text would depend on its neighbours.
    found = trafilatura.extract(html, favor_precision=True, include_comments=False, deduplicate=False)
    return (found or "").strip()
