"""GPU jobs in the pods of a Kubernetes Job, the pods as processes of this machine: what they are told is what the Job's template tells them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tasks import pods
from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch
from tasks.store import Store

STEPS = 16
TWO_PODS = {"kind": "kubernetes", "nodes": 2, "device": "cpu", "threads": 1}
# What the flow run does in pod 0.
FLOW = """
import sys, yaml
from pathlib import Path
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch
config = yaml.safe_load(Path(sys.argv[1]).read_text())
try:
    launch(sys.argv[2], config, Path(config["run_folder"]), LauncherConfig(**yaml.safe_load(sys.argv[3])))
except UserError as error:
    sys.exit(f"told: {error}")
"""
# The trainer, slow from its fifth step on, so that something can happen to it in the middle.
SLOW = """
import sys, time
from trainer import train
from trainer.__main__ import main
step = train._step
def slow(run, *rest):
    time.sleep(0.2 if run.step > 3 else 0)
    return step(run, *rest)
train._step = slow
sys.exit(main(sys.argv[1:]))
"""
BROKEN = """
import os, sys
from trainer import health
from trainer.__main__ import main
if os.environ["OLMOFLOW_HOST"] == "node-1":
    health.product_fault = lambda device: "a product came out wrong"
sys.exit(main(sys.argv[1:]))
"""


class Pods:
    """The pods of one Job; `start(index)` makes a pod, again where it was lost."""

    def __init__(self, folder: Path, config: dict, module: str) -> None:
        self.folder, self.module, self.started = folder, module, []
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        modules = folder / "modules"
        modules.mkdir()
        (modules / "slow_trainer.py").write_text(SLOW)
        (modules / "broken_trainer.py").write_text(BROKEN)
        self.path = os.pathsep.join([str(modules), *filter(None, [os.environ.get("PYTHONPATH")])])

    def start(self, index: int) -> subprocess.Popen:
        command = [sys.executable, "-c", FLOW, str(self.folder / "config.yaml"), self.module, yaml.safe_dump(TWO_PODS)]
        environment = {**os.environ, "PYTHONPATH": self.path, "GLOO_SOCKET_IFNAME": "lo", **variables(self.folder, index)}
        with (self.folder / f"pod-{index}.log").open("ab") as stream:
            pod = subprocess.Popen([sys.executable, "-m", "tasks.pods", *command], env=environment, stdout=stream, stderr=stream)
        self.started.append(pod)
        return pod


def variables(folder: Path, index: int, count: int = 2) -> dict[str, str]:
    return {
        "JOB_COMPLETION_INDEX": str(index),
        "OLMOFLOW_JOB": "train-x",
        "OLMOFLOW_PODS": f"{count} pods",
        "OLMOFLOW_MEETING": str(folder / "meeting"),
        "OLMOFLOW_POD_ADDRESS": "127.0.0.1",
        "OLMOFLOW_HOST": f"node-{index}",
    }


@pytest.fixture
def make_pods(make_config, tmp_path):
    made = []

    def make(module="trainer"):
        run = tmp_path / "run"
        run.mkdir()
        config = make_config(max_steps=STEPS, micro_batch_instances=2, run_folder=str(run), **{"checkpoint.every_steps": 1000})
        made.append(Pods(tmp_path, config, module))
        return made[0]

    yield make
    for pod in made[0].started if made else []:
        with contextlib.suppress(ProcessLookupError):
            pod.kill()
        pod.wait()


def losses(folder: Path) -> list[float]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def weights(folder: Path) -> dict[str, np.ndarray]:
    files = sorted((folder / json.loads((folder / "done.json").read_text())["checkpoint"]).rglob("*.safetensors"))
    return {f"{path.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def check_same_as_local(tmp_path, make_config, run_ranks) -> None:
    local, run = tmp_path / "local", tmp_path / "run"
    run_ranks(make_config(max_steps=STEPS, micro_batch_instances=2, run_folder=str(local)), 2)
    assert losses(run) == losses(local) and len(losses(run)) == STEPS
    left, right = weights(run), weights(local)
    assert left.keys() == right.keys() and left
    assert all(np.array_equal(left[name], right[name]) for name in left)


def wait_for(question, what: str) -> None:
    deadline = time.monotonic() + 120
    while not question():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@pytest.mark.soak
def test_two_pods_train_as_two_ranks_of_this_machine_do(make_pods, make_config, run_ranks, tmp_path):
    job = make_pods()
    codes = [pod.wait(timeout=200) for pod in [job.start(1), job.start(0)]]
    assert codes == [0, 0], (tmp_path / "pod-0.log").read_text()
    check_same_as_local(tmp_path, make_config, run_ranks)


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_pod_that_is_taken_away_and_made_anew_costs_no_bit(make_pods, make_config, run_ranks, tmp_path, how):
    job = make_pods("slow_trainer")
    first, lost = job.start(0), job.start(1)
    wait_for(lambda: len(losses(tmp_path / "run")) > 4, "the fifth step")
    lost.send_signal(how)
    assert lost.wait(timeout=100) == (143 if how == signal.SIGTERM else -9)
    again = job.start(1)
    assert [first.wait(timeout=200), again.wait(timeout=100)] == [0, 0], (tmp_path / "pod-0.log").read_text()
    check_same_as_local(tmp_path, make_config, run_ranks)


@pytest.mark.soak
def test_pod_0_made_anew_goes_on_and_the_others_stay(make_pods, make_config, run_ranks, tmp_path):
    job = make_pods("slow_trainer")
    lost, other = job.start(0), job.start(1)
    wait_for(lambda: len(losses(tmp_path / "run")) > 4, "the fifth step")
    lost.kill()
    lost.wait()
    first = job.start(0)
    assert [first.wait(timeout=200), other.wait(timeout=100)] == [0, 0], (tmp_path / "pod-0.log").read_text()
    check_same_as_local(tmp_path, make_config, run_ranks)


@pytest.mark.soak
def test_a_node_that_fails_the_health_check_is_told_by_its_own_name(make_pods, tmp_path):
    job = make_pods("broken_trainer")
    first, other = job.start(0), job.start(1)
    assert first.wait(timeout=200) == 1 and other.wait(timeout=100) == 0
    assert "host node-1, device cpu (rank 1): a product came out wrong" in (tmp_path / "pod-0.log").read_text()
    assert {fault["host"] for fault in json.loads((tmp_path / "run/health.json").read_text()) if fault["own"]} == {"node-1"}


def test_a_pod_whose_pod_0_is_gone_ends(tmp_path):
    meeting = pods.Meeting.here(variables(tmp_path, 1))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert pods.follow(meeting, alone_seconds=0.1) == 79
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_launch_outside_of_a_pod_says_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match=r"this is no pod of a Job made from deployments/kubernetes/base-job-template.json .* work pool `gpu`"
    ):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="kubernetes"))


def test_more_nodes_than_pods_are_refused(tmp_path, monkeypatch):
    for name, value in variables(tmp_path, 0).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"nodes is 3, but this Job has 2 pods: give the work pool's variable `nodes` the same number"):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="kubernetes", nodes=3))


def test_no_job_runs_on_a_cordoned_node(tmp_path, monkeypatch):
    for name, value in variables(tmp_path, 0, 1).items():
        monkeypatch.setenv(name, value)
    pods.Meeting.here().check_in()
    cordon = Cordon(Store(str(tmp_path / "store")))
    cordon.add([{"host": "node-0", "device": "cuda:0", "gpu": "0", "fault": "a product came out wrong", "own": True, "rank": 0}], "run")
    with pytest.raises(UserError, match="a pod of the Job is on a node that is cordoned: node-0"):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="kubernetes", device="cpu"), cordon=cordon)
