"""`gc` takes only what no newest run uses and nothing that is kept descends from; killed, or beside a run, it does no harm."""

import copy
import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from small_store import make, small
from typer.testing import CliRunner

from flows import cli
from flows.gc import Collection
from flows.uses import Uses
from tasks import garbage
from tasks.store import Attempt, Books, Store

DAYS = 86400


def run(config: dict, stage: str = "mix_all", flow: str = "mix", started: str = "2026-01-01T00:00:00+00:00"):
    """As `flows.face.run_stage` does it, without Prefect."""
    uses = Uses(Store(config["store"]), config["name"], flow, started)
    with uses.kept():
        return make(config, stage, wants=uses.wants, tell=lambda artifact: uses.told(artifact, True))


def changed(config: dict, **train) -> dict:
    other = copy.deepcopy(config)
    other["scorers"]["quality"]["train"] |= train or {"dim": 5}
    return other


def age(folder: Path, days: float = 3) -> None:
    at = time.time() - days * DAYS
    for path in folder.rglob("*"):
        os.utime(path, (at, at))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Two runs of a recipe: the second with another scorer, from which on all is other but documents, tokenizer and tokens.

    The tokens' manifest names the first scores, which were there when they were made.
    """
    folder = tmp_path_factory.mktemp("gc")
    first = small(folder)
    run(first)
    old = {manifest["id"] for manifest in Store(first["store"]).manifests()}
    run(changed(first), started="2026-01-02T00:00:00+00:00")
    new = {manifest["id"] for manifest in Store(first["store"]).manifests()} - old
    return folder, old, new


@pytest.fixture
def lab(once, tmp_path):
    folder, old, new = once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    age(tmp_path / "store")
    return Lab(tmp_path, old, new)


class Lab:
    def __init__(self, folder: Path, old: set[str], new: set[str]) -> None:
        self.folder, self.old, self.new = folder, old, new
        self.config = small(folder)
        self.store = Store(self.config["store"])

    def gone(self, *keep: str, grace: float = 24.0) -> dict[str, garbage.Item]:
        return {item.id or item.kind: item for item in Collection(self.store.url, keep, grace).garbage().items}

    def collect(self, *keep: str, grace: float = 24.0) -> None:
        collection = Collection(self.store.url, keep, grace)
        collection.delete(collection.garbage(), None)

    def ids(self) -> set[str]:
        return {manifest["id"] for manifest in self.store.manifests()}

    def files(self) -> dict[str, bytes]:
        root = Path(self.store.root)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def id_of(self, step: str, among: set[str]) -> str:
        (found,) = [identity for identity in among if identity.rpartition("-")[0] == step]
        return found

    def whole(self, identity: str) -> bool:
        """Whether an artifact and all it descends from, by the manifests, is in the store."""
        text = self.store.read_text(f"artifacts/{identity.rpartition('-')[0]}/{identity}.json")
        manifest = json.loads(text or "null")
        shards = manifest and all(self.store.record(manifest["step"], key) for key in manifest["shards"])
        return bool(shards) and all(self.whole(each) for each in manifest["inputs"])


def used_by_the_second(lab: Lab) -> set[str]:
    return lab.new | {identity for identity in lab.old if identity.rpartition("-")[0] not in ("select", "mix")}


def test_what_the_newest_run_uses_stays_and_the_rest_of_earlier_ones_goes(lab):
    gone = lab.gone()
    assert {identity for identity in gone if "-" in identity} == lab.old - used_by_the_second(lab)
    assert {identity.rpartition("-")[0] for identity in gone if "-" in identity} == {"select", "mix"}
    lab.collect()
    assert lab.ids() == used_by_the_second(lab) and all(lab.whole(identity) for identity in lab.ids())
    assert not any(make(changed(lab.config)).runner.made_shards.values())
    assert lab.gone() == {}


def test_nothing_is_deleted_unless_asked(lab):
    before = lab.files()
    told = CliRunner().invoke(cli.app, ["gc", "--store", lab.store.url])
    assert told.exit_code == 0, told.output
    assert "nothing was deleted" in told.output and lab.id_of("mix", lab.old) in told.output
    assert lab.files() == before
    answer = json.loads(CliRunner().invoke(cli.app, ["gc", "--store", lab.store.url, "--json", "--delete"]).stdout)
    assert answer["deleted_bytes"] == answer["bytes"] == sum(map(len, before.values())) - sum(map(len, lab.files().values()))


def test_what_is_young_stays(lab):
    os.utime(Path(lab.store.full("artifacts/select")) / f"{lab.id_of('select', lab.old)}.json")
    gone = lab.gone()
    assert lab.id_of("mix", lab.old) in gone
    assert not any(identity.startswith(("select", "score")) for identity in gone)  # what it descends from


def test_what_a_kept_artifact_descends_from_is_never_deleted(lab):
    mix = lab.id_of("mix", lab.old)
    lab.collect(mix[:-3])
    assert lab.whole(mix) and all(lab.whole(identity) for identity in lab.new)


def test_a_recipe_can_be_kept(lab):
    (lab.folder / "old.yaml").write_text(yaml.safe_dump(lab.config))
    assert lab.gone(str(lab.folder / "old.yaml")).keys() <= {"runs"}


def test_the_descent_counts_also_where_a_manifest_does_not_list_it(lab):
    mix = lab.id_of("mix", lab.old)
    path = f"artifacts/mix/{mix}.json"
    lab.store.replace(path, json.dumps(json.loads(lab.store.read_text(path)) | {"inputs": []}))
    age(Path(lab.store.root))
    lab.collect(mix)
    assert lab.whole(lab.id_of("select", lab.old))  # its shards are inputs of the mix's own


def test_a_run_that_stops_early_does_not_give_away_what_the_one_before_made(lab):
    uses = Uses(lab.store, "small", "mix", "2026-02-01T00:00:00+00:00")
    with pytest.raises(ZeroDivisionError), uses.kept():
        uses.wants("ingest-none", "ingest", ["a"])
        raise ZeroDivisionError
    age(Path(lab.store.root))
    assert lab.new.isdisjoint(lab.gone())


def test_a_run_of_one_flow_does_not_give_away_what_another_flow_made(lab):
    run(lab.config, "curate", "curate", "2026-02-01T00:00:00+00:00")
    age(Path(lab.store.root))
    gone = lab.gone()
    assert lab.new.isdisjoint(gone) and lab.id_of("select", lab.old) not in gone and lab.id_of("mix", lab.old) in gone


def test_a_run_under_way_keeps_what_it_has_made_so_far_however_old(lab):
    uses = Uses(lab.store, "small", "end-to-end", "2026-02-01T00:00:00+00:00")
    uses.wants("ingest-begun", "ingest", ["begun", "to-come"])
    Attempt(lab.store, "ingest", "begun", "web").commit(Books(), 0.0)
    age(Path(lab.store.root))
    lab.collect()
    assert lab.store.record("ingest", "begun") is not None


def test_an_unfinished_training_stays_while_a_process_holds_it_and_is_then_named_as_a_checkpoint(lab):
    folder = Path(lab.store.full("shards/train/k/run"))
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "weights").write_bytes(bytes(1000))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        age(Path(lab.store.root))
        assert "unfinished" not in lab.gone()
    item = lab.gone()["unfinished"]
    assert item.is_model and item.bytes == 1000
    told = CliRunner().invoke(cli.app, ["gc", "--store", lab.store.url]).output
    assert "1 checkpoints or models are among them" in told and "unfinished train k" in told
    lab.collect()
    assert not folder.parent.exists()


def test_leftovers_and_what_belongs_to_nothing_goes_and_answers_stay(lab):
    lab.collect()
    key = lab.store.names("shards/ingest")[0]
    raw = lab.folder / "web" / "0.jsonl"
    known = [path for path in lab.files() if path.startswith("cache/raw/")]
    waste = [
        f"shards/ingest/{key}/attempt-killed/half.parquet",
        "quarantine/ingest/gone.jsonl",
        "families/score/family/gone",
        "tasks/select/select-gone.json",
        f"artifacts/select/.select-x.json.{'0' * 32}",
        "cache/raw/moved.json",
    ]
    stay = [f"quarantine/ingest/{key}.jsonl", "answers/ab/c.json", "held-out/x.json", "reports/small.html"]
    for path in [*waste, *stay]:
        Path(lab.store.full(path)).parent.mkdir(parents=True, exist_ok=True)
        Path(lab.store.full(path)).write_text(json.dumps({"path": f"{raw}.gone", "size": 1, "mtime_ns": 1}))
    assert lab.gone() == {}  # all of it is young
    age(Path(lab.store.root))
    lab.collect()
    left = set(lab.files())
    assert left.isdisjoint(waste) and left >= {*stay, f"shards/ingest/{key}/record.json"}
    assert all(path in left for path in known if json.loads(lab.store.read_text(path))["path"].startswith(str(lab.folder)))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls_before", range(0, 14, 2))
def test_killed_at_any_moment_it_leaves_all_that_is_kept_whole_and_goes_on_the_next_time(lab, monkeypatch, calls_before):
    kept, before = used_by_the_second(lab), hashes(make(lab.config))
    age(Path(lab.store.root))
    left = [calls_before]

    def counted(call):
        def counting(*arguments, **named):
            if left[0] == 0:
                for folder in (Path(each) for each in arguments if isinstance(each, str) and Path(each).is_dir()):
                    next(path for path in folder.rglob("*") if path.is_file()).unlink()  # a part of it is gone
                raise Killed
            left[0] -= 1
            return call(*arguments, **named)

        return counting

    collection = Collection(lab.store.url, (), 24.0)
    with monkeypatch.context() as patch:
        patch.setattr(garbage, "_delete", counted(garbage._delete))
        patch.setattr(Store, "forget", counted(Store.forget))
        patch.setattr(type(collection.store.fs.fs), "rm", counted(type(collection.store.fs.fs).rm))
        with pytest.raises(Killed):
            collection.delete(collection.garbage(), None)
    assert all(lab.whole(identity) for identity in kept)
    lab.collect()
    assert lab.gone() == {} and lab.ids() == kept
    assert hashes(make(lab.config)) == before


def hashes(pipeline) -> dict[str, list[str]]:
    return {record.key: [file.sha256 for file in record.files] for artifact in pipeline.made.values() for record in artifact.records}


def test_a_run_that_begins_meanwhile_keeps_what_it_has_seen(lab, monkeypatch):
    """It says what it wants and looks; then come the records' removal and the second look."""
    begun, forget = [], Store.forget

    def forget_late(store, step, key):
        if step == "select" and not begun:
            begun.append(run(lab.config, started="2026-03-01T00:00:00+00:00").runner.made_shards)
        forget(store, step, key)

    monkeypatch.setattr(Store, "forget", forget_late)
    lab.collect()
    assert begun and not begun[0]["select"]  # it reused what was about to go
    assert lab.whole(lab.id_of("select", lab.old))
    monkeypatch.undo()
    assert not make(lab.config).runner.made_shards.get("select")


def test_files_of_superseded_runs_go(lab):
    assert len(lab.store.names("runs/small")) == 2
    lab.collect()
    (left,) = lab.store.names("runs/small")
    assert json.loads(lab.store.read_text(f"runs/small/{left}"))["started"] == "2026-01-02T00:00:00+00:00"
