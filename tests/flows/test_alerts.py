"""What is told of a training and of disks that needs somebody: once, in a sentence, and not where all is well."""

import json
import shutil
from collections import namedtuple

import pytest

from flows.alerts import AGAIN_SECONDS, LOOK_SECONDS, STRAGGLER_STEPS, Disks, TrainingAlerts


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


@pytest.fixture
def training(tmp_path, clock, told):
    (tmp_path / "ranks.json").write_text(json.dumps([{"host": f"n{rank}", "device": "cuda:0"} for rank in range(4)]))
    return TrainingAlerts("pretrain of a", tmp_path, lambda *alert: told.append(alert), clock)


def steps(tmp_path, numbers, mode="a", **changes):
    line = {"loss": 2.0, "grad_norm": 1.0, "loss_spike": 0, "grad_norm_spike": 0, "seconds": 2.0, "checkpoint_seconds": 0.0}
    line |= {"held_out_seconds": 0.0} | changes
    with (tmp_path / "metrics.jsonl").open(mode) as stream:
        stream.writelines(json.dumps({"step": number, **line}) + "\n" for number in numbers)


def test_a_spike_is_told_once_and_later_how_many_more_there_were(tmp_path, training, clock, told):
    steps(tmp_path, range(1, 30))
    steps(tmp_path, [30], loss=9.25, loss_spike=1)
    training()
    assert [(kind, sentence.split(" lies")[0]) for kind, _, sentence in told] == [
        ("spike", "pretrain of a: the loss of step 30 is 9.25, at least 7 standard deviations from the mean of the 1,000 steps before it")
    ]
    steps(tmp_path, [31, 32], loss_spike=1)
    steps(tmp_path, [33], grad_norm=40.0, grad_norm_spike=1)
    training()
    assert [sentence.split(" is ")[0] for _, _, sentence in told[1:]] == ["pretrain of a: the gradient norm of step 33"]
    clock.now += AGAIN_SECONDS
    steps(tmp_path, [34], loss_spike=1)
    training()
    assert len(told) == 3 and told[2][2].endswith("(2 more since the last alert)")


def test_a_run_that_goes_on_tells_nothing_of_steps_that_were_seen(tmp_path, clock, told):
    steps(tmp_path, range(1, 40), loss_spike=1)
    training = TrainingAlerts("pretrain of a", tmp_path, lambda *alert: told.append(alert), clock)
    training()
    steps(tmp_path, range(1, 21), "w", loss_spike=1)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "other")
    (tmp_path / "metrics.jsonl").write_text((tmp_path / "other").read_text())  # cut back to its checkpoint
    steps(tmp_path, range(21, 40), loss_spike=1)
    training()
    assert told == []
    steps(tmp_path, [40], loss_spike=1)
    training()
    assert len(told) == 1


def test_no_step_for_long_is_a_stall_and_a_long_step_or_checkpoint_is_none(tmp_path, training, clock, told):
    clock.now += 10_000  # it has not begun: a queue, a compilation
    training()
    steps(tmp_path, range(1, 20))
    steps(tmp_path, [20], checkpoint_seconds=90.0)
    training()
    clock.now += 3 * (10 * 2.0 + 90) - 1
    training()
    assert told == []
    clock.now += 1
    training()
    training()
    assert told == [("stall", "pretrain of a", "pretrain of a: no step for 5m 30s after step 20; one takes 2 s otherwise")]
    clock.now += AGAIN_SECONDS
    steps(tmp_path, [21])
    training()
    clock.now += 1000
    training()
    assert len(told) == 2


def test_a_rank_that_stays_behind_the_others_is_named_with_its_host_and_one_that_changes_is_not(tmp_path, training, told):
    for number in range(1, 3 * STRAGGLER_STEPS):
        steps(tmp_path, [number], slowest_rank=number % 2, slowest_rank_over_median=1.5)
    steps(tmp_path, range(200, 199 + STRAGGLER_STEPS), slowest_rank=2, slowest_rank_over_median=1.5)
    steps(tmp_path, [300], slowest_rank=2, slowest_rank_over_median=1.1)
    training()
    assert told == []
    steps(tmp_path, range(301, 301 + STRAGGLER_STEPS), slowest_rank=2, slowest_rank_over_median=1.5)
    training()
    assert told == [
        (
            "straggler",
            "pretrain of a rank 2",
            f"pretrain of a: rank 2 (cuda:0 of n2) takes 1.50 times as long as the median of the other ranks, for {STRAGGLER_STEPS} steps now",
        )
    ]


@pytest.mark.parametrize(("total", "free", "low"), [(100, 4, True), (100, 6, False), (100_000, 60, False), (100_000, 40, True)])
def test_a_disk_is_told_of_where_little_of_it_and_little_in_all_is_free(tmp_path, clock, told, monkeypatch, total, free, low):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(total * 2**30, 0, free * 2**30))
    disks = Disks([tmp_path / "store" / "to-be", tmp_path], lambda *alert: told.append(alert), clock)
    disks()
    clock.now += LOOK_SECONDS
    disks()
    assert [(kind, about) for kind, about, _ in told] == [("disk", str(tmp_path / "store" / "to-be"))] * low  # one disk, one alert
