"""`olmoflow doctor` says what works, what does not and what to do, and lists and lifts cordons."""

import json
import socket

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows import doctor
from flows.cli import app
from tasks.cordon import Cordon
from tasks.store import Store

NVIDIA_SMI = """#!/bin/sh
cat <<EOF
0, NVIDIA H100 80GB HBM3, 81559, 41, 0
1, NVIDIA H100 80GB HBM3, 81559, 44, 7
2, NVIDIA GeForce RTX 3090, 24576, 95, [N/A]
EOF
"""


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("OLMOFLOW_STORE", "SLURM_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "LEAST_DISK_BYTES", 0)
    with temporary_settings({PREFECT_API_URL: None}):
        yield


@pytest.fixture
def asked(tmp_path):
    """`asked(*arguments)`: exit code and findings by what they are about, in lists."""

    def ask(*arguments):
        done = CliRunner().invoke(app, ["doctor", "--json", *arguments])
        assert done.exit_code in (0, 1), done.output
        found = {}
        for finding in json.loads(done.stdout):
            found.setdefault(finding["what"], []).append(finding)
        return done.exit_code, found

    return ask


def test_a_sound_machine_with_a_store_is_all_right_and_nothing_stays_in_the_store(asked, tmp_path):
    code, found = asked("--store", str(tmp_path / "store"))
    assert code == 0
    assert found["store"][0]["works"] is True and found["torch"][0]["works"] is True
    assert found["GPUs"][0]["works"] is None and found["Slurm"][0]["works"] is None
    assert not list((tmp_path / "store").iterdir())


def test_a_gpu_with_memory_errors_and_a_hot_one_are_broken(asked, tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "cat").symlink_to("/bin/cat")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    code, found = asked()
    assert code == 1
    assert [found[f"GPU {number}"][0]["works"] for number in range(3)] == [True, False, False]
    assert "memory returns wrong values" in found["GPU 1"][0]["mend"] and "cooling" in found["GPU 2"][0]["mend"]


def test_a_server_that_does_not_answer_and_a_store_that_cannot_be_written_are_broken(asked, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        (tmp_path / "file").touch()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{taken.getsockname()[1]}/api"}):
            code, found = asked("--store", str(tmp_path / "file" / "store"))
    assert code == 1
    assert found["Prefect server"][0]["works"] is False and "refused" in found["Prefect server"][0]["told"]
    assert found["store"][0]["works"] is False


def test_a_store_whose_creation_is_not_exclusive_is_broken(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "create", lambda store, path, text: store.replace(path, text) or True)
    code, found = asked("--store", str(tmp_path / "store"))
    assert code == 1 and "overwrite each other" in found["store"][0]["told"]


def test_cordoned_hosts_are_listed_and_let_in_again(asked, tmp_path):
    cordon = Cordon(Store(str(tmp_path / "store")))
    faults = [
        {"host": host, "device": "cuda:1", "gpu": "1", "rank": 1, "fault": "multiplies wrongly", "own": True}
        for host in ("h1", socket.gethostname())
    ]
    cordon.add(faults, "/runs/a")
    code, found = asked("--store", str(tmp_path / "store"))
    assert code == 1  # for this machine is one of them
    assert {finding["works"] for finding in found["cordoned"]} == {None, False}
    assert any("h1 (GPU 1: multiplies wrongly; cordoned" in finding["told"] for finding in found["cordoned"])
    code, found = asked("--store", str(tmp_path / "store"), "--uncordon", socket.gethostname())
    assert code == 0 and len(found["cordoned"]) == 1
    done = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "store"), "--uncordon", "h7"])
    assert done.exception is not None and "h7 is not cordoned" in str(done.exception)
