"""A launched job tells how it failed and never outlives its launcher's wait."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks import launch_local as launcher
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch

PATIENCE = 20  # seconds; a bound on waiting for an event, not a measurement
ALARM = 60  # seconds after which what a failed test left behind ends by itself
CPU = LauncherConfig(device="cpu")

# A job that holds the line open and says when it is ready; it runs what its config gives as `code`.
JOB = f"""
import os, signal, subprocess, sys, yaml
signal.alarm({ALARM})
config = yaml.safe_load(open(sys.argv[1]))
line = os.open(config["line"], os.O_WRONLY) if "line" in config else None
def say(word): os.write(line, word.encode())
def child(code):
    code = "import os, signal; signal.alarm({ALARM}); " + code
    started = subprocess.Popen([sys.executable, "-c", code], pass_fds=[line], stdin=subprocess.DEVNULL)
    print(started.pid, file=open(config["pids"], "a"))
exec(config["code"])
"""
# A child that ignores SIGTERM, and says so before its parent goes on.
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write({line}, b'deaf '); signal.pause()"


class Stop(Exception):
    """What a person or a flow does to a job in the middle."""


class Line:
    """A pipe that everything the job started holds open: its end is their end, so no test has to sleep or to look for processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.heard = b""

    def hear(self) -> bool:
        """Take what was said; False at the end of the line."""
        try:
            said = os.read(self.file, 1000)
        except BlockingIOError:
            return True
        self.heard += said
        return bool(said)

    def stop_when(self, *words: str):
        """Progress that raises Stop once all the words were said."""

        def progress() -> None:
            select.select([self.file], [], [], 0.05)
            self.hear()
            if all(word.encode() in self.heard for word in words):
                raise Stop

        return progress

    def ends(self, patience: float = PATIENCE) -> bool:
        """Whether all that held the line are gone, or are about to be."""
        while select.select([self.file], [], [], patience)[0]:
            if not self.hear():
                return True
        return False


@pytest.fixture
def line(tmp_path):
    made = Line(tmp_path / "line")
    yield made
    os.close(made.file)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """launch() of the job with some code."""
    (tmp_path / "olmoflow_test_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.01)
    config = {"pids": str(tmp_path / "pids"), "line": str(tmp_path / "line")}

    def launched(code: str, progress=lambda: None, job=CPU, **more) -> None:
        there = config if (tmp_path / "line").exists() else {"pids": config["pids"]}
        launch("olmoflow_test_job", {**there, **more, "code": code}, tmp_path, job, progress)

    yield launched
    for pid in (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else ():
        with contextlib.suppress(ProcessLookupError):  # what a failed test left
            os.kill(int(pid), signal.SIGKILL)


# -- the end of a job --------------------------------------------------------------------------------------------------------------


def test_a_job_gets_its_config_as_a_file_and_its_output_goes_to_a_log(run, tmp_path):
    run("print('step', config['steps']); print('and more', file=sys.stderr)", steps=3)
    assert set((tmp_path / "olmoflow_test_job.log").read_text().splitlines()) == {"step 3", "and more"}
    assert yaml.safe_load((tmp_path / "olmoflow_test_job.yaml").read_text())["steps"] == 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "print('a'); print('error: the mix is gone.', file=sys.stderr); print('W0101 torchrun says much'); sys.exit(1)",
            "the mix is gone",
        ),
        ("print('error: first', file=sys.stderr); print('error: last', file=sys.stderr); sys.exit(1)", "last"),
        ("raise ValueError('no such luck')", "ValueError: no such luck"),
        ("print('last line'); print(); sys.exit(1)", "last line"),
        ("sys.stdout.buffer.write(b'bytes \\xff'); sys.exit(1)", "bytes \ufffd"),
        ("sys.exit(1)", "no output"),
    ],
)
def test_a_failing_job_is_told_in_its_last_words(run, tmp_path, code, words):
    with pytest.raises(UserError) as error:
        run(code)
    told = str(error.value)
    assert told.startswith(f"olmoflow_test_job ended with 1: {words} (whole log: {tmp_path / 'olmoflow_test_job.log'})")
    assert "run the same command again" in told and "\n" not in told


def test_a_job_that_a_signal_ends_is_told(run):
    with pytest.raises(UserError, match="olmoflow_test_job ended with -9: still here"):
        run("print('still here', flush=True); os.kill(os.getpid(), signal.SIGKILL)")


def test_last_words_are_those_of_this_run_not_of_one_before(run, tmp_path):
    with pytest.raises(UserError, match="error of old"):
        run("print('error: error of old'); sys.exit(1)")
    with pytest.raises(UserError, match="ended with 2: no output"):
        run("sys.exit(2)")
    assert "error of old" in (tmp_path / "olmoflow_test_job.log").read_text()  # the log keeps both


def test_progress_is_told_while_the_job_runs(run, line, tmp_path):
    os.mkfifo(tmp_path / "go")

    def progress() -> None:
        if line.hear() and line.heard and not go:
            go.append((tmp_path / "go").write_text("on"))

    go: list[int] = []
    run("say('ready'); say(open(config['go']).read())", progress, go=str(tmp_path / "go"))  # it waits to be let on
    assert line.ends() and line.heard == b"readyon"


def test_a_job_has_its_threads_and_a_session_of_its_own(run, tmp_path):
    run("print(os.environ['OMP_NUM_THREADS'], os.getsid(0) == os.getpid())", job=LauncherConfig(threads=3, device="cpu"))
    assert (tmp_path / "olmoflow_test_job.log").read_text() == "3 True\n"


# -- an exception during the wait ----------------------------------------------------------------------------------------------------


def test_an_exception_ends_the_job_and_what_it_started(run, line):
    code = "child(f\"os.write({line}, b'child '); signal.pause()\"); say('ready '); signal.pause()"
    with pytest.raises(Stop):
        run(code, line.stop_when("ready", "child"))
    assert line.ends()


def test_the_job_gets_sigterm_and_time_to_save(run, line, tmp_path):
    code = """
def save(*_):
    say("saving ")
    open(config["saved"], "w").write("step 7")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
say("ready ")
signal.pause()
"""
    with pytest.raises(Stop):
        run(code, line.stop_when("ready"), saved=str(tmp_path / "saved"))
    assert (tmp_path / "saved").read_text() == "step 7"  # launch waited for it
    assert line.ends() and b"saving" in line.heard


def test_sigterm_goes_to_the_whole_group(run, line):
    told = "signal.signal(signal.SIGTERM, lambda *_: (os.write({line}, b'child saves '), os._exit(0))); os.write({line}, b'child '); signal.pause()"
    with pytest.raises(Stop):
        run(f'child(f"{told}"); say("ready "); signal.pause()', line.stop_when("ready", "child"))
    assert line.ends() and b"child saves" in line.heard


def test_a_group_that_does_not_listen_is_killed_after_the_grace(run, line, monkeypatch):
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.1)
    code = f'signal.signal(signal.SIGTERM, signal.SIG_IGN); child(f"{STUBBORN}"); say("ready "); signal.pause()'
    with pytest.raises(Stop):
        run(code, line.stop_when("ready", "deaf"))
    assert line.ends()


def test_a_child_that_does_not_listen_is_killed_though_the_job_itself_has_ended(run, line, monkeypatch):
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.1)
    with pytest.raises(Stop):
        run(f'child(f"{STUBBORN}"); say("ready "); signal.pause()', line.stop_when("ready", "deaf"))
    assert line.ends(patience=2)


def test_a_job_that_fails_leaves_nothing_behind(run, line):
    with pytest.raises(UserError, match="ended with 1"):
        run("child('signal.pause()'); sys.exit(1)")
    assert line.ends(patience=2)


# -- an end of the launcher itself ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_killed_launcher_takes_the_job_with_it(run, line, tmp_path):
    """Nobody can catch SIGKILL: the kernel ends the job."""
    script = f"""
from pathlib import Path
from tasks.launch import LauncherConfig, launch
config = {{"line": {str(line.path)!r}, "code": "say('ready'); signal.pause()"}}
launch("olmoflow_test_job", config, Path({str(tmp_path)!r}), LauncherConfig(device="cpu"))
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert select.select([line.file], [], [], PATIENCE)[0] and line.hear()
    finally:
        process.kill()
        process.wait()
    assert line.ends() and line.heard == b"ready"
