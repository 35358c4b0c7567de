"""The compose file's services hang together, start what is installed, and let nobody but this machine in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PATH = ROOT / "deployments/compose.yaml"
FILE = yaml.safe_load(PATH.read_text())
SERVICES = FILE["services"]


def test_a_service_waits_for_one_that_can_be_what_it_waits_for():
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}"
            else:
                assert wait["condition"] == "service_completed_successfully" and SERVICES[other]["restart"] == "on-failure"


def test_only_this_machine_gets_in():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)


def test_images_are_made_of_files_that_are_there_and_volumes_are_declared():
    for service in SERVICES.values():
        if build := service.get("build"):
            assert ((PATH.parent / build["context"]).resolve() / build["dockerfile"]).is_file()
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= FILE["volumes"].keys()


@pytest.mark.parametrize("name", ["server", "cpu", "gpu"])
def test_a_command_is_one_that_prefect_knows(name, tmp_path):
    (python, *module), command = SERVICES[name]["entrypoint"], SERVICES[name]["command"]
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *module, *command, "--help"], capture_output=True, text=True, env={**os.environ, "PREFECT_HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in command if option.startswith("--"))
