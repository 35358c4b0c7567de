"""What a team needs on one machine, as one service: Prefect's server on PostgreSQL, a pool and a worker for CPU runs and for GPU jobs.

supervisord (Kroeger, supervisord.org) holds the processes: it starts again what dies, and what it has started ends with it. All that the
service writes lies in its home folder, and its sockets in a folder of the user's own below the system's for temporary files.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import dataclasses
import hashlib
import json
import operator
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import httpx
from supervisor.xmlrpc import SupervisorTransport

from flows.automations import WEBHOOK
from tasks.errors import UserError

READY_SECONDS, STOP_SECONDS = 180.0, 60.0
# Prefect's names of what its server demands of everybody (`user:password`), and of what a client sends: only ever in the environment
DEMANDED, SENT = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
DEFAULTS = {  # of Prefect's settings, where the environment has no other
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "180",  # seconds between signs of life of a flow run: a third of what automations.yaml waits for
    "PREFECT_WORKER_QUERY_SECONDS": "1",  # between a worker's looks for runs; Prefect's own 10 keep each GPU job waiting for 5
}
POSTGRES_FOLDERS = "usr/lib/postgresql/*/bin", "usr/pgsql-*/bin"  # below /: Debian's and Red Hat's, which are on nobody's path
POSTGRES_USER = "postgres"
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the service listens and how much runs at once."""

    host: str = "127.0.0.1"
    port: int = 4200
    cpu_runs: int = 2
    gpu_jobs: int = 1

    @property
    def api(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/api"

    @property
    def is_private(self) -> bool:
        """Whether nobody but this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def ui(self) -> str:
        return self.api.removesuffix("/api")


class Service:
    """The service whose files lie in a home folder. `tell` gets a line about each thing that is done."""

    def __init__(self, home: Path, tell: Callable[[str], None]) -> None:
        self.home, self.tell = home.resolve(), tell
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:12]  # a socket's path has 107 bytes at most
        self.sockets = Path(tempfile.gettempdir()) / f"olmoflow-{os.getuid()}-{digest}"

    # -- up and down -------------------------------------------------------------------------------------------------------------

    def up(self, settings: Settings) -> Settings:
        """Start the service where it does not run. Returns the settings that it runs with."""
        running = self.settings()
        if running is not None:
            if running != settings:
                raise UserError(f"the service runs at {running.ui} with other settings: `olmoflow down` first, or give the same")
            self.wait_until_ready(running)
            _check_demands(running)
            return running
        _check_free(settings)
        self.home.mkdir(parents=True, exist_ok=True)
        self._make_sockets()
        database = self._database()
        path = self._write_configuration(settings, database)
        (self.home / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
        self.tell(f"starting Prefect's server on {'SQLite' if database is None else 'PostgreSQL'}, files in {self.home} ...")
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(path)]
        done = subprocess.run(command, cwd=ROOT, env=self._environment(settings, database), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"supervisord did not start: {_last_line(done.stderr)}")
        return settings

    def start_workers(self, settings: Settings) -> None:
        """Start those that do not run."""
        for name in pools(settings):
            with contextlib.suppress(Fault):  # it runs
                self._ask(operator.methodcaller("startProcess", name, False))  # without waiting for a second whether it stays

    def down(self) -> bool:
        """Stop the service and wait for its end; whether it ran."""
        pid = self._ask(operator.methodcaller("getPID"))
        if pid is None:
            return False
        self._ask(operator.methodcaller("shutdown"))
        deadline = time.monotonic() + STOP_SECONDS
        while _is_alive(pid):
            if time.monotonic() > deadline:
                raise UserError(f"the service has not stopped within {STOP_SECONDS:.0f} s: see {self.home / 'supervisord.log'}")
            time.sleep(0.1)
        shutil.rmtree(self.sockets, ignore_errors=True)
        return True

    def settings(self) -> Settings | None:
        """What the service runs with; None where it does not run."""
        if self._ask(operator.methodcaller("getState")) is None:
            return None
        return Settings(**json.loads((self.home / "settings.json").read_text()))

    def processes(self) -> list[dict[str, Any]]:
        """Name, state and process id of each process; none where the service does not run."""
        found: list[dict[str, Any]] = self._ask(operator.methodcaller("getAllProcessInfo")) or []
        return [{"name": each["name"], "state": each["statename"], "pid": each["pid"]} for each in found]

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """An answer of supervisord; None where none runs."""
        transport = SupervisorTransport(None, None, f"unix://{self.sockets / 'supervisor.sock'}")
        with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            try:
                return question(proxy.supervisor)
            except (OSError, Fault):
                return None

    def wait_until_ready(self, settings: Settings) -> None:
        """Wait for the API to answer. Raises UserError where it does not, with the last line of its log."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{settings.api}/health", timeout=5).is_success:
                    return
            if any(each["state"] == "FATAL" for each in self.processes()):
                break
            time.sleep(0.2)
        raise UserError(f"the server does not answer at {settings.api}: see {self.home / 'server.log'}")

    # -- what is started ---------------------------------------------------------------------------------------------------------

    def _make_sockets(self) -> None:
        shutil.rmtree(self.sockets, ignore_errors=True)
        self.sockets.mkdir(mode=0o700)  # fails where another user has put something in its place

    def _environment(self, settings: Settings, database: str | None) -> dict[str, str]:
        ours = {
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_API_URL": settings.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        if database is not None:
            ours["PREFECT_API_DATABASE_CONNECTION_URL"] = database
        # the server keeps the webhook as a secret, and would demand an empty password too
        given = {name: value for name, value in os.environ.items() if name != WEBHOOK and (value or name not in (DEMANDED, SENT))}
        return DEFAULTS | given | ours | credentials()

    def _write_configuration(self, settings: Settings, database: str | None) -> Path:
        """supervisord's file. A program is leashed: it ends with supervisord, however that ends."""
        parser = configparser.RawConfigParser()
        parser["supervisord"] = {
            "logfile": str(self.home / "supervisord.log"),
            "pidfile": str(self.home / "supervisord.pid"),
            "childlogdir": str(self.home),
            "directory": str(ROOT),
        }
        parser["unix_http_server"] = {"file": str(self.sockets / "supervisor.sock"), "chmod": "0600"}
        parser["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"}
        for priority, (name, command) in enumerate(self._programs(settings, database)):
            leashed = shlex.join([sys.executable, "-m", "tasks.processes", *command])
            parser[f"program:{name}"] = {
                "command": leashed.replace("%", "%%"),
                "priority": str(priority),
                "autostart": str(name not in pools(settings)).lower(),  # a worker without a server ends at once
                "autorestart": "true",
                "startretries": "1000",  # the server dies until its database is there
                "stopwaitsecs": "40",  # a worker hands on the end to its runs, and a training saves
                "stdout_logfile": str(self.home / f"{name}.log"),
                "redirect_stderr": "true",
            }
        path = self.home / "supervisord.conf"
        with path.open("w") as stream:
            parser.write(stream)
        return path

    def _programs(self, settings: Settings, database: str | None) -> Iterator[tuple[str, list[str]]]:
        prefect = [sys.executable, "-m", "prefect"]
        if database is not None:
            folder, data, its_socket = _postgres_folder(), self.home / "postgres", self.sockets / "postgres"
            assert folder is not None  # its database is there
            command = [str(folder / "postgres"), "-D", str(data), "-k", str(its_socket), "-c", "listen_addresses="]
            yield "postgres", _as_postgres(command)
        yield "server", [sys.executable, "-m", "flows.server", str(self.home), "--host", settings.host, "--port", str(settings.port)]
        for pool in pools(settings):
            name = f"{pool}-{socket.gethostname()}"
            yield pool, [*prefect, "worker", "start", "--pool", pool, "--type", "process", "--name", name]

    # -- PostgreSQL --------------------------------------------------------------------------------------------------------------

    def _database(self) -> str | None:
        """URL of the database on PostgreSQL, made where it is not; None, and a line why, where only SQLite is to be had."""
        folder = _postgres_folder()
        if folder is None:
            self.tell("no PostgreSQL on this machine: the server keeps its runs in SQLite, which is slow for more than one or two people")
            return None
        data, socket_folder = self.home / "postgres", self.sockets / "postgres"
        for path in (data, socket_folder):
            path.mkdir(mode=0o700, exist_ok=True)
            _give_to_postgres(path)
        if os.getuid() == 0:
            self.sockets.chmod(0o711)
        if not (data / "PG_VERSION").exists():
            options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=olmoflow"]  # its socket's folder lets nobody else in
            command = _as_postgres([str(folder / "initdb"), "-D", str(data), *options])
            done = subprocess.run(command, cwd="/", capture_output=True, text=True)
            if done.returncode:
                self.tell(f"PostgreSQL cannot keep its data in {data} ({_last_line(done.stderr)}): the server keeps its runs in SQLite")
                return None
        return f"postgresql+asyncpg://olmoflow@/postgres?host={socket_folder}"


def start(home: Path, settings: Settings, tell: Callable[[str], None]) -> dict[str, Any]:
    """Everything that `olmoflow up` does: the service, its pools, the workers, the deployments of `prefect.yaml`, the automations."""
    service = Service(home, tell)
    if not settings.is_private and not credentials():
        tell(
            f"the server will listen at {settings.host} and asks nobody who they are: set {DEMANDED}, "
            "or put a proxy with a login before it (docs/service.md)"
        )
    running = service.up(settings)
    os.environ.update({"PREFECT_API_URL": running.api, **credentials()})  # before Prefect is imported, which reads them
    from flows import automations, deployments  # while the server starts: Prefect takes seconds to import

    service.wait_until_ready(running)
    deployments.make_pools(pools(running))
    service.start_workers(running)
    names = deployments.deploy(running.api)
    tell(f"{len(names)} deployments: {', '.join(names)}")
    told = len(automations.make())
    tell(f"{told} automations; alerts are passed on to {automations.told_to()}")
    return {"ui": running.ui, "api": running.api, "home": str(service.home), "deployments": names, "processes": service.processes()}


def credentials() -> dict[str, str]:
    """What workers and clients need in their environment to be let in; nothing where the server demands nothing."""
    secret = os.environ.get(DEMANDED)
    return {DEMANDED: secret, SENT: secret} if secret else {}


def authorization(secret: str | None) -> dict[str, str]:
    """The headers of a request that is to be let in."""
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if secret else {}


def _check_demands(settings: Settings) -> None:
    """Raise UserError where a server that runs demands something else than the environment says, and so would refuse us, or let all in."""
    secret = os.environ.get(DEMANDED)
    asks = httpx.get(f"{settings.api}/admin/version", timeout=30).status_code == httpx.codes.UNAUTHORIZED
    knows = httpx.get(f"{settings.api}/admin/version", timeout=30, headers=authorization(secret)).is_success
    if asks != bool(secret) or not knows:
        raise UserError(f"the service runs with another {DEMANDED}, or without one: set it as it was, or `olmoflow down` first")


def pools(settings: Settings) -> dict[str, int]:
    """The work pools, with how many runs each has at once."""
    return {"cpu": settings.cpu_runs, "gpu": settings.gpu_jobs}


def _postgres_folder() -> Path | None:
    """Where PostgreSQL's programs lie, the newest of those that are there."""
    found = [path for pattern in POSTGRES_FOLDERS for path in Path("/").glob(pattern) if (path / "initdb").exists()]
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else max(found, key=_version, default=None)


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(folder))]


def _as_postgres(command: list[str]) -> list[str]:
    """The command as a user that PostgreSQL runs as, which is never root; it ends with its parent all the same."""
    if os.getuid() != 0:
        return command
    return ["setpriv", f"--reuid={POSTGRES_USER}", f"--regid={POSTGRES_USER}", "--init-groups", "--pdeathsig=KILL", *command]


def _give_to_postgres(path: Path) -> None:
    if os.getuid() == 0:
        shutil.chown(path, POSTGRES_USER)


def _check_free(settings: Settings) -> None:
    """Raise UserError where something else listens: its API would be taken for ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise UserError(
                f"cannot listen at {settings.host}:{settings.port} ({error.strerror}): give another --port or --host"
            ) from error


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
