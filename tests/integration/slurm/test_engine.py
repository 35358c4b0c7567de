"""The Slurm engine on a real cluster: a step's shards as the tasks of an array."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from slurm_cluster import PATIENCE_SECONDS, wait_for

from flows import doctor
from flows.pipeline import Pipeline, make_runner
from flows.recipe import load
from tasks import slurm
from tasks.engine import StepFailed
from tasks.engine_slurm import SlurmConfig, SlurmEngine
from tasks.errors import UserError
from tasks.progress import ignore
from tasks.shards import Runner, ShardTask, Step
from tasks.store import Store


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(slurm, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "LONGEST_SECONDS", 0.2)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.1)


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """A folder of modules that jobs can import."""
    folder = tmp_path / "the steps"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))

    def made(name: str, body: str) -> Step:
        (folder / f"{name}.py").write_text(
            f"import os\nfrom pathlib import Path\nfrom tasks.store import Books\n\ndef run(shard):\n    {body}\n    return Books()\n"
        )
        return Step(name, 1, name)

    return made


def run_step(folder: Path, step: Step, parts: int = 3, watch=ignore, **settings) -> None:
    engine = SlurmEngine(SlurmConfig(work_folder=str(folder / "the work"), **settings), watch)
    Runner(Store(str(folder / "store")), engine).run(step, "some", [ShardTask(f"part {i}", {"part": i}, {}) for i in range(parts)])


def on(lab, store: str, engine: dict) -> Pipeline:
    lab.write({**lab.config, "store": store, "where": {**lab.config["where"], "engine": engine}})
    return Pipeline(load(lab.file), make_runner(load(lab.file)))


def records(store: Path) -> dict[tuple[str, str], dict]:
    return {(path.parts[-3], path.parts[-2]): json.loads(path.read_text()) for path in store.glob("shards/*/*/record.json")}


def checksums(store: Path) -> dict[tuple[str, str, str], str]:
    return {(*shard, file["name"]): file["sha256"] for shard, record in records(store).items() for file in record["files"]}


def test_documents_are_the_same_bytes_as_on_the_local_engine(lab, cluster, monkeypatch):
    monkeypatch.chdir(lab.folder)
    for store, engine in (("local", {"workers": 2}), ("slurm", {"kind": "slurm", "workers": 2, "at_once": 1})):
        on(lab, store, engine).documents("web")  # relative folders, which a job must not take for its own
    assert len(records(lab.folder / "slurm")) == 3
    assert checksums(lab.folder / "slurm") == checksums(lab.folder / "local")
    assert not list((lab.folder / "olmoflow-work").iterdir())


@pytest.mark.soak
def test_a_whole_curation_with_mixes_is_the_same_bytes_as_on_the_local_engine(lab, cluster):
    for store, engine in (("local", {"workers": 2}), ("slurm", {"kind": "slurm", "workers": 2})):
        pipeline = on(lab, str(lab.folder / store), engine)
        pipeline.curate()
        pipeline.mix_all()
    assert checksums(lab.folder / "slurm") == checksums(lab.folder / "local")


def test_a_bad_file_is_told_in_the_same_sentence_and_the_others_are_made(lab, cluster):
    for number in range(3):
        name = "content" if number == 1 else "body"
        pq.write_table(pa.table({name: [f"text {number}"], "id": ["1"]}), lab.folder / f"{number}.parquet")
    lab.config["sources"] = {"code": {"format": "parquet", "paths": [f"{lab.folder}/*.parquet"], "fields": {"text": "body"}}}
    lab.config = {name: lab.config[name] for name in ("name", "sources", "where")}
    told = {}
    for store, engine in (("local", {"workers": 2}), ("slurm", {"kind": "slurm", "work_folder": str(lab.folder / "work")})):
        with pytest.raises(UserError, match=r"1\.parquet") as error:
            on(lab, str(lab.folder / store), engine).documents("code")
        told[store] = str(error.value)
    assert told["slurm"] == told["local"]
    assert len(records(lab.folder / "slurm")) == 2


def test_a_bug_comes_back_with_its_traceback_and_progress_and_settings_do_their_work(tmp_path, cluster, steps):
    body = "assert shard.config['part'] != 1, os.environ['FROM_SETUP'] + ' ' + os.environ['SLURM_CPUS_PER_TASK'] + ' ' + os.environ['OMP_NUM_THREADS']"
    settings = {
        "partition": "all",
        "cpus": 2,
        "memory": "500M",
        "time_limit": "5",
        "options": ["--comment=a test"],
        "setup": ["export FROM_SETUP='by hand'"],
    }
    told = []
    with pytest.raises(StepFailed, match=r"(?s)part 1: AssertionError: by hand 2 2.*Traceback.*with_a_bug\.py"):
        run_step(tmp_path, steps("with_a_bug", body), watch=told.append, **settings)
    assert len(records(tmp_path / "store")) == 2
    assert (told[-1].done, told[-1].total) == (2, 3)


def test_what_slurm_refuses_is_told(tmp_path, cluster, steps):
    with pytest.raises(UserError, match=r"sbatch refuses: .*[Ii]nvalid partition"):
        run_step(tmp_path, steps("that_works", "pass"), partition="nowhere")


def test_a_rank_that_is_lost_is_tried_once_more_and_then_told(tmp_path, cluster, steps):
    body = f"mark = Path({str(tmp_path)!r}) / f\"died-{{shard.config['part']}}\"\n    if not mark.exists():\n        mark.touch()\n        os.kill(os.getpid(), 9)"
    run_step(tmp_path, steps("that_dies_once", body), parts=2)
    assert len(records(tmp_path / "store")) == 2
    body = "if shard.config['part'] == 1:\n        os.write(2, b'goodbye\\n')\n        os.kill(os.getpid(), 9)"
    with pytest.raises(
        UserError, match=r"1 of the 2 array tasks were lost, task 1 twice .*FAILED.*saying 'goodbye'.*where\.engine\.memory"
    ):
        run_step(tmp_path, steps("that_dies", body), parts=2)
    assert len(records(tmp_path / "store")) == 3


def test_the_doctor_tells_of_the_nodes(cluster):
    (finding,) = [finding for finding in doctor.examine(None) if finding.what == "Slurm"]
    assert finding.works and finding.told == "2 nodes"


class Stop(Exception):
    """What a person does to a run."""


def test_a_run_that_is_stopped_leaves_no_job(tmp_path, cluster, steps):
    def stop(_):
        if (tmp_path / "begun").exists():
            raise Stop

    with pytest.raises(Stop):
        run_step(tmp_path, steps("that_waits", f"Path({str(tmp_path)!r}, 'begun').touch(); import time; time.sleep(1000)"), watch=stop)
    assert not cluster.live()
    wait_for(lambda: not cluster.processes(), "the end of all processes")
    assert not list((tmp_path / "the work").iterdir())


def test_the_jobs_of_a_run_that_is_killed_end_by_themselves(tmp_path, cluster, steps):
    step = steps("that_waits", f"Path({str(tmp_path)!r}, 'begun').touch(); import time; time.sleep(1000)")
    code = (
        "from tasks import engine_slurm\nfrom tasks.engine_slurm import *\nfrom tasks.shards import *\n"
        "engine_slurm.ALONE_SECONDS = 2.0\n"
        f"engine = SlurmEngine(SlurmConfig(work_folder={str(tmp_path / 'work')!r}))\n"
        f"Runner(Store({str(tmp_path / 'store')!r}), engine).run({step!r}, 'some', [ShardTask('part', {{}}, {{}})])"
    )
    run = subprocess.Popen([sys.executable, "-c", code], env=cluster.environment | {"PYTHONPATH": os.environ["PYTHONPATH"]})
    try:
        wait_for(lambda: (tmp_path / "begun").exists(), "the shard")
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: not cluster.live() and not cluster.processes(), "the end of the job")


def disturbed(tmp_path, cluster, steps, disturb) -> None:
    """Run a step whose only shard waits at its first try, and disturb its job then."""
    body = f"mark = Path({str(tmp_path)!r}) / 'begun'\n    if not mark.exists():\n        mark.write_text(os.environ['SLURMD_NODENAME'])\n        import time; time.sleep(1000)"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_step, tmp_path, steps("that_waits_once", body), 1)
        node = wait_for(lambda: (tmp_path / "begun").exists() and (tmp_path / "begun").read_text(), "the shard")
        (job,) = cluster.live()
        disturb(job, node)
        wait_for(lambda: cluster.live().get(job) == "PENDING", "the job in the queue again")
        cluster.command("scontrol", "update", f"jobid={job}", "StartTime=now")  # Slurm holds it back for two minutes
        run.result(PATIENCE_SECONDS)
    assert len(records(tmp_path / "store")) == 1


def test_a_requeued_task_makes_its_shards(tmp_path, cluster, steps):
    disturbed(tmp_path, cluster, steps, lambda job, node: cluster.command("scontrol", "requeue", job))


@pytest.mark.soak
def test_a_task_whose_node_dies_makes_its_shards_on_another(tmp_path, cluster, steps):
    disturbed(tmp_path, cluster, steps, lambda job, node: cluster.kill_node(node))
