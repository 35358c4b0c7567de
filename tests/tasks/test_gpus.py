"""GPUs lent to one job at a time."""

import subprocess
import sys
import threading

import pytest

from tasks import gpus
from tasks.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from tasks.gpus import lent
with lent(["0", "1", "2"], 2, lambda: None, Path(sys.argv[1])) as mine:
    print(*mine, flush=True)
    time.sleep(600)
"""


def nobody_waits():
    raise AssertionError("it had to wait")


def test_jobs_beside_each_other_get_gpus_of_their_own(tmp_path):
    with (
        gpus.lent(["0", "1", "2", "3"], 2, nobody_waits, tmp_path) as one,
        gpus.lent(["0", "1", "2", "3"], 2, nobody_waits, tmp_path) as other,
    ):
        assert sorted(one + other) == ["0", "1", "2", "3"]


def test_who_finds_too_few_takes_none_and_waits_until_a_killed_job_s_are_free(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "LOOK_SECONDS", 0.01)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline().split() == ["0", "1"]
            waits, taken = threading.Event(), []

            def take():
                with gpus.lent(["0", "1", "2"], 2, waits.set, tmp_path) as mine:
                    taken.append(mine)

            thread = threading.Thread(target=take)
            thread.start()
            assert waits.wait(60)
            with gpus.lent(["2"], 1, lambda: None, tmp_path) as free:  # the one who waits holds none of it
                assert free == ["2"]
            assert not taken
        finally:
            holder.kill()
        thread.join(60)
        assert taken == [["0", "1"]]


def test_more_gpus_than_there_are_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="takes 3 GPUs, but there are 2"), gpus.lent(["0", "1"], 3, nobody_waits, tmp_path):
        pass
