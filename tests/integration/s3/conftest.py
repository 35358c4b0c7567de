"""A real S3 protocol server on loopback, a proxy before it that makes its faults, and a recipe whose inputs and store lie on it."""

import ctypes
import gzip
import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import zstandard

from flows.pipeline import Pipeline
from flows.recipe import Recipe
from tasks import engine, shard
from tasks.engine import LocalEngine
from tasks.shards import Runner
from tasks.store import Record, Store

SECRET = "a-secret-that-must-not-be-written-down"
PATIENCE_SECONDS = 60  # a bound on waiting for a condition, not a measurement
STEPS = ("ingest", "score", "tokenizer", "tokenize", "select")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@pytest.fixture(scope="session")
def moto():
    """The port of the server, in a process of its own that does not outlive the tests."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.05)  # between looks at the port
    yield port
    process.kill()
    process.wait()


Fault = str  # see Proxy
Schedule = Callable[[int, str, str], Fault | None]


class Proxy:
    """Passes requests on to a server, and answers some of them as a stumbling server would, by `schedule(number, method, path)`:

    500, 503: refused before the server has seen it.    lost: done, and the answer is a 500.
    reset: the connection breaks in the middle of the body.    slow: the body comes in small pieces.
    hang up: the connection breaks before any answer.    die: from this request on nobody listens, until `outage_seconds` are over.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream, self.port = upstream, free_port()
        self.schedule: Schedule = lambda number, method, path: None
        self.outage_seconds = 2.0
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.faults: list[tuple[Fault, str, str]] = []
        self.lock, self.conditional = threading.Lock(), threading.Lock()
        self.server: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = _Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            server.shutdown()
            server.server_close()

    def die(self) -> None:
        def outage() -> None:
            self.stop()
            time.sleep(self.outage_seconds)
            self.start()

        threading.Thread(target=outage, daemon=True).start()

    def decide(self, method: str, path: str, headers: dict[str, str]) -> Fault | None:
        with self.lock:
            fault = self.schedule(len(self.seen), method, path)
            self.seen.append((method, path, headers))
            if fault is not None:
                self.faults.append((fault, method, path))
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request, client_address) -> None:
        pass  # the other side has hung up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def log_message(self, *arguments) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owner = self.owner
        fault = owner.decide(self.command, self.path, dict(self.headers))
        if owner.server is None or fault in ("hang up", "die"):
            if fault == "die":
                owner.die()
            self._break()
        elif fault in ("500", "503"):
            self._refuse(fault)
        else:
            status, headers, content = self._forward(body)
            if fault == "lost":
                self._refuse("500")
            else:
                self._answer(status, headers, content, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        def send() -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", self.owner.upstream, timeout=PATIENCE_SECONDS)
            connection.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() != "expect"})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), content

        if self.headers.get("If-None-Match") == "*":
            with self.owner.conditional:  # the server looks and then writes; a real one does both at once
                return send()
        return send()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(content)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "reset":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._break()
        elif fault == "slow":
            for at in range(0, len(content), 1 + len(content) // 8):
                self.wfile.write(content[at : at + 1 + len(content) // 8])
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        name = {"500": "InternalError", "503": "SlowDown"}[code]
        content = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>made by the test</Message></Error>".encode()
        self.send_response_only(int(code))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _break(self) -> None:
        """End the connection with a reset, not with an orderly close."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


@pytest.fixture
def proxy(moto):
    made = Proxy(moto)
    yield made
    made.stop()


@pytest.fixture
def credentials(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # the client's own attempts, so that ours are met too


@pytest.fixture
def endpoint(proxy, credentials, monkeypatch):
    """The proxy as the S3 endpoint of this process and its children."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


def direct(moto: int) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key="tester", secret=SECRET, endpoint_url=f"http://127.0.0.1:{moto}", use_listings_cache=False, skip_instance_cache=True
    )


WORDS = [
    "the",
    "quick",
    "model",
    "reads",
    "a",
    "long",
    "document",
    "about",
    "rivers",
    "and",
    "mountains",
    "while",
    "seven",
    "small",
    "gradient",
    "tokens",
    "wait",
    "for",
    "their",
    "turn",
]


def raw_files() -> dict[str, bytes]:
    """The files of four sources, each in a container of its own, by path."""
    made: dict[str, bytes] = {}
    for number in range(2):
        rng = random.Random(number)

        def rows(name, count, number=number, rng=rng):
            for i in range(count):
                yield {"id": f"{name}{number}-{i}", "source": "made", "text": f"{i} " + " ".join(rng.choices(WORDS, k=60)), "stars": i % 5}

        def lines(name, count, rows=rows):
            return "".join(json.dumps(row) + "\n" for row in rows(name, count)).encode()

        made[f"web/{number}.jsonl.gz"] = gzip.compress(lines("web", 60), mtime=0)
    made["maths/0.jsonl.zst"] = zstandard.compress(lines("maths", 60))
    made["plain/0.jsonl"] = lines("plain", 60)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows("code", 60))), sink, row_group_size=20)
    made["code/0.parquet"] = sink.getvalue()
    return made


def recipe(raw: str, store: str) -> Recipe:
    stars = {"columns": {"stars": {"field": "stars", "type": "int"}}}
    return Recipe.model_validate(
        {
            "name": "s3",
            "store": store,
            "scorers": {"words": {"scorer": {"type": "word_frequency"}}},
            "sources": {
                "web": {"format": "jsonl", "paths": [f"{raw}/web/*.gz"], "fields": stars, "filters": [{"column": "stars", "min": 2}]},
                "maths": {"format": "dolma", "paths": [f"{raw}/maths/"], "scores": {"words": {}}},
                "code": {"format": "parquet", "paths": [f"{raw}/code/*.parquet"], "fields": stars},
                "plain": {"format": "jsonl", "paths": [f"{raw}/plain/*.jsonl"]},
            },
            "tokenizer": {"kind": "bpe", "vocab_size": 320, "train_on": [{"format": "jsonl", "paths": [f"{raw}/web/0.jsonl.gz"]}]},
            "sequence_length": 32,
            "held_out": {"share": 0.1, "tokens_per_source": 500},
            "mixes": {"all": {"sources": {"web": {"repeat": 1}, "maths": {"repeat": 2}, "code": {"repeat": 0.5}, "plain": {"repeat": 1}}}},
            "where": {"engine": {"workers": 2}},
        }
    )


class Lab:
    """Raw files and a store somewhere, the recipe over them, and a look at what was made."""

    def __init__(self, raw: str, store: str) -> None:
        self.raw, self.store = raw, store
        self.recipe = recipe(raw, store)

    def pipeline(self) -> Pipeline:
        return Pipeline(self.recipe, Runner(Store(self.store), LocalEngine(2)))

    def run(self) -> Pipeline:
        """Curate and mix, without the CLI and Prefect."""
        pipeline = self.pipeline()
        pipeline.curate()
        pipeline.mix_all()
        return pipeline

    def records(self, steps=STEPS) -> list[Record]:
        opened = Store(self.store)
        found = [opened.record(step, key) for step in steps for key in opened.names(f"shards/{step}")]
        return [record for record in found if record is not None]

    def contents(self, steps=STEPS) -> list[tuple[str, str, str, str]]:
        """What the shards hold, whatever their keys: step, shard, file and SHA-256."""
        return sorted((record.step, record.name, file.name, file.sha256) for record in self.records(steps) for file in record.files)


class S3Lab(Lab):
    """A lab in a bucket of the server, which the code under test reaches through the proxy and the test by `server`."""

    def __init__(self, bucket: str, server: s3fs.S3FileSystem, proxy: Proxy) -> None:
        super().__init__(f"s3://{bucket}/raw", f"s3://{bucket}/store")
        self.bucket, self.server, self.proxy = bucket, server, proxy
        self.secret = SECRET
        server.mkdir(bucket)
        server.pipe({f"{bucket}/raw/{name}": content for name, content in raw_files().items()})

    def attempts(self) -> dict[str, set[str]]:
        """The attempts that lie in the store, by shard."""
        found: dict[str, set[str]] = {}
        for path in self.server.find(f"{self.bucket}/store/shards"):
            shard_path, _, name = path.partition("/attempt-")
            if name:
                found.setdefault(shard_path, set()).add(name.split("/")[0])
        return found


@pytest.fixture
def s3(request, moto, endpoint):
    return S3Lab(f"bucket-{zlib.crc32(request.node.nodeid.encode()):x}", direct(moto), endpoint)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run over local files into a local store."""
    folder = tmp_path_factory.mktemp("local")
    for name, content in raw_files().items():
        path = folder / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    lab = Lab(str(folder / "raw"), str(folder / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_run_all", call_workers)
        lab.run()
    return lab


def call_workers(commands, *_):
    """Workers as calls: the real engine and the real worker, without a second's start for each process."""
    return [shard.main(command[-2], int(command[-1])) for command in commands]


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(engine, "_run_all", call_workers)
