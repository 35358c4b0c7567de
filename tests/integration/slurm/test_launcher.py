"""GPU jobs on a real cluster, on its CPUs: two nodes train as one machine does, whatever happens to the job."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from slurm_cluster import PATIENCE_SECONDS, wait_for

from tasks import launch_slurm, slurm
from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch
from tasks.store import Store

STEPS = 16
TWO_NODES = LauncherConfig(kind="slurm", nodes=2, device="cpu", slurm={"memory": "1G"})
ONE_NODE = LauncherConfig(kind="slurm", device="cpu", slurm={"memory": "1G"})

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
# The trainer on a cluster whose first node multiplies wrongly.
BROKEN = """
import os, sys
from trainer import health
from trainer.__main__ import main
if os.environ["SLURMD_NODENAME"] == "n1":
    health.product_fault = lambda device: "a product came out wrong"
sys.exit(main(sys.argv[1:]))
"""


class Stop(Exception):
    """What a person or a flow does to a job in the middle."""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    for name in ("FIRST_SECONDS", "LONGEST_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(slurm, name, 0.1)
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "slow_trainer.py").write_text(SLOW)
    (folder / "broken_trainer.py").write_text(BROKEN)
    (folder / "ranks.py").write_text("import os; print(*(os.environ[name] for name in ('SLURMD_NODENAME', 'RANK', 'LOCAL_RANK')))")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    return path


@pytest.fixture
def train(make_config, tmp_path):
    """`train(folder, launcher, module, progress)`: a run of the tiny model in a folder; its losses."""

    def run(name, launcher, module="slow_trainer", progress=lambda: None, save_every=1000, **more):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = make_config(max_steps=STEPS, micro_batch_instances=2, run_folder=str(folder), **{"checkpoint.every_steps": save_every})
        launch(module, config, folder, launcher, progress, **more)
        return losses(folder)

    return run


@pytest.fixture
def local(make_config, run_ranks, tmp_path):
    """The folder of the same run by two ranks of this machine, which nothing disturbs."""
    folder = tmp_path / "local"
    run_ranks(make_config(max_steps=STEPS, micro_batch_instances=2, run_folder=str(folder)), 2)
    return folder


def losses(folder: Path) -> list[float]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def weights(folder: Path) -> dict[str, np.ndarray]:
    files = sorted((folder / json.loads((folder / "done.json").read_text())["checkpoint"]).rglob("*.safetensors"))
    return {f"{path.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def check_same(one: Path, other: Path) -> None:
    assert losses(one) == losses(other) and len(losses(one)) == STEPS
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys() and left
    assert all(np.array_equal(left[name], right[name]) for name in left)


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step")) for path in folder.glob("checkpoints/*/checkpoint.json"))


@pytest.mark.soak
def test_two_nodes_train_as_two_local_ranks_do_and_a_cancelled_run_has_saved(train, local, cluster, tmp_path):
    def stop():
        if len(losses(tmp_path / "slurm")) > 4:
            raise Stop

    with pytest.raises(Stop):
        train("slurm", TWO_NODES, progress=stop)
    assert not cluster.live()
    wait_for(lambda: not cluster.processes(), "the end of all processes")
    ((saved),) = steps_saved(tmp_path / "slurm")
    assert 4 < saved < STEPS
    train("slurm", TWO_NODES)
    check_same(tmp_path / "slurm", local)
    assert f"resumed from {tmp_path}/slurm/checkpoints/step{saved:07d}" in (tmp_path / "slurm" / "slow_trainer.log").read_text()


def test_a_node_that_fails_the_health_check_is_cordoned_and_the_job_goes_to_another(train, cluster, tmp_path, caplog):
    cordon = Cordon(Store(str(tmp_path / "store")))
    assert len(train("run", ONE_NODE, "broken_trainer", cordon=cordon)) == STEPS
    (there,) = cordon.hosts().values()
    assert (there.host, there.devices, there.why) == ("n1", ["cpu"], "a product came out wrong")
    assert there.run == str(tmp_path / "run") and "@" in there.who
    assert "n1 (cpu: a product came out wrong; cordoned" in caplog.text and "goes elsewhere" in caplog.text
    with pytest.raises(UserError, match=r"takes 2 of the cluster's 2 nodes, but 1 are cordoned, .*n1 .*doctor --store .* --uncordon n1"):
        train("more", TWO_NODES, cordon=cordon)
    assert not list((tmp_path / "more").glob("*.job"))


@pytest.mark.soak
def test_the_verdict_on_one_of_two_nodes_is_heard_though_all_ranks_leave_at_once(train, cluster, tmp_path):
    cordon = Cordon(Store(str(tmp_path / "store")))
    with pytest.raises(UserError, match=r"takes 2 of the cluster's 2 nodes, but 1 are cordoned"):  # there is no elsewhere
        train("run", TWO_NODES, "broken_trainer", cordon=cordon)
    assert list(cordon.hosts()) == ["n1"]
    log = (tmp_path / "run" / "broken_trainer.log").read_text()
    assert "error: the health check failed: host n1, device cpu (rank 0): a product came out wrong" in log


def test_a_failing_job_is_told_in_its_last_words(train, cluster, tmp_path):
    folder = tmp_path / "failing"
    folder.mkdir()
    with pytest.raises(UserError, match=r"trainer ended with 1: .*unknown key.* \(whole log: .*trainer\.log\); run the same command again"):
        launch("trainer", {"nonsense": 1}, folder, ONE_NODE)


@pytest.mark.soak
def test_ranks_are_ordered_by_node(cluster, tmp_path):
    launch("ranks", {}, tmp_path, TWO_NODES.model_copy(update={"processes": 2}))
    lines = sorted(line.split() for line in (tmp_path / "ranks.log").read_text().splitlines() if line.startswith("n"))
    assert lines == [["n1", "0", "0"], ["n1", "1", "1"], ["n2", "2", "0"], ["n2", "3", "1"]]


def disturbed(train, cluster, folder, disturb):
    """A run on two nodes whose job something happens to in the middle, and that Slurm then begins again."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(train, folder.name, TWO_NODES, save_every=4)
        wait_for(lambda: steps_saved(folder) and len(losses(folder)) > 5, "a checkpoint, and steps after it")
        (job,) = cluster.live()
        disturb(job)
        wait_for(lambda: cluster.live().get(job) == "PENDING", "the job in the queue again")
        cluster.start_nodes(wait=False)
        cluster.command("scontrol", "update", f"jobid={job}", "StartTime=now")  # Slurm holds it back for two minutes
        run.result(PATIENCE_SECONDS)


@pytest.mark.soak
@pytest.mark.parametrize("what", ["requeue", "node"])
def test_a_job_that_slurm_requeues_ends_with_the_same_weights(train, local, cluster, tmp_path, what):
    happens = {"requeue": lambda job: cluster.command("scontrol", "requeue", job), "node": lambda job: cluster.kill_node("n2")}
    disturbed(train, cluster, tmp_path / "slurm", happens[what])
    check_same(tmp_path / "slurm", local)
    assert "resumed from" in (tmp_path / "slurm" / "slow_trainer.log").read_text()


@pytest.mark.soak
def test_a_job_that_reaches_its_time_limit_goes_on_in_another(train, cluster, tmp_path, monkeypatch, caplog):
    asked = []

    def warn():  # what Slurm does before the limit, which is a minute at least
        if len(losses(tmp_path / "slurm")) > 4 and not asked:
            asked.append(cluster.command("scancel", "--signal=TERM", *cluster.live()))

    train("slurm", TWO_NODES, progress=warn)
    assert len(losses(tmp_path / "slurm")) == STEPS
    assert "asked to end by Slurm" in caplog.text and "submitted again" in caplog.text


@pytest.mark.soak
def test_a_job_that_somebody_cancels_is_not_begun_again(train, cluster, tmp_path):
    asked = []

    def cancel():
        if len(losses(tmp_path / "slurm")) > 4 and not asked:
            asked.append(cluster.command("scancel", *cluster.live()))

    with pytest.raises(UserError, match=r"slow_trainer ended with CANCELLED: .*run the same command again"):
        train("slurm", TWO_NODES, progress=cancel)
    assert not cluster.live()


KILLED = """
from tasks import launch_slurm
from tasks.launch import LauncherConfig, launch
from pathlib import Path
import sys, yaml
launch_slurm.ALONE_SECONDS = float(sys.argv[2])
config = yaml.safe_load(Path(sys.argv[1]).read_text())
launch("slow_trainer", config, Path(config["run_folder"]), LauncherConfig(**yaml.safe_load(sys.argv[3])))
"""


@pytest.mark.soak
@pytest.mark.parametrize("again", ["there", "here", ""])
def test_the_job_of_a_launcher_that_is_killed_is_taken_over_or_ended_or_saves_and_ends_by_itself(
    make_config, cluster, modules, tmp_path, monkeypatch, again
):
    folder = tmp_path / "run"
    folder.mkdir()
    config = make_config(max_steps=40, run_folder=str(folder), **{"checkpoint.every_steps": 1000})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    alone = 600.0 if again else 2.0
    monkeypatch.setattr(launch_slurm, "ALONE_SECONDS", alone)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml"), str(alone), yaml.safe_dump(ONE_NODE.model_dump())]
    killed = subprocess.Popen(command, env=cluster.environment | {"PYTHONPATH": modules})
    try:
        wait_for(lambda: len(losses(folder)) > 4, "the fifth step")
    finally:
        killed.kill()
        killed.wait()
    (job,) = cluster.live()
    if again == "here":
        launch("slow_trainer", config, folder, LauncherConfig(threads=1, device="cpu"))
        assert not cluster.processes() and len(losses(folder)) == 40
        assert "resumed" in (folder / "slow_trainer.log").read_text()
    elif again == "there":
        launch("slow_trainer", config, folder, ONE_NODE)
        assert cluster.jobs()[job] == "COMPLETED" and len(losses(folder)) == 40
        assert "resumed" not in (folder / "slow_trainer.log").read_text()
    else:
        wait_for(lambda: not cluster.live() and not cluster.processes(), "the end of the job")
        assert 4 < steps_saved(folder)[0] < 40


@pytest.mark.soak
def test_a_whole_recipe_on_the_cluster_ends_as_on_this_machine(lab, cluster, tmp_path):
    """Data steps as arrays, trainings, soup and evaluations as jobs; two micro-anneals beside each other."""
    lab.config["micro_anneals"]["web"] = {"sources": {"web": 0.5}, "general": {"maths": 1}}
    lab.config["pretrain"] |= {"micro_batch_instances": 4, "steps": 8}
    wheres = {
        "local": {"engine": {"workers": 2}, "launcher": {"processes": 2, "threads": 1, "device": "cpu"}},
        "slurm": {
            "engine": {"kind": "slurm", "workers": 2, "work_folder": str(lab.folder / "work")},
            "launcher": {"kind": "slurm", "nodes": 2, "device": "cpu", "slurm": {"memory": "1G"}},
            "micro_anneals": {"gpus": 4},
        },
    }
    for name, where in wheres.items():
        lab.write({**lab.config, "store": str(lab.folder / name), "where": where})
        lab.environment = cluster.environment | lab.environment | {"SLURM_CONF": str(cluster.conf), "GLOO_SOCKET_IFNAME": "lo"}
        done = lab.run("run", "end-to-end", str(lab.file), "--json")
        assert done.returncode == 0, done.stderr
    lab.store = lab.folder / "local"
    steps = ("ingest", "train-scorer", "score", "tokenizer", "tokenize", "select", "mix", "held-out")
    local, losses_of_local = lab.checksums(*steps), lab.losses()
    lab.store = lab.folder / "slurm"
    assert lab.checksums(*steps) == local and lab.losses() == losses_of_local
    assert len(losses_of_local) == 5 and not cluster.processes()
