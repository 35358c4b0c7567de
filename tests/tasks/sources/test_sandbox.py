"""A child process for calls that may hang or crash."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tasks.sources.sandbox import Refused, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and asks the Linux kernel for signals")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that a child can import: it does what it is told."""
    (tmp_path / "hostile.py").write_text(
        "import os, time\n"
        "def act(word):\n"
        "    if word == 'hang': time.sleep(600)\n"
        "    if word == 'crash': os.abort()\n"
        "    if word == 'leave': os._exit(3)\n"
        "    if word == 'raise': raise ValueError('bad page')\n"
        "    return (word * 2, os.getpid())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import hostile

    yield hostile.act
    del sys.modules["hostile"]


def test_a_call_that_hangs_crashes_leaves_or_raises_is_refused_and_the_next_one_works(hostile) -> None:
    with Sandbox(hostile, 0.5, ("warm",)) as sandbox:
        answers = []
        for word in ("a", "hang", "b", "crash", "c", "leave", "d", "raise", "e"):
            try:
                answers.append(sandbox.call(word)[0])
            except Refused as refused:
                answers.append(str(refused))
    assert answers == ["aa", "timed out", "bb", "crashed with signal 6", "cc", "crashed", "dd", "failed with ValueError: bad page", "ee"]


def test_one_child_serves_many_calls_and_is_gone_in_the_end(hostile) -> None:
    with Sandbox(hostile, 30, ("warm",)) as sandbox:
        children = {sandbox.call(f"x{i}" * 100_000)[1] for i in range(5)}  # more than a pipe holds
    assert len(children) == 1 and not is_running(children.pop())


def test_a_child_that_hangs_does_not_outlive_a_killed_parent(hostile, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
        import hostile
        from tasks.sources.sandbox import Sandbox
        if __name__ == "__main__":
            with Sandbox(hostile.act, 600, ("warm",)) as sandbox:
                print(sandbox.call("a")[1], flush=True)
                sandbox.call("hang")
        """)
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)
