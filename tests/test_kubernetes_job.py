"""The Job that Prefect's worker makes from the work pool's template, against the Kubernetes API's own schema."""

import asyncio
import json
from pathlib import Path
from unittest.mock import AsyncMock
from uuid import uuid4

import kubernetes_validate
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.children import job_variables
from tasks.cordon import Cordon
from tasks.launch import LauncherConfig
from tasks.pods import Meeting
from tasks.store import Store

TEMPLATE = json.loads((Path(__file__).parents[1] / "deployments/kubernetes/base-job-template.json").read_text())
VERSIONS = "1.33", "1.37"  # of Kubernetes
NEEDED = {"image": "registry.example/olmoflow-gpu@sha256:" + 64 * "0", "claim": "olmoflow"}


async def manifest(**variables):
    """The Job as the worker would submit it."""
    made = await KubernetesWorkerJobConfiguration.from_template_and_values(
        TEMPLATE, {**NEEDED, **variables}, client=AsyncMock(spec=PrefectClient)
    )
    # A client that is asked nothing, as the template names no block: Prefect would start a server otherwise
    made.prepare_for_flow_run(FlowRun(id=uuid4(), name="train pretrain demo", flow_id=uuid4()))
    job = made.job_manifest
    for name in ("completions", "parallelism"):  # Prefect demands them of the pod too, where the API passes over them
        assert job["spec"]["template"]["spec"].pop(name) == 1
    return job


def rendered(**variables):
    return asyncio.run(manifest(**variables))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "variables", [{}, {"nodes": 4, "gpus": 8, "keep_away": ["gpu-17"], "service_account_name": "olmoflow", "env": {"A": "b"}}]
)
def test_the_job_is_one_that_the_api_takes(variables, version):
    assert kubernetes_validate.validate(rendered(**variables), version, strict=True) == version


def test_the_schema_finds_a_fault_where_there_is_one():
    job = rendered()
    job["spec"]["completion"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


def test_a_gpu_job_of_a_recipe_has_a_pod_a_node_a_gpu_a_rank_and_keeps_away_from_cordoned_nodes(tmp_path):
    store = Store(str(tmp_path))
    Cordon(store).add([{"host": "gpu-17", "device": "cuda:0", "gpu": "0", "fault": "x", "own": True, "rank": 0}], "run")
    job = rendered(**job_variables(LauncherConfig(kind="kubernetes", nodes=4, processes=8), store))
    pod = job["spec"]["template"]["spec"]
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 4, 4)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["gpu-17"]}]}]
    assert job_variables(LauncherConfig(), store) == {}


def test_pods_are_told_all_that_they_need_and_pod_0_the_flow_run():
    container = rendered(nodes=4)["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "tasks.pods"] and container["args"] == ["prefect", "flow-run", "execute"]
    told = {each["name"]: each.get("value") or each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"]}
    meeting = Meeting.here(told | {"JOB_COMPLETION_INDEX": "3"})  # which Kubernetes adds
    assert (meeting.index, meeting.pods, meeting.host) == (3, 4, "spec.nodeName")
    assert str(meeting.folder).startswith("/shared/olmoflow-jobs/")
    assert "PREFECT__FLOW_RUN_ID" in told and told["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "relinquish"


def test_the_order_of_ranks_is_stated():
    assert (
        "the pod with completion index n has the ranks from n * processes on"
        in rendered()["metadata"]["annotations"]["olmoflow/order-of-ranks"]
    )
