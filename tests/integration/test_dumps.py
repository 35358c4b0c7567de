"""New dumps as a person meets them: by the command, in Prefect's UI, and after a kill -9."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
import yaml
from dumps import recipe, write_dump

from tasks.dump_record import last_done
from tasks.store import Store

A = {number: f"answer {number} of a" for number in range(12)}
B = {number: f"answer {number} of b" for number in range(8)}


@pytest.fixture
def forum(tmp_path):
    (tmp_path / "words.jsonl").write_text('{"text": "why answer of a and b"}\n')
    write_dump(tmp_path / "dumps" / "2026-06-30", {"a.stackexchange.com": A, "b.stackexchange.com": B})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path, tmp_path / "dumps")))
    return tmp_path


COMMANDS = """
import json, os, sys
from pathlib import Path
from flows import cli

os.environ.update(cli.PREFECT_DEFAULTS)
sys.path += ["tests/helpers"]
from dumps import write_dump

recipe, dumps = sys.argv[1:]
cli.app(["run", "poll-stackexchange", recipe, "--json"], standalone_mode=False)
write_dump(Path(dumps) / "2026-09-30", {"a.stackexchange.com": {1: "new"}})
cli.app(["run", "poll-stackexchange", recipe], standalone_mode=False)

from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    states = {(run.state.name, run.state.message) for run in client.read_flow_runs()}
    artifacts = [artifact.data for artifact in client.read_artifacts() if artifact.key == "stackexchange-changes-forum"]
print(json.dumps({"states": sorted(map(list, states), key=str), "artifacts": artifacts}))
"""


def test_the_commands_curate_what_is_new_skip_what_is_not_and_leave_an_artifact(forum, prefect_home):
    first = recurate(forum)
    assert first.returncode == 0, first.stderr
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(forum / "recipe.yaml"), str(forum / "dumps")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    first, *lines, seen = done.stdout.splitlines()
    skipped = "nothing is newer than 2026-06-30, which is done"
    assert json.loads(first)["skipped"] == skipped
    assert [each["new"] for each in json.loads(first)["dump"]["changes"]] == [12, 8]
    assert "2026-09-30, since 2026-06-30: 0 documents new, 19 gone, 1 edited, 2 of 2 sites changed" in lines
    assert "  b.stackexchange.com (not in this dump): 0 documents new, 8 gone, 0 edited" in lines
    seen = json.loads(seen)
    assert ["Skipped", skipped] in seen["states"]
    assert [len(json.loads(data)) for data in seen["artifacts"]] == [2]


KILLED = """
import os, signal, sys
sys.path += ["tests/helpers"]
from pathlib import Path
from flows import recuration
from flows.pipeline import Pipeline
from flows.recipe import load
from in_process import InProcess
from tasks.shards import Runner
from tasks.store import Store

last, create, seen = sys.argv[2], Store.create, []

def create_or_die(store, path, text):
    seen.append(path)
    if last == "done" and "/done/" in path or last == str(len(seen)):
        os.kill(os.getpid(), signal.SIGKILL)
    return create(store, path, text)

Store.create = create_or_die
recipe = load(Path(sys.argv[1]))
recuration.recurate(Pipeline(recipe, Runner(Store(recipe.store), InProcess())), recuration.find(recipe, None, print))
"""


def recurate(forum, kill="never"):
    return subprocess.run([sys.executable, "-c", KILLED, str(forum / "recipe.yaml"), kill], capture_output=True, text=True)


def test_a_recuration_that_is_killed_is_not_done_and_the_next_one_makes_only_what_is_left(forum):
    store = Store(str(forum / "store"))
    assert recurate(forum, "3").returncode == -signal.SIGKILL
    assert recurate(forum, "done").returncode == -signal.SIGKILL
    assert last_done(store, "forum") is None
    again = recurate(forum, "never")
    assert again.returncode == 0, again.stderr
    done = last_done(store, "forum")
    assert done is not None and done.shards_made == {} and [each.new for each in done.changes] == [12, 8]
    assert asdict(done)["mixes"]["mid"] > 0
