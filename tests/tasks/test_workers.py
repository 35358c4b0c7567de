"""Workers stay for the next step, leave when they are told to or have grown, and never stay where they would be wrong."""

import json
import os
import signal
import sys
import time

import pytest

from tasks import workers

STEP = """
import os
from pathlib import Path
from tasks.store import Books

kept = []

def run(shard):
    if shard.config.get("memory"):
        kept.append(bytearray(os.urandom(1 << 20)) * (shard.config["memory"] >> 20))
    if shard.config.get("dies"):
        os.kill(os.getpid(), 9)
    (shard.folder / "who.json").write_text(f'[{os.getpid()}, "{os.environ.get("COLOUR")}", "{Path.cwd()}", "{os.environ["OMP_NUM_THREADS"]}"]')
    return Books(read=1, kept=1)
"""


class Lab:
    def __init__(self, folder) -> None:
        self.folder, self.count = folder, 0
        (folder / "olmoflow_who.py").write_text(STEP)

    def job(self, **config) -> tuple[str, str]:
        self.count += 1
        shard = {"key": f"k{self.count}", "name": "a", "config": config, "inputs": {}, "hints": {}, "weight": 1, "rank": 0}
        step = {"name": "who", "version": 1, "module": "olmoflow_who", "libraries": []}
        path = self.folder / f"plan-{self.count}" / "plan.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"store": str(self.folder / "store"), "step": step, "name": "web", "shards": [shard], "software": {}}))
        return str(path), "0"

    def run(self, jobs=1, threads=1, **config) -> list[int]:
        return workers.run_all([self.job(**config) for _ in range(jobs)], threads, 0.05, lambda: None)

    def who(self, number=None):
        """(pid, COLOUR, folder, threads) of the worker that made a shard, by default the last."""
        (path,) = (self.folder / "store" / "shards" / "who" / f"k{number or self.count}").glob("attempt-*/who.json")
        return json.loads(path.read_text())


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    workers.release()
    yield Lab(tmp_path)
    workers.release()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_worker_stays_for_the_next_job_and_leaves_when_it_is_released(lab):
    assert lab.run() == lab.run() == [0]
    assert lab.who(1)[0] == lab.who(2)[0] and not is_gone(lab.who(1)[0])
    workers.release()
    assert is_gone(lab.who(1)[0])


def test_jobs_at_once_have_a_worker_each(lab):
    assert lab.run(jobs=3) == [0, 0, 0]
    assert len({lab.who(number)[0] for number in (1, 2, 3)}) == 3


def test_another_environment_folder_or_number_of_threads_gets_another_worker(lab, monkeypatch, tmp_path):
    lab.run()
    monkeypatch.setenv("COLOUR", "blue")
    lab.run()
    monkeypatch.chdir(tmp_path)
    lab.run()
    lab.run(threads=2)
    found = [lab.who(number) for number in (1, 2, 3, 4)]
    assert len({pid for pid, *_ in found}) == 4
    assert [colour for _, colour, *_ in found] == ["None", "blue", "blue", "blue"]
    assert found[2][2] == str(tmp_path) and found[3][3] == "2"


def test_a_worker_that_died_over_a_job_tells_how_and_is_replaced(lab):
    lab.run()
    assert lab.run(dies=True) == [-signal.SIGKILL]
    assert lab.run() == [0] and lab.who()[0] != lab.who(1)[0]


def test_a_worker_that_died_while_it_waited_is_replaced(lab):
    lab.run()
    os.kill(lab.who()[0], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while workers._idle[0].process.poll() is None:
        assert time.monotonic() < deadline
    assert lab.run() == [0] and lab.who()[0] != lab.who(1)[0]


def test_a_worker_that_has_grown_does_not_stay(lab, monkeypatch):
    lab.run(memory=workers.LARGEST_BYTES + (64 << 20))
    lab.run()
    assert lab.who(1)[0] != lab.who(2)[0] and is_gone(lab.who(1)[0])


def test_an_interrupted_run_leaves_no_worker_at_work(lab, monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    hired = []
    plain = workers._hire
    monkeypatch.setattr(workers, "_hire", lambda *arguments: hired.extend(plain(*arguments)) or hired)
    os.mkfifo(lab.folder / "never")
    (lab.folder / "olmoflow_who.py").write_text(f"def run(shard):\n    open({str(lab.folder / 'never')!r}).read()\n")
    with pytest.raises(KeyboardInterrupt):
        workers.run_all([lab.job()], 1, 0.05, interrupt)
    assert [worker.process.poll() for worker in hired] == [-signal.SIGKILL] and workers._idle == []
