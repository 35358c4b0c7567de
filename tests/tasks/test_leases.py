"""Runs that start at once share the work: each shard is made by one of them, and what a dead one held is taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.leases import SILENT_SECONDS, Leases, held
from tasks.store import Attempt, Books, Store

PATIENCE_SECONDS = 60  # a bound on waiting for a condition, not a measurement

# A step that writes down who made which shard, and takes its time until a file is there.
STEP = """
import os, time
from pathlib import Path
from tasks.store import Books

def run(shard):
    with Path(shard.config["log"]).open("a") as stream:
        stream.write(f"{shard.name} {os.getpid()}\\n")
    until = shard.config["until"]
    while until and not Path(until).exists():
        time.sleep(0.02)
    (shard.folder / "out.txt").write_text(shard.name)
    return Books(read=1, kept=1)
"""
HOLD = """
import sys, time
from tasks.leases import Leases
from tasks.store import Store
with Leases(Store(sys.argv[1]), "upper").take("k"):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between looks


def elsewhere(store, **changes) -> None:
    """The lease on `k`, as a process of another machine would write it."""
    path = "leases/upper/k.json"
    there = json.loads(store.read_text(path) or "{}")
    store.replace(path, json.dumps({**there, "machine": "another", "host": "far", **changes}))


def test_one_has_the_lease_until_it_lets_go_and_the_others_know_who(store):
    one, other = Leases(store, "upper"), Leases(store, "upper")
    with one.take("k"):
        assert other.take("k") is None
        assert str(os.getpid()) in str(other.holders["k"])
        assert other.take("another") is not None
    assert other.take("k") is not None


def test_what_a_killed_process_of_this_machine_held_is_taken_at_once(store):
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    leases = Leases(store, "upper", clock=lambda: 0.0)  # no time passes
    assert leases.take("k") is None
    process.kill()
    wait_for(lambda: leases.take("k") is not None)  # a killed process needs a moment to be gone
    process.communicate()


def test_what_another_machine_holds_is_taken_when_it_has_been_silent_by_our_clock(store):
    now = 0.0
    leases = Leases(store, "upper", clock=lambda: now)
    with Leases(store, "upper").take("k"):
        elsewhere(store, lease="theirs", beat=0)
        assert leases.take("k") is None
        now = SILENT_SECONDS - 1
        elsewhere(store, beat=1)  # it lives
        assert leases.take("k") is None
        now = 2 * SILENT_SECONDS - 2
        assert leases.take("k") is None
        now = 2 * SILENT_SECONDS
        assert leases.take("k") is not None
    assert json.loads(store.read_text("leases/upper/k.json"))["host"] != "far"  # who lost a lease does not take the other's away


def test_a_job_that_another_run_makes_is_waited_for_and_not_made_again(store):
    leases, looks = Leases(store, "upper"), []
    lease = leases.take("k")

    def meanwhile():
        looks.append(len(looks))
        if len(looks) == 2:  # the other run ends it
            attempt = Attempt(store, "upper", "k", "a")
            attempt.commit(Books(read=1, kept=1), 0.0)
            lease.__exit__(None, None, None)

    with held(store, "upper", "k", "a", meanwhile) as missing:
        assert not missing
    assert looks == [0, 1]


class Plan:
    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.log, self.until = folder, folder / "log", folder / "go on"
        (folder / "olmoflow_shared.py").write_text(STEP)
        config = {"log": str(self.log), "until": str(self.until)}
        self.shards = [
            {"key": f"k{i}", "name": f"part {i}", "config": config, "inputs": {}, "hints": {}, "weight": 1, "rank": 0}
            for i in range(shards)
        ]

    def start(self) -> subprocess.Popen:
        """A run of its own of the same shards."""
        number = len(list(self.folder.glob("plan-*")))
        path = self.folder / f"plan-{number}" / "plan.json"
        path.parent.mkdir()
        step = {"name": "shared", "version": 1, "module": "olmoflow_shared", "libraries": []}
        plan = {"store": str(self.folder / "store"), "step": step, "name": "web", "shards": self.shards, "software": {}}
        path.write_text(json.dumps(plan))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), *filter(None, sys.path)])}
        return subprocess.Popen([sys.executable, "-m", "tasks.shard", str(path), "0"], env=environment)

    def made(self) -> list[str]:
        return [line.rsplit(" ", 1)[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def makers(self) -> set[int]:
        return {int(line.rsplit(" ", 1)[1]) for line in self.log.read_text().splitlines()}


def test_two_runs_at_once_make_each_shard_once_and_both_wait_for_all(tmp_path):
    plan = Plan(tmp_path, 12)
    runs = [plan.start(), plan.start()]
    wait_for(lambda: len(plan.made()) == 2)  # one each
    plan.until.touch()
    assert [run.wait(PATIENCE_SECONDS) for run in runs] == [0, 0]
    assert sorted(plan.made()) == sorted(shard["name"] for shard in plan.shards)
    assert plan.makers() == {run.pid for run in runs}


def test_a_run_that_is_killed_leaves_its_shard_to_the_other(tmp_path):
    plan = Plan(tmp_path, 4)
    dead, other = plan.start(), None
    try:
        wait_for(lambda: len(plan.made()) == 1)
        other = plan.start()
        wait_for(lambda: len(plan.made()) == 2)
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait()
        plan.until.touch()
        assert other.wait(PATIENCE_SECONDS) == 0
    finally:
        for run in filter(None, (dead, other)):
            run.kill()
            run.wait()
    store = Store(str(tmp_path / "store"))
    assert all(store.records("shared", [shard["key"] for shard in plan.shards]))
    assert len(plan.made()) == 5  # the one that was cut off twice
