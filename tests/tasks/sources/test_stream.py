"""Compressed streams: every codec, every fault, bounded memory."""

import bz2
import gzip
import lzma
import random
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial

import pytest
import zstandard

from tasks.sources.base import RawFile
from tasks.sources.stream import StreamFault, blocks, lines, split

SKIPPABLE_FRAME = bytes.fromhex("502a4d18") + (3).to_bytes(4, "little") + b"abc"
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bz2": bz2.compress,
    "xz": partial(lzma.compress, preset=0),
}
MakeRaw = Callable[..., RawFile]


def text_lines(count: int, seed: int = 0) -> list[bytes]:
    numbers = random.Random(seed)
    return [b"line %d %s" % (number, numbers.randbytes(30).hex().encode()) for number in range(count)]


def read_to_fault(file: RawFile) -> tuple[list[bytes], StreamFault | None]:
    found: list[bytes] = []
    try:
        found.extend(line for _, line in lines(file))
    except StreamFault as fault:
        return found, fault
    return found, None


@pytest.mark.parametrize("name", [*CODECS, "none"])
def test_compression_is_found_from_the_content_and_members_are_joined(raw: MakeRaw, name: str) -> None:
    wanted = text_lines(15000)
    content = b"\n".join(wanted) + b"\n"
    half = len(content) // 2
    compress = CODECS.get(name, bytes)
    file = raw(compress(content[:half]) + compress(content[half:]), "misnamed.txt")
    assert read_to_fault(file) == (wanted, None)


def test_padding_and_skippable_frames_hold_no_records(raw: MakeRaw) -> None:
    padded = gzip.compress(b"a\n") + bytes(700) + gzip.compress(b"b\n") + bytes(9)
    assert read_to_fault(raw(padded)) == ([b"a", b"b"], None)
    skipping = SKIPPABLE_FRAME + zstandard.compress(b"a\n") + SKIPPABLE_FRAME + zstandard.compress(b"b\n")
    assert read_to_fault(raw(skipping)) == ([b"a", b"b"], None)


@pytest.mark.parametrize("name", CODECS)
def test_a_cut_off_stream_gives_whole_lines_and_then_a_fault(raw: MakeRaw, name: str) -> None:
    wanted = text_lines(20000)
    content = CODECS[name](b"\n".join(wanted) + b"\n")
    file = raw(content[: len(content) * 3 // 4])
    found, fault = read_to_fault(file)
    assert fault is not None and "ends early" in fault.cause and fault.offset == file.size and fault.unreadable_bytes == 0
    assert found == wanted[: len(found)]
    assert (fault.rest + b"\n") in b"\n".join(wanted[len(found) :]) or wanted[len(found)].startswith(fault.rest)
    if name == "gzip":  # the others decode by large blocks
        assert len(found) > 14000


def test_every_line_before_damage_inside_a_gzip_chunk_is_given(raw: MakeRaw) -> None:
    # 40 stored blocks of one line each; the header of the 30th is made an impossible one. All lie in one chunk.
    wanted = text_lines(40)
    packer = zlib.compressobj(0, zlib.DEFLATED, 31)
    content, ends = b"", []
    for line in wanted:
        content += packer.compress(line + b"\n") + packer.flush(zlib.Z_FULL_FLUSH)
        ends.append(len(content))
    content += packer.flush()
    damaged = content[: ends[29]] + b"\xff" + content[ends[29] + 1 :]
    found, fault = read_to_fault(raw(damaged))
    assert found == wanted[:30]
    assert fault is not None and "damaged" in fault.cause
    assert ends[29] <= fault.offset <= ends[29] + 4
    assert fault.unreadable_bytes == len(damaged) - fault.offset


@pytest.mark.parametrize("name", CODECS)
def test_damage_anywhere_never_changes_or_repeats_an_earlier_line(raw: MakeRaw, name: str) -> None:
    wanted = text_lines(12000)
    first, second = (CODECS[name](b"\n".join(part) + b"\n") for part in (wanted[:6000], wanted[6000:]))
    damaged = first + second[:6] + bytes(byte ^ 0xA5 for byte in second[6:400]) + second[400:]
    found, fault = read_to_fault(raw(damaged))
    assert fault is not None
    assert found[:6000] == wanted[:6000]
    assert 0 <= fault.unreadable_bytes <= len(second)


def test_something_else_behind_the_last_member_is_a_fault(raw: MakeRaw) -> None:
    found, fault = read_to_fault(raw(gzip.compress(b"a\n") + b"not gzip at all"))
    assert found == [b"a"]
    assert fault is not None and fault.unreadable_bytes > 0


def test_blank_lines_keep_their_numbers_and_marks_and_carriage_returns_go(raw: MakeRaw) -> None:
    file = raw(b"\xef\xbb\xbfa\r\n\n  \t\n\nb\r\nc")
    assert list(lines(file)) == [(1, b"a"), (5, b"b"), (6, b"c")]


def test_an_empty_file_has_no_lines(raw: MakeRaw) -> None:
    assert list(lines(raw(b""))) == []


def test_a_separator_on_the_edge_of_a_block_is_found(raw: MakeRaw) -> None:
    first = b"x" * ((1 << 20) - 2)
    assert list(split(raw(first + b"<row " + b"y"), b"<row ")) == [first, b"y"]


def test_memory_stays_bounded_when_one_chunk_holds_very_much(raw: MakeRaw) -> None:
    file = raw(gzip.compress(bytes(100 << 20)))
    tracemalloc.start()
    try:
        assert sum(map(len, blocks(file))) == 100 << 20
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
