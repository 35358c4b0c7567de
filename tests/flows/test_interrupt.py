"""A Ctrl-C ends the command, whatever becomes of the KeyboardInterrupt."""

import os
import signal
import subprocess
import sys

import pytest

COMMAND = """
import time
import flows.cli

flows.cli.LEAVE_SECONDS = 0.5

def app(standalone_mode):
    print("started", flush=True)
    try:
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
    command = [sys.executable, "-c", COMMAND.replace("AFTER", after)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=40)
    assert process.returncode == 1
    assert told == "error: stopped; the same command goes on where it was\n"
