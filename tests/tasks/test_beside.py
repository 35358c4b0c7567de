"""Jobs beside each other: no more at once than there is room for, each on GPUs of its own, and all ended when one fails."""

import threading

import pytest

from tasks.beside import Beside, Stopped, gpus_of
from tasks.errors import UserError
from tasks.progress import Progress, ignore
from tasks.shards import ShardTask
from tasks.spread import student_t

PATIENCE = 20  # seconds; a bound on waiting for an event, not a measurement


def task(name: str) -> ShardTask:
    return ShardTask(name, {}, {})


def test_as_many_jobs_run_at_once_as_there_is_room_for_and_no_two_in_one_slot():
    meeting = threading.Barrier(2)  # passes only where two jobs are inside together
    lock, inside, most = threading.Lock(), set(), []

    def make(slot, watch, check):
        def job(task, key):
            with lock:
                assert slot not in inside
                inside.add(slot)
                most.append(len(inside))
            meeting.wait(PATIENCE)
            with lock:
                inside.remove(slot)

        return job

    with Beside(2, make, ignore) as beside:
        for key in "abcd":
            beside.start(task(key), key)
        for key in "abcd":
            beside(task(key), key)
    assert max(most) == 2


def test_a_key_is_begun_once_and_progress_is_told_by_the_thread_that_waits():
    done, told = [], []

    def make(slot, watch, check):
        def job(task, key):
            watch(Progress("train", task.name, 1, 2, "steps", 0.5, 1.0))
            done.append(key)

        return job

    with Beside(1, make, lambda progress: told.append((progress.name, threading.current_thread()))) as beside:
        for _ in range(2):
            beside.start(task("one"), "one")
        beside(task("one"), "one")
        beside(task("two"), "two")  # which nobody had started
    assert done == ["one", "two"]
    assert {thread for _, thread in told} <= {threading.main_thread()}


@pytest.mark.parametrize("error", [UserError("the mix is gone"), KeyboardInterrupt()])
def test_a_failure_ends_the_other_jobs_with_time_to_save_before_anybody_hears_of_it(error):
    begun, saved = threading.Event(), []

    def make(slot, watch, check):
        def job(task, key):
            if key == "bad":
                assert begun.wait(PATIENCE)
                raise error
            begun.set()
            with pytest.raises(Stopped):
                while True:
                    check()
            saved.append(key)
            raise Stopped

        return job

    with Beside(2, make, ignore) as beside:
        for key in ("bad", "good"):
            beside.start(task(key), key)
        with pytest.raises(type(error)):
            beside(task("bad"), "bad")
        assert saved == ["good"]
        assert [future.done() for future in beside.started.values()] == [True, True]


def test_each_slot_has_gpus_of_its_own_and_too_few_are_refused(monkeypatch):
    monkeypatch.setattr("tasks.launch_local.gpu_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpus_of(slot, 2, "auto") for slot in range(2)] == [["0", "1"], ["2", "3"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-a,3,2")
    assert [gpus_of(slot, 2, "cuda") for slot in range(2)] == [["7", "GPU-a"], ["3", "2"]]
    with pytest.raises(UserError, match=r"where.micro_anneals.gpus asks for 6 GPUs or more, but there are 4 here"):
        gpus_of(2, 2, "auto")
    assert gpus_of(9, 2, "cpu") == []
    monkeypatch.setattr("tasks.launch_local.gpu_count", lambda: 0)
    assert gpus_of(9, 2, "auto") == []


def test_quantiles_of_students_t_are_scipys():
    t = pytest.importorskip("scipy.stats").t
    for freedom in (*range(1, 41), 100, 1000):
        assert student_t(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-3)
