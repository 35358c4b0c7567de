"""The step: a shard a task, one process for all that are missing; and who looks at the held-out tasks is written down."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tasks import downstream
from tasks.launch import LauncherConfig
from tasks.olmes import run
from tasks.olmes.run import REQUESTS, SAMPLES, SCORES
from tasks.shards import Engine, Runner, ShardRef, input_files
from tasks.store import Attempt, Books, Store

FILES = downstream.TaskFiles(paths=["-"], shots=0)


@pytest.fixture
def store(tmp_path, model) -> Store:
    """A store with an exported model."""
    store = Store(str(tmp_path / "store"))
    attempt = Attempt(store, "model", "key", "soup")
    shutil.copytree(model, attempt.folder, dirs_exist_ok=True)
    attempt.commit(Books("checkpoints", 1, 1), 0.0)
    return store


def test_what_is_through_is_kept_though_a_later_task_fails_and_only_that_one_is_run_again(store, write, arc, monkeypatch):
    pytest.importorskip("lm_eval")
    questions, problems = write(arc(6)), write([{"question": "Who?", "answer": ["me"]}], "nq.jsonl")
    tasks = [
        downstream.task(name, FILES, "fp32", ShardRef("model", "key"), [file], [])
        for name, file in (("arc_easy", questions), ("naturalqs", problems))
    ]
    runner = Runner(store, Engine())
    launches = []

    def launch(module, config, folder, launcher, **more):
        launches.append(list(config["tasks"]))
        if len(launches) > 1:
            real(module, config, folder, launcher, **more)
            return
        damaged = Path(config["tasks"]["naturalqs"]) / REQUESTS / "naturalqs_generate.yaml"
        damaged.write_text("task: naturalqs_generate\n")
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        run.main([str(folder / "run.yaml")])  # here, since a process takes seconds to start

    real = downstream.launch
    monkeypatch.setattr(downstream, "launch", launch)
    job = downstream.DownstreamJob(store, LauncherConfig(threads=1, device="cpu"), 4, tasks)
    with pytest.raises(KeyError):
        runner.run(downstream.STEP, "soup", tasks, launch=job)
    artifact = runner.run(downstream.STEP, "soup", tasks, launch=job)
    assert launches == [["arc_easy", "naturalqs"], ["naturalqs"]]
    assert artifact.is_whole
    scores = [json.loads(input_files(store, ref)[SCORES].read_text()) for ref in artifact.refs]
    assert [(each["task"], each["instances"], each["metric"]) for each in scores] == [("arc_easy", 6, "accuracy"), ("naturalqs", 1, "f1")]
    assert runner.run(downstream.STEP, "soup", tasks, launch=job).made == 0


def test_the_books_tell_what_a_subset_leaves_out(store, write, arc, monkeypatch):
    def launch(module, config, folder, launcher, **more):
        for out in config["tasks"].values():
            for name in (SCORES, SAMPLES):
                (Path(out) / name).write_text("{}")

    monkeypatch.setattr(downstream, "launch", launch)
    files = FILES.model_copy(update={"instances": 4})
    tasks = [downstream.task("arc_easy", files, "fp32", ShardRef("model", "key"), [write(arc(6))], [])]
    artifact = Runner(store, Engine()).run(
        downstream.STEP, "soup", tasks, launch=downstream.DownstreamJob(store, LauncherConfig(), 4, tasks)
    )
    assert (artifact.books.read, artifact.books.kept, artifact.books.dropped) == (6, 4, {"not_in_the_subset": 2})


def test_each_look_at_the_held_out_tasks_is_remembered(store):
    for _ in range(2):
        downstream.log_held_out(store, "mine", ["gsm8k"], ["soup"])
    names = store.names("held-out")
    assert len(names) == 2
    entry = json.loads(store.read_text(f"held-out/{names[0]}"))
    assert (entry["recipe"], entry["tasks"], entry["models"]) == ("mine", ["gsm8k"], ["soup"])
    assert entry["time"] and entry["user"]


def test_suites_part_what_development_may_look_at():
    given = ["gsm_star", "gsm8k", "arc_easy"]
    assert downstream.names("development", given) == ["gsm_star", "arc_easy"]
    assert downstream.names("held_out", given) == ["gsm8k"]
