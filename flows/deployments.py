"""Work pools and deployments of the server that PREFECT_API_URL names; `python -m flows.deployments cpu=2 gpu=1` makes them all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from flows.recipe import load_form
from tasks.errors import UserError

ROOT = Path(__file__).parents[1]


def recipe(path: str) -> dict[str, Any]:
    """A build step of `prefect.yaml`: a recipe's keys as the values that a form starts with, `${VAR}` left for the worker to fill in."""
    return {"form": load_form(ROOT / path)}


def make_pools(limits: Mapping[str, int]) -> None:
    """Work pools of processes, each with how many runs it has at once; those that are there get the limit."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for name, limit in limits.items():
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit))
            except ObjectAlreadyExists:
                client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))


def deploy(api: str) -> list[str]:
    """Make all deployments of `prefect.yaml`, or bring them up to date. Returns their names."""
    names = [each["name"] for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    environment = {**os.environ, "PREFECT_API_URL": api}
    started = []
    for its in (names[::2], names[1::2]):  # two at once: each waits for the server while the other makes a form's schema
        chosen = [part for name in its for part in ("--name", name)]
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *chosen]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    told = [each.communicate()[0] for each in started]
    for process, text in zip(started, told, strict=True):
        if process.returncode:
            raise UserError(f"the deployments of prefect.yaml could not be made: {text[-4000:]}")
    return names


def main(arguments: list[str]) -> None:
    """Make the pools, each given as NAME=LIMIT, and the deployments."""
    limits = {name: int(limit) for name, _, limit in (each.partition("=") for each in arguments)}
    make_pools(limits)
    names = deploy(os.environ["PREFECT_API_URL"])
    print(f"{len(limits)} pools, {len(names)} deployments: {', '.join(names)}")


if __name__ == "__main__":
    main(sys.argv[1:])
