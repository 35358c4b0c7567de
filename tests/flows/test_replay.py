"""`replay` makes an artifact again from what the store keeps of it, and says which file and row differs where it does not come out the same."""

import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import launch_here
from rich.console import Console
from small_store import make, small, with_training, write_web

import tasks.train
from flows.replay import replay_artifact
from tasks import engine, replay, select, shard, shard_tasks
from tasks.errors import UserError
from tasks.progress import ignore
from tasks.store import Store


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """The real engine and worker, as calls."""
    monkeypatch.setattr(engine, "_run_all", lambda jobs, *_: [shard.main(path, int(rank)) for path, rank in jobs])
    monkeypatch.setattr(tasks.train, "launch", launch_here)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.train, "launch", launch_here)
        make(with_training(small(folder)), "pretrain")
    return folder


@pytest.fixture
def lab(once, tmp_path):
    """A copy of the store alone: what a manifest names is the raw files where they lay."""
    shutil.copytree(once / "store", tmp_path / "store")
    return Lab(tmp_path / "store", once)


class Lab:
    def __init__(self, folder: Path, raw: Path) -> None:
        self.store, self.raw = Store(str(folder)), raw

    def manifest(self, step: str) -> dict:
        (found,) = [each for each in self.store.manifests() if each["step"] == step]
        return found

    def replay(self, step: str, into: Path | None = None) -> tuple[bool, str]:
        told = io.StringIO()
        identity = self.manifest(step)["id"]
        return replay_artifact(Console(file=told, width=200), self.store.url, identity, into, False, ignore), told.getvalue()

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path(self.store.root).rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", ["ingest", "train-scorer", "score", "tokenizer", "tokenize", "select", "mix"])
def test_data_artifacts_come_out_with_the_same_bytes(lab, step):
    before, number = lab.files(), len(lab.manifest(step)["files"])
    reproduced, told = lab.replay(step)
    assert reproduced and f"reproduced ({number} same bytes)" in told, told
    assert lab.files() == before  # nothing is written into the store


def test_a_training_on_the_cpu_comes_out_bit_for_bit(lab, tmp_path):
    reproduced, told = lab.replay("train", tmp_path / "scratch")
    assert reproduced, told
    weights = [
        sorted((file.name, file.read_bytes()) for file in Path(root).rglob("*.safetensors"))
        for root in (lab.store.root, tmp_path / "scratch")
    ]
    assert weights[0] and weights[0] == weights[1]


def test_a_secret_in_a_raw_file_s_place_is_stored_by_its_name_and_filled_in_again(tmp_path, monkeypatch):
    folder = tmp_path / "planted-7c1d"
    folder.mkdir()
    monkeypatch.setenv("BUCKET_SECRET", "planted-7c1d")
    config = small(folder)
    config["store"] = str(tmp_path / "store")
    make(config)
    lab = Lab(tmp_path / "store", folder)
    assert [path for path, content in lab.files().items() if b"planted-7c1d" in content] == []
    for step in ("ingest", "train-scorer"):
        reproduced, told = lab.replay(step)
        assert reproduced, told
    monkeypatch.delenv("BUCKET_SECRET")
    with pytest.raises(UserError, match=r"ingest-\w+: the environment variable BUCKET_SECRET is not set"):
        lab.replay("ingest")


def test_only_this_artifact_is_made_anew(lab, tmp_path):
    lab.replay("select", tmp_path / "scratch")
    assert [path.name for path in (tmp_path / "scratch" / "shards").iterdir()] == ["select"]


def test_the_row_and_the_column_that_differ_are_named(lab, monkeypatch):
    def run(made):
        books = real(made)
        path = made.folder / select.FILE
        rows = pq.read_table(path).to_pylist()
        rows[2]["reason"] = "a whim"
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
        return books

    real = select.run
    monkeypatch.setattr(select, "run", run)
    reproduced, told = lab.replay("select")
    assert not reproduced and "NOT reproduced (3 differs)" in told
    assert f"{select.FILE} differs: row 2, column reason" in told and "'a whim'" in told


def test_books_that_differ_are_told(lab, monkeypatch):
    def run(made):
        books = real(made)
        books.count("tokens", 1)
        return books

    real = select.run
    monkeypatch.setattr(select, "run", run)
    reproduced, told = lab.replay("select")
    assert not reproduced and "books differs" in told


def test_weights_that_differ_are_told_by_their_place(lab, monkeypatch, tmp_path):
    def launch(module, config, folder, *rest):
        launch_here(module, {**config, "seed": 7}, folder, *rest)

    monkeypatch.setattr(tasks.train, "launch", launch)
    reproduced, told = lab.replay("train")
    assert not reproduced and "safetensors differs: from byte" in told and "metrics.jsonl differs: line 1, loss" in told


def test_a_raw_file_that_is_gone_or_other_is_named(lab):
    path = lab.raw / "web" / "1.jsonl"
    content = path.read_text()
    try:
        write_web(lab.raw, 1, label="edited ")
        with pytest.raises(UserError, match=r"web/1\.jsonl has other content than when the artifact was made"):
            lab.replay("ingest")
        path.unlink()
        with pytest.raises(UserError, match=r"web/1\.jsonl is gone"):
            lab.replay("ingest")
    finally:
        path.write_text(content)


def test_other_software_is_told_first(lab):
    manifest = lab.manifest("select")
    other = manifest | {"version": 0, "lock": "0" * 64, "software": manifest["software"] | {"numpy": "1.0"}}
    lab.store.replace(f"artifacts/select/{manifest['id']}.json", json.dumps(other))
    lines = lab.replay("select")[1].splitlines()
    assert lines[0] == "made with other software: the step's version 0 -> 1"
    assert lines[1].startswith("made with other software: numpy 1.0 -> ") and "lock 0000000000000000000 -> " in lines[2]
    assert "reproduced" in lines[3]


def test_an_artifact_of_an_older_olmoflow_cannot_be_replayed_and_says_so(lab):
    shard_tasks.delete(lab.store, "select", lab.manifest("select")["id"])
    with pytest.raises(UserError, match="made by an older olmoflow"):
        lab.replay("select")


def test_equal_rows_in_other_bytes_are_equal_rows(tmp_path):
    table = pa.table({"a": [1.0, float("nan"), None], "b": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "one.parquet", compression="zstd")
    pq.write_table(table, tmp_path / "two.parquet", compression="none", row_group_size=2)
    pq.write_table(table.set_column(1, "b", [["x", "y", "!"]]), tmp_path / "three.parquet")
    one, two, three = (pq.ParquetFile(tmp_path / f"{name}.parquet") for name in ("one", "two", "three"))
    assert replay.rows_differ(one, two) == ""
    assert replay.rows_differ(one, three) == "row 2, column b: 'z' -> '!'"
