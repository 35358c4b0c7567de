"""`make soak`: faults of a run and of the service around it, each at a moment when it hurts.

After each the retry in the UI (or the same command) ends the run with the bytes of an undisturbed one; no process is left, and no place in a
work pool stays taken.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from service import Service, wait_for

EXACT_STEPS = ("ingest", "train-scorer", "score", "tokenizer", "tokenize", "select", "mix", "held-out")
BEGUN = 30  # steps of a training after which it is disturbed
OF_A_RUN = ("flow-run execute", "prefect.engine", "-m trainer", "torch.distributed.run", "tasks.shard")

pytestmark = [pytest.mark.soak, pytest.mark.fault]


def slower(lab):
    """Trainings of two ranks, long enough to be met in the middle."""
    lab.config["pretrain"] |= {"steps": 250, "decay_steps": 300, "checkpoint_every": 25, "micro_batch_instances": 4}
    lab.config["where"]["launcher"] |= {"processes": 2}
    lab.write(lab.config)
    return lab


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("service"))
    service.environment |= {"OMP_NUM_THREADS": "1"}
    try:
        service.up("--gpu-jobs", "1")
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, prefect_home, lab_in):
    lab = slower(lab_in(tmp_path_factory.mktemp("undisturbed") / "lab", prefect_home))
    done = lab.run("run", "pretrain", str(lab.file))
    assert done.returncode == 0, done.stderr
    return lab


@pytest.fixture
def ready(lab):
    return slower(lab)


def weights(lab):
    """SHA-256 of what the training left of the model and its optimizer, by file."""
    found = {file.path.split("/", 3)[3]: file.sha256 for record in lab.records("train") for file in record.files}
    return {path: digest for path, digest in found.items() if path.endswith(".safetensors")}


def check_same(lab, undisturbed):
    assert lab.checksums(*EXACT_STEPS) == undisturbed.checksums(*EXACT_STEPS)
    assert lab.losses() == undisturbed.losses()
    assert weights(lab) == weights(undisturbed) != {}


def of_runs(service):
    return {pid: line for pid, line in service.processes().items() if any(word in line for word in OF_A_RUN)}


def trainers(service, rank=None):
    """The processes of the ranks; torchrun itself is none."""
    found = [pid for pid, line in service.processes().items() if "-m trainer" in line and "torch.distributed" not in line]
    return [pid for pid in found if rank is None or f"\0RANK={rank}\0" in environ(pid)]


def workers(service):
    return [pid for pid, line in service.processes().items() if "tasks.shard" in line]


def flow_processes(service, run):
    return [pid for pid in service.processes() if f"PREFECT__FLOW_RUN_ID={run}\0" in environ(pid)]


def environ(pid):
    try:
        return "\0" + Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return ""


def named(service, words):
    return [pid for pid, line in service.processes().items() if words in line]


def kill(pids, number=signal.SIGKILL):
    assert pids
    for pid in pids:
        os.kill(pid, number)


def stopped_workers(service, lab):
    """Processes that make shards, stopped in the middle: a curation that takes as long as the test wants it to."""
    wait_for(lambda: lab.records("ingest") or trainers(service), "the first shard")
    found = wait_for(lambda: workers(service), "shards' processes")
    kill(found, signal.SIGSTOP)
    return found


def is_training(lab):
    return any(
        json.loads(line)["step"] >= BEGUN
        for path in lab.store.glob("shards/train/*/run/metrics.jsonl")
        for line in path.read_text().rsplit("\n", 1)[0].splitlines()
    )


def patiently(ask):
    """An answer of a server that may be away."""

    def answer():
        try:
            return ask()
        except Exception:
            return None

    return wait_for(answer, "the server")


def end_of(service, run):
    return wait_for(lambda: (state := patiently(lambda: service.ask("GET", f"/flow_runs/{run}")))["end_time"] and state, "the run's end")


def finish(service, run, lab, undisturbed):
    """The run to its good end, by the UI's retry where it ended badly, and what it left."""
    for _ in range(3):
        state = end_of(service, run)
        if state["state_type"] == "COMPLETED":
            break
        wait_for(lambda: not of_runs(service), "the end of the run's processes")
        patiently(lambda: service.set_state(run, "SCHEDULED"))
        wait_for(lambda: not service.ask("GET", f"/flow_runs/{run}")["end_time"], "the retry")
    assert state["state_type"] == "COMPLETED", state["state"]["message"]
    check_same(lab, undisturbed)
    check_nothing_left(service)


def check_nothing_left(service):
    wait_for(lambda: not of_runs(service), "the end of the run's processes")
    taken = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    wait_for(lambda: not service.ask("POST", "/flow_runs/filter", json=taken), "the last run to give its place back")


def submitted_until(service, lab, moment):
    run = service.submit("pretrain", lab.config)
    if moment == "curating":
        return run, stopped_workers(service, lab)
    wait_for(lambda: is_training(lab), "the training")
    return run, []


# -- processes that are killed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["curating", "training"])
def test_the_command_is_killed(ready, undisturbed, moment):
    process = ready.start("run", "pretrain", str(ready.file))
    reached = (lambda: ready.records("ingest")) if moment == "curating" else (lambda: is_training(ready))
    wait_for(reached, moment)
    ready.kill(process)  # which waits until nothing that it has started is left
    done = ready.run("run", "pretrain", str(ready.file))
    assert done.returncode == 0, done.stderr
    check_same(ready, undisturbed)
    ready.wait_for_no_process()


@pytest.mark.parametrize("moment", ["curating", "training"])
def test_the_flow_s_process_is_killed(service, ready, undisturbed, moment):
    run, _ = submitted_until(service, ready, moment)
    kill(flow_processes(service, run))
    finish(service, run, ready, undisturbed)


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_a_worker_is_killed(service, ready, undisturbed, pool):
    run, _ = submitted_until(service, ready, "training")
    kill(named(service, f"worker start --pool {pool}"))
    finish(service, run, ready, undisturbed)


@pytest.mark.parametrize("ranks", ["one", "all"])
def test_ranks_of_a_training_are_killed(service, ready, undisturbed, ranks):
    run, _ = submitted_until(service, ready, "training")
    kill(trainers(service, rank=1) if ranks == "one" else trainers(service))
    finish(service, run, ready, undisturbed)


@pytest.mark.parametrize(("program", "moment"), [("prefect server start", "training"), ("postgres", "training"), ("postgres", "curating")])
def test_a_server_is_killed(service, ready, undisturbed, program, moment):
    if program == "postgres" and not named(service, "postgres"):
        pytest.skip("no PostgreSQL on this machine")
    run, stopped = submitted_until(service, ready, moment)
    kill(named(service, program))
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    finish(service, run, ready, undisturbed)


# -- a person ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["curating", "training"])
def test_a_run_is_cancelled_in_the_ui_and_retried(service, ready, undisturbed, moment):
    run, _ = submitted_until(service, ready, moment)
    service.set_state(run, "CANCELLING")
    assert end_of(service, run)["state_type"] == "CANCELLED"
    check_nothing_left(service)
    service.set_state(run, "SCHEDULED")
    wait_for(lambda: not service.ask("GET", f"/flow_runs/{run}")["end_time"], "the retry")
    finish(service, run, ready, undisturbed)


# -- the machine -------------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_the_disk_is_full(service, ready, undisturbed, tmp_path, share):
    needed = sum(path.stat().st_size for path in undisturbed.store.rglob("*") if path.is_file())
    with small_disk(tmp_path / "small", f"{int(needed * share) >> 10}k"):
        ready.store = tmp_path / "small" / "store"
        ready.config["store"] = str(ready.store)
        run = service.submit("pretrain", ready.config)
        state = end_of(service, run)
        assert state["state_type"] == "FAILED" and "No space left" in state["state"]["message"], state["state"]["message"]
        check_nothing_left(service)
        subprocess.run(["mount", "-o", "remount,size=1g", str(tmp_path / "small")], check=True)
        service.set_state(run, "SCHEDULED")
        wait_for(lambda: not service.ask("GET", f"/flow_runs/{run}")["end_time"], "the retry")
        finish(service, run, ready, undisturbed)
        shutil.rmtree(ready.store)


HOUR = 3600


class Clock:
    """The wall clock of the processes that get `environment`: `jump` sets it so many seconds off that of the machine."""

    def __init__(self, folder):
        self.library, self.path = folder / "clock.so", folder / "clock"
        self.path.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(self.library), "OLMOFLOW_TEST_CLOCK": str(self.path)}
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self.library), str(Path(__file__).parents[1] / "helpers" / "clock.c"), "-ldl"]
        subprocess.run(command, check=True)

    def jump(self, seconds):
        with self.path.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: a library that shifts the clock")
@pytest.mark.parametrize("seconds", [26 * HOUR, -26 * HOUR], ids=["forward", "back"])
def test_the_clock_jumps(tmp_path, ready, undisturbed, seconds):
    clock = Clock(tmp_path)
    service = Service(tmp_path)
    service.environment |= {**clock.environment, "OMP_NUM_THREADS": "1"}
    try:
        service.up()
        run, stopped = submitted_until(service, ready, "curating")
        clock.jump(seconds)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: is_training(ready), "the training")
        clock.jump(0)
        finish(service, run, ready, undisturbed)
    finally:
        service.stop()
