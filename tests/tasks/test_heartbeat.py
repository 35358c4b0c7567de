"""A job ends with its command, or when nobody waits for it any more."""

import os
import select
import signal
import subprocess
import sys

import pytest

from tasks.heartbeat import ALONE, TERMINATED, Heartbeat

PATIENCE = 30  # seconds; a bound on waiting for an event, not a measurement
WAITS = "import signal, sys; signal.alarm(60); print('ready', flush=True); signal.pause()"


@pytest.fixture
def start(tmp_path):
    """`start(seconds, code)`: a command that is waited for with a file in the test's folder."""
    started = []

    def run(seconds: float, code: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "tasks.heartbeat", str(tmp_path / "beat"), str(seconds), "1", sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("code", [0, 3])
def test_a_commands_exit_code_is_its_own(start, code):
    assert start(60, f"raise SystemExit({code})").wait(PATIENCE) == code


def test_a_command_that_a_signal_ends_is_told_as_a_shell_does(start):
    assert start(60, "import os; os.kill(os.getpid(), 9)").wait(PATIENCE) == 137


def test_nobody_waiting_ends_the_command_with_time_to_save(start):
    saves = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(0))); print('ready', flush=True); signal.pause()"
    process = start(0.5, saves)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == ALONE
    assert out.split() == ["ready", "saved"] and "nobody has waited for this job" in err


def test_a_heartbeat_keeps_it_alive(start, tmp_path):
    heart = Heartbeat(tmp_path / "beat", 1.0)
    process = start(1.0, "import time; time.sleep(2)")
    while process.poll() is None:
        heart.beat()
        select.select([], [], [], 0.05)  # between beats
    assert process.returncode == 0


def test_sigterm_to_the_job_is_told_by_its_exit_code(start):
    process = start(60, WAITS)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm does: to every process of the job
    assert process.wait(PATIENCE) == TERMINATED
