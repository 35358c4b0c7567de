"""A server that stumbles, before inputs and store: nothing lost, nothing doubled, the same bytes; or one sentence, and then it goes on."""

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import random
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tasks import storage
from tasks.errors import UserError
from tasks.raw_files import find
from tasks.sources import READERS, Record, SourceConfig
from tasks.sources.stream import lines
from tasks.store import Attempt, Books, Store
from trainer.errors import TrainerError
from trainer.token_files import TokenFiles


@pytest.fixture
def quick(monkeypatch):
    """Our own attempts alone and without their waits: the faults here pass with the next request."""
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.0,) * 6)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def seeded(seed: int, rate: float, *faults: str):
    """A schedule that lets a share of the requests fail, by each of the faults in turn; the same for the same seed."""
    turn = itertools.cycle(faults)

    def schedule(number, method, path):
        return next(turn) if random.Random(f"{seed} {number}").random() < rate else None

    return schedule


def once(fault, wanted):
    """The fault for the first request that is wanted."""
    left = [fault]

    def schedule(number, method, path):
        return left.pop() if left and wanted(method, path) else None

    return schedule


def check_whole(s3, undisturbed):
    """The bytes of an undisturbed run, each shard by one attempt whose books balance."""
    assert s3.contents() == undisturbed.contents()
    for record in s3.records():
        record.books.balance(record.name)
    attempts = s3.attempts()
    assert attempts and all(len(each) == 1 for each in attempts.values()), attempts


def test_a_run_through_all_faults_ends_with_the_same_bytes(s3, undisturbed, in_process, quick):
    s3.proxy.schedule = seeded(1, 0.06, "500", "503", "lost", "reset", "slow", "hang up")
    s3.run()
    faults = {fault for fault, _, _ in s3.proxy.faults}
    assert faults == {"500", "503", "lost", "reset", "slow", "hang up"}
    s3.proxy.schedule = lambda number, method, path: None
    check_whole(s3, undisturbed)


@pytest.mark.soak
@pytest.mark.fault
@pytest.mark.parametrize("seed", range(3))
def test_worker_processes_through_many_faults_and_an_outage_end_with_the_same_bytes(s3, undisturbed, seed):
    """As it runs in earnest: processes of their own, all waits, and a server that dies twice and returns."""
    many = seeded(seed, 0.12, "500", "503", "lost", "reset", "slow", "hang up")
    s3.proxy.schedule = lambda number, method, path: "die" if number in (60, 200) else many(number, method, path)
    s3.proxy.outage_seconds = 6
    s3.run()
    assert [fault for fault, _, _ in s3.proxy.faults].count("die") == 2
    s3.proxy.schedule = lambda number, method, path: None
    check_whole(s3, undisturbed)


@pytest.mark.soak
@pytest.mark.fault
def test_a_store_that_answers_500_for_a_minute_is_waited_for(s3, undisturbed):
    begun = []

    def away(number, method, path):
        if number > 60 and not begun:
            begun.append(time.monotonic())
        return "500" if begun and time.monotonic() < begun[0] + 60 else None

    s3.proxy.schedule = away
    s3.run()
    assert [fault for fault, _, _ in s3.proxy.faults].count("500") > 1
    check_whole(s3, undisturbed)


def test_a_server_that_does_not_return_is_told_in_one_sentence_and_then_the_run_goes_on(s3, undisturbed, in_process, quick):
    """It dies with the first record that it has taken in."""

    def dead(number, method, path):
        return "hang up" if any(seen[0] == "PUT" and "record.json" in seen[1] for seen in s3.proxy.seen) else None

    s3.proxy.schedule = dead
    with pytest.raises(UserError, match=r"s3://.*: the storage failed 7 times, at last with: .*the same command goes on") as error:
        s3.pipeline().documents("web")
    assert "\n" not in str(error.value) and s3.secret not in str(error.value)
    s3.proxy.schedule = lambda number, method, path: None
    assert len(s3.records(["ingest"])) == 1
    made = s3.pipeline().documents("web")
    assert made.made == 1 and made.is_whole
    expected = {entry for entry in undisturbed.contents(["ingest"]) if entry[1].endswith(".gz")}
    assert set(s3.contents(["ingest"])) == expected and all(len(each) == 1 for each in s3.attempts().values())


def test_a_server_that_is_away_is_not_taken_for_one_without_the_files(s3, quick):
    s3.proxy.schedule = lambda number, method, path: "hang up"
    with pytest.raises(UserError, match=r"sources.web: s3://.*/web/\*\.gz cannot be listed: .*the storage failed 7 times"):
        s3.pipeline().files("web")


def test_a_server_that_dies_and_returns_is_waited_for(s3, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.5,) * 60)
    s3.proxy.outage_seconds = 1.5
    s3.proxy.schedule = once("die", lambda method, path: method == "PUT")
    store = Store(s3.store)
    attempt = Attempt(store, "step", "k", "name")
    (attempt.folder / "file.txt").write_text("hello")
    record = attempt.commit(Books(read=1, kept=1), 0)
    assert [fault for fault, _, _ in s3.proxy.faults] == ["die"]
    assert store.record("step", "k") == record


@pytest.mark.parametrize("fault", ["lost", "500", "503", "hang up"])
def test_a_record_whose_answer_is_lost_is_created_once_and_its_writer_has_won(s3, quick, fault):
    s3.proxy.schedule = once(fault, lambda method, path: method == "PUT" and path.split("?")[0].endswith("record.json"))
    store = Store(s3.store)
    attempts = [Attempt(store, "step", "k", "name") for _ in range(2)]
    for attempt in attempts:
        (attempt.folder / "file.txt").write_text(attempt.attempt)
    winner = attempts[0].commit(Books(), 0)
    assert s3.proxy.faults and winner.attempt == attempts[0].attempt
    assert attempts[1].commit(Books(), 0) == winner
    assert s3.attempts() == {f"{s3.bucket}/store/shards/step/k": {winner.attempt.removeprefix("attempt-")}}


TEXTS = [f"text {number} {random.Random(number).randbytes(200).hex()}" for number in range(400)]
CONTENT = "".join(f'{{"text": "{text}"}}\n' for text in TEXTS).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), sink, row_group_size=100)
    return sink.getvalue()


CONTAINERS = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize(
    ("container", "fault"),
    [*((name, "reset") for name in [*CONTAINERS, "parquet"]), ("gzip", "hang up"), ("parquet", "503"), ("plain", "slow")],
)
def test_a_break_in_a_body_is_never_the_end_of_a_file(s3, quick, container, fault):
    content = parquet() if container == "parquet" else CONTAINERS[container](CONTENT)
    s3.server.pipe_file(f"{s3.bucket}/one/file", content)
    ((raw,), _) = find(Store(s3.store), "one", [f"s3://{s3.bucket}/one/file"])
    broken = iter(range(2))
    s3.proxy.schedule = lambda number, method, path: fault if method == "GET" and next(broken, None) is not None else None
    format = "parquet" if container == "parquet" else "jsonl"
    items = list(READERS[format](raw, SourceConfig(format=format, paths=["-"])))
    assert [item.text for item in items if isinstance(item, Record)] == TEXTS and len(items) == len(TEXTS)
    assert len(s3.proxy.faults) == 2


@pytest.mark.parametrize("container", ["gzip", "parquet"])
def test_a_body_that_never_comes_whole_is_an_error_of_the_storage_and_no_damage_of_the_file(s3, quick, container):
    content = parquet() if container == "parquet" else CONTAINERS[container](CONTENT)
    s3.server.pipe_file(f"{s3.bucket}/one/file", content)
    ((raw,), _) = find(Store(s3.store), "one", [f"s3://{s3.bucket}/one/file"])
    s3.proxy.schedule = lambda number, method, path: "reset" if method == "GET" else None
    format = "parquet" if container == "parquet" else "jsonl"
    with pytest.raises(UserError, match=r"one/file: the storage failed 7 times"):
        list(READERS[format](raw, SourceConfig(format=format, paths=["-"])))


def test_a_file_that_changes_on_the_server_while_it_is_read_is_told_and_nothing_is_committed(s3, in_process, quick):
    """The change comes with the first request for the file's bytes."""

    def change(number, method, path):
        if method == "GET" and path.startswith(f"/{s3.bucket}/raw/plain/0.jsonl"):
            s3.server.pipe_file(f"{s3.bucket}/raw/plain/0.jsonl", b'{"text": "another"}\n')
        return None

    s3.proxy.schedule = change
    with pytest.raises(UserError, match=r"raw/plain/0.jsonl has changed since this run looked at it: run the same command again"):
        s3.pipeline().documents("plain")
    assert s3.records(["ingest"]) == []
    s3.proxy.schedule = lambda number, method, path: None
    assert s3.pipeline().documents("plain").books.kept == 1


@pytest.mark.parametrize("fault", ["reset", "500", "hang up"])
def test_a_large_file_is_fetched_whole_through_faults(s3, quick, fault, monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.default_block_size", 5 << 20)
    content = random.Random(0).randbytes(12 << 20)
    store = Store(s3.store)
    attempt = Attempt(store, "step", "k", "name")
    (attempt.folder / "tokens.npy").write_bytes(content)
    broken = iter(range(2))
    s3.proxy.schedule = lambda number, method, path: (
        fault if method in ("GET", "PUT", "POST") and "tokens" in path and next(broken, None) is not None else None
    )
    stored = attempt.commit(Books(), 0).file("tokens.npy")
    broken = iter(range(2))
    assert store.fetch(stored.path, stored.sha256).read_bytes() == content
    assert len(s3.proxy.faults) >= 3


def gather(url, *pieces):
    """Those tokens (first, length) of a file, laid end to end, as bytes."""
    lengths = [length for _, length in pieces]
    places = np.cumsum([0, *lengths]).tolist()
    out = np.empty(sum(lengths), np.uint32)
    TokenFiles([url], "the mix").gather([(0, start, length, at) for (start, length), at in zip(pieces, places, strict=False)], out)
    return out.tobytes()


def test_training_reads_ranges_whole_through_faults_or_says_what_failed(s3, monkeypatch):
    monkeypatch.setattr("trainer.token_files.RANGE_WAITS_SECONDS", (0.0,) * 3)
    content = random.Random(0).randbytes(4000)
    s3.server.pipe_file(f"{s3.bucket}/tokens.npy", content)
    broken = iter(range(4))
    s3.proxy.schedule = lambda number, method, path: "reset" if method == "GET" and next(broken, None) is not None else None
    assert gather(f"s3://{s3.bucket}/tokens.npy", (10, 500)) == content[40:2040]
    assert len(s3.proxy.faults) == 4
    with pytest.raises(TrainerError, match="it has 400 bytes where 2000 were asked for"):
        gather(f"s3://{s3.bucket}/tokens.npy", (900, 500))


def test_scattered_pieces_are_asked_for_at_the_same_time_and_neighbours_together(s3, monkeypatch):
    """Every request waits at the proxy until the last one has come."""
    monkeypatch.setattr("trainer.token_files._GAP_BYTES", 400)
    content = random.Random(0).randbytes(40_000)
    s3.server.pipe_file(f"{s3.bucket}/tokens.npy", content)
    together = threading.Barrier(4)

    def meet(number, method, path):
        if method == "GET":
            together.wait(60)  # a bound, not a measurement

    s3.proxy.schedule = meet
    monkeypatch.setattr(s3.proxy, "lock", contextlib.nullcontext())
    far = [(9000, 100), (3000, 50), (6000, 7), (10, 20)]
    near = [(9100, 10), (9205, 5), (9050, 30), (10, 20)]  # touching, beyond a gap of 380 bytes, inside, the same
    expected = b"".join(content[4 * start : 4 * (start + length)] for start, length in far + near)
    assert gather(f"s3://{s3.bucket}/tokens.npy", *far, *near) == expected
    asked = sorted(headers["Range"] for method, _, headers in s3.proxy.seen if method == "GET")
    assert asked == ["bytes=12000-12199", "bytes=24000-24027", "bytes=36000-36839", "bytes=40-119"]


def test_training_finds_a_token_file_on_the_server_missing_or_short_before_it_starts(s3):
    s3.server.pipe_file(f"{s3.bucket}/tokens.npy", bytes(4000))
    files = TokenFiles([f"s3://{s3.bucket}/tokens.npy", f"s3://{s3.bucket}/other.npy"], "the mix")
    assert files.fault(np.array([1000, 0])) is None
    assert "tokens.npy has 4000 bytes, of which the mix the mix needs 4004" in files.fault(np.array([1001, 0]))
    assert "other.npy is not there" in files.fault(np.array([1000, 1]))


def test_a_gzip_that_is_cut_off_on_the_server_is_damage_of_the_file(s3):
    content = gzip.compress(CONTENT)
    s3.server.pipe_file(f"{s3.bucket}/one/file", content[: len(content) // 2])
    ((raw,), _) = find(Store(s3.store), "one", [f"s3://{s3.bucket}/one/file"])
    with pytest.raises(Exception, match="ends early: the file is cut off"):
        list(lines(raw))
