"""GPU jobs as child runs of the deployment `train`, on a real server with its workers."""

import json
import os
import signal
from pathlib import Path

import pytest
from service import Service, wait_for

pytestmark = pytest.mark.soak

SECRET = "planted-3f9c1e77"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("service"))
    service.environment |= {"OMP_NUM_THREADS": "1", "PLANTED": SECRET, "PLANTED_KEY": SECRET}
    try:
        service.up("--gpu-jobs", "2")
        yield service
    finally:
        service.stop()


@pytest.fixture
def ready(lab):
    """A lab whose mixes are made, and whose training takes its time."""
    lab.mixes_here()
    lab.config["pretrain"] |= {"steps": 3000, "decay_steps": 4000, "checkpoint_every": 100}
    lab.config["description"] = "${PLANTED}"
    return lab


def trainers(service):
    return [pid for pid, command in service.processes().items() if "-m trainer" in command]


def flow_processes(service, run):
    marked = f"PREFECT__FLOW_RUN_ID={run}"
    return [pid for pid in service.processes() if marked in environ(pid)]


def environ(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return ""


def has_step(lab, step):
    return any(json.loads(line)["step"] >= step for path in lab.store.glob("shards/train/*/run/metrics.jsonl") for line in lines(path))


def lines(path):
    return path.read_text().rsplit("\n", 1)[0].splitlines()


def test_a_training_is_a_child_run_that_is_shared_cancelled_and_resumed(service, ready):
    first = service.submit("pretrain", ready.config)
    child = wait_for(lambda: service.child_of(first), "the child run")
    assert child["name"] == "train pretrain small"
    wait_for(lambda: has_step(ready, 150), "the training")
    artifact = wait_for(
        lambda: service.ask("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["loss-pretrain-small"]}}}), "the artifact"
    )
    assert "| loss | " in artifact[0]["data"] and "data:image/svg+xml;base64," in artifact[0]["data"]
    assert artifact[0]["flow_run_id"] == child["id"]

    # its parent is killed: the training goes on, and who starts the same waits for it
    (trainer,) = trainers(service)
    os.kill(trainer, signal.SIGSTOP)  # it would be done before the others have come
    for pid in flow_processes(service, first):
        os.kill(pid, signal.SIGKILL)
    assert service.end_of(first)["state_type"] == "CRASHED"
    second = service.submit("pretrain", ready.config)
    wait_for(lambda: any("waiting for flow run train pretrain small" in line for line in logs(service, second)), "the second to join")
    assert trainers(service) == [trainer]
    assert service.child_of(second) is None
    service.set_state(second, "CANCELLING")
    assert service.end_of(second)["state_type"] == "CANCELLED"
    assert trainers(service) == [trainer]  # it was none of its own

    # cancelled, it saves and leaves nothing
    service.set_state(first, "SCHEDULED")  # the retry in the UI
    wait_for(lambda: sum("waiting for flow run train" in line for line in logs(service, first)), "the retry to join")
    os.kill(trainer, signal.SIGCONT)
    service.set_state(first, "CANCELLING")
    assert service.end_of(first)["state_type"] == "CANCELLED"
    wait_for(lambda: not trainers(service), "the trainer's end")
    assert service.end_of(child["id"])["state_type"] == "CANCELLED"
    saved = max(int(path.parent.name.removeprefix("step")) for path in ready.store.glob("shards/train/*/run/checkpoints/*/checkpoint.json"))
    assert saved % 100 or saved == 3000  # in between two of every hundred

    # and goes on from there
    third = service.submit("pretrain", ready.config)
    state = service.end_of(third)
    assert state["state_type"] == "COMPLETED", state["state"]["message"]
    (folder,) = ready.store.glob("shards/train/*/run")
    assert f"step {saved} of 3000" in (folder / "trainer.log").read_text()
    assert [json.loads(line)["step"] for line in lines(folder / "metrics.jsonl")] == list(range(1, 3001))
    assert SECRET not in everything_told(service, ready)


def logs(service, run):
    found = service.ask("POST", "/logs/filter", json={"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
    return [line["message"] for line in found]


def everything_told(service, lab):
    told = [service.ask("POST", f"/{kind}/filter", json={}) for kind in ("flow_runs", "artifacts", "logs", "deployments")]
    files = [path for pattern in ("**/*.json", "**/*.log", "**/*.yaml", "**/*.html") for path in lab.store.glob(pattern)]
    return json.dumps(told) + "".join(path.read_text() for path in files if path.is_file())
