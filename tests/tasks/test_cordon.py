"""A host that failed is kept out by every later job until a person lets it in again."""

import json
import socket

import pytest

from tasks import launch_local
from tasks.beside import gpus_of
from tasks.cordon import Cordon
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch
from tasks.store import Store
from trainer.verdict import VERDICT

# A job that writes what GPUs it sees, and fails the health check where the config says that one of them is broken.
JOB = """
import json, os, pathlib, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
print("seen", seen)
bad = [gpu for gpu in config["broken"] if gpu in seen.split(",") or gpu == "cpu"]
if bad:
    faults = [{"host": config["host"], "device": f"cuda:{at}", "gpu": gpu, "rank": at, "fault": "multiplies wrongly", "own": config["own"]} for at, gpu in enumerate(bad)]
    pathlib.Path(sys.argv[1]).with_name("health.json").write_text(json.dumps(faults))
    sys.exit("error: the health check failed")
"""


@pytest.fixture
def cordon(tmp_path):
    return Cordon(Store(str(tmp_path / "store")))


@pytest.fixture
def run(tmp_path, monkeypatch, cordon):
    """launch() of the job where there are four GPUs, some of them broken."""
    (tmp_path / "olmoflow_test_health.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch_local, "POLL_SECONDS", 0.01)
    monkeypatch.setattr("tasks.launch_local.gpu_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def launched(*broken: str, gpus=(), own=True, device="cuda") -> list[str]:
        config = {"broken": list(broken), "host": socket.gethostname(), "own": own}
        launch("olmoflow_test_health", config, tmp_path, LauncherConfig(device=device), gpus=gpus, cordon=cordon)
        return [line.removeprefix("seen ") for line in (tmp_path / "olmoflow_test_health.log").read_text().splitlines() if "seen" in line]

    return launched


def fault(host="h1", gpu="3", own=True, rank=0):
    return {"host": host, "device": "cuda:0", "gpu": gpu, "rank": rank, "fault": "multiplies wrongly", "own": own}


def test_a_cordon_says_who_when_why_which_devices_and_which_run(cordon):
    (made,) = cordon.add([fault(), fault(gpu="5", rank=1), fault("h2", own=False)], "/runs/a")
    assert cordon.hosts() == {"h1": made}
    assert (made.devices, made.why, made.run) == (["3", "5"], "multiplies wrongly", "/runs/a")
    assert made.who.endswith(f"@{socket.gethostname()}") and made.when.startswith("20")
    assert json.loads(cordon.store.read_text("cordoned/h1.json"))["devices"] == ["3", "5"]


def test_more_devices_of_a_host_join_the_first_and_the_same_again_are_nothing_new(cordon):
    cordon.add([fault(gpu="3")], "/runs/a")
    assert cordon.add([fault(gpu="3")], "/runs/b") == []
    assert [made.host for made in cordon.add([fault(gpu="4")], "/runs/b")] == ["h1"]
    assert cordon.hosts()["h1"].devices == ["3", "4"] and cordon.hosts()["h1"].run == "/runs/a"


def test_a_host_is_let_in_again(cordon):
    cordon.add([fault()], "/runs/a")
    assert cordon.lift("h1") and not cordon.lift("h1")
    assert cordon.hosts() == {}


def test_a_job_on_this_machine_goes_to_a_gpu_that_is_not_broken_and_later_jobs_start_there(run, cordon, caplog, tmp_path):
    seen = run("0", gpus=("0", "1"))
    assert seen == ["0,1", "1"]
    assert cordon.hosts()[socket.gethostname()].devices == ["0"]
    assert "GPU 0: multiplies wrongly" in caplog.text
    assert run("0", gpus=("0", "1"))[2:] == ["1"]
    assert not (tmp_path / VERDICT).exists()


def test_a_job_that_no_sound_gpu_is_left_for_is_told_so(run):
    with pytest.raises(
        UserError, match=r"GPUs of this host are cordoned: .*GPU 2.*0 are left and the job takes 1: .*doctor --store .* --uncordon"
    ):
        run("2", gpus=("2",))


def test_a_cordoned_cpu_host_runs_nothing(run):
    with pytest.raises(UserError, match=r"this host is cordoned: .*\(cpu: multiplies wrongly; cordoned"):
        run("cpu", device="cpu")


def test_a_fault_that_is_not_the_devices_own_cordons_nothing(run, cordon):
    with pytest.raises(UserError, match="the health check failed"):
        run("1", gpus=("1",), own=False)
    assert cordon.hosts() == {}


def test_micro_anneals_beside_each_other_take_none_of_the_cordoned_gpus(monkeypatch):
    monkeypatch.setattr("tasks.launch_local.gpu_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpus_of(slot, 1, "cuda", ["1"]) for slot in range(3)] == [["0"], ["2"], ["3"]]
    with pytest.raises(UserError, match=r"4 GPUs or more, but 3 of the 4 here are not cordoned"):
        gpus_of(3, 1, "cuda", ["1"])
