"""Files of Stack Exchange dumps: archives that stream, and hostile, broken or cut-off ones."""

import gzip
import io
import os
import re
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import py7zr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.sources import READERS, Bad, Item, RawFile, Record, SourceConfig, seven_zip

MakeRaw = Callable[..., RawFile]
HEAD = '\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'
POSTS = "a.stackexchange.com/Posts.xml"
ARCHIVE = "a.stackexchange.com.7z"


def pair(id: int, body: str = "b") -> str:
    question = f'  <row Id="{id}" PostTypeId="1" AcceptedAnswerId="{id + 1}" Score="9" Title="T" Body="{body}" />\n'
    return question + f'  <row Id="{id + 1}" PostTypeId="2" ParentId="{id}" Score="9" Body="{body}" />\n'


def dump(*rows: str) -> bytes:
    return (HEAD + "".join(rows) + "</posts>").encode()


def archive(members: dict[str, bytes], **settings: Any) -> bytes:
    sink = io.BytesIO()
    with py7zr.SevenZipFile(sink, "w", **settings) as packed:
        for name, content in members.items():
            packed.writestr(content, name)
    return sink.getvalue()


def reader(file: RawFile) -> Any:
    return READERS["stackexchange"](file, SourceConfig(format="stackexchange", paths=["x"]))


def read(file: RawFile) -> list[Item]:
    return list(reader(file))


def records(items: list[Item]) -> list[str]:
    return [item.id.rsplit("/", 1)[1] for item in items if isinstance(item, Record)]


def only_bad(items: list[Item]) -> Bad:
    (bad,) = (item for item in items if isinstance(item, Bad))
    return bad


# -- archives ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [py7zr.FILTER_LZMA2, py7zr.FILTER_LZMA, py7zr.FILTER_BZIP2, py7zr.FILTER_DEFLATE, py7zr.FILTER_COPY])
def test_an_archive_of_any_method_is_read_without_its_other_tables(raw: MakeRaw, method: int) -> None:
    members = {"Badges.xml": b"not xml", "Posts.xml": dump(*(pair(id) for id in range(1, 1200, 2))), "Users.xml": b"x" * 1000}
    items = read(raw(archive(members, filters=[{"id": method}]), ARCHIVE))
    assert records(items) == [str(id) for id in range(1, 1200, 2)] and len(items) == 600


def test_an_archive_streams_and_leaves_nothing_on_the_disk(raw: MakeRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    file = raw(archive({"Posts.xml": dump(*(pair(id) for id in range(1, 400, 2)))}), ARCHIVE)
    for _ in reader(file):
        assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARCHIVE, "scratch"]


class Watched(RawFile):
    """A raw file that counts what is read of it."""

    read_bytes: ClassVar[int] = 0

    def open(self) -> Any:
        class Counting(io.FileIO):
            def read(self, size: int | None = -1) -> bytes:
                content = super().read(size)
                Watched.read_bytes += len(content or b"")
                return content or b""

        return Counting(self.url)


def test_a_reader_that_stops_early_ends_its_decoder(raw: MakeRaw) -> None:
    content = archive({"Posts.xml": os.urandom(1000) * 30_000}, filters=[{"id": py7zr.FILTER_COPY}])
    file = Watched(**vars(raw(content, ARCHIVE)))
    threads = threading.active_count()
    blocks = seven_zip.member_blocks(file, "Posts.xml")
    next(blocks)
    assert threading.active_count() == threads + 1
    blocks.close()
    assert threading.active_count() == threads
    assert 0 < Watched.read_bytes < file.size / 2


def renamed(content: bytes, old: str, new: str) -> bytes:
    """An archive with a plain header in which a member has another name of the same length: what no tool would write."""
    assert len(old) == len(new)
    packed = content[32:].replace(old.encode("utf-16-le"), new.encode("utf-16-le"))
    offset, size, _ = struct.unpack("<QQL", content[12:32])
    start = struct.pack("<QQL", offset, size, zlib.crc32(packed[offset : offset + size]))
    return content[:8] + struct.pack("<L", zlib.crc32(start)) + start + packed


@pytest.mark.parametrize("name", ["../Users.xml", "/tmp/sers.xml", "a/../../.xml", "C:/Users.xml", "..\\Users.xml"])
def test_an_archive_with_members_outside_it_is_refused(raw: MakeRaw, name: str) -> None:
    sink = io.BytesIO()
    with py7zr.SevenZipFile(sink, "w") as packed:
        packed.set_encoded_header_mode(False)
        packed.writestr(dump(pair(1)), "Posts.xml")
        packed.writestr(b"x", "aaaUsers.xml"[: len(name)].ljust(len(name), "l"))
    content = renamed(sink.getvalue(), "aaaUsers.xml"[: len(name)].ljust(len(name), "l"), name)
    (bad,) = read(raw(content, ARCHIVE))
    assert isinstance(bad, Bad) and "refused" in bad.cause and repr(name.replace("\\", "/")) in bad.cause.replace("\\\\", "/")
    assert bad.unreadable_bytes == len(content)


def test_an_archive_with_a_link_is_refused(raw: MakeRaw, tmp_path: Path) -> None:
    (tmp_path / "Users.xml").symlink_to("/etc/passwd")
    (tmp_path / "Posts.xml").write_bytes(dump(pair(1)))
    path = tmp_path / ARCHIVE
    with py7zr.SevenZipFile(path, "w") as packed:
        for name in ("Posts.xml", "Users.xml"):
            packed.write(tmp_path / name, name)
    (bad,) = read(raw(path.read_bytes(), ARCHIVE))
    assert isinstance(bad, Bad) and "'Users.xml' is a link" in bad.cause


def test_broken_archives_are_bad_as_a_whole(raw: MakeRaw) -> None:
    good = archive({"Posts.xml": dump(pair(1)) + b" " * 5000})
    damaged = good[:40] + b"\xff" * 20 + good[60:]
    without = archive({"Users.xml": b"x"})
    locked = archive({"Posts.xml": dump(pair(1))}, password="secret")
    for content in (good[:-10], good[: len(good) // 2], damaged, b"7z\xbc\xaf\x27\x1c", without, locked):
        (bad,) = read(raw(content, ARCHIVE))
        assert isinstance(bad, Bad) and "archive" in bad.cause and bad.unreadable_bytes == len(content)


GOOD = archive({"Badges.xml": b"badges" * 50, "Posts.xml": dump(pair(1), pair(3))})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(6, len(GOOD) - 1), byte=st.integers(0, 255))
def test_no_damaged_byte_passes_for_a_dump(raw: MakeRaw, at: int, byte: int) -> None:
    items = read(raw(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :], ARCHIVE))
    assert records(items) == ["1", "3"] or (len(items) == 1 and "archive" in only_bad(items).cause)


def test_an_archive_whose_checksum_is_wrong_gives_no_document(raw: MakeRaw) -> None:
    content = archive({"Posts.xml": dump(pair(1, "left"), pair(3, "right"))}, filters=[{"id": py7zr.FILTER_COPY}])
    items = read(raw(content.replace(b"left", b"lift", 1), ARCHIVE))
    assert len(items) == 1 and "damaged archive" in only_bad(items).cause


# -- XML ---------------------------------------------------------------------------------------------------------------------------------

BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE posts [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<posts>' + pair(1).replace('"b"', '"&b;"') + "</posts>"
)
EXTERNAL_ENTITY = BILLION_LAUGHS.replace('<!ENTITY b "&a;&a;">', '<!ENTITY b SYSTEM "file:///etc/passwd">')
EXTERNAL_TYPE = '<?xml version="1.0"?><!DOCTYPE posts SYSTEM "http://example.com/posts.dtd"><posts>' + pair(1) + "</posts>"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (BILLION_LAUGHS.encode(), "document type"),
        (EXTERNAL_ENTITY.encode(), "document type"),
        (EXTERNAL_TYPE.encode(), "document type"),
        ((HEAD + "<!-- c -->" + pair(1) + "</posts>").encode(), "comment"),
        (b"", "no Posts.xml"),
        (b"PK\x03\x04", "no Posts.xml"),
        (dump(pair(1)).decode("utf-8-sig").encode("utf-16"), "no Posts.xml"),
        (dump(pair(1)).replace(b"utf-8", b"latin-1"), "latin-1 is not UTF-8"),
        (dump(pair(1)).replace(b"posts>", b"comments>"), "no Posts.xml"),
        (HEAD.encode() + b" " * 300_000 + b"x" + dump(pair(1)), "no Posts.xml"),
    ],
)
def test_a_file_that_is_no_dump_or_brings_a_document_type_is_refused(raw: MakeRaw, content: bytes, cause: str) -> None:
    for name, stored in ((POSTS, content), (ARCHIVE, archive({"Posts.xml": content}))):
        (bad,) = read(raw(stored, name))
        assert isinstance(bad, Bad) and cause in bad.cause and bad.unreadable_bytes == len(stored)


def test_entities_in_a_row_are_not_resolved(raw: MakeRaw) -> None:
    items = read(raw(dump(pair(1), pair(3, "&a;"), pair(5, "&lt;p&gt;&amp;lt;&#65;&lt;/p&gt;")), POSTS))
    assert records(items) == ["1", "5"]
    assert [item.text for item in items if isinstance(item, Record)][1] == "T\n\n<A\n\n\n<A"
    assert sum("malformed XML" in item.cause for item in items if isinstance(item, Bad)) == 2


def test_a_row_without_measure_costs_one_row(raw: MakeRaw) -> None:
    huge = f'  <row Id="9" PostTypeId="1" Score="1" Body="{"x" * 9_000_000}" />\n'
    items = read(raw(dump(pair(1), huge, pair(3)), POSTS))
    bad = only_bad(items)
    assert "longer than" in bad.cause and bad.position == "row 3" and len(bad.raw) < 6_000_000
    assert records(items) == ["1", "3"] and sum(item.units for item in items) == 5


def test_a_megabyte_of_spaces_after_a_row_is_no_trap(raw: MakeRaw) -> None:
    items = read(raw(dump(pair(1), pair(3).rstrip("\n") + " " * 1_000_000 + "x\n", pair(5)), POSTS))
    assert records(items) == ["1", "5"] and "follows the row" in only_bad(items).cause


def test_a_dump_without_posts_holds_nothing(raw: MakeRaw) -> None:
    assert read(raw(dump(), POSTS)) == []


def test_a_cut_off_dump_gives_the_pairs_before_the_cut(raw: MakeRaw) -> None:
    content = gzip.compress(dump(*(pair(id) for id in range(1, 400, 2))), 0)
    cut = content[: len(content) // 2]
    items = read(raw(cut, POSTS + ".gz"))
    bad = only_bad(items)
    assert "ends early" in bad.cause and bad.position == f"byte {len(cut)}"
    # The rows before the cut are all booked: what is whole in the decoded half, and the one in two.
    whole = len(re.findall(rb" />", zlib.decompressobj(31).decompress(cut)))
    assert abs(len(records(items)) - whole / 2) <= 1
    assert sum(item.units for item in items) == whole + 1


def test_a_file_that_changes_between_the_passes_is_an_error(raw: MakeRaw) -> None:
    file = raw(dump(pair(1), "  <row />\n", pair(3)), POSTS)
    items = reader(file)
    assert isinstance(next(items), Bad)
    # The next item comes when the first pass is over: the file is read whole in one block.
    Path(file.url).write_bytes(dump(pair(1)))
    with pytest.raises(UserError, match="changed while it was read"):
        list(items)
