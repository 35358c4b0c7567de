"""Soups of a recipe: which ingredients they have, what a greedy one is chosen by, and the table of best single against soup."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from in_process import InProcess, launch_here

from flows.pipeline import Pipeline
from flows.recipe import Recipe
from flows.report import Gathering, write_report
from flows.summary import RunSummary, summary_path
from tasks import evaluate, soup, train
from tasks.shards import Runner
from tasks.store import Store
from trainer.checkpoint import load_model_tensors


def config(folder: Path, **soup_config) -> dict:
    return {
        "name": "soups",
        "store": str(folder / "store"),
        "sources": {name: {"format": "jsonl", "paths": [f"{folder}/{name}.jsonl"]} for name in ("web", "maths")},
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [{"format": "jsonl", "paths": [f"{folder}/maths.jsonl"]}]},
        "sequence_length": 16,
        "held_out": {"share": 0.2, "tokens_per_source": 1000},
        "mixes": {"pre": {"sources": {"web": {"repeat": 1}}}, "mid": {"sources": {"maths": {"repeat": 1}}}},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden": 32},
        "pretrain": {
            "mix": "pre",
            "steps": 4,
            "learning_rate": 0.01,
            "warmup_steps": 1,
            "decay_steps": 10,
            "global_batch_instances": 4,
            "micro_batch_instances": 4,
            "precision": "fp32",
        },
        "anneal": {
            "mix": "pre",
            "seeds": [1, 2],
            "steps": 3,
            "further": [{"mix": "mid", "seeds": [2, 3], "steps": 6}],
            "soup": soup_config,
        },
        "where": {"launcher": {"processes": 1, "threads": 1, "device": "cpu"}},
    }


NAMES = ["anneal 1", "anneal 2", "anneal mid 2", "anneal mid 3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soups")
    rng = random.Random(0)
    words = ["rivers", "hills", "seas", "models", "tokens", "steps", "seven"]
    web = [{"id": str(i), "text": f"Document {i} about {' '.join(rng.choices(words, k=12))}."} for i in range(100)]
    sums = [{"id": str(i), "text": f"What is {i} and {i}? It is {2 * i}. {rng.choice(words)}"} for i in range(100)]
    (folder / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in web))
    (folder / "maths.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sums))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """run(**soup): the pipeline of a recipe with that soup, and its evaluation's scores; all share a store."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluate, soup, train):
            patch.setattr(module, "launch", launch_here)

        def made(**soup_config):
            recipe = Recipe.model_validate(config(folder, **soup_config))
            pipeline = Pipeline(recipe, Runner(Store(recipe.store), InProcess()))
            artifact = pipeline.evaluate_all()
            path = recipe.store / Path(artifact.records[0].file("evaluation.json").path)
            return pipeline, json.loads(path.read_text())["checkpoints"]

        yield made


def weights_of(pipeline: Pipeline, step: str, name: str) -> dict[str, np.ndarray]:
    folder = train.checkpoint_folder(pipeline.store, pipeline.made[step, name].refs[0])
    return {key: tensor.numpy().astype(np.float64) for key, tensor in load_model_tensors(folder)}


def mean_of(pipeline: Pipeline, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """The weighted mean over plain dictionaries, in fp64, rounded once."""
    parts = {name: weights_of(pipeline, "train", name) for name in shares}
    return {key: sum(share * parts[name][key] for name, share in shares.items()).astype(np.float32) for key in parts[next(iter(shares))]}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, array in found.items():
        np.testing.assert_allclose(array, expected[key], rtol=1e-7, atol=0)


def test_a_soup_over_budgets_is_the_mean_of_all_and_each_mix_has_its_own(run):
    pipeline, scores = run(of_each_mix=True)
    assert_equal(weights_of(pipeline, "soup", ""), mean_of(pipeline, dict.fromkeys(NAMES, 0.25)))
    assert_equal(weights_of(pipeline, "soup", "soup pre"), mean_of(pipeline, dict.fromkeys(NAMES[:2], 0.5)))
    assert_equal(weights_of(pipeline, "soup", "soup mid"), mean_of(pipeline, dict.fromkeys(NAMES[2:], 0.5)))
    assert list(scores) == ["pretrained", *NAMES, "soup pre", "soup mid", "soup", "unigram model"]


def test_a_weighted_soup_gives_each_ingredient_its_weight(run):
    shares = dict(zip(NAMES, (0.5, 0.25, 0.125, 0.125), strict=True))
    pipeline, _ = run(kind="weighted", weights=shares)
    assert_equal(weights_of(pipeline, "soup", ""), mean_of(pipeline, shares))


def test_a_greedy_soup_is_chosen_by_the_scores_that_the_evaluation_gives(run):
    pipeline, scores = run(kind="greedy", held_out=["maths"])
    record = pipeline.made["soup", ""].records[0]
    told = json.loads((pipeline.recipe.store / Path(record.file("greedy.json").path)).read_text())
    own = {name: scores[name]["maths"]["bits_per_byte"] for name in NAMES}
    assert told["ingredients"] == pytest.approx(own)
    assert [tried["ingredients"][-1] for tried in told["tried"]] == sorted(NAMES, key=lambda name: own[name])
    best = min(tried["bits_per_byte"] for tried in told["tried"])
    assert scores["soup"]["maths"]["bits_per_byte"] == pytest.approx(best) and best <= min(own.values())
    assert_equal(weights_of(pipeline, "soup", ""), mean_of(pipeline, dict.fromkeys(told["chosen"], 1 / len(told["chosen"]))))


def test_the_report_has_the_best_single_anneal_of_each_mix_beside_its_soup(run):
    pipeline, scores = run(kind="greedy", of_each_mix=True)
    recipe = pipeline.recipe
    summary = RunSummary.of(pipeline, "evaluate", "now", 1.0)
    rows = Gathering(pipeline.store, recipe, summary).data().soups
    kept = pipeline.made["soup", ""].books.kept
    assert [(row.mix, row.soup) for row in rows] == [
        ("pre", "soup of 2"),
        ("mid", "soup of 2"),
        ("all of them", f"greedy soup, {kept} of 4"),
    ]
    for row, names in zip(rows, (NAMES[:2], NAMES[2:], NAMES), strict=True):
        best = min(names, key=lambda name: scores[name]["all"]["bits_per_byte"])
        assert row.best == best
        assert {source: score.bits_per_byte for source, score in row.best_scores.items()} == {
            source: score["bits_per_byte"] for source, score in scores[best].items()
        }
    assert rows[2].soup_scores["all"].bits_per_byte == scores["soup"]["all"]["bits_per_byte"]
    pipeline.store.replace(summary_path(recipe.name), json.dumps(vars(summary)))
    page = Path(write_report(recipe)).read_text()
    for text in ("Best single anneal against the soup", "Soups that the greedy one tried", "best single, anneal", "kept"):
        assert text in page


# -- bad input -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("soup_config", "words"),
    [
        ({"kind": "weighted"}, "weights are what `kind: weighted` needs"),
        ({"weights": {"anneal 1": 1.0}}, "weights are what `kind: weighted` needs"),
        ({"kind": "weighted", "weights": dict.fromkeys(NAMES, 0.3)}, "weights sum to 1.2, not to 1"),
        (
            {"kind": "weighted", "weights": {"anneal 1": 0.5, "anneal 7": 0.5}},
            "soup.weights is for anneal 1, anneal 7, but the ingredients are",
        ),
        ({"kind": "weighted", "weights": {"anneal 1": 1.5, "anneal 2": -0.5}}, "greater than 0"),
        ({"held_out": ["maths"]}, "held_out is for `kind: greedy`"),
        ({"kind": "greedy", "held_out": ["math"]}, "anneal.soup.held_out names 'math', which `sources` does not have"),
    ],
)
def test_a_soup_that_cannot_be_is_refused(folder, soup_config, words):
    with pytest.raises(ValueError) as error:
        Recipe.model_validate(config(folder, **soup_config))
    assert words in str(error.value)


def test_a_checkpoint_s_compute_is_that_of_every_run_that_it_came_of_each_once(run):
    """By hand: 384 ids, width 16, one layer: 2640 parameters and two embeddings of 6144; batches of 64 tokens."""
    pipeline, scores = run(of_each_mix=True)
    summary = RunSummary.of(pipeline, "evaluate", "now", 1.0)
    rows = {row.name: row for row in Gathering(pipeline.store, pipeline.recipe, summary).compute()}
    steps = {"pretrained": 4, "anneal 1": 4 + 3, "anneal 2": 4 + 3, "anneal mid 2": 4 + 6, "anneal mid 3": 4 + 6}
    steps |= {"soup pre": 4 + 3 + 3, "soup mid": 4 + 6 + 6, "soup": 4 + 3 + 3 + 6 + 6}
    assert {name: row.tokens for name, row in rows.items()} == {name: 64 * number for name, number in steps.items()}
    for name, row in rows.items():
        assert row.flops == 64 * steps[name] * (6 * (2640 + 6144) + 12 * 1 * 16 * 16)
        assert row.kaplan_flops == 64 * steps[name] * 6 * (2640 + 2 * 6144)
        assert row.bits_per_byte == scores[name]["all"]["bits_per_byte"]
    assert [row.flops for row in rows.values()] == sorted(row.flops for row in rows.values())
    assert rows["pretrained"].kind == "pretraining" and {row.kind for row in rows.values()} == {"pretraining", "anneal", "soup"}


def test_what_came_of_a_run_that_is_gone_has_no_compute_and_says_so(run):
    pipeline, _ = run(of_each_mix=True)
    summary = RunSummary.of(pipeline, "evaluate", "now", 1.0)
    gathering = Gathering(pipeline.store, pipeline.recipe, summary)
    gone = next(node for node in gathering.nodes if node["name"] == "anneal mid 3")
    gathering.records[gone["id"]] = []
    rows = {row.name: row.flops for row in gathering.compute()}
    assert {name for name, flops in rows.items() if flops is None} == {"anneal mid 3", "soup mid", "soup"}
    assert list(rows)[-1] in ("anneal mid 3", "soup mid", "soup")
