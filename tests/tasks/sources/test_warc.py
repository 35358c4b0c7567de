"""WARC files: every record is kept, dropped with a reason or quarantined, and what lies behind a fault is still read."""

import gzip
import importlib
import io
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
import zstandard
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from tasks.sources import READERS, Bad, Dropped, Item, RawFile, Record, SourceConfig, extraction, warc_records

MakeRaw = Callable[..., RawFile]
PARAGRAPH = "The old mill stands by the river, and in the evening its wheel turns slowly in the low light of the sun. "


def html(text: str = PARAGRAPH * 3, head: str = "") -> str:
    return f"<html><head>{head}<title>t</title></head><body><nav><a href='/'>Home</a></nav><article><p>{text}</p></article></body></html>"


class Crawl:
    """A WARC file that warcio writes, with where each record begins."""

    def __init__(self, compressed: bool = True) -> None:
        self.stream = io.BytesIO()
        self.writer = WARCWriter(self.stream, gzip=compressed)
        self.offsets: list[int] = []

    def add(
        self,
        kind: str = "response",
        body: bytes = b"",
        url: str = "http://example.org/page",
        status: str | None = "200 OK",
        headers: dict[str, str] | None = None,
        warc_headers: dict[str, str] | None = None,
    ) -> "Crawl":
        self.offsets.append(self.stream.tell())
        http = StatusAndHeaders(status, list((headers or {}).items()), protocol="HTTP/1.1") if status else None
        extra = {"WARC-Date": "2026-01-02T03:04:05Z", "WARC-Record-ID": f"<urn:uuid:{len(self.offsets)}>", **(warc_headers or {})}
        record = self.writer.create_warc_record(url, kind, payload=io.BytesIO(body), http_headers=http, warc_headers_dict=extra)
        self.writer.write_record(record)
        return self

    def page(self, body: str | bytes = "", **given) -> "Crawl":
        content = body if isinstance(body, bytes) else (body or html()).encode()
        return self.add(body=content, headers={"Content-Type": "text/html", **given.pop("headers", {})}, **given)

    def text(self, text: str = "plain text") -> "Crawl":
        """A WET record, which needs no extractor."""
        return self.add("conversion", text.encode(), status=None, warc_headers={"Content-Type": "text/plain"})

    @property
    def content(self) -> bytes:
        return self.stream.getvalue()

    def members(self) -> list[bytes]:
        ends = [*self.offsets[1:], len(self.content)]
        return [self.content[begin:end] for begin, end in zip(self.offsets, ends, strict=True)]


def read(file: RawFile, **settings) -> list[Item]:
    return list(READERS["warc"](file, SourceConfig(format="warc", paths=["x"], warc=settings)))


def reasons(items: list[Item]) -> list[str]:
    return [item.reason if isinstance(item, Dropped) else "bad" if isinstance(item, Bad) else "kept" for item in items]


# -- which records become documents --------------------------------------------------------------------------------------------------


def test_every_record_is_kept_or_dropped_with_its_reason(raw: MakeRaw) -> None:
    crawl = Crawl()
    crawl.add("warcinfo", b"software: x\r\n", status=None)
    crawl.add("request", status=None, body=b"GET / HTTP/1.1\r\n\r\n")
    crawl.page()
    crawl.page(status="404 Not Found").page(status="301 Moved")
    crawl.add(body=b"\x89PNG\r\n", headers={"Content-Type": "image/png"})
    crawl.add(body=b"%PDF-1.4", headers={"Content-Type": "text/html"}, warc_headers={"WARC-Identified-Payload-Type": "application/pdf"})
    crawl.add(body=html().encode(), headers={})  # nobody says what it is
    crawl.add(body=b"{}", headers={})
    crawl.page(b"  \r\n").page("<html><body></body></html>")
    crawl.add("metadata", b"fetchTimeMs: 1\r\n", status=None).add("revisit", status=None)
    crawl.add(body=b"20260102 example.org", status=None, url="dns:example.org", warc_headers={"Content-Type": "text/dns"})
    crawl.text()
    assert reasons(read(raw(crawl.content))) == [
        "warcinfo record",
        "request record",
        "kept",
        "HTTP status 404",
        "HTTP status 301",
        "not HTML",
        "not HTML",
        "kept",
        "not HTML",
        "empty page",
        "empty extraction",
        "metadata record",
        "revisit record",
        "not HTTP",
        "kept",
    ]


def test_a_page_becomes_a_document_with_its_url_date_and_record_id(raw: MakeRaw) -> None:
    crawl = Crawl().text().page(url="https://example.org/a?b=c")
    item = read(raw(crawl.content))[1]
    assert isinstance(item, Record)
    assert (item.id, item.created, item.columns) == ("<urn:uuid:2>", "2026-01-02T03:04:05Z", {"url": "https://example.org/a?b=c"})
    assert item.text == (PARAGRAPH * 3).strip()  # without the navigation
    assert (item.position, item.metadata) == (f"byte {crawl.offsets[1]}", {"encoding": "utf-8"})


def test_transfer_and_content_encodings_are_undone(raw: MakeRaw) -> None:
    page = html().encode()
    crawl = Crawl()
    crawl.page(gzip.compress(page), headers={"Content-Encoding": "gzip"})
    crawl.page(brotli.compress(page), headers={"Content-Encoding": "br"})
    crawl.page(b"%x\r\n%s\r\n0\r\n\r\n" % (len(page), page), headers={"Transfer-Encoding": "chunked"})
    # Decoded by the crawler, which left the header as it was.
    crawl.page(page, headers={"Content-Encoding": "gzip"}).page(page, headers={"Transfer-Encoding": "chunked"})
    assert kept_texts(read(raw(crawl.content))) == [(PARAGRAPH * 3).strip()] * 5


def test_a_body_that_cannot_be_decoded_is_dropped(raw: MakeRaw) -> None:
    broken = gzip.compress(html().encode())
    crawl = Crawl().page(broken[:10] + b"\xff" * 20 + broken[30:], headers={"Content-Encoding": "gzip"})
    assert reasons(read(raw(crawl.content))) == ["damaged HTTP body"]


def test_trafilatura_can_take_the_text_out_instead(raw: MakeRaw) -> None:
    (item,) = read(raw(Crawl().page().content), extractor="trafilatura")
    assert isinstance(item, Record) and item.text == (PARAGRAPH * 3).strip()


def test_c4_takes_out_lines_that_are_no_sentences(raw: MakeRaw) -> None:
    page = html(f"{PARAGRAPH}</p><p>Share on</p><p>Please enable Javascript now to go on reading.</p><p>{PARAGRAPH}")
    crawl = Crawl().page(page).page(html("No full stop in all of this long line of words " * 5))
    kept, dropped = read(raw(crawl.content), c4_lines=True)
    assert isinstance(kept, Record) and kept.text == f"{PARAGRAPH.strip()}\n{PARAGRAPH.strip()}"
    assert dropped == Dropped("no line passes C4's rules")


# -- encodings -----------------------------------------------------------------------------------------------------------------------

GERMAN = "Die Bäume blühen schön, und über den Flüssen hängt früh am Morgen noch der weiße Nebel. " * 3
RUSSIAN = "Старая мельница стоит у реки, и вечером её колесо медленно вращается в лучах солнца. " * 3


@pytest.mark.parametrize(
    ("text", "encoding", "header", "head", "said"),
    [
        (GERMAN, "latin-1", "text/html", "", "cp1252"),  # nothing is declared
        (GERMAN, "latin-1", "text/html; charset=utf-8", "", "cp1252"),  # a wrong header
        (GERMAN, "utf-8", "text/html; charset=iso-8859-1", "", "utf-8"),
        (GERMAN, "utf-16", "text/html", "", "utf-16"),
        (GERMAN + "“quoted”", "cp1252", "text/html; charset=iso-8859-1", "", "cp1252"),  # as browsers take it
        (RUSSIAN, "cp1251", "text/html; charset=windows-1251", "", "cp1251"),
        (RUSSIAN, "koi8-r", "text/html", "<meta charset='koi8-r'>", "koi8-r"),
        (RUSSIAN, "cp1251", "text/html", "", "cp1251"),
        ("Žluťoučký kůň.", "iso-8859-2", "text/html; charset=iso-8859-2", "", "iso8859-2"),  # too short to be found out
        ("Žluťoučký kůň.", "iso-8859-2", "text/html", "<meta charset=iso-8859-2>", "iso8859-2"),
        ("古い水車小屋が川のほとりに立っている。" * 9, "iso-2022-jp", "text/html; charset=iso-2022-jp", "", "iso2022_jp"),
        (
            "古い水車小屋が川のほとりに立っている。" * 9,
            "shift_jis",
            "text/html",
            "<meta http-equiv=Content-Type content='text/html; charset=Shift_JIS'>",
            "shift_jis",
        ),
    ],
)
def test_a_page_is_decoded_whatever_it_declares(text: str, encoding: str, header: str, head: str, said: str) -> None:
    charset = header.partition("charset=")[2] or None
    decoded, name = extraction.decode(html(text, head).encode(encoding), charset)
    assert text in decoded
    assert name.replace("-", "").replace("_", "").lower() == said.replace("-", "").replace("_", "")


def test_a_few_bad_bytes_become_replacement_characters_and_many_drop_the_page(raw: MakeRaw) -> None:
    few = html("\u4e2d\u6587 " + PARAGRAPH * 3).encode().replace(b"old mill", b"old \xff\x81 mill", 1)
    many = html("X").encode().replace(b"X", b"\x81\xff " * 300)
    crawl = Crawl()
    for page in (few, many):
        crawl.page(page, headers={"Content-Type": "text/html; charset=shift_jis"})
    assert reasons(read(raw(crawl.content))) == ["kept", "undecodable page"]


# -- faults of the file --------------------------------------------------------------------------------------------------------------


def wet(count: int = 5, compressed: bool = True) -> Crawl:
    crawl = Crawl(compressed)
    for number in range(count):
        crawl.text(f"text {number}")
    return crawl


def kept_texts(items: list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, Record)]


def test_plain_zstd_and_single_member_files_are_read_like_common_ones(raw: MakeRaw) -> None:
    plain = wet(compressed=False)
    want = [f"text {number}" for number in range(5)]
    frames = b"".join(zstandard.compress(member) for member in plain.members())
    for content in (wet().content, plain.content, frames, gzip.compress(plain.content)):
        assert kept_texts(read(raw(content))) == want
    assert [item.position for item in read(raw(plain.content))] == [f"byte {offset}" for offset in plain.offsets]


def test_a_cut_off_file_gives_what_is_whole_and_books_the_rest(raw: MakeRaw) -> None:
    crawl = wet()
    items = read(raw(crawl.content[:-30]))
    assert kept_texts(items) == ["text 0", "text 1", "text 2", "text 3"]
    bad = items[-1]
    assert isinstance(bad, Bad) and len(items) == 5
    assert bad.position == f"byte {crawl.offsets[-1]}" and "the file is cut off" in bad.cause
    assert bad.unreadable_bytes == len(crawl.content) - 30 - crawl.offsets[-1]


def test_a_cut_off_plain_file_books_its_last_record(raw: MakeRaw) -> None:
    crawl = wet(compressed=False)
    items = read(raw(crawl.content[:-9]))
    assert kept_texts(items) == ["text 0", "text 1", "text 2", "text 3"]
    assert isinstance(items[-1], Bad) and items[-1].position == f"byte {crawl.offsets[-1]}" and b"WARC/1.0" in items[-1].raw


@pytest.mark.parametrize("at", ["middle", "checksum", "magic"])
def test_behind_a_damaged_member_the_next_one_is_read(raw: MakeRaw, at: str) -> None:
    crawl = wet()
    members = crawl.members()
    broken = bytearray(members[2])
    broken[{"middle": len(broken) // 2, "checksum": -6, "magic": 0}[at]] ^= 0xFF
    items = read(raw(b"".join([*members[:2], bytes(broken), *members[3:]])))
    assert kept_texts(items) == ["text 0", "text 1", "text 3", "text 4"]
    (bad,) = [item for item in items if isinstance(item, Bad)]
    assert (bad.position, bad.unreadable_bytes) == (f"byte {crawl.offsets[2]}", len(members[2]))
    assert "damaged" in bad.cause and bad.raw


def test_garbage_between_records_is_quarantined_and_nothing_else(raw: MakeRaw) -> None:
    for compressed in (True, False):
        members = wet(compressed=compressed).members()
        items = read(raw(b"".join([*members[:2], b"no record\n\x1f\x8b\x08\0WARC at all\r\n", *members[2:]])))
        assert kept_texts(items) == [f"text {number}" for number in range(5)]
        (bad,) = [item for item in items if isinstance(item, Bad)]
        assert bad.position == f"byte {sum(map(len, members[:2]))}" and b"no record" in bad.raw


def test_a_member_that_holds_no_record_is_quarantined(raw: MakeRaw) -> None:
    members = wet(2).members()
    items = read(raw(members[0] + gzip.compress(b"hello\n") + members[1]))
    assert reasons(items) == ["kept", "bad", "kept"]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("length", ["100000", "9", "3", "none", "-5"])
def test_a_wrong_length_costs_its_own_record_only(raw: MakeRaw, compressed: bool, length: str) -> None:
    plain = wet(compressed=False).members()
    plain[2] = re.sub(rb"Content-Length: \d+", b"Content-Length: " + length.encode(), plain[2])
    if length == "9":
        plain[2] = plain[2].replace(b"text 2", b"text 2222222222")
    items = read(raw(b"".join(gzip.compress(record) if compressed else record for record in plain)))
    assert kept_texts(items) == ["text 0", "text 1", "text 3", "text 4"]
    assert reasons(items).count("bad") == 1


def test_records_over_the_limit_are_dropped_and_the_next_one_is_read(raw: MakeRaw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc_records, "MAX_RECORD_BYTES", 1 << 20)
    for compressed in (True, False):
        crawl = Crawl(compressed)
        crawl.text().add(body=b"<p>" + bytes(5 << 20), headers={"Content-Type": "text/html"}).text()
        assert reasons(read(raw(crawl.content))) == ["kept", "over 64 MiB", "kept"]
    assert reasons(read(raw(crawl.content[: 3 << 20]))) == ["kept", "bad"]


def test_a_record_without_url_or_with_a_broken_header_is_quarantined(raw: MakeRaw) -> None:
    plain = wet(3, compressed=False).members()
    without = re.sub(rb"WARC-Target-URI: [^\r]*\r\n", b"", plain[1])
    assert reasons(read(raw(plain[0] + without + plain[2]))) == ["kept", "bad", "kept"]


def test_whatever_happens_to_a_file_its_whole_records_are_found(raw: MakeRaw) -> None:
    chance = random.Random(7)
    for compressed in (True, False):
        members = wet(8, compressed=compressed).members()
        for _ in range(60):
            hit = chance.randrange(8)
            broken = bytearray(members[hit])
            begin = chance.randrange(len(broken))
            broken[begin : begin + chance.randrange(1, 60)] = chance.randbytes(chance.randrange(0, 40))
            items = read(raw(b"".join([*members[:hit], bytes(broken), *members[hit + 1 :]])))
            found = Counter(kept_texts(items))
            # A change may hit what does not matter, such as a date or the line ends behind a record.
            assert all(found[f"text {number}"] == 1 for number in range(8) if number not in (hit, hit + 1)), (hit, begin)
            assert found[f"text {hit}"] or "bad" in reasons(items) or len(items) == 8


# -- what the extractor may do to a shard -----------------------------------------------------------------------------------------------


def test_a_page_that_hangs_or_crashes_the_extractor_is_dropped_and_the_shard_goes_on(
    raw: MakeRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_extractor.py").write_text(
        "import os, time\n"
        "def page_text(extractor, page, declared):\n"
        "    if b'hang' in page: time.sleep(600)\n"
        "    if b'crash' in page: os.abort()\n"
        "    if b'raise' in page: raise RecursionError('too deep')\n"
        "    return page.decode(), 'utf-8'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extraction, "page_text", importlib.import_module("hostile_extractor").page_text)
    crawl = Crawl()
    for word in ("one", "hang", "two", "crash", "three", "raise", "four"):
        crawl.page(f"<p>{word}")
    items = read(raw(crawl.content), timeout_seconds=0.5)
    del sys.modules["hostile_extractor"]
    assert reasons(items) == [
        "kept",
        "extraction timed out",
        "kept",
        "extraction crashed with signal 6",
        "kept",
        "extraction failed with RecursionError: too deep",
        "kept",
    ]


# -- the URL filter ------------------------------------------------------------------------------------------------------------------


def test_the_url_filter_drops_by_domain_address_and_words_before_a_page_is_looked_at(
    raw: MakeRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = {
        "domains": "# a comment\nbad.co.uk\n\nblog.example.org\n",
        "urls": "http://example.org/no\n",
        "words": "casino\n",
        "soft_words": "cheap\npills\n",
        "subwords": "porn\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
    addresses = [
        "http://example.org/yes",
        "http://www.bad.co.uk/x",
        "https://blog.example.org/",
        "http://example.org/no",
        "http://example.org/casino-royale",
        "http://example.org/cheap",
        "http://example.org/cheap-pills",
        "http://example.org/aPornB",
    ]
    crawl = Crawl()
    for address in addresses:
        crawl.page(url=address)
    monkeypatch.setattr(extraction, "page_text", _never)
    settings = {"integrated_lists": False, **{name: [str(tmp_path / name)] for name in lists}}
    items = read(raw(Crawl().page(url=addresses[1]).content), url_filter=settings)  # no process for pages is started
    assert reasons(items) == ["URL filter: domain"]
    monkeypatch.undo()
    assert reasons(read(raw(crawl.content), url_filter=settings)) == [
        "kept",
        "URL filter: domain",
        "URL filter: subdomain",
        "URL filter: url",
        "URL filter: hard_blacklisted",
        "kept",
        "URL filter: soft_blacklisted",
        "URL filter: blacklisted_subword",
    ]


def _never(extractor: str, page: bytes, declared: str | None) -> tuple[str, str]:
    raise AssertionError("no page is to be looked at")


# -- real crawls ---------------------------------------------------------------------------------------------------------------------


def test_the_samples_records_are_all_accounted_for(data: Path) -> None:
    for path in sorted((data / "web" / "warc").iterdir()):
        file = RawFile(str(path), path.name, path.stat().st_size, "0" * 64)
        with path.open("rb") as stream:
            want = Counter(record.rec_type for record in ArchiveIterator(stream))
        items = list(warc_records.records(file))
        found = Counter(re.search(rb"(?i)\nwarc-type: *(\S+)", item.content)[1].decode() for item in items)
        assert found == want, path.name


def test_a_real_crawl_is_read_with_reasons_for_all_that_is_left_out(data: Path) -> None:
    path = data / "web" / "warc" / "yorku_etig_2014.warc.gz"
    items = read(RawFile(str(path), path.name, path.stat().st_size, os.urandom(8).hex()))
    counts = Counter(reasons(items))
    assert len(items) == 802 and counts["kept"] >= 70 and "bad" not in counts
    assert counts["request record"] == counts["metadata record"] == 251
