"""What Slurm is asked for, told by stand-ins of its commands; tests/integration/slurm meets the real ones."""

import json

import pytest

from tasks import slurm
from tasks.errors import UserError
from tasks.launch import LauncherConfig, launch

SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" "$(dirname "$0")/asked.sh"
echo "$@" > "$(dirname "$0")/asked"
echo 7
"""
# One answer a call: the lines of the file `squeue-answers`; no output after them.
SQUEUE = """#!/bin/sh
case "$*" in *"-n "*) exit 0;; esac
cd "$(dirname "$0")"
head -n 1 answers; sed -i 1d answers
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder of stand-ins; `answers` are what squeue says of the job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", "#!/bin/sh\n"), ("sinfo", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.01)
    return folder


def asked(folder) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in (folder / "asked.sh").read_text().splitlines() if line.startswith("#SBATCH ")]


def test_a_job_on_gpus_asks_for_nodes_gpus_and_time_to_save(commands, tmp_path):
    settings = {
        "partition": "gpu",
        "time_limit": "2-00:00:00",
        "cpus": 12,
        "memory": "900G",
        "options": ["--qos=long"],
        "setup": ["module load cuda"],
    }
    (commands / "answers").write_text("COMPLETED|N/A|None\n")
    folder = tmp_path / "a run"
    folder.mkdir()
    with pytest.raises(UserError, match="trainer ended with COMPLETED: no output"):  # nothing has run
        launch("trainer", {"a": 1}, folder, LauncherConfig(kind="slurm", nodes=4, processes=8, slurm=settings))
    told = asked(commands)
    assert {"--partition=gpu", "--time=2-00:00:00", "--mem=900G", "--qos=long", "--gpus-per-node=8", "--signal=TERM@120"} <= set(told)
    assert "--nodes=4 --ntasks-per-node=1 --cpus-per-task=96 --requeue" in told
    assert f'"--output={folder}/trainer.log"' in told
    script = (commands / "asked.sh").read_text()
    assert "\nmodule load cuda\n" in script and "--nproc-per-node=8" in script
    assert (folder / "trainer.yaml").read_text() == "a: 1\n"


def test_a_job_on_cpus_asks_for_no_gpu_and_has_slurms_cpus_as_threads(commands, tmp_path):
    (commands / "answers").write_text("FAILED|N/A|NonZeroExitCode\n")
    with pytest.raises(UserError):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="slurm", device="cpu", slurm={"cpus": 3}))
    assert not any("gpus" in line for line in asked(commands))
    assert LauncherConfig(kind="slurm", processes=2, slurm={"cpus": 3}).threads_per_rank == 3
    assert LauncherConfig(kind="slurm").device == "cuda"


@pytest.mark.parametrize("state", ["NODE_FAIL", "TIMEOUT", "PREEMPTED", "BOOT_FAIL"])
def test_a_job_that_was_ended_from_outside_is_submitted_again_a_few_times(commands, tmp_path, state, caplog):
    (commands / "answers").write_text(f"{state}|N/A|None\n" * 10)
    with pytest.raises(UserError, match=f"trainer ended with {state}"):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="slurm"))
    assert caplog.text.count("submitted again") == 3


def test_a_job_that_somebody_cancels_fails_at_once(commands, tmp_path, caplog):
    (commands / "answers").write_text("CANCELLED|N/A|None\n" * 10)
    with pytest.raises(UserError, match="trainer ended with CANCELLED"):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="slurm"))
    assert "again" not in caplog.text


def test_a_controller_that_is_away_for_a_while_is_waited_for(commands, tmp_path, monkeypatch):
    (commands / "squeue").write_text(
        '#!/bin/sh\ncase "$*" in *"-n "*) exit 0;; esac\n'
        f"echo x >> {commands}/calls\n"
        f"if [ $(wc -l < {commands}/calls) -lt 4 ]; then echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1; fi\n"
        f"echo 0 > {tmp_path}/trainer.code; echo 'COMPLETED|N/A|None'\n"
    )
    launch("trainer", {}, tmp_path, LauncherConfig(kind="slurm"))
    monkeypatch.setattr(slurm, "AWAY_SECONDS", -1.0)
    (commands / "calls").unlink()
    with pytest.raises(UserError, match=r"Slurm has not answered .*Unable to contact slurm controller.* while it had job 7"):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="slurm"))


def test_a_missing_slurm_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="squeue is not installed here: run olmoflow on a machine of the Slurm cluster"):
        launch("trainer", {}, tmp_path, LauncherConfig(kind="slurm"))


def test_several_nodes_need_a_cluster():
    with pytest.raises(ValueError, match="nodes is 2, but kind local is this machine alone"):
        LauncherConfig(nodes=2)


def test_a_job_of_other_ranks_takes_whole_nodes():
    launcher = LauncherConfig(kind="slurm", nodes=4, processes=8)
    assert [(each.nodes, each.processes) for each in map(launcher.of_ranks, (1, 8, 16))] == [(1, 1), (1, 8), (2, 8)]
    with pytest.raises(ValueError, match="12 ranks are no whole machines of 8"):
        launcher.of_ranks(12)
    assert json.loads(launcher.alone().model_dump_json())["nodes"] == 1
