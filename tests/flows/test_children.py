"""What a flow does about a child run's end, on a real Prefect server; its worker is a stand-in that ends runs as it is told."""

import contextvars
import threading
import time

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.testing.utilities import prefect_test_harness

from flows.automations import HEARD_NOTHING
from flows.children import TRIES, ChildRun
from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.store import Store

PATIENCE_SECONDS = 120  # a bound on waiting for a condition, not a measurement


@pytest.fixture(scope="module")
def client():
    with prefect_test_harness(server_startup_timeout=PATIENCE_SECONDS), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process"))
        client.create_deployment(client.create_flow_from_name("train"), "train", work_pool_name="gpu", enforce_parameter_schema=False)
        yield client


def cordon(store, host):
    Cordon(store).add([{"host": host, "own": True, "gpu": "0", "device": "cuda", "fault": "a check failed"}], "train small")


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)  # between looks
    return found


class Lab:
    """A job, the runs of it, and what its parent told."""

    def __init__(self, client, name, store):
        self.client, self.key, self.store, self.told, self.errors = client, name, store, [], []

    def runs(self):
        found = [run for run in self.client.read_flow_runs(limit=200) if self.key in run.tags]
        return sorted(found, key=lambda run: run.created)

    def work(self, *ends):
        """A worker that ends each run of the job that comes with the next of `ends`: a state, or what makes one."""

        def serve():
            with get_client(sync_client=True) as client:
                done = set()
                for end in ends:
                    new = wait_until(
                        lambda: [run for run in client.read_flow_runs(limit=200) if self.key in run.tags and run.id not in done]
                    )
                    done.add(new[0].id)
                    client.set_flow_run_state(new[0].id, end() if callable(end) else end, force=True)

        worker = threading.Thread(target=contextvars.copy_context().run, args=(serve,), daemon=True)
        worker.start()
        return worker

    def run(self):
        """The job as a child of a flow run; the sentence that it fails with, if it fails."""

        @flow(name="parent")
        def parent():
            variables = lambda: {"keep_away": sorted(Cordon(self.store).hosts())}  # noqa: E731
            try:
                ChildRun("train small", self.key, {}, lambda: None, self.told.append, variables)()
            except UserError as error:
                return str(error)
            return None

        return parent()


@pytest.fixture
def job(client, tmp_path, request, monkeypatch):
    monkeypatch.setattr("flows.children.POLL_SECONDS", 0.05)
    return Lab(client, request.node.name, Store(str(tmp_path / "store")))


def test_a_job_whose_node_is_cordoned_is_submitted_once_more_away_from_it(job):
    def break_down():
        cordon(job.store, "node-7")
        return Failed(message="the node is ill")

    worker = job.work(break_down, Completed())
    assert job.run() is None
    worker.join()
    assert [run.job_variables["keep_away"] for run in job.runs()] == [[], ["node-7"]]
    assert "train small: a node failed the health check and is cordoned; the job goes elsewhere" in job.told


def test_a_failure_that_another_run_would_repeat_is_told_at_once_in_the_child_s_words(job):
    worker = job.work(Failed(message="Flow run encountered an exception: tasks.errors.UserError: the loss is not a number"))
    message = job.run()
    worker.join()
    assert message.startswith("train small failed (flow run train small, ")
    assert message.endswith("): the loss is not a number; a retry goes on where it stopped")
    assert len(job.runs()) == 1


def test_where_every_node_falls_ill_the_job_is_given_up(job):
    def break_down():
        cordon(job.store, f"node-{len(job.runs())}")
        return Failed(message="the node is ill")

    worker = job.work(*[break_down] * TRIES)
    assert "the node is ill" in job.run()
    worker.join()
    assert len(job.runs()) == TRIES


def test_a_run_from_which_nothing_is_heard_any_more_is_replaced_and_one_that_crashed_is_told(job):
    worker = job.work(Crashed(message=f"{HEARD_NOTHING}; a retry goes on"), Crashed(message="killed for its memory"))
    assert "crashed" in (message := job.run()) and "killed for its memory" in message
    worker.join()
    assert len(job.runs()) == 2


def test_a_run_of_another_parent_is_waited_for_and_replaced_where_that_one_cancels_it(job):
    there = job.client.read_deployment_by_name("train/train")
    other = job.client.create_flow_run_from_deployment(there.id, tags=[job.key], name="theirs")

    def cancel():
        wait_until(lambda: job.told)
        return Cancelled(message="by its parent")

    worker = job.work(cancel, Completed())
    assert job.run() is None
    worker.join()
    assert job.runs()[0].id == other.id and len(job.runs()) == 2
    assert job.told[0] == f"train small: waiting for flow run theirs ({other.id})"
    assert "ended with the run that had submitted it; another one goes on" in job.told[1]
