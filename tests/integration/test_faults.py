"""Bad input gives one clear sentence with what to mend, an exit code, and loses nothing."""

import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.pipeline import Pipeline, make_runner
from flows.recipe import load
from tasks.errors import RecipeError, UserError

PATIENCE_SECONDS = 120  # a bound on waiting for a condition, not a measurement


def curate(lab):
    """The curate stage without Prefect: the same code, seconds sooner."""
    pipeline = Pipeline(load(lab.file), make_runner(load(lab.file)))
    pipeline.curate()
    return pipeline


def add_line(lab, line: bytes) -> Path:
    path = lab.folder / "web" / "1.jsonl"
    path.write_bytes(path.read_bytes() + line)
    return path


def test_a_malformed_line_fails_through_the_cli_with_one_sentence(lab):
    path = add_line(lab, b'{"id": "bad", "text": \n')
    done = lab.run("run", "curate", str(lab.file))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(path) in done.stderr and "line 41" in done.stderr and "max_quarantined" in done.stderr
    assert len(lab.records("ingest")) == 3  # the other files of the source, and the rest of this one, are made all the same
    (entry,) = [json.loads(line) for file in lab.store.glob("quarantine/ingest/*.jsonl") for line in file.read_text().splitlines()]
    assert entry["raw"].startswith('{"id": "bad"') and entry["position"] == "line 41"

    lab.config["sources"]["web"]["max_quarantined"] = 0.05
    lab.write(lab.config)
    again = lab.run("run", "curate", str(lab.file), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["shards_made"]["ingest"] == 3  # those of maths: what web kept is there


def test_a_truncated_gzip_names_the_file_and_keeps_what_came_before(lab):
    path = lab.folder / "maths" / "2.jsonl.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2\.jsonl\.gz") as error:
        curate(lab)
    assert "max_quarantined" in str(error.value)
    (record,) = [record for record in lab.records("ingest") if record.books.quarantined]
    table = pq.read_table(lab.store / record.file("documents.parquet").path)
    lines = [json.loads(line) for line in gzip.decompress(whole).decode().splitlines()]
    assert table.num_rows > 0
    assert table["text"].to_pylist() == [line["text"] for line in lines[: table.num_rows]]


def test_a_missing_column_names_it_and_those_that_are_there(lab):
    pq.write_table(pa.table({"content": ["x"], "id": ["1"]}), lab.folder / "code.parquet")
    lab.config["sources"]["code"] = {"format": "parquet", "paths": [str(lab.folder / "code.parquet")], "fields": {"text": "body"}}
    lab.write(lab.config)
    with pytest.raises(UserError, match="body") as error:
        curate(lab)
    assert "code.parquet" in str(error.value) and "content" in str(error.value)


def test_a_filter_on_a_column_that_is_not_there_names_those_that_are(lab):
    lab.config["sources"]["web"]["filters"].append({"column": "stars", "min": 2})
    lab.write(lab.config)
    with pytest.raises(UserError, match="stars") as error:
        curate(lab)
    assert "votes" in str(error.value)


def test_a_missing_model_is_named(lab):
    lab.config["scorers"]["quality"] = {"scorer": {"type": "fasttext", "model": str(lab.folder / "nowhere.bin")}}
    lab.write(lab.config)
    with pytest.raises(UserError, match=r"nowhere\.bin"):
        curate(lab)


def test_a_missing_source_file_is_named(lab):
    lab.config["sources"]["web"]["paths"] = [str(lab.folder / "none" / "*.jsonl")]
    lab.write(lab.config)
    with pytest.raises(UserError, match=r"none/\*\.jsonl"):
        curate(lab)


def test_an_unknown_key_exits_with_2_and_says_what_was_meant(lab):
    lab.config["sources"]["web"]["filtres"] = []
    lab.write(lab.config)
    done = lab.run("plan", str(lab.file))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sources.web.filtres" in done.stderr and "did you mean filters?" in done.stderr
    assert not lab.store.exists()


def test_an_unknown_flow_exits_with_2(lab):
    done = lab.run("run", "cureate", str(lab.file))
    assert done.returncode == 2
    assert "end-to-end" in done.stderr


def test_a_mix_that_asks_for_more_than_a_source_has_says_what_would_do(lab):
    lab.config["mixes"]["mid"]["sources"]["web"] = {"share": 0.9}
    lab.write(lab.config)
    pipeline = Pipeline(load(lab.file), make_runner(load(lab.file)))
    with pytest.raises(UserError, match=r"web.*would do"):
        pipeline.mix("mid")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["mixes"]["pre"]["sources"].update(books={"repeat": 1}), "books"),
        (lambda config: config["mixes"]["pre"]["sources"]["web"].update(share=0.5), "exactly one"),
        (lambda config: config["sources"]["web"].update(scores={"edu": {}}), "edu"),
        (lambda config: config["anneal"].update(seeds=[1, 1]), "twice"),
        (lambda config: config["scorers"]["quality"].pop("train"), "no model"),
        (lambda config: config["model"].update(preset="7b"), "preset"),
        (lambda config: config.pop("pretrain"), "pretrain"),
        (lambda config: config.update(store="${NOT_SET_ANYWHERE}"), "NOT_SET_ANYWHERE"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_anything_runs(lab, change, message):
    change(lab.config)
    lab.write(lab.config)
    with pytest.raises(RecipeError, match=message) as error:
        load(lab.file)
    assert str(lab.file) in str(error.value) and "\n" not in str(error.value)


def test_two_files_with_the_same_bytes_are_one_shard_and_reported(lab):
    (lab.folder / "web" / "copy.jsonl").write_bytes((lab.folder / "web" / "0.jsonl").read_bytes())
    pipeline = curate(lab)
    assert [raw.name for raw in pipeline.copies["web"]] == ["copy.jsonl"]
    assert (
        len(next(artifact for artifact in pipeline.runner.artifacts.values() if artifact.step == "ingest" and artifact.name == "web").keys)
        == 3
    )


def test_a_mix_smaller_than_a_batch_is_told_before_anything_is_trained(lab):
    lab.config["micro_anneals"]["maths"]["sources"]["maths"] = 0.01
    lab.write(lab.config)
    pipeline = Pipeline(load(lab.file), make_runner(load(lab.file)))
    with pytest.raises(UserError, match=r"the mix micro-anneal maths has \d+ instances of 32 tokens, fewer than a batch of 8"):
        pipeline.end_to_end()
    assert lab.records("train") == []


def test_killed_while_prefects_server_starts_it_leaves_no_process(lab):
    process = lab.start("run", "curate", str(lab.file))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(b"uvicorn" in line for line in lab.processes().values()):
        assert process.poll() is None and time.monotonic() < deadline, "no server was started"
        time.sleep(0.01)  # between looks
    lab.kill(process)
