"""Beside each manifest lies what each of its shards was asked for, and a manifest names the lock file and the container."""

import hashlib
import json
import sys
import types
from pathlib import Path

import pytest
from in_process import InProcess

from tasks import shard_tasks
from tasks.shards import Runner, ShardRef, ShardTask, Step
from tasks.sources.base import RawFile
from tasks.store import Attempt, Books, Store

STEP = Step("copy", 1, "olmoflow_copy_step", ("numpy",))


@pytest.fixture
def runner(tmp_path, monkeypatch):
    module = types.ModuleType(STEP.module)

    def run(shard):
        (shard.folder / "out.txt").write_text(shard.name)
        return Books()

    module.run = run
    monkeypatch.setitem(sys.modules, STEP.module, module)
    store = Store(str(tmp_path / "store"))
    Attempt(store, "ingest", "a", "a").commit(Books(), 0.0)
    return Runner(store, InProcess())


def tasks(path: Path, number: int = 3) -> list[ShardTask]:
    raw = [RawFile(f"https://user:secret@example.org/{i}?sign=secret", f"{i}", 3, f"content{i}") for i in range(number)]
    hints = {"batch": 4, "store": "s3://key:secret@bucket", "afresh": False, "held_out": {"sources": {"a": ShardRef("mix", "k")}}}
    return [
        ShardTask(raw.name, {"case": "upper", "place": {}}, {"raw": [raw], "old": [ShardRef("ingest", "a", "b")]}, hints) for raw in raw
    ]


def manifest(runner: Runner) -> dict:
    (found,) = runner.store.manifests()
    return found


def test_each_shards_config_hints_and_inputs_come_back(runner, tmp_path):
    made = runner.run(STEP, "web", tasks(tmp_path))
    told = shard_tasks.read(runner.store, "copy", made.id)
    assert [task.name for task in told.shards] == ["0", "1", "2"] and list(told.libraries) == ["numpy"]
    assert told.shards[1].config == {"case": "upper", "place": {}}
    raw, old = told.shards[1].inputs["raw"][0], told.shards[1].inputs["old"][0]
    assert (raw.step, raw.content, raw.raw["name"]) == ("", "content1", "1")
    assert (old.step, old.key, old.content) == ("ingest", "a", "b")
    assert sorted(told.shards[0].shards()) == [("ingest", "a"), ("mix", "k")]


def test_no_secret_of_a_url_is_written_down(runner, tmp_path):
    runner.run(STEP, "web", tasks(tmp_path))
    written = [path for path in (tmp_path / "store").rglob("*.json") if "secret" in path.read_text()]
    assert written == []


def test_equal_configs_are_written_once(runner, tmp_path):
    made = runner.run(STEP, "web", tasks(tmp_path, 200))
    text = runner.store.read_text(f"tasks/copy/{made.id}.json")
    assert text.count('"case"') == 1 and len(text) < 200 * 200


def test_a_manifest_names_the_lock_file_and_the_container(runner, tmp_path, monkeypatch):
    monkeypatch.setenv("OLMOFLOW_CONTAINER_DIGEST", "sha256:abc")
    runner.run(STEP, "web", tasks(tmp_path))
    lock = Path(__file__).parents[2] / "constraints.txt"
    assert manifest(runner)["lock"] == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert manifest(runner)["container"] == "sha256:abc"


def test_an_older_manifest_gains_its_tasks_and_keeps_what_made_it(runner, tmp_path):
    made = runner.run(STEP, "web", tasks(tmp_path))
    old = manifest(runner) | {"created": "2020-01-01T00:00:00+00:00", "software": {"python": "3.1"}}
    for name in ("tasks", "lock", "container"):
        del old[name]
    runner.store.replace(f"artifacts/copy/{made.id}.json", json.dumps(old))
    shard_tasks.delete(runner.store, "copy", made.id)
    runner.run(STEP, "web", tasks(tmp_path))
    new = manifest(runner)
    assert (new["created"], new["software"], new["lock"]) == (old["created"], old["software"], None)
    assert len(shard_tasks.read(runner.store, "copy", made.id).shards) == 3
