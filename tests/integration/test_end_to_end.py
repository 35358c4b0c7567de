"""The main job through the CLI: raw files to a souped model with a report; reused as far as nothing has changed; killed, it goes on."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer, Olmo2ForCausalLM

from flows.pipeline import Pipeline, make_runner
from flows.plan import make_plan
from flows.recipe import load
from trainer.checkpoint import load_model_tensors

PATIENCE = 120  # seconds; a bound on waiting for a condition, not a measurement
DATA_STEPS = ("ingest", "train-scorer", "score", "tokenizer", "tokenize", "select", "mix", "held-out")


def of(lab, step):
    return {record.name.split(":")[0]: record for record in lab.records(step)}


def path(lab, record, name):
    return lab.store / record.file(name).path


def test_it_ends_with_the_path_of_a_report_that_stands_alone(made):
    report = Path(made.summary["report"])
    assert report.is_file()
    page = report.read_text()
    for word in ("micro-anneal", "soup", "unigram", "web", "maths"):
        assert word in page
    assert "<script src" not in page and "<link" not in page


def test_every_raw_record_is_accounted_for(made):
    lines = sum(len(file.read_text().splitlines()) for file in made.folder.glob("web/*.jsonl"))
    records = [
        record
        for record in made.records("ingest")
        if record.files and "votes" in pq.read_schema(path(made, record, "documents.parquet")).names
    ]
    assert sum(record.books.read for record in records) == lines == sum(record.books.kept for record in records)
    for step in DATA_STEPS:
        for record in made.records(step):
            books = record.books
            assert books.read == books.kept + sum(books.dropped.values()) + books.quarantined


def test_selection_follows_the_thresholds(made):
    votes = [json.loads(line)["score"] for file in sorted(made.folder.glob("web/*.jsonl")) for line in file.read_text().splitlines()]
    web = [record for record in made.records("select") if record.name == "web"]
    assert sum(record.books.kept for record in web) == sum(vote >= 2 for vote in votes)
    assert sum(record.books.dropped["not tokenized: votes < 1"] for record in web) == votes.count(0)
    assert sum(record.books.dropped["votes < 2"] for record in web) == votes.count(1)


def test_repeated_documents_are_left_out(made):
    maths = [record for record in made.records("select") if record.name == "maths"]
    assert sum(record.books.dropped["repeated"] for record in maths) == 3


def test_no_held_out_document_is_in_a_mix(made):
    held = set()
    for record in made.records("held-out"):
        header = json.loads(path(made, record, "mix.json").read_text())
        for file, start, _length, _ in np.load(path(made, record, "extents.npy")):
            held.add((header["files"][file], start))
    assert held
    for record in made.records("mix"):
        header = json.loads(path(made, record, "mix.json").read_text())
        plan = pq.read_table(path(made, record, "plan.parquet")).to_pylist()
        assert not held & {(header["files"][row["file"]], row["start"]) for row in plan}


def test_the_mix_meets_its_shares(made):
    (record,) = [record for record in made.records("mix") if record.name == "mid"]
    web, maths = (
        next(row for row in json.loads(path(made, record, "composition.json").read_text()) if row["source"] == name)
        for name in ("web", "maths")
    )
    assert web["mix_percent"] == pytest.approx(50, abs=1)
    assert maths["source_percent"] == pytest.approx(100)


def test_an_anneal_starts_where_the_checkpoint_left_off(made):
    runs = {record.name: record for record in made.records("train")}
    metrics = {name: [json.loads(line) for line in path(made, run, "metrics.jsonl").read_text().splitlines()] for name, run in runs.items()}
    left = metrics["pretrain"][-1]["learning_rate"]
    assert 0 < left < made.config["pretrain"]["learning_rate"]
    for name in ("anneal 1", "anneal 2", "micro-anneal maths"):
        steps = metrics[name]
        assert steps[0]["learning_rate"] == pytest.approx(left, rel=1e-9)
        rates = [step["learning_rate"] for step in steps]
        assert rates == pytest.approx([left * (1 - i / len(rates)) for i in range(len(rates))])


def test_the_soup_is_the_mean_of_its_ingredients_and_loads_in_transformers(made):
    (model,) = made.records("model")
    folder = path(made, model, "config.json").parent
    soup = Olmo2ForCausalLM.from_pretrained(folder).state_dict()
    ingredients = []
    for record in made.records("train"):
        if record.name.startswith("anneal"):
            marker = next(file for file in record.files if file.name.endswith("checkpoint.json"))
            ingredients.append(dict(load_model_tensors((made.store / marker.path).parent)))
    assert len(ingredients) == 2
    for name, tensor in soup.items():
        assert torch.equal(tensor, ((ingredients[0][name].double() + ingredients[1][name].double()) / 2).float())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("What is 3 plus 4?")["input_ids"]) == "What is 3 plus 4?"


def test_evaluation_covers_every_checkpoint_and_source(made):
    scores = {
        record.name: json.loads(path(made, record, "evaluation.json").read_text())["checkpoints"] for record in made.records("evaluate")
    }
    assert set(scores["checkpoints"]) == {"pretrained", "anneal 1", "anneal 2", "soup", "unigram model"}
    assert set(scores["micro-anneals"]) == {"pretrained", "maths"}
    for by_source in (*scores["checkpoints"].values(), *scores["micro-anneals"].values()):
        assert set(by_source) == {"web", "maths", "all"}


def test_the_unigram_baseline_equals_a_count_by_hand(made):
    (record,) = [record for record in made.records("evaluate") if record.name == "checkpoints"]
    told = json.loads(path(made, record, "evaluation.json").read_text())["checkpoints"]["unigram model"]["web"]
    (mix,) = [record for record in made.records("mix") if record.name == "pre"]
    (held,) = [record for record in made.records("held-out") if record.name == "web"]

    def stream(record):
        header = json.loads(path(made, record, "mix.json").read_text())
        files = []
        for name in header["files"]:
            step, key, file = name.split("/")
            shard = next(other for other in made.records(step) if other.key == key)
            files.append(np.fromfile(path(made, shard, file), "<u4"))
        return header, [int(t) for f, s, n, _ in np.load(path(made, record, "extents.npy")) for t in files[f][s : s + n]]

    header, training = stream(mix)
    held_header, text = stream(held)
    eos, counts = header["eos_id"], {}
    for token in training:
        counts[token] = counts.get(token, 0) + 1
    total = sum(counts.get(token, 0) + 1 for token in range(header["vocab_size"]) if token != eos)
    nats = sum(-np.log((counts.get(token, 0) + 1) / total) for token in text if token != eos)
    assert told["bits_per_byte"] == pytest.approx(nats / np.log(2) / held_header["bytes"], rel=1e-9)


def test_a_second_run_reuses_everything(copied):
    summary = copied.end_to_end()
    assert summary["shards_made"] == {}
    assert set(summary["counters"].values()) == {0}


def test_a_moved_threshold_scores_and_encodes_nothing(copied):
    copied.config["sources"]["web"]["filters"][0]["min"] = 3
    copied.write(copied.config)
    summary = copied.mixes_here()
    assert summary["counters"] == {"documents_ingested": 0, "documents_scored": 0, "documents_encoded": 0}
    assert set(summary["shards_made"]) == {"select", "mix"}
    assert summary["shards_made"]["select"] == 3
    left = {row["step"] for row in make_plan(load(copied.file), "end_to_end", 0.0)["steps"] if row["to_run"]}
    assert left == {"mix", "held-out", "train", "soup", "model", "evaluate"}


def test_an_added_file_runs_one_shard_of_each_step(copied):
    extra = [{"id": f"x{i}", "text": f"One more {i} document about rivers.", "score": 4, "kind": "hq"} for i in range(10)]
    (copied.folder / "web" / "9.jsonl").write_text("".join(json.dumps(line) + "\n" for line in extra))
    summary = copied.mixes_here()
    made = summary["shards_made"]
    assert {step: made[step] for step in ("ingest", "score", "tokenize", "select")} == {"ingest": 1, "score": 1, "tokenize": 1, "select": 1}
    assert "tokenizer" not in made and "train-scorer" not in made
    assert summary["counters"] == {"documents_ingested": 10, "documents_scored": 10, "documents_encoded": 10}


def test_a_step_can_be_made_again_alone_and_gives_the_same_bytes(copied):
    before = copied.checksums("tokenize")
    done = copied.run("rerun", "tokenize", str(copied.file), "--source", "web", "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards_made"] == {"tokenize": 3}
    assert copied.checksums("tokenize") == before


@pytest.mark.parametrize("fault", ["force", "damage"])
def test_a_training_run_is_made_again_when_asked_or_when_its_checkpoint_is_damaged(copied, fault):
    before, losses = copied.checksums("train"), copied.losses()
    (run,) = [record for record in copied.records("train") if record.name == "anneal 1"]
    options = {"only": ("train", "anneal 1"), "force": fault == "force"}
    if fault == "damage":
        weights = copied.store / next(file.path for file in run.files if file.name.endswith(".safetensors"))
        weights.write_bytes(weights.read_bytes()[:-100])
    config = load(copied.file)
    pipeline = Pipeline(config, make_runner(config, **options))
    pipeline.end_to_end()
    assert pipeline.runner.made_shards == {"train": 1}
    assert copied.losses() == losses
    after = copied.checksums("train")
    assert {key: value for key, value in after.items() if key[2].endswith(".safetensors")} == {
        key: value for key, value in before.items() if key[2].endswith(".safetensors")
    }


def test_two_ranks_train_to_the_same_losses(copied, monkeypatch, tmp_path):
    """HSDP over gloo under torchrun, through the launcher, as the recipe says; scored and shown while it goes on, which changes nothing."""
    (one,) = [copied.losses()[record.key] for record in copied.records("train") if record.name == "pretrain"]
    parallel = {"replicas": 2, "activation_checkpointing": "selected", "accumulate": "sharded", "compile": False}
    copied.config["where"] |= {"launcher": {**copied.config["where"]["launcher"], "processes": 2}, "parallel": parallel}
    copied.config["where"]["metrics"] = {"tensorboard": True}
    (tmp_path / "gsm.jsonl").write_text('{"question": "How many?", "answer": "It is 7. #### 7"}\n')
    copied.config["evaluation"] = {"while_training_every": 3, "tasks": {"gsm_star": {"paths": [str(tmp_path / "gsm.jsonl")], "shots": 1}}}
    monkeypatch.setattr("tasks.downstream.check_installed", lambda: None)  # lm-eval is for the evaluation after it
    copied.config["pretrain"]["micro_batch_instances"] = 4  # part of the key: this is another run
    copied.write(copied.config)
    config = load(copied.file)
    Pipeline(config, make_runner(config)).pretrain()
    runs = [record.key for record in copied.records("train") if record.name == "pretrain"]
    curves = [copied.losses()[key] for key in runs]
    assert len(curves) == 2
    folders = [copied.store / "shards" / "train" / key / "run" for key in runs]
    (folder,) = [each for each in folders if yaml.safe_load((each / "trainer.yaml").read_text())["parallel"] == parallel]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = [line["step"] for line in lines if {f"held_out/{name}/bits_per_byte" for name in ("web", "maths", "all")} <= line.keys()]
    assert scored == [step for step in range(1, len(lines) + 1) if step % 3 == 0 or step == len(lines)]
    assert [line["step"] for line in lines if "tasks/gsm_star/bits_per_byte" in line] == scored
    assert list((folder / "tensorboard").iterdir())
    assert next(curve for curve in curves if curve != one) == pytest.approx(one, rel=1e-5)


def test_the_store_can_be_listed_and_an_artifact_shown(made):
    listed = made.run("ls", "--store", str(made.store), "--json")
    rows = json.loads(listed.stdout)
    assert {row["step"] for row in rows} >= {*DATA_STEPS, "train", "soup", "model", "evaluate"}
    shown = made.run("show", rows[0]["id"], "--store", str(made.store))
    assert shown.returncode == 0 and rows[0]["id"] in shown.stdout


def test_a_plan_of_what_is_made_has_nothing_to_run_however_ranks_share_the_model(made):
    planned = json.loads(made.run("plan", str(made.file), "--json", "--set", "where.parallel.accumulate=sharded").stdout)
    assert all(row["to_run"] == 0 for row in planned["steps"])
    assert planned["notes"] == ["everything is there: nothing to run"]


def wait_for(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline, "what the test waits for did not come"
        time.sleep(0.02)  # between looks at the condition


@pytest.mark.soak
@pytest.mark.fault
def test_killed_in_curation_and_in_training_it_ends_with_the_same_artifacts(lab, made):
    first = lab.start("run", "end-to-end", str(lab.file))
    wait_for(lambda: len(lab.records("ingest")) >= 2, first)
    lab.kill(first)
    assert len(lab.records("select")) < len(made.records("select"))

    second = lab.start("run", "end-to-end", str(lab.file))
    wait_for(lambda: list(lab.store.glob("shards/train/*/run/checkpoints/*/checkpoint.json")), second)
    lab.kill(second)
    assert not [record for record in lab.records("train") if record.name == "anneal 2"]

    summary = lab.end_to_end()
    assert "ingest" not in summary["shards_made"] and "select" not in summary["shards_made"]
    assert any("resumed from" in log.read_text() for log in lab.store.glob("shards/train/*/run/trainer.log"))
    assert lab.checksums(*DATA_STEPS) == made.checksums(*DATA_STEPS)
    assert lab.losses() == made.losses()
    assert {key: value for key, value in lab.checksums("soup", "model").items() if key[2].endswith(".safetensors")} == {
        key: value for key, value in made.checksums("soup", "model").items() if key[2].endswith(".safetensors")
    }
    leftovers = [path for path in lab.store.glob("shards/*/*/*") if path.name.startswith("attempt-")]
    assert len(leftovers) == len({path.parent for path in leftovers})


@pytest.mark.soak
def test_two_who_start_the_same_recipe_at_once_share_the_work(lab, made):
    command = ("run", "end-to-end", str(lab.file), "--json")
    both = [lab.start(*command), lab.start(*command)]
    told = [process.communicate(timeout=2 * PATIENCE)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert lab.checksums(*DATA_STEPS) == made.checksums(*DATA_STEPS)
    assert lab.losses() == made.losses()
    # an attempt that lost would have left its folder beside the record's
    attempts = [path for path in lab.store.glob("shards/*/*/*") if path.is_dir() and path.name != "run"]
    assert len(attempts) == len({path.parent for path in attempts}) > 20


def test_ctrl_c_ends_all_that_was_started_with_one_sentence(lab):
    """A terminal sends it to the command and to Prefect's server; what works for them has a session of its own."""
    process = lab.start("run", "end-to-end", str(lab.file))
    wait_for(lambda: len(lab.records("ingest")) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 130
    assert told.endswith(f"to go on: olmoflow run end-to-end {lab.file}\n") and "Traceback" not in told
    assert "stage 1 of 6: curate\n" in told
    lab.wait_for_no_process()


@pytest.mark.soak
def test_ctrl_c_while_training_keeps_a_checkpoint_from_which_the_same_command_goes_on(lab, made):
    process = lab.start("run", "end-to-end", str(lab.file))
    wait_for(lambda: list(lab.store.glob("shards/train/*/run/checkpoints/*/checkpoint.json")), process)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 130
    assert told.endswith(f"to go on: olmoflow run end-to-end {lab.file}\n") and "Traceback" not in told
    lab.wait_for_no_process()
    assert lab.end_to_end()["shards_made"]["train"] > 0
    assert lab.losses() == made.losses()


def test_all_that_a_run_has_used_is_kept_by_what_it_wrote_down_of_that(copied):
    (copied.store / "runs" / "small.json").unlink()  # the summary for the report names it, too
    (used,) = [json.loads(path.read_text()) for path in (copied.store / "runs" / "small").glob("*.json")]
    assert (used["flow"], used["finished"]) == ("end-to-end", True)
    told = copied.run("gc", "--store", str(copied.store), "--grace", "0", "--json")
    assert told.returncode == 0, told.stderr
    assert [item for item in json.loads(told.stdout)["items"] if item["kind"] in ("artifact", "orphans", "unfinished")] == []


def test_a_training_is_made_again_from_its_manifest_alone_bit_for_bit(made):
    store = ["--store", str(made.store), "--json"]
    identity = next(each["id"] for each in json.loads(made.run("ls", *store).stdout) if each["step"] == "train")
    told = made.run("replay", identity, *store)
    assert told.returncode == 0, told.stderr + told.stdout
    answer = json.loads(told.stdout)
    assert answer["reproduced"] and answer["other_software"] == []
    assert not [file for file in answer["not_the_same_bytes"] if not file["file"].endswith((".json", ".jsonl"))]
