"""Inputs and store on an S3 server: the same bytes as on a disk, records created by one writer only, nothing secret written down."""

import json
import os
import subprocess
import sys
import threading

import pytest
import s3fs
import yaml

from flows.gc import Collection
from tasks import scratch
from tasks.errors import UserError
from tasks.raw_files import find
from tasks.store import Attempt, Books, Store

pytestmark = pytest.mark.usefixtures("in_process")


def test_inputs_and_store_on_s3_give_the_bytes_of_a_local_run_and_hold_nothing_secret(s3, undisturbed):
    pipeline = s3.run()
    assert s3.contents() == undisturbed.contents()
    for record in s3.records(("ingest", "score", "tokenizer", "tokenize", "select", "mix")):
        record.books.balance(record.name)
    assert all(len(attempts) == 1 for attempts in s3.attempts().values())
    assert not [path for path in (scratch.folder() / "shards").rglob("*") if path.is_file()]
    made = sum(pipeline.runner.made_shards.values())
    assert made and sum(s3.run().runner.made_shards.values()) == 0  # and nothing twice
    for path in s3.server.find(f"{s3.bucket}/store"):
        assert s3.secret.encode() not in s3.server.cat_file(path), path


def test_a_record_is_created_on_the_condition_that_none_is_there(s3):
    store = Store(s3.store)
    assert store.create("a/record.json", "one") and not store.create("a/record.json", "two")
    assert store.read_text("a/record.json") == "one"
    puts = [headers for method, path, headers in s3.proxy.seen if method == "PUT" and "record.json" in path]
    assert [headers.get("If-None-Match") for headers in puts] == ["*", "*"]


def test_of_many_writers_at_once_one_wins(s3):
    stores = [Store(s3.store) for _ in range(8)]
    won: list[int] = []

    def write(number: int) -> None:
        start.wait()
        if stores[number].create("shards/step/k/record.json", f"writer {number}"):
            won.append(number)

    start = threading.Barrier(len(stores))
    threads = [threading.Thread(target=write, args=[number]) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert stores[0].read_text("shards/step/k/record.json") == f"writer {won[0]}"


def test_two_attempts_at_a_shard_leave_one_and_the_loser_is_swept(s3):
    attempts = [Attempt(Store(s3.store), "step", "k", "name") for _ in range(2)]
    for number, attempt in enumerate(attempts):
        (attempt.folder / "file.txt").write_text(f"attempt {number}")
    records = [attempt.commit(Books(), 0) for attempt in attempts]
    assert {record.attempt for record in records} == {attempts[0].attempt}
    store = Store(s3.store)
    assert store.fetch(records[1].file("file.txt").path).read_text() == "attempt 0"
    assert store.names("shards/step/k") == [attempts[0].attempt, "record.json"]


def test_what_another_process_has_written_is_seen(s3):
    store = Store(s3.store)
    assert store.names("families/score/f") == []
    s3.server.pipe_file(f"{s3.bucket}/store/families/score/f/one", b"{}")
    assert store.names("families/score/f") == ["one"]


def test_many_files_are_found_with_one_look_at_a_folder(s3):
    s3.server.pipe({f"{s3.bucket}/many/{number:03d}.jsonl": b"%d" % number for number in range(100)})
    before = len(s3.proxy.seen)
    found, copies = find(Store(s3.store), "many", [f"s3://{s3.bucket}/many/*.jsonl"])
    assert len(found) == 100 and not copies
    assert len(s3.proxy.seen) - before < 10


def test_a_large_file_comes_whole_and_is_checked(s3, monkeypatch):
    """Over 100 MB s3fs moves a file in parts, several at once."""
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 << 20)
    store = Store(s3.store)
    content = os.urandom(1 << 20) * 13
    attempt = Attempt(store, "step", "k", "name")
    (attempt.folder / "tokens.npy").write_bytes(content)
    record = attempt.commit(Books(), 0)
    stored = record.file("tokens.npy")
    assert store.fetch(stored.path, stored.sha256).read_bytes() == content
    s3.server.pipe_file(f"{s3.bucket}/store/{stored.path}", b"x" + content[1:])
    monkeypatch.setattr("tasks.storage.WAITS_SECONDS", (0,))
    store.keep_fetched([])
    with pytest.raises(UserError, match="its bytes are not those that were committed"):
        store.fetch(stored.path, stored.sha256)


def test_a_bucket_that_is_not_there_and_a_refusal_are_told_in_one_sentence(s3, monkeypatch):
    with pytest.raises(UserError, match=r"sources.web: no file matches s3://no-such-bucket/\*"):
        find(Store(s3.store), "sources.web", ["s3://no-such-bucket/*"])
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="the storage refuses it: Unable to locate credentials"):
        Store(s3.store).read_text("runs/s3.json")


@pytest.mark.soak
@pytest.mark.parametrize("place", ["environment", "fsspec"])
def test_the_command_line_curates_from_s3_to_s3(s3, undisturbed, place, tmp_path, prefect_home):
    """The endpoint from AWS's variable, or from fsspec's configuration; the workers are processes of their own."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(json.loads(s3.recipe.model_dump_json(exclude_unset=True))))
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home), "OMP_NUM_THREADS": "1"}
    if place == "fsspec":
        environment |= {"FSSPEC_S3_ENDPOINT_URL": environment.pop("AWS_ENDPOINT_URL"), "FSSPEC_S3_KEY": "tester"}
        environment |= {"FSSPEC_S3_SECRET": environment.pop("AWS_SECRET_ACCESS_KEY")}
        del environment["AWS_ACCESS_KEY_ID"]
    command = [sys.executable, "-m", "flows.cli", "run", "curate", str(file), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert s3.contents() == undisturbed.contents()
    assert s3.secret not in done.stdout + done.stderr


def test_the_collection_deletes_what_is_not_kept_and_leaves_what_it_descends_from(s3):
    store = Store(s3.store)

    def made(step: str, inputs: list[str]) -> str:
        attempt = Attempt(store, step, f"key-of-{step}", step)
        (attempt.folder / "out").write_bytes(b"1" * 1000)
        attempt.commit(Books(), 0.0)
        told = {"id": f"{step}-1", "step": step, "name": "web", "shards": [f"key-of-{step}"], "inputs": inputs, "created": "2026"}
        store.replace(f"artifacts/{step}/{step}-1.json", json.dumps(told))
        return f"{step}-1"

    select = made("select", [made("ingest", [])])
    made("mix", [select])
    collection = Collection(s3.store, [select], grace_hours=0)
    garbage = collection.garbage()
    assert [item.id for item in garbage.items] == ["mix-1"]
    assert Collection(s3.store, [], grace_hours=1).garbage().items == []  # all of it is young, by the server's own times
    before = s3.server.du(f"{s3.bucket}/store")
    assert collection.delete(garbage, None) == before - s3.server.du(f"{s3.bucket}/store") > 1000
    assert store.record("ingest", "key-of-ingest") and store.record("select", "key-of-select")
    assert not s3.server.exists(f"{s3.bucket}/store/shards/mix")
