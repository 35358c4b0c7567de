"""A store on a server is asked about many shards side by side: one by one, ten thousands of answers take many minutes."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import s3fs

from tasks.storage import AT_ONCE
from tasks.store import Store

PATIENCE_SECONDS = 30  # a bound on waiting for a condition, not a measurement


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 2 * AT_ONCE


@pytest.fixture
def waiting(credentials, monkeypatch):
    """A server that answers nobody before `AT_ONCE` requests wait for it; it then has nothing."""
    together = threading.Barrier(AT_ONCE)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):  # which the test looks at
                together.wait(PATIENCE_SECONDS)
            content = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            self.send_response(404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield together
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def test_a_server_is_asked_about_many_shards_at_once(waiting):
    keys = [f"key{number}" for number in range(2 * AT_ONCE)]
    assert Store("s3://bucket/store").records("step", keys) == [None] * len(keys)
    assert not waiting.broken
