"""The service that `olmoflow up` starts, as tests start and stop it: a real Prefect server, its database and its workers."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

MARK = "OLMOFLOW_TEST_MARK"
PATIENCE_SECONDS = 300  # a bound on waiting for a condition, not a measurement


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what: str):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)  # between looks
    return found


class Service:
    def __init__(self, folder: Path) -> None:
        # directly below the system's folder for temporary files: where root runs the tests, PostgreSQL's user may not enter those of pytest
        self.folder, self.port = folder, free_port()
        self.home = Path(tempfile.gettempdir()) / f"olmoflow-test-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
        self.environment = {**os.environ, MARK: str(folder), "OLMOFLOW_HOME": str(self.home)}
        self.environment.pop("PREFECT_API_URL", None)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], env=self.environment, capture_output=True, text=True)

    def up(self, *options: str) -> dict:
        done = self.run("up", "--port", str(self.port), "--json", *options)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def ask(self, method: str, path: str, **options):
        secret = self.environment.get("PREFECT_SERVER_API_AUTH_STRING")
        login = {"auth": tuple(secret.split(":"))} if secret else {}
        answer = httpx.request(method, f"http://127.0.0.1:{self.port}/api{path}", timeout=30, **login, **options)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def processes(self) -> dict[int, str]:
        """Command lines of all processes of the service, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.environment[MARK]}\0".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def submit(self, deployment: str, recipe: dict) -> str:
        there = self.ask("GET", f"/deployments/name/{deployment}/{deployment}")
        made = self.ask("POST", f"/deployments/{there['id']}/create_flow_run", json={"parameters": {"recipe": recipe}})
        return made["id"]

    def end_of(self, run: str) -> dict:
        return wait_for(lambda: (state := self.ask("GET", f"/flow_runs/{run}")) and state["end_time"] and state, "the run's end")

    def child_of(self, run: str) -> dict | None:
        """The GPU job that a flow run has submitted."""
        found = self.ask("POST", "/flow_runs/filter", json={"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
        return found[0] if found else None

    def set_state(self, run: str, kind: str) -> dict:
        return self.ask("POST", f"/flow_runs/{run}/set_state", json={"state": {"type": kind}})

    def stop(self) -> None:
        self.run("down")
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        if self.home.exists():  # its logs stay as long as pytest's folders do
            shutil.move(self.home, self.folder / f"home-{uuid.uuid4().hex[:8]}")


class Chat:
    """A webhook and what it has got; its address holds a secret. A context manager."""

    def __init__(self, secret: str) -> None:
        got: list[dict] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == f"/{secret}":
                    got.append(json.loads(told))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        self.server, self.got = ThreadingHTTPServer(("127.0.0.1", 0), Handler), got
        self.url = f"http://127.0.0.1:{self.server.server_port}/{secret}"

    def __enter__(self) -> "Chat":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
