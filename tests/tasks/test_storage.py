"""Calls to a storage that stumbles, and the scratch folder of a process. The S3 server itself is met in tests/integration/s3."""

import errno
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from tasks import storage
from tasks.storage import Storage, StorageError, open_file, public, shown, steady


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.0, 0.0))


def failing(*errors):
    """A call that raises each of the errors in turn and then gives 'done'."""
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return "done"

    call.left = left
    return call


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(errno.ECONNRESET, "reset"), OSError(errno.EBUSY, "slow down")])
def test_a_fault_that_may_pass_is_tried_again(error):
    assert steady("s3://bucket/x", failing(error, error)) == "done"


def test_after_the_last_attempt_one_sentence_names_the_url_and_the_fault():
    error = OSError(errno.EBUSY, "slow\n  down")
    with pytest.raises(
        StorageError, match=r"^s3://bucket/x: the storage failed 3 times, at last with: slow down; .*the same command goes on"
    ):
        steady("s3://bucket/x", failing(*[error] * 9))


def test_a_refusal_is_told_at_once():
    call = failing(PermissionError("Access Denied"), TimeoutError())
    with pytest.raises(StorageError, match="s3://bucket/x: the storage refuses it: Access Denied"):
        steady("s3://bucket/x", call)
    assert len(call.left) == 1


@pytest.mark.parametrize("error", [FileNotFoundError("x"), FileExistsError("x"), OSError(errno.ENOSPC, "full"), KeyError("a bug")])
def test_an_answer_a_full_disk_and_a_bug_pass_as_they_are(error):
    with pytest.raises(type(error)) as caught:
        steady("s3://bucket/x", failing(error))
    assert caught.value is error


def test_a_web_server_that_is_away_is_not_taken_for_one_without_the_file():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/a.jsonl"
        with pytest.raises(StorageError, match=r"a\.jsonl: the storage failed 3 times"):
            Storage(url).there()


def test_a_web_servers_404_is_an_answer(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "a.txt").write_bytes(b"hello")
    url = f"http://127.0.0.1:{server.server_port}"
    assert Storage(f"{url}/b.txt").there() is None
    there = Storage(f"{url}/a.txt").there()
    assert there is not None and there["size"] == 5
    with open_file(f"{url}/a.txt", 5) as stream:
        assert stream.read() == b"hello"
    server.shutdown()
    server.server_close()


def test_a_stream_that_ends_before_its_size_is_an_error_and_not_the_end(monkeypatch):
    fsspec.filesystem("memory").pipe("/short", b"12345")
    with open_file("memory://short", 5) as stream:
        assert stream.read() == b"12345" and stream.read() == b""
    with open_file("memory://short", 9) as stream, pytest.raises(StorageError, match="no byte came after byte 5 of 9"):
        stream.read()


def test_a_stream_of_a_remote_file_seeks_as_a_file_does(tmp_path):
    content = bytes(range(256)) * 2000
    fsspec.filesystem("memory").pipe("/seek", content)
    (tmp_path / "same").write_bytes(content)
    with open_file("memory://seek", len(content)) as remote, (tmp_path / "same").open("rb") as local:
        for offset, whence, length in ((5, 0, 10), (300_000, 1, 100), (-7, 2, 100), (0, 0, -1), (10**7, 0, 5)):
            assert (remote.seek(offset, whence), remote.read(length)) == (local.seek(offset, whence), local.read(length))
            assert remote.tell() == local.tell()


def test_a_protocol_that_is_not_there_is_told():
    with pytest.raises(storage.UserError, match="carrier-pigeon://x cannot be used"):
        Storage("carrier-pigeon://x")


def test_passwords_and_signatures_are_not_told():
    url = "https://user:secret@host:8080/a/b.jsonl?X-Amz-Signature=abc#part"
    assert public(url) == shown(url) == "https://host:8080/a/b.jsonl"
    assert shown("file:///data/what?.jsonl") == "/data/what?.jsonl" and shown("/data/@home") == "/data/@home"
    assert public("s3://bucket/key") == "s3://bucket/key"


HOLD = "import sys; from tasks import scratch; (scratch.folder() / 'file').write_text('x'); print(scratch.folder(), flush=True); sys.stdin.read()"


def test_a_scratch_folder_goes_with_its_process_and_where_it_was_killed_with_the_next_one(tmp_path):
    def start() -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        return process, Path(process.stdout.readline().strip())

    lives, kept = start()
    killed, left = start()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.exists() and kept.exists()
    ends, own = start()
    assert not left.exists() and kept.exists() and own.exists()
    for process in (ends, lives):
        process.communicate("")
    assert list(tmp_path.iterdir()) == []
