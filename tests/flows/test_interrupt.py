"""A Ctrl-C ends the command, whatever becomes of the KeyboardInterrupt."""

import os
import signal
import subprocess
import sys

import pytest

ARGUMENTS = ["run", "curate", "my recipe.yaml"]
TOLD = "stopped: whole shards and saved checkpoints are kept; to go on: olmoflow run curate 'my recipe.yaml'\n"
COMMAND = """
import time
import flows.cli

flows.cli.LEAVE_SECONDS = 0.5

def app(standalone_mode):
    try:
        print("started", flush=True)  # in here: the interrupt may come at once
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    AFTER

flows.cli.app = app
flows.cli.main()
"""


@pytest.mark.parametrize(
    "after", ["time.sleep(60)", "raise ConnectionRefusedError('the server is gone')", "raise ValueError('nothing to do')"]
)
def test_an_interrupt_that_a_library_loses_still_ends_the_command(after: str) -> None:
    command = [sys.executable, "-c", COMMAND.replace("AFTER", after), *ARGUMENTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=40)
    assert process.returncode == 130
    assert told == TOLD


def test_a_second_interrupt_leaves_at_once_and_without_a_traceback() -> None:
    waiting = "flows.cli.LEAVE_SECONDS = 600\nprint('interrupted', flush=True)\n    time.sleep(600)"
    command = [sys.executable, "-c", COMMAND.replace("AFTER", waiting.replace("\nprint", "\n    print")), *ARGUMENTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        for line in ("started\n", "interrupted\n"):
            assert process.stdout and process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=40)
    assert process.returncode == 130
    assert told == TOLD


def test_an_interrupt_in_a_callback_of_the_garbage_collector_reaches_what_works() -> None:
    """Python prints what such a callback raises, and goes on."""
    script = """
import os, signal, time, weakref
import flows.cli

class Thing:
    pass

def app(standalone_mode):
    try:
        thing = Thing()
        watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT) or time.sleep(0))
        del thing
        time.sleep(60)
    except KeyboardInterrupt:
        print("ended what was started")
        raise

flows.cli.app = app
flows.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script, *ARGUMENTS], capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stdout, done.stderr) == (130, "ended what was started\n", TOLD)
