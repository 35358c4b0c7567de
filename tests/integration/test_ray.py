"""The Ray engine on a real cluster: a head and a second node on loopback, each with one CPU, one killed in mid-run."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.pipeline import Pipeline, make_runner
from flows.recipe import load
from tasks.engine import StepFailed
from tasks.engine_ray import RayConfig, RayEngine
from tasks.errors import UserError
from tasks.shards import Runner, ShardTask, Step
from tasks.store import Store

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, parent-death signals and all of 127.0.0.0/8")

MARK = "OLMOFLOW_TEST_CLUSTER"
START = """
import os
from ray.scripts.scripts import main
from tasks.processes import die_with_parent
die_with_parent(int(os.environ["OLMOFLOW_PARENT"]))  # then Ray's reaper ends the node, however the tests ended
main()
"""
PATIENCE_SECONDS = 120  # a bound on waiting for a condition, not a measurement
DATA_STEPS = ("ingest", "train-scorer", "score", "tokenizer", "tokenize", "select", "mix", "held-out")


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)  # between looks
    return found


class Cluster:
    """A head and a second node, each `ray start` with addresses and a folder of its own; every process bears a mark in its environment.

    `steps` is a folder of modules that its tasks can import beside ours.
    """

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path has 107 characters at most
        self.steps = self.folder / "steps"
        self.steps.mkdir()
        net = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # Ray has fixed ports too, and another test run may be here
        self.head, self.second = f"{net}.1", f"{net}.2"
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            for free in (one, two, three):
                free.bind((self.head, 0))
            self.port, self.client_port, self.dashboard_port = (free.getsockname()[1] for free in (one, two, three))
        self.address, self.client = f"{self.head}:{self.port}", f"ray://{self.head}:{self.client_port}"
        path = os.pathsep.join([str(self.steps), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, MARK: self.mark, "PYTHONPATH": path, "OLMOFLOW_PARENT": str(os.getpid())}
        self.started: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start what is not running; the second node waits for the head by itself."""
        head = ["--head", f"--port={self.port}", f"--ray-client-server-port={self.client_port}"]
        head += ["--include-dashboard=false", f"--dashboard-port={self.dashboard_port}"]
        for ip, where in ((self.head, head), (self.second, [f"--address={self.address}"])):
            if ip in self.started and self.started[ip].poll() is None:
                continue
            options = [f"--node-ip-address={ip}", f"--temp-dir={self.folder / ip}", "--num-cpus=1", "--object-store-memory=80000000"]
            quiet = ["--disable-usage-stats", "--include-log-monitor=false", "--block"]
            command = [sys.executable, "-c", START, "start", *where, *options, *quiet]
            with self.log(ip).open("wb") as log:
                self.started[ip] = subprocess.Popen(
                    command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
                )
        wait_for(lambda: all(self.is_up(ip) for ip in self.started), "a Ray node")

    def is_up(self, ip: str) -> bool:
        told = self.log(ip).read_text()
        assert self.started[ip].poll() is None, told
        return "Ray runtime started" in told

    def log(self, ip: str) -> Path:
        return self.folder / f"{ip}.log"

    def processes(self) -> dict[int, str]:
        """Command lines of all processes of the cluster, those of its tasks too."""
        return {pid: command for pid, command, _ in marked(self.mark)}

    def raylet(self, ip: str) -> int:
        (pid,) = [pid for pid, command in self.processes().items() if f"--node_ip_address={ip}" in command and "/raylet/raylet" in command]
        return pid

    def runners(self, ip: str) -> dict[int, dict]:
        """The shards that are being made on a node, by the process that does it."""
        parent = f"RAY_RAYLET_PID={self.raylet(ip)}"
        found = {}
        for pid, command, environment in marked(self.mark):
            if parent in environment and " tasks.shard " in command:
                found[pid] = json.loads(Path(command.split()[-2]).read_text())["shards"][0]
        return found

    def kill(self, ip: str) -> None:
        """Kill a node's raylet: Ray ends what else ran there."""
        os.kill(self.raylet(ip), signal.SIGKILL)
        self.started[ip].wait()

    def stop(self) -> None:
        while left := self.processes():
            for pid in left:
                if pid_is_there(pid):
                    os.kill(pid, signal.SIGKILL)
            for process in self.started.values():
                process.wait()
            time.sleep(0.02)  # what was being started meanwhile
        shutil.rmtree(self.folder)


def pid_is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def marked(mark: str):
    """Process id, command line and environment of every process that bears the mark."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command and f"{MARK}={mark}" in environment:  # one that has ended has no command line
            yield int(entry.name), command, environment


@pytest.fixture(scope="module")
def started():
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def cluster(started):
    started.start()
    return started


def on(lab, store: str, engine: dict) -> Pipeline:
    """The lab's recipe with another store and another engine."""
    lab.write({**lab.config, "store": store, "where": {**lab.config["where"], "engine": engine}})
    return Pipeline(load(lab.file), make_runner(load(lab.file)))


def records(folder: Path) -> dict[tuple[str, str], dict]:
    return {(path.parts[-3], path.parts[-2]): json.loads(path.read_text()) for path in folder.glob("shards/*/*/record.json")}


def checksums(folder: Path) -> dict[tuple[str, str, str], str]:
    """SHA-256 of every file of a store by step, shard and name; each shard has one record, its files and nothing else."""
    found = {}
    for (step, key), record in records(folder).items():
        assert {path.name for path in (folder / "shards" / step / key).iterdir()} == {"record.json", record["attempt"]}
        books = record["books"]
        assert books["read"] == books["kept"] + sum(books["dropped"].values()) + books["quarantined"]
        found |= {(step, key, file["name"]): file["sha256"] for file in record["files"]}
    return found


def curate_and_mix(pipeline: Pipeline) -> None:
    pipeline.curate()
    pipeline.mix_all()


def step_of(cluster, name: str, body: str) -> Step:
    """A step whose module the cluster's nodes can import, and this process cannot."""
    (cluster.steps / f"{name}.py").write_text(
        f"import os\nfrom tasks.store import Books\n\ndef run(shard):\n    {body}\n    return Books()\n"
    )
    return Step(name, 1, name)


def run_step(cluster, store: str, step: Step, parts: int = 3, **settings) -> None:
    engine = RayEngine(RayConfig(address=cluster.address, **settings), node_seconds=0)
    Runner(Store(store), engine).run(step, "some", [ShardTask(f"part {i}", {"part": i}, {}) for i in range(parts)])


def test_curation_and_mixes_are_the_same_bytes_as_on_the_local_engine(lab, cluster, monkeypatch):
    lab.config = {name: lab.config[name] for name in ("name", "scorers", "sources", "tokenizer", "sequence_length", "mixes", "where")}
    lab.config["sources"].pop("maths")
    lab.config["mixes"] = {"pre": {"sources": {"web": {"repeat": 1}}}}
    monkeypatch.chdir(lab.folder)
    curate_and_mix(on(lab, "local", {"workers": 2}))
    pipeline = on(lab, "ray", {"kind": "ray", "address": cluster.address})  # a relative folder, which means another one to a node
    curate_and_mix(pipeline)
    made = checksums(lab.folder / "ray")
    assert made == checksums(lab.folder / "local")
    assert {step for step, _, _ in made} >= {"ingest", "train-scorer", "score", "tokenize", "select", "mix"}
    assert not list(cluster.folder.glob("ray"))


def test_a_bad_file_is_told_in_the_same_sentence_and_the_others_are_made(lab, cluster):
    for number in range(3):
        name = "content" if number == 1 else "body"
        pq.write_table(pa.table({name: [f"text {number}"], "id": ["1"]}), lab.folder / f"{number}.parquet")
    lab.config["sources"] = {"code": {"format": "parquet", "paths": [f"{lab.folder}/*.parquet"], "fields": {"text": "body"}}}
    lab.config = {name: lab.config[name] for name in ("name", "sources", "where")}
    told = {}
    for store, engine in (("local", {"workers": 2}), ("ray", {"kind": "ray", "address": cluster.address})):
        with pytest.raises(UserError, match=r"1\.parquet") as error:
            on(lab, str(lab.folder / store), engine).documents("code")
        told[store] = str(error.value)
    assert told["ray"] == told["local"]
    assert len(records(lab.folder / "ray")) == 2


def test_a_bug_in_a_step_comes_back_with_its_traceback(tmp_path, cluster):
    step = step_of(cluster, "with_a_bug", "assert shard.config['part'] != 1, 'what cannot be'")
    with pytest.raises(StepFailed, match=r"(?s)part 1: AssertionError: what cannot be.*Traceback.*with_a_bug\.py"):
        run_step(cluster, str(tmp_path), step)
    assert len(records(tmp_path)) == 2


def test_a_shard_whose_process_is_killed_is_named_among_those_that_shared_it_and_the_others_are_made(tmp_path, cluster):
    step = step_of(
        cluster, "that_dies", "if shard.config['part'] == 0:\n        os.write(2, b'goodbye\\n')\n        os.kill(os.getpid(), 9)"
    )
    with pytest.raises(UserError, match=r"part 0: its process on node .* signal 9, saying 'goodbye'.*memory_gb_per_shard"):
        run_step(cluster, str(tmp_path), step, parts=16)  # two nodes of one CPU: the first task is two shards, this one and the next
    assert len(records(tmp_path)) == 15


def test_a_store_that_the_nodes_do_not_share_is_told(cluster, monkeypatch):
    monkeypatch.setattr("tasks.engine.RECORD_SECONDS", 0)
    with pytest.raises(UserError, match="memory://nowhere here does not have it: give a `store` that every node shares"):
        run_step(cluster, "memory://nowhere", step_of(cluster, "that_works", "pass"))


def test_a_shard_larger_than_any_node_is_told_instead_of_waiting_for_ever(tmp_path, cluster):
    with pytest.raises(UserError, match=r"no node .* a shard of 2 CPUs \(at most 1 CPUs on one\)"):
        run_step(cluster, str(tmp_path), step_of(cluster, "that_works", "pass"), cpus_per_shard=2)


@pytest.mark.soak  # the client server starts a process for each client, and gives up on a busy machine
def test_a_cluster_is_joined_from_outside_too(tmp_path, cluster):
    step = step_of(cluster, "that_works", "pass")
    Runner(Store(str(tmp_path)), RayEngine(RayConfig(address=cluster.client))).run(step, "some", [ShardTask("part", {}, {})])
    assert len(records(tmp_path)) == 1


def test_an_address_where_no_cluster_is_and_a_missing_ray_are_told(tmp_path, monkeypatch):
    task = ShardTask("part", {}, {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        runner = Runner(Store(str(tmp_path)), RayEngine(RayConfig(address=f"127.0.0.1:{taken.getsockname()[1]}")))
        with pytest.raises(UserError, match=r"where\.engine\.address 127\.0\.0\.1:\d+ cannot be joined: .*refused"):
            runner.run(Step("any", 1, "any"), "some", [task])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed here: pip install \"olmoflow\[ray\]\""):
        runner.run(Step("any", 1, "any"), "some", [task])


def test_a_run_that_is_killed_leaves_no_process_on_the_cluster(tmp_path, cluster):
    step = step_of(cluster, "that_waits", "import time; time.sleep(1000)")
    code = (
        "from tasks.engine_ray import *; from tasks.shards import *\n"
        f"engine = RayEngine(RayConfig(address={cluster.address!r}))\n"
        f"Runner(Store({str(tmp_path)!r}), engine).run({step!r}, 'some', [ShardTask(f'part {{i}}', {{'part': i}}, {{}}) for i in range(2)])"
    )
    run = subprocess.Popen([sys.executable, "-c", code], env=cluster.environment)
    wait_for(lambda: cluster.runners(cluster.head) and cluster.runners(cluster.second), "a shard on each node")
    run.kill()
    run.wait()
    wait_for(lambda: not any("-m tasks." in command for command in cluster.processes().values()), "the end of all that the run had started")


def test_a_node_that_is_killed_in_mid_run_changes_nothing(lab, cluster):  # the last: the cluster has one node after it
    lab.config["sources"]["web"]["max_quarantined"] = 0.5
    with (lab.folder / "web" / "1.jsonl").open("a") as stream:
        stream.write("this is no JSON\n")
    on(lab, str(lab.folder / "local"), {"workers": 2}).documents("web")
    pipeline = on(lab, str(lab.folder / "ray"), {"kind": "ray", "address": cluster.address})
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(pipeline.documents, "web")
        ((runner, shard),) = wait_for(lambda: cluster.runners(cluster.second).items(), "a shard on the second node")
        os.kill(runner, signal.SIGSTOP)  # so that it is in the middle of its shard
        assert ("ingest", shard["key"]) not in records(lab.folder / "ray")
        cluster.kill(cluster.second)
        artifact = run.result(PATIENCE_SECONDS)
    wait_for(lambda: runner not in cluster.processes(), "the end of what ran on the node")
    assert artifact.is_whole and artifact.books.read == 121 and artifact.books.quarantined == 1
    assert checksums(lab.folder / "ray") == checksums(lab.folder / "local")
