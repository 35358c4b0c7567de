"""Plain text files and Project Gutenberg's frame."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.sources import READERS, Bad, Dropped, Item, RawFile, Record, SourceConfig

MakeRaw = Callable[..., RawFile]


def read(file: RawFile) -> Item:
    (item,) = READERS["text"](file, SourceConfig(format="text", paths=["x"]))
    return item


def test_a_file_is_a_document_without_marks_and_carriage_returns(raw: MakeRaw) -> None:
    file = raw(gzip.compress(b"\xef\xbb\xbfone\r\ntwo\rthree\n"))
    assert read(file) == Record("file", f"{file.content_id[:16]}:1", "one\ntwo\nthree\n")


BOOK = (
    "The Project Gutenberg EBook of A Book\r\n\r\n*** START OF THIS PROJECT GUTENBERG EBOOK A\r\nBOOK ***\r\n\r\n\r\n"
    "Chapter *** 1\r\n\r\n  It was.\r\n\r\n\r\nEnd of the Project Gutenberg EBook of A Book\r\n\r\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\r\nlicence\r\n*** START: FULL LICENSE ***\r\n"
)


def test_gutenbergs_header_and_licence_go(raw: MakeRaw) -> None:
    item = read(raw(BOOK.encode()))
    assert isinstance(item, Record) and item.text == "Chapter *** 1\n\n  It was.\n"


@pytest.mark.parametrize("cut", ["*** START OF THIS", "*** END OF THIS"])
def test_a_text_with_one_marker_only_is_left_alone(raw: MakeRaw, cut: str) -> None:
    book = BOOK.replace(cut, "")
    item = read(raw(book.encode()))
    assert isinstance(item, Record) and item.text == book.replace("\r\n", "\n")


def test_empty_broken_and_cut_off_texts_are_booked(raw: MakeRaw) -> None:
    assert read(raw(b" \r\n ")) == Dropped("empty text")
    assert read(raw(b"")) == Dropped("empty text")
    bad = read(raw(b"ab\xff"))
    assert isinstance(bad, Bad) and (bad.position, bad.raw) == ("byte 2", b"ab\xff")
    cut = read(raw(gzip.compress(b"words " * 999)[:-9]))
    assert isinstance(cut, Bad) and "ends early" in cut.cause


def test_real_books_begin_and_end_with_the_book(data: Path) -> None:
    for path in sorted((data / "books").glob("*.txt.gz")):
        item = read(RawFile(str(path), path.name, path.stat().st_size, "0" * 64))
        assert isinstance(item, Record) and len(item.text) > 100_000
        assert "END OF THIS PROJECT" not in item.text and "Gutenberg License" not in item.text and "\r" not in item.text
