"""The learning-rate study: a pretraining for each peak, from each its decays, and Table 8's form."""

import json
import random
import socket
import statistics
from pathlib import Path

import pytest
from in_process import InProcess, launch_here

from flows.pipeline import Pipeline
from flows.plan import make_plan
from flows.recipe import Recipe, load
from flows.report import Gathering, write_report
from flows.summary import RunSummary, summary_path
from tasks import evaluate, train
from tasks.shards import Runner
from tasks.store import Store

BATCH_TOKENS = 4 * 16
RUNS = ["peak 0.003", "peak 0.003 short", "peak 0.003 long", "peak 0.006", "peak 0.006 short", "peak 0.006 long"]


def config(folder: Path) -> dict:
    return {
        "name": "rates",
        "store": str(folder / "store"),
        "sources": {"web": {"format": "jsonl", "paths": [f"{folder}/web.jsonl"]}},
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [{"format": "jsonl", "paths": [f"{folder}/web.jsonl"]}]},
        "sequence_length": 16,
        "held_out": {"share": 0.2, "tokens_per_source": 1000},
        "mixes": {"pre": {"sources": {"web": {"repeat": 1}}}, "half": {"sources": {"web": {"repeat": 0.5}}}},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden": 32},
        "pretrain": {
            "mix": "pre",
            "steps": 5,
            "learning_rate": 0.003,
            "warmup_steps": 1,
            "decay_steps": 10,
            "global_batch_instances": 4,
            "micro_batch_instances": 4,
            "precision": "fp32",
        },
        "learning_rates": {"peaks": [0.003, 0.006], "decays": {"short": {"steps": 2}, "long": {"steps": 4, "mix": "half"}}},
        "where": {"launcher": {"processes": 1, "threads": 1, "device": "cpu"}},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates")
    rng = random.Random(0)
    words = ["rivers", "hills", "seas", "models", "tokens", "steps", "seven"]
    lines = [{"id": str(i), "text": f"Document {i} about {' '.join(rng.choices(words, k=12))}."} for i in range(120)]
    (folder / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = Recipe.model_validate(config(folder))
    planned = make_plan(recipe, "learning_rates_all", 0.0)["training"]
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluate, train):
            patch.setattr(module, "launch", launch_here)
        pipeline = Pipeline(recipe, Runner(Store(recipe.store), InProcess()))
        pipeline.learning_rates_all()
    return pipeline, planned, RunSummary.of(pipeline, "learning-rates", "now", 1.0)


def lines_of(pipeline: Pipeline, name: str) -> list[dict]:
    record = pipeline.made["train", name].records[0]
    return [json.loads(line) for line in (pipeline.recipe.store / Path(record.file("metrics.jsonl").path)).read_text().splitlines()]


def test_each_peak_is_reached_and_each_decay_goes_from_its_own_rate_to_zero(made):
    pipeline, *_ = made
    rates = {name: [line["learning_rate"] for line in lines_of(pipeline, name)] for name in RUNS}
    for peak in (0.003, 0.006):
        assert max(rates[f"peak {peak:g}"]) == pytest.approx(peak)
        for decay, steps in (("short", 2), ("long", 4)):
            falling = rates[f"peak {peak:g} {decay}"]
            assert len(falling) == steps and falling == sorted(falling, reverse=True)
            assert falling[0] <= rates[f"peak {peak:g}"][-1]
    assert [low * 2 for low in rates[RUNS[1]]] == pytest.approx(rates[RUNS[4]])  # the same schedule at twice the rate


def test_the_recipes_own_peak_is_its_pretraining_and_not_trained_again(made):
    pipeline, *_ = made
    assert pipeline.runner.made_shards["train"] == len(RUNS)
    assert pipeline.pretrain().keys == pipeline.made["train", "peak 0.003"].keys
    assert pipeline.made["train", "pretrain"].made == 0


def test_the_plan_has_every_run(made):
    _, planned, _ = made
    assert {run["name"]: run["steps"] for run in planned} == dict(zip(RUNS, (5, 2, 4, 5, 2, 4), strict=True))


def test_the_table_has_table_8s_form_and_the_page_the_curves(made):
    pipeline, _, summary = made
    rows = Gathering(pipeline.store, pipeline.recipe, summary).learning_rates()
    assert [(row.peak, row.decay, row.decay_tokens // BATCH_TOKENS, row.mix) for row in rows] == [
        (peak, decay, steps, mix)
        for peak in (0.003, 0.006)
        for decay, steps, mix in (("", 0, "pre"), ("short", 2, "pre"), ("long", 4, "half"))
    ]
    assert {row.pretraining_tokens for row in rows} == {5 * BATCH_TOKENS}
    path = pipeline.made["evaluate", "learning-rates"].records[0].file("evaluation.json").path
    scores = json.loads((pipeline.recipe.store / Path(path)).read_text())["checkpoints"]
    for name, row in zip(RUNS, rows, strict=True):
        assert row.scores["all"].bits_per_byte == scores[name]["all"]["bits_per_byte"]
        assert row.last_loss == pytest.approx(statistics.fmean(line["loss"] for line in lines_of(pipeline, name)[-1:]))
    pipeline.store.replace(summary_path("rates"), json.dumps(vars(summary)))
    page = Path(write_report(pipeline.recipe)).read_text()
    for text in ("<h3>Learning rates</h3>", "peak 0.006 long", "Loss, close to the anneals"):
        assert text in page


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("peaks", [0.003, 0.003], "two runs would both be called 'peak 0.003'"),
        ("peaks", [0.003], "at least 2"),
        ("peaks", [0.003, -1], "greater than 0"),
        ("decays", {"long": {"steps": 4, "mix": "none"}}, "learning_rates.decays names 'none'"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, key, value, words):
    faulty = config(tmp_path)
    faulty["learning_rates"][key] = value
    with pytest.raises(ValueError) as error:
        Recipe.model_validate(faulty)
    assert words in str(error.value)


def test_the_reports_study_is_planned_with_its_budgets(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    path = Path(__file__).parents[2] / "deployments" / "recipes" / "olmo2-table-8.yaml"
    runs = make_plan(load(path, [f"store={tmp_path}"]), "learning_rates_all", 0.0)["training"]
    assert [round(run["tokens"] / 1e9) for run in runs] == [300, 50, 100] * 4
