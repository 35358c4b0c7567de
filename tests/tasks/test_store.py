"""The store keeps a shard whole or not at all, once, and its books balanced."""

import hashlib
import json
import subprocess
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.store import Attempt, Books, Store, fingerprint


def write_attempt(store, key="k", text="hello", attempt=None):
    made = Attempt(store, "step", key, "name", attempt)
    (made.folder / "file.txt").write_text(text)
    return made


def test_a_committed_shard_is_found_with_its_checksums(tmp_path):
    store = Store(str(tmp_path / "store"))
    write_attempt(store).commit(Books(read=3, kept=2, dropped={"short": 1}), 1.5)
    record = store.record("step", "k")
    assert record is not None
    stored = record.file("file.txt")
    assert stored.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert stored.bytes == 5
    assert store.fetch(stored.path).read_text() == "hello"


def test_parquet_files_are_booked_with_their_rows(tmp_path):
    store = Store(str(tmp_path))
    attempt = Attempt(store, "step", "k", "name")
    pq.write_table(pa.table({"x": [1, 2, 3]}), attempt.folder / "t.parquet")
    assert attempt.commit(Books(), 0).file("t.parquet").rows == 3


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_quarantine_of_any_size_is_filed_without_being_held_in_memory(tmp_path, kind):
    store = Store(str(tmp_path / "store") if kind == "local" else "memory://quarantined")
    attempt = write_attempt(store)
    size = 64_000_000
    with (attempt.folder / "quarantine.jsonl").open("wb") as stream:
        stream.truncate(size)
    tracemalloc.start()
    record = attempt.commit(Books(read=1, quarantined=1), 0, {"first": "a.jsonl, line 1: bad"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record.quarantine["first"] == "a.jsonl, line 1: bad"
    assert store.fs.size(store.full(record.quarantine["path"])) == size
    assert [stored.name for stored in record.files] == ["file.txt"]
    if kind == "local":  # a store in memory must hold it
        assert peak < size / 10


def test_books_that_do_not_balance_are_never_committed(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(ValueError, match="5 documents read but 4 accounted for"):
        write_attempt(store).commit(Books(read=5, kept=3, quarantined=1), 0)
    assert store.record("step", "k") is None


def test_the_first_of_two_attempts_wins_and_the_other_is_swept(tmp_path):
    store = Store(str(tmp_path))
    first, second = write_attempt(store, text="first"), write_attempt(store, text="second")
    first.commit(Books(), 0)
    winner = second.commit(Books(), 0)
    assert winner.attempt == first.attempt
    assert not second.folder.exists()
    assert store.fetch(winner.file("file.txt").path).read_text() == "first"


def test_what_killed_attempts_have_left_is_swept_though_the_shard_is_there(tmp_path):
    store = Store(str(tmp_path))
    record = write_attempt(store).commit(Books(), 0)
    write_attempt(store, text="half of a")
    Attempt(store, "step", "k", "name")  # killed before it wrote anything
    (tmp_path / "shards" / "step" / "k" / ".record.json.1234").write_text("killed between the two halves of a creation")
    assert store.record("step", "k") == record
    assert len(list((tmp_path / "shards" / "step" / "k").iterdir())) == 5  # looking changes nothing
    assert store.record("step", "k", sweep=True) == record
    assert {path.name for path in (tmp_path / "shards" / "step" / "k").iterdir()} == {"record.json", record.attempt}


def test_a_shard_with_a_missing_or_cut_file_counts_as_not_made(tmp_path):
    store = Store(str(tmp_path))
    record = write_attempt(store).commit(Books(), 0)
    store.fetch(record.file("file.txt").path).write_text("hel")
    assert store.record("step", "k") is None
    write_attempt(store).commit(Books(), 0)
    assert store.record("step", "k") is not None


@pytest.mark.parametrize("loss", ["file", "folder", "a file in place of the folder"])
def test_a_shard_that_has_lost_a_file_counts_as_not_made(tmp_path, loss):
    store = Store(str(tmp_path))
    record = write_attempt(store).commit(Books(), 0)
    path = store.fetch(record.file("file.txt").path)
    path.unlink()
    if loss != "file":
        path.parent.rmdir()
    if loss.startswith("a file"):
        path.parent.write_text("hello")
    assert store.record("step", "k") is None


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_the_records_of_many_shards_come_in_their_order_and_tell_what_is_missing_or_damaged(tmp_path, kind):
    store = Store(str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}")
    made = {key: write_attempt(store, key, text=f"text of {key}").commit(Books(), 0) for key in ("a", "b", "c")}
    store.fs.pipe_file(store.full(made["b"].file("file.txt").path), b"cut")
    assert store.records("step", ["c", "none", "b", "a"]) == [made["c"], None, None, made["a"]]


def test_create_never_overwrites_and_never_shows_half_a_file(tmp_path):
    store = Store(str(tmp_path))
    assert store.create("a/record.json", "one")
    assert not store.create("a/record.json", "two")
    assert store.read_text("a/record.json") == "one"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["record.json"]


def test_many_processes_creating_one_record_have_one_winner(tmp_path):
    script = "import sys; from tasks.store import Store; print(int(Store(sys.argv[1]).create('r', sys.argv[2])))"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True) for i in range(4)
    ]
    won = [process.communicate()[0].strip() == "1" for process in processes]
    assert sum(won) == 1
    assert Store(str(tmp_path)).read_text("r") == str(won.index(True))


def test_a_store_on_another_file_system_works_the_same():
    store = Store("memory://store-test")
    record = write_attempt(store).commit(Books(read=1, kept=1), 0)
    assert store.record("step", "k") == record
    assert store.fetch(record.file("file.txt").path).read_text() == "hello"
    assert write_attempt(store, text="late").commit(Books(), 0).attempt == record.attempt


def test_fingerprints_depend_on_values_not_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint(json.loads('{"b": [2], "a": 1}'))
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_books_add_up_by_reason():
    total = Books(read=3, kept=1, dropped={"a": 2}, counts={"tokens": 5}) + Books(read=4, kept=1, dropped={"a": 1, "b": 1}, quarantined=1)
    assert total == Books(read=7, kept=2, dropped={"a": 3, "b": 1}, quarantined=1, counts={"tokens": 5})
