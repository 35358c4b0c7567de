"""Runs whose process died are marked crashed, those that live are not, and alerts reach who asked for them: on a real server."""

import configparser
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from service import Chat, Service, wait_for

SILENT_SECONDS = 75  # instead of nine minutes; a heartbeat comes every 30, the least, and is sent again within 30 where the server was away


@pytest.fixture(scope="module")
def chat():
    with Chat("somebody") as chat:
        yield chat


@pytest.fixture(scope="module")
def service(tmp_path_factory, chat):
    service = Service(tmp_path_factory.mktemp("service"))
    service.environment |= {
        "OLMOFLOW_ALERT_WEBHOOK": chat.url,
        "OMP_NUM_THREADS": "1",
        "OLMOFLOW_SILENT_SECONDS": str(SILENT_SECONDS),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    try:
        service.up()
        yield service
    finally:
        service.stop()


@pytest.fixture
def training(service, lab):
    """A pretraining, its GPU job and its trainer, which stands still."""
    lab.mixes_here()
    lab.config["pretrain"] |= {"steps": 600, "decay_steps": 800, "checkpoint_every": 100}
    parent = service.submit("pretrain", lab.config)
    child = wait_for(lambda: service.child_of(parent), "the child run")["id"]
    (trainer,) = wait_for(lambda: pids(service, "-m trainer"), "the trainer")
    wait_for(lambda: list(lab.store.glob("shards/train/*/run/metrics.jsonl")), "its first steps")
    os.kill(trainer, signal.SIGSTOP)
    for run in (parent, child):
        wait_for(lambda run=run: heartbeats(service, run), "a heartbeat")
    return parent, child, trainer


def pids(service, command):
    return [pid for pid, line in service.processes().items() if command in line and "tasks.processes" not in line]


def state_of(service, run):
    return service.ask("GET", f"/flow_runs/{run}")["state"]


def heartbeats(service, run):
    """When the server has heard from a run, the newest first."""
    return [event["occurred"] for event in events(service, "prefect.flow-run.heartbeat", resource={"id": [f"prefect.flow-run.{run}"]})]


def events(service, name, **only):
    asked = {"filter": {"event": {"name": [name]}, "order": "DESC", **only}, "limit": 50}
    return service.ask("POST", "/events/filter", json=asked)["events"]


def supervisor(service, *arguments):
    configuration = configparser.RawConfigParser()
    configuration.read(service.home / "supervisord.conf")
    url = f"unix://{configuration['unix_http_server']['file']}"
    subprocess.run([sys.executable, "-m", "supervisor.supervisorctl", "-s", url, *arguments], check=True, capture_output=True)


def kill_at_once(service, workers, *runs):
    """So that nobody is left who could tell."""
    marks = [f"PREFECT__FLOW_RUN_ID={run}\0".encode() for run in runs]
    doomed = {pid for command in workers for pid in pids(service, command)}
    for pid in service.processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if any(mark in environment for mark in marks):
            doomed.add(pid)
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.soak
def test_runs_live_through_an_outage_of_the_server_and_one_that_dies_later_is_replaced(service, training):
    parent, child, trainer = training
    supervisor(service, "stop", "server")
    until = time.monotonic() + SILENT_SECONDS + 10  # longer than a run may be silent
    wait_for(lambda: time.monotonic() > until, "the end of the outage")
    before = len(heartbeats_after_start(service, parent))
    for run in (parent, child):
        wait_for(lambda run=run: len(heartbeats(service, run)) > before, "a heartbeat after the outage")
        assert state_of(service, run)["type"] == "RUNNING"
    assert pids(service, "-m trainer") == [trainer]
    stalls = wait_for(
        lambda: events(service, "olmoflow.alert.stall"), "the alert of a trainer that stands still, told while the server was away"
    )
    assert stalls[0]["payload"]["message"].startswith("pretrain of small: no step for")
    assert f"prefect.flow-run.{child}" in [each["prefect.resource.id"] for each in stalls[0]["related"]]

    kill_at_once(service, ["worker start --pool gpu"], child)  # as where the machine of the GPUs loses its power
    assert_nothing_was_heard(service, child)
    state = service.end_of(parent)
    assert state["state_type"] == "COMPLETED", state["state"]["message"]


@pytest.mark.soak
def test_a_run_and_its_job_that_are_killed_with_their_workers_are_marked_crashed_and_a_retry_completes(service, training, chat):
    parent, child, _ = training
    kill_at_once(service, ["worker start"], parent, child)
    for run in (parent, child):
        assert_nothing_was_heard(service, run)
    assert not pids(service, "-m trainer")
    told = {"text": "The flow run train pretrain small was marked crashed: nothing was heard from its process."}
    wait_for(lambda: told in chat.got, "the webhook")
    service.set_state(parent, "SCHEDULED")  # the retry in the UI
    state = wait_for(lambda: (now := state_of(service, parent))["type"] in ("COMPLETED", "FAILED") and now, "the retry's end")
    assert state["type"] == "COMPLETED", state["message"]


def assert_nothing_was_heard(service, run):
    state = service.end_of(run)["state"]
    assert (state["type"], state["message"].split(";")[0]) == ("CRASHED", "Nothing was heard from the run's process")


def heartbeats_after_start(service, run):
    supervisor(service, "start", "server")

    def answer():
        try:
            return [heartbeats(service, run)]
        except httpx.HTTPError:
            return None

    return wait_for(answer, "the server")[0]
