"""Bad input and faults of this machine, through the whole step: what is readable is kept, the rest is booked or told in one sentence."""

import contextlib
import ctypes
import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import py7zr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tasks import ingest
from tasks.engine import LocalEngine
from tasks.errors import UserError
from tasks.raw_files import find_source
from tasks.shards import Artifact, Runner, input_files
from tasks.sources import SourceConfig, stream
from tasks.store import Store

LINES = [json.dumps({"id": f"d{number}", "text": f"text {number} {os.urandom(20).hex()}", "stars": number}) for number in range(2000)]
TEXT = ("\n".join(LINES) + "\n").encode()
STARS = {"columns": {"stars": {"field": "stars", "type": "int"}}}


class Lab:
    """A folder of raw files and a store; `ingest` runs the step as a recipe would, with its worker in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(str(folder / "store"))

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / "raw" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def ingest(self, format: str = "jsonl", max_quarantined: float = 1.0, **settings) -> Artifact:
        config = SourceConfig.model_validate({"format": format, "paths": [str(self.folder / "raw" / "*")], **settings})
        files, _ = find_source(self.store, "sources.web", config)
        tasks = [ingest.task("web", config, raw) for raw in files]
        return Runner(self.store, LocalEngine(1)).run(ingest.STEP, "web", tasks, max_quarantined=max_quarantined)

    def rows(self, artifact: Artifact) -> list[dict]:
        return [row for ref in artifact.refs for row in pq.read_table(input_files(self.store, ref)["documents.parquet"]).to_pylist()]

    def quarantine(self) -> list[dict]:
        return [json.loads(line) for path in (self.folder / "store" / "quarantine").rglob("*.jsonl") for line in path.open()]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.engine._run_all", lambda commands, *_: [_worker(command) for command in commands])
    return Lab(tmp_path)


def _worker(command):
    from tasks import shard

    return shard.main(command[-2], int(command[-1]))


def parquet(columns: dict, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def balanced(artifact: Artifact) -> bool:
    books = artifact.books
    return books.read == books.kept + sum(books.dropped.values()) + books.quarantined


# -- files that are cut off --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_truncated_stream_keeps_its_whole_lines_and_its_tail_is_booked(lab, compress):
    content = compress(TEXT)
    lab.write("a.jsonl", content[: len(content) // 2])
    artifact = lab.ingest(fields=STARS)
    kept = lab.rows(artifact)
    # zstd decodes by blocks of 128 KiB: of half a file of two such blocks no line may be whole
    assert [row["text"] for row in kept] == [json.loads(line)["text"] for line in LINES[: len(kept)]]
    assert balanced(artifact) and artifact.books.quarantined == 1
    (entry,) = lab.quarantine()
    assert "ends early" in entry["cause"] and entry["position"] == f"byte {len(content) // 2}"
    with pytest.raises(UserError, match=r"raw/a\.jsonl, byte \d+: the (gzip|zstd) stream ends early"):
        lab.ingest(fields=STARS, max_quarantined=0)


def test_a_truncated_7z_is_quarantined_as_a_whole(lab, tmp_path):
    with py7zr.SevenZipFile(tmp_path / "whole.7z", "w") as archive:
        archive.writestr(b'<posts>\n  <row Id="1" PostTypeId="1" Score="3" Body="b" />\n</posts>' + b" " * 5000, "Posts.xml")
    content = (tmp_path / "whole.7z").read_bytes()
    lab.write("a.stackexchange.com.7z", content[:-20])
    artifact = lab.ingest("stackexchange")
    assert (artifact.books.read, artifact.books.quarantined, artifact.books.counts["unreadable_bytes"]) == (1, 1, len(content) - 20)
    assert "damaged archive" in lab.quarantine()[0]["cause"]


def test_a_truncated_parquet_is_quarantined_as_a_whole_and_the_others_are_read(lab):
    content = parquet({"text": [f"text {number}" for number in range(1000)]})
    lab.write("a.parquet", content[: len(content) // 2])
    lab.write("b.parquet", content)
    artifact = lab.ingest("parquet")
    assert (artifact.books.kept, artifact.books.quarantined) == (1000, 1)
    assert artifact.books.counts["unreadable_bytes"] == len(content) // 2
    assert "no readable Parquet file" in lab.quarantine()[0]["cause"]


# -- records that cannot be read ---------------------------------------------------------------------------------------------------------


def test_a_bad_utf8_byte_in_the_middle_costs_its_line_only(lab):
    lines = TEXT.splitlines(keepends=True)
    lines[1000] = lines[1000].replace(b"text 1000", b"text \xff000")
    path = lab.write("a.jsonl", b"".join(lines))
    artifact = lab.ingest()
    assert [row["id"] for row in lab.rows(artifact)] == [f"d{number}" for number in range(2000) if number != 1000]
    (entry,) = lab.quarantine()
    assert (entry["file"], entry["position"]) == (str(path), "line 1001") and "bad UTF-8" in entry["cause"]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1001: bad UTF-8"):
        lab.ingest(max_quarantined=0)


def test_null_missing_empty_and_non_string_text_are_booked_each_under_its_own_cause(lab):
    lab.write("a.jsonl", b'{"text": null}\n{"id": "x"}\n{"text": ""}\n{"text": 7}\n{"text": ["a"]}\n{"text": {}}\n{"text": "good"}\n')
    artifact = lab.ingest()
    assert balanced(artifact) and artifact.books.read == 7
    assert [row["text"] for row in lab.rows(artifact)] == ["a", "good"]
    assert artifact.books.dropped == {"empty text": 1}
    causes = [entry["cause"] for entry in lab.quarantine()]
    assert [word in cause for word, cause in zip(("null", "missing", "a int", "a dict"), causes, strict=True)] == [True] * 4


@pytest.mark.parametrize("stars", [["12", "None", None, "3"], [12, None, None, 3], [12.0, None, float("nan"), 3.0]])
def test_star_counts_may_be_strings_numbers_or_null(lab, stars):
    columns = {"content": ["x"] * 4, "max_stars_repo_name": ["r"] * 4, "max_stars_repo_path": list("abcd"), "max_stars_count": stars}
    lab.write("a.parquet", parquet(columns))
    assert [row["stars"] for row in lab.rows(lab.ingest("starcoder"))] == [12, None, None, 3]


def test_a_parquet_without_a_column_is_told_and_the_other_files_are_made(lab):
    lab.write("a.parquet", parquet({"text": ["one"], "stars": [1]}))
    path = lab.write("b.parquet", parquet({"text": ["two"]}))
    with pytest.raises(UserError, match=r"no column 'stars' in this Parquet file; it has text") as error:
        lab.ingest("parquet", fields=STARS)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert len(lab.store.names("shards/ingest")) >= 1


def test_a_parquet_with_a_retyped_column_is_read_where_the_values_fit_and_else_quarantined_by_row(lab):
    lab.write("a.parquet", parquet({"text": ["one", "two"], "stars": [1, 2]}))
    lab.write("b.parquet", parquet({"text": ["three", "four"], "stars": ["3", "many"]}))
    path = lab.write("c.parquet", parquet({"text": [5, 6], "stars": [5, 6]}))
    artifact = lab.ingest("parquet", fields=STARS)
    assert [(row["text"], row["stars"]) for row in lab.rows(artifact)] == [("one", 1), ("two", 2), ("three", 3)]
    assert balanced(artifact) and artifact.books.quarantined == 3
    assert {entry["cause"] for entry in lab.quarantine() if entry["file"] == str(path)} == {"the field 'text' is a int, not a string"}


def test_a_file_with_no_record_makes_an_empty_shard(lab):
    lab.write("a.jsonl", b"")
    lab.write("b.jsonl", b"\n\n")
    artifact = lab.ingest(max_quarantined=0)
    assert artifact.is_whole and artifact.books.read == 0 and lab.rows(artifact) == []


def test_a_file_that_is_gone_between_planning_and_reading_is_named(lab, monkeypatch):
    path = lab.write("a.jsonl", TEXT)
    found = find_source

    def and_then_it_is_gone(*arguments):
        files = found(*arguments)
        path.unlink()
        return files

    monkeypatch.setattr(sys.modules[__name__], "find_source", and_then_it_is_gone)
    with pytest.raises(UserError, match=r"raw/a\.jsonl is gone since this run looked at it"):
        lab.ingest()


# -- ids -----------------------------------------------------------------------------------------------------------------------------------


def test_duplicate_ids_are_kept_and_counted(lab):
    lab.write(
        "a.jsonl", b'{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n{"id": "x", "text": "three"}\n{"id": "x", "text": "one"}\n'
    )
    artifact = lab.ingest()
    assert [row["text"] for row in lab.rows(artifact)] == ["one", "two", "three", "one"]
    assert artifact.books.kept == 4 and artifact.books.counts["duplicate_ids"] == 2


def test_without_duplicate_ids_the_books_say_nothing_of_them(lab):
    lab.write("a.jsonl", TEXT)
    assert "duplicate_ids" not in lab.ingest().books.counts


# -- a line without an end -------------------------------------------------------------------------------------------------------------------


def test_a_line_over_the_limit_is_quarantined_and_the_next_one_is_read(lab, monkeypatch):
    monkeypatch.setattr(stream, "MAX_PIECE_BYTES", 3 << 20)
    long = b'{"id": "long", "text": "' + b"x" * (5 << 20) + b'"}'
    fits = b'{"id": "fits", "text": "' + b"y" * (2 << 20) + b'"}'
    lab.write("a.jsonl", gzip.compress(b'{"id": "a", "text": "a"}\n' + long + b"\n" + fits + b'\n{"id": "b", "text": "b"}\n'))
    artifact = lab.ingest()
    assert [row["id"] for row in lab.rows(artifact)] == ["a", "fits", "b"] and balanced(artifact)
    (entry,) = lab.quarantine()
    assert entry["position"] == "line 2" and "longer than" in entry["cause"] and entry["raw"].startswith('{"id": "long"')
    assert len(entry["raw"]) <= 1_000_000


@pytest.mark.soak
def test_a_json_line_of_200_mb_goes_through_within_bounded_memory_and_one_of_400_mb_does_not(tmp_path):
    """In a process of its own, whose memory is the worker's."""
    script = """
import resource, sys
from pathlib import Path
from tasks import ingest
from tasks.shards import Shard
from tasks.sources import RawFile, SourceConfig
path = Path(sys.argv[1])
shard = Shard({"source": "s", "reader": SourceConfig(format="jsonl", paths=["-"]).model_dump(mode="json")},
              {"raw": [RawFile(str(path), "a", path.stat().st_size, "c")]}, path.parent)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
books = ingest.run(shard)
print(books.kept, books.quarantined, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    for megabytes, wanted in ((200, (3, 0)), (400, (2, 1))):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        with gzip.open(folder / "a.jsonl.gz", "wb", 1) as file:
            file.write(b'{"id": "a", "text": "a"}\n{"id": "long", "text": "')
            for _ in range(megabytes):
                file.write(b"0123456789" * 100_000)
            file.write(b'"}\n{"id": "b", "text": "b"}\n')
        done = subprocess.run([sys.executable, "-c", script, str(folder / "a.jsonl.gz")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        kept, quarantined, mebibytes = map(int, done.stdout.split())
        assert (kept, quarantined) == wanted and mebibytes < 2500, done.stdout


# -- a file that changes while it is read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["appended", "replaced", "cut"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_that_changes_while_it_is_read_is_told_and_nothing_is_committed(lab, monkeypatch, change, compress):
    content = compress(TEXT)
    path = lab.write("a.jsonl", content)
    written = ingest.DocumentWriter.write

    def write(self, *arguments):
        if path.stat().st_size == len(content) and path.stat().st_mtime_ns == before:
            changed = {"appended": content + compress(b'{"text": "more"}\n'), "replaced": content[::-1], "cut": content[:1000]}[change]
            path.write_bytes(changed)
            os.utime(path, ns=(before, before + 1_000_000_000))  # a write within the clock's tick
        return written(self, *arguments)

    before = path.stat().st_mtime_ns
    monkeypatch.setattr(ingest.DocumentWriter, "write", write)
    with pytest.raises(UserError, match=r"raw/a\.jsonl has changed since this run looked at it: run the same command again") as error:
        lab.ingest()
    assert "\n" not in str(error.value)
    assert [path for path in (lab.folder / "store" / "shards").rglob("*") if path.is_file()] == []
    monkeypatch.setattr(ingest.DocumentWriter, "write", written)
    path.write_bytes(content)
    assert lab.ingest().books.kept == 2000


# -- a full disk ------------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_limit(size: int):
    """No file of this process may grow over `size` bytes: what writes more meets EFBIG, as it meets ENOSPC on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """A file system of its own of `size` bytes, where this process may mount one."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, f"size={size}".encode()):
        pytest.skip("this process may mount no file system")
    try:
        yield
    finally:
        libc.umount2(str(folder).encode(), 2)


def told_of_a_full_disk(lab) -> None:
    with pytest.raises(
        UserError, match=r"^a\.jsonl: a disk is full \(.*\), the store.*: make room and run the same command again"
    ) as error:
        lab.ingest()
    assert "\n" not in str(error.value)


def test_a_full_disk_is_told_and_with_room_the_same_command_goes_on(lab):
    lab.write("a.jsonl", TEXT)
    with file_limit(20_000):
        told_of_a_full_disk(lab)
    assert [path for path in (lab.folder / "store" / "shards").rglob("*") if path.is_file()] == []  # the attempt gave its room back
    assert lab.ingest().books.kept == 2000


def test_a_disk_that_is_full_for_real_is_told_and_with_room_the_same_command_goes_on(lab, tmp_path):
    lab.write("a.jsonl", TEXT)
    with small_disk(tmp_path / "small", 200_000):
        lab.store = Store(str(tmp_path / "small" / "store"))
        filler = tmp_path / "small" / "filler"
        filler.write_bytes(bytes(180_000))
        told_of_a_full_disk(lab)
        assert lab.store.names("shards/ingest") == [] or not list((tmp_path / "small").rglob("*.parquet"))
        filler.unlink()
        assert lab.ingest().books.kept == 2000


def test_a_disk_that_fills_up_at_the_commit_leaves_no_half_record(lab):
    lab.store.create("a/record.json", "{}")
    with file_limit(10), pytest.raises(OSError, match="File too large"):
        lab.store.create("b/record.json", "x" * 100)
    assert [path.name for path in (lab.folder / "store").rglob("*") if path.is_file()] == ["record.json"]
