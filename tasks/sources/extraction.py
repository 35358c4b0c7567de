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
    Where none fits, the characters at fault become U+FFFD, as in a browser; a page with many of them is no text.
    """
    if page[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _replaced(page, "utf-16")
    encodings = list(dict.fromkeys(_encodings(page, declared)))
    for encoding in encodings:
        try:
            return page.decode(encoding), encoding.removesuffix("-sig")
        except (UnicodeDecodeError, LookupError):
            continue
    return _replaced(page, next((name for name in encodings if name != "utf-8-sig"), "utf-8"))


def _encodings(page: bytes, declared: str | None) -> Iterator[str]:
    meta = _META.search(page[:_META_BYTES])
    named = [name for name in (declared, meta[1].decode() if meta else None) if name]
    if not (b"\x1b" in page and any(name.lower().startswith("iso-2022") for name in named)):  # that one is all ASCII
        yield "utf-8-sig"  # leaves out a byte order mark
    for name in named:
        known = map_encoding_to_html5(name, fallback_utf8=False)  # as browsers do: latin-1 means windows-1252
        if known:
            yield known
    detected = detect_encoding(page)
    if detected:
        yield detected


def _replaced(page: bytes, encoding: str) -> tuple[str, str]:
    try:
        text = page.decode(encoding, "replace")
    except LookupError:
        text = page.decode("utf-8", "replace")
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
