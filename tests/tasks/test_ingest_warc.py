"""The ingest step on crawls: its books, and what its key depends on."""

import gzip
import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks import ingest
from tasks.shards import Shard
from tasks.sources import RawFile, SourceConfig


def record(kind: str, number: int, block: bytes, content_type: str = "text/plain") -> bytes:
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Target-URI: http://example.org/{number}\r\n"
    header += f"WARC-Date: 2026-01-02T03:04:05Z\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    return header.encode() + block + b"\r\n\r\n"


def raw(path: Path, content: bytes) -> RawFile:
    path.write_bytes(content)
    return RawFile(f"file://{path}", path.name, len(content), hashlib.sha256(content).hexdigest())


def test_the_books_of_a_damaged_crawl_balance_and_its_rows_are_the_documents(tmp_path: Path) -> None:
    http = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>gone"
    records = [record("warcinfo", 0, b"software: x"), record("conversion", 1, b"one"), record("conversion", 2, b"two")]
    records += [record("response", 3, http, "application/http; msgtype=response"), record("conversion", 4, b"cut off")]
    content = b"".join(gzip.compress(part) for part in records)[:-20]
    task = ingest.task("crawl", SourceConfig(format="warc", paths=["x"]), raw(tmp_path / "a.warc.gz", content))
    shard = Shard(task.config, task.inputs, tmp_path)
    books = ingest.run(shard)
    assert books.read == books.kept + sum(books.dropped.values()) + books.quarantined == 5
    assert books.dropped == {"warcinfo record": 1, "HTTP status 404": 1}
    assert books.counts["unreadable_bytes"] == len(gzip.compress(records[-1])) - 20
    rows = pq.read_table(tmp_path / "documents.parquet").to_pylist()
    assert [(row["text"], row["url"], row["id"]) for row in rows] == [
        ("one", "http://example.org/1", "<urn:uuid:1>"),
        ("two", "http://example.org/2", "<urn:uuid:2>"),
    ]
    first = len(content) - books.counts["unreadable_bytes"]
    assert shard.first_quarantined == f"{tmp_path}/a.warc.gz, byte {first}: the gzip member ends early: the file is cut off"


def test_a_block_list_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    crawl = raw(tmp_path / "a.warc", record("conversion", 1, b"one") + record("conversion", 2, b"two"))

    def task(folder: str, content: bytes):
        (tmp_path / folder).mkdir()
        blocked = raw(tmp_path / folder / "urls.txt", content)
        settings = {"url_filter": {"integrated_lists": False, "urls": [blocked.url]}}
        return ingest.task(
            "crawl", SourceConfig.model_validate({"format": "warc", "paths": ["x"], "warc": settings}), crawl, url_lists={"urls": [blocked]}
        )

    here, there, other = (
        task("here", b"http://example.org/1"),
        task("there", b"http://example.org/1"),
        task("other", b"http://example.org/2"),
    )
    assert here.key(ingest.STEP) == there.key(ingest.STEP) != other.key(ingest.STEP)
    for made, kept in ((there, "two"), (other, "one")):
        books = ingest.run(Shard(made.config, made.inputs, tmp_path))
        assert books.dropped == {"URL filter: url": 1}
        assert pq.read_table(tmp_path / "documents.parquet").column("text").to_pylist() == [kept]


@pytest.mark.parametrize("kind", ["dclm", "dolma", "starcoder", "stackexchange", "jsonl", "json", "parquet", "text"])
def test_settings_of_crawls_are_no_part_of_another_formats_key(tmp_path: Path, kind: str) -> None:
    task = ingest.task(
        "web", SourceConfig.model_validate({"format": kind, "paths": ["x"]}), raw(tmp_path / "ai.stackexchange.com.7z", b"x")
    )
    assert set(task.config) == {"source", "reader", "place"} and "warc" not in task.config["reader"] and set(task.inputs) == {"raw"}


def test_settings_of_crawls_are_refused_for_other_formats() -> None:
    with pytest.raises(ValueError, match="`warc` is for the format warc, not jsonl"):
        SourceConfig.model_validate({"format": "jsonl", "paths": ["x"], "warc": {"c4_lines": True}})
