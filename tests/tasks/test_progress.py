"""Progress: sums that only grow and end at the whole, told by real workers, and told seldom enough."""

import json
import os
import random
import sys
import zipfile
from itertools import pairwise

import py7zr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tasks.engine
from tasks import ingest
from tasks.engine import LocalEngine, StepFailed
from tasks.progress import Progress, Seldom
from tasks.shards import Runner, Shard, ShardTask, Step
from tasks.sources import SourceConfig
from tasks.sources.base import RawFile, WatchedFile
from tasks.store import Store
from tasks.train import RunProgress

SLOW_STEP = '''
import os
import select
import tasks.progress
from tasks.store import Books

tasks.progress.WRITE_SECONDS = 0

def run(shard):
    """Each document waits for a byte: the test sends one for each document that it has heard of."""
    documents = shard.config["documents"]
    pipe = os.open(shard.config["pipe"], os.O_RDONLY)
    patience = 60
    for number in range(1, documents + 1):
        shard.progress(number, 100 * number, number / documents)
        if not select.select([pipe], [], [], patience)[0]:
            raise TimeoutError("nobody heard of it")
        os.read(pipe, 1)
    if shard.config["fails"]:
        raise ValueError("no luck")
    return Books(read=documents, kept=documents)
'''


class SlowRun:
    """Shards of a step in real worker processes that go on only when their progress was seen."""

    def __init__(self, folder, monkeypatch) -> None:
        (folder / "olmoflow_slow_step.py").write_text(SLOW_STEP)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))
        monkeypatch.setattr(tasks.engine, "POLL_SECONDS", 0.01)
        self.folder, self.pipe = folder, folder / "pipe"
        os.mkfifo(self.pipe)
        self.end = os.open(self.pipe, os.O_RDWR)
        self.seen: list[Progress] = []

    def watch(self, progress: Progress) -> None:
        fresh = progress.documents - (self.seen[-1].documents if self.seen else 0)
        self.seen.append(progress)
        os.write(self.end, b"." * fresh)

    def run(self, shards, workers=2, fails=()):
        made = [
            ShardTask(name, {"documents": documents, "pipe": str(self.pipe), "fails": name in fails}, {}, weight=documents)
            for name, documents in shards.items()
        ]
        Runner(Store(str(self.folder / "store")), LocalEngine(workers, self.watch)).run(Step("slow", 1, "olmoflow_slow_step"), "web", made)
        return self.seen


@pytest.fixture
def slow(tmp_path, monkeypatch):
    made = SlowRun(tmp_path, monkeypatch)
    yield made
    os.close(made.end)


def test_a_running_step_tells_sums_that_grow_to_the_whole(slow):
    seen = slow.run({"a": 3, "b": 2, "c": 4})
    for before, after in pairwise(seen):
        assert all(getattr(before, name) <= getattr(after, name) for name in ("done", "documents", "bytes", "share", "seconds"))
    assert len({progress.share for progress in seen}) > 3  # two workers' documents may be seen together
    last = seen[-1]
    assert (last.step, last.name, last.unit) == ("slow", "web", "shards")
    assert (last.done, last.total, last.documents, last.bytes, last.share) == (3, 3, 9, 900, 1.0)


def test_a_shard_that_failed_counts_as_tried_and_not_as_done(slow):
    with pytest.raises(StepFailed, match="no luck"):
        slow.run({"a": 3, "b": 2}, workers=1, fails=["a"])
    assert (slow.seen[-1].done, slow.seen[-1].documents, slow.seen[-1].share) == (1, 5, 1.0)


def test_the_line_tells_shards_documents_speed_and_the_time_left():
    progress = Progress("ingest", "web", 3, 12, "shards", 0.25, 100, documents=120_400, bytes=3_400_000_000)
    assert str(progress) == "ingest web: 3 of 12 shards, 120,400 documents, 34 MB/s, 5m 00s left"
    assert str(Progress("ingest", "web", 0, 12, "shards", 1e-7, 100, bytes=16)) == "ingest web: 0 of 12 shards"  # no speed yet


def test_the_time_left_of_work_that_goes_on_is_judged_by_what_this_run_did():
    assert Progress("train", "a", 60, 100, "steps", 0.6, 50, begun=0.5).seconds_left == pytest.approx(200)


def of(name, seconds, done=0):
    return Progress("score", name, done, 9, "shards", done / 9, seconds)


def test_progress_is_told_now_and_then_and_never_of_a_short_step():
    seldom = Seldom(30)
    told = [(name, seconds) for name, seconds in [("a", s) for s in range(29)] + [("b", s) for s in range(95)] if seldom(of(name, seconds))]
    assert told == [("b", 30), ("b", 60), ("b", 90)]


# -- what steps tell -----------------------------------------------------------------------------------------------------------------------


def raw_file(path) -> RawFile:
    return RawFile(str(path), path.name, path.stat().st_size, "c0ffee")


def write_jsonl(path):
    rng = random.Random(0)
    path.write_text("".join(json.dumps({"id": str(n), "text": rng.randbytes(300).hex()}) + "\n" for n in range(2000)))


def write_parquet(path):
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]}), path, row_group_size=1)


@pytest.mark.parametrize(("format", "write"), [("jsonl", write_jsonl), ("parquet", write_parquet)])
def test_ingest_tells_how_much_of_its_file_is_read(tmp_path, format, write):
    write(tmp_path / "raw")
    told = []
    config = {"source": "web", "reader": SourceConfig(format=format, paths=["x"]).model_dump(mode="json")}
    shard = Shard(config, {"raw": [raw_file(tmp_path / "raw")]}, tmp_path, progress=lambda *so_far: told.append(so_far))
    books = ingest.run(shard)
    *reading, end = told
    assert reading == sorted(reading) and len(reading) > 3
    assert reading[-1][1] == pytest.approx((tmp_path / "raw").stat().st_size, rel=0.5)
    assert any(0 < documents < books.kept for documents, _, _ in reading)
    assert end == (books.kept, 0, 1.0)


def test_a_watched_file_can_be_read_and_sought_as_any_other(tmp_path):
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.writestr("text", "name")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("name", "text")
    pieces = []
    for name in ("a.7z", "a.zip"):
        file = WatchedFile(**vars(raw_file(tmp_path / name)), read=pieces.append)
        with file.open() as stream:
            opened = py7zr.SevenZipFile(stream) if name == "a.7z" else zipfile.ZipFile(stream)
            assert (opened.getnames() if name == "a.7z" else opened.namelist()) == ["name"]
        assert stream.closed
    assert sum(pieces) > 0


def test_a_training_run_tells_its_newest_step_and_goes_on_where_it_was_cut_back(tmp_path):
    metrics, seen = tmp_path / "metrics.jsonl", []

    def line(step):
        return json.dumps({"step": step, "loss": 2.5, "tokens_per_second": 1234.0, "seconds": 1.0}) + "\n"

    metrics.write_text("".join(line(step) for step in range(1, 51)))
    progress = RunProgress(metrics, "anneal 42", 100, seen.append)
    progress()
    assert seen == []  # nothing is new
    metrics.write_text("".join(line(step) for step in range(1, 42)) + line(42)[:9])  # back to step 40, one more, and one half written
    progress()
    progress()
    assert seen == []  # the 41st may be of the run that was killed
    metrics.write_text("".join(line(step) for step in range(1, 61)))
    progress()
    (only,) = seen
    assert (only.done, only.total, only.unit, only.share) == (60, 100, "steps", 0.6)
    assert "step" not in only.note and "loss 2.500, 1,234 tokens/s" in str(only)
