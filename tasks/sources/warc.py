"""WARC files of a web crawl, Common Crawl's among them, to documents: every record is read, and kept, dropped with a reason or quarantined.

In the order of what it costs: the record's type, the HTTP status, the media type, the URL, the page's text, its lines. WET files (text that
the crawler took out) are read too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecord

from tasks.sources import extraction, url_filter
from tasks.sources.base import Bad, Dropped, Item, RawFile, Record, positional_id
from tasks.sources.config import SourceConfig
from tasks.sources.sandbox import Refused, Sandbox
from tasks.sources.warc_records import MAX_HEADER_BYTES, Cut, records

COLUMNS = {"url": pa.string()}
HTML = ("text/html", "application/xhtml+xml")
# How browsers know a page that nobody declares (WHATWG MIME sniffing, section 7.1), and XHTML behind an XML declaration.
_LOOKS_LIKE_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?[\t\n\f\r ]*<(?:(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|!--)[ >]|\?xml[^>]*>.{0,1024}?<html)",
    re.IGNORECASE | re.DOTALL,
)
LIBRARIES = {  # whose versions can change a text
    "resiliparse": ("resiliparse", "fastwarc"),
    "trafilatura": ("trafilatura", "lxml", "resiliparse", "fastwarc"),
    "url_filter": ("datatrove", "tldextract"),
    "c4_lines": ("datatrove",),
}


def libraries(config: SourceConfig) -> list[str]:
    """The libraries whose versions are a part of the key of a shard."""
    settings = config.warc
    used = [settings.extractor, *(["url_filter"] if settings.url_filter else []), *(["c4_lines"] if settings.c4_lines else [])]
    return sorted({name for use in used for name in LIBRARIES[use]})


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item a record, with the column `url`; `created` is the date of the crawl."""
    settings = config.warc
    blocked = url_filter.make(settings.url_filter) if settings.url_filter else None
    first = (settings.extractor, b"<p>A page.</p>", None)
    with Sandbox(extraction.page_text, settings.timeout_seconds, first) as sandbox:
        pages = _Pages(file, settings.extractor, sandbox, blocked, _c4_lines() if settings.c4_lines else None)
        for number, cut in enumerate(records(file), 1):
            yield cut if isinstance(cut, Bad) else pages.item(cut, number)


def _parsed(content: bytes, decode: Literal["all", "none"]) -> WarcRecord:
    return next(iter(ArchiveIterator(io.BytesIO(content), auto_decode=decode, max_header_len=MAX_HEADER_BYTES)))


class _Out(Exception):
    """The record is dropped; the message is the reason."""


@dataclass
class _Pages:
    file: RawFile
    extractor: extraction.Extractor
    sandbox: Sandbox
    blocked: Callable[[str], str | None] | None
    lines: Callable[[str], str] | None

    def item(self, cut: Cut, number: int) -> Item:
        try:
            record = _parsed(cut.content, "all")
        except (OSError, StopIteration, ValueError) as error:
            return Bad(cut.position, f"the record's header cannot be read: {error}", cut.content)
        try:
            return self._document(record, cut, number)
        except _Out as out:
            return Dropped(str(out))

    def _document(self, record: WarcRecord, cut: Cut, number: int) -> Item:
        kind = str(record.record_type)
        if kind not in ("response", "conversion"):
            raise _Out(f"{kind} record")
        url = _header(record, "WARC-Target-URI").strip("<>")
        if not url:
            return Bad(cut.position, "the record has no WARC-Target-URI", cut.content)
        is_text = kind == "conversion" and _media_type(_header(record, "Content-Type")) == "text/plain"
        if kind == "conversion" and not is_text:
            raise _Out("conversion record that is no text")
        if not is_text:
            _check_http(record)
        if not cut.is_whole:
            raise _Out("over 64 MiB")
        if self.blocked and (reason := self.blocked(url)):
            raise _Out(f"URL filter: {reason}")
        text, encoding = self._plain(record) if is_text else self._extracted(record, cut)
        return Record(
            position=cut.position,
            id=_header(record, "WARC-Record-ID") or positional_id(self.file, number),
            text=self._lines_kept(text),
            created=_header(record, "WARC-Date") or None,
            metadata=_metadata(record, encoding),
            columns={"url": url},
        )

    def _plain(self, record: WarcRecord) -> tuple[str, str]:
        try:
            text = record.reader.read().decode()
        except UnicodeDecodeError:
            raise _Out("undecodable text") from None
        if not text.strip():
            raise _Out("empty text")
        return text, "utf-8"

    def _extracted(self, record: WarcRecord, cut: Cut) -> tuple[str, str]:
        page = _body(record, cut.content)
        if not page.strip():
            raise _Out("empty page")
        if not _is_html(record, page):
            raise _Out("not HTML")
        try:
            text, encoding = self.sandbox.call(self.extractor, page, record.http_charset)
        except Refused as refused:
            cause = str(refused)
            raise _Out("undecodable page" if extraction.Undecodable.__name__ in cause else f"extraction {cause}") from None
        if not text:
            raise _Out("empty extraction")
        return text, encoding

    def _lines_kept(self, text: str) -> str:
        if self.lines is None:
            return text
        kept = self.lines(text)
        if not kept:
            raise _Out("no line passes C4's rules")
        return kept


def _header(record: WarcRecord, name: str) -> str:
    return (record.headers.get(name) or "").strip()


def _media_type(value: str) -> str:
    return value.split(";")[0].strip().lower()


def _check_http(record: WarcRecord) -> None:
    if not record.is_http or record.http_headers is None:
        raise _Out("not HTTP")
    status = record.http_headers.status_code
    if status is None:
        raise _Out("malformed HTTP header")
    if status != 200:
        raise _Out(f"HTTP status {status}")
    known = _declared_type(record)
    if known and known not in HTML:
        raise _Out("not HTML")


def _declared_type(record: WarcRecord) -> str:
    """The media type that the crawler found or else the server sent; "" where neither says anything of use."""
    known = _media_type(_header(record, "WARC-Identified-Payload-Type")) or _media_type(record.http_content_type or "")
    return "" if known in ("unk", "application/octet-stream") else known


def _is_html(record: WarcRecord, page: bytes) -> bool:
    return bool(_declared_type(record)) or _LOOKS_LIKE_HTML.match(page) is not None


def _body(record: WarcRecord, content: bytes) -> bytes:
    """The page without its transfer and content encodings."""
    try:
        return record.reader.read()
    except OSError:
        pass
    # Some crawlers store what they decoded and leave the server's header as it was.
    stored = _parsed(content, "none").reader.read()
    if not stored.lstrip().startswith(b"<"):
        raise _Out("damaged HTTP body")
    return stored


def _metadata(record: WarcRecord, encoding: str) -> dict[str, Any]:
    truncated = _header(record, "WARC-Truncated")
    return {"encoding": encoding, **({"truncated": truncated} if truncated else {})}


def _c4_lines() -> Callable[[str], str]:
    """C4's rules for lines: those that end in a punctuation mark, have three words and name no policy or JavaScript stay."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter

    # What drops whole documents is left to the filters behind, which read the column `c4_quality`.
    rules = C4QualityFilter(min_num_sentences=-1, filter_lorem_ipsum=False, filter_curly_bracket=False)

    def kept(text: str) -> str:
        document = Document(text=text, id="")
        rules.filter(document)
        return document.text

    return kept
