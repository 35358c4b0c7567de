"""Plain text files and Project Gutenberg's frame."""

import bz2
import gzip
import io
import random
import tarfile
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


# -- tar archives ----------------------------------------------------------------------------------------------------------------------


def packed(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("a folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_all(file: RawFile) -> list[Item]:
    return list(READERS["text"](file, SourceConfig(format="text", paths=["x"])))


FILES = {"one.tex": b"\\section{One}\r\n", "../up/" + "long" * 60 + ".tex": b"x" * 2048, "empty": b" ", "two.tex": b"two " * 999}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_each_file_of_an_archive_is_a_document(raw: MakeRaw, form: int, compress: Callable[[bytes], bytes]) -> None:
    items = read_all(raw(compress(packed(FILES, form))))
    texts = {item.metadata["file"]: item.text for item in items if isinstance(item, Record)}
    assert texts == {name: content.decode().replace("\r\n", "\n") for name, content in FILES.items() if name != "empty"}
    assert items[2] == Dropped("empty text") and len(items) == 4
    assert len({item.id for item in items if isinstance(item, Record)}) == 3


def test_a_link_in_an_archive_is_dropped_and_a_bad_text_is_bad_by_itself(raw: MakeRaw) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, content in {"bad": b"ab\xff", "good": b"good"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    dropped, bad, good = read_all(raw(buffer.getvalue()))
    assert isinstance(dropped, Dropped) and isinstance(good, Record)
    assert isinstance(bad, Bad) and (bad.position, bad.raw) == ("member bad, byte 2", b"ab\xff")


def test_an_archive_cut_off_anywhere_loses_nothing_in_silence(raw: MakeRaw) -> None:
    whole = packed({"a": b"a" * 700, "b": b"b" * 1024, "c": b"c"}, tarfile.GNU_FORMAT)
    end = 512 + (512 + 1024) + (512 + 1024) + (512 + 512)  # the folder, three members; then the end mark
    for cut in [*range(512, end + 512, 128), end, end + 1]:
        items = read_all(raw(whole[:cut], f"cut-{cut}"))
        documents = sum(isinstance(item, Record) for item in items)
        bad = [item for item in items if isinstance(item, Bad)]
        assert documents == sum(cut >= size for size in (1736, 3584, 4097)) or documents == 3
        assert len(bad) == (cut <= end), cut
        assert all(0 <= item.unreadable_bytes <= cut for item in bad)


def test_a_damaged_header_is_no_end(raw: MakeRaw) -> None:
    whole = bytearray(packed({"a": b"a" * 10, "b": b"b" * 10, "c": b"c"}, tarfile.GNU_FORMAT))
    whole[512 * 3 + 150] ^= 0xFF  # in the checksum of the second
    first, bad = read_all(raw(bytes(whole)))
    assert isinstance(first, Record) and first.text == "a" * 10
    assert isinstance(bad, Bad) and bad.position == "after member a" and bad.unreadable_bytes == len(whole) - 512 * 3


def test_a_damaged_compression_keeps_the_files_before_it(raw: MakeRaw) -> None:
    content = gzip.compress(packed({"a": b"a" * 10, "b": random.Random(0).randbytes(4_000_000).hex().encode()}))
    *before, bad = read_all(raw(content[:-1_000_000]))
    assert [item.text for item in before if isinstance(item, Record)] == ["a" * 10]
    assert isinstance(bad, Bad) and bad.position == "member b" and "cut off" in bad.cause


def test_real_latex_is_read_as_text(data: Path) -> None:
    path = data / "academic" / "hott_book_latex.tar.gz"
    items = read_all(RawFile(str(path), path.name, path.stat().st_size, "0" * 64))
    assert len(items) == 13 and all(isinstance(item, Record) and "\\" in item.text for item in items)
