"""Which tasks run when: development's with every evaluation, the held-out ones only where a flag asks for them."""

import importlib.util

import pytest
import yaml
from typer.testing import CliRunner

from flows import cli
from flows.pipeline import Pipeline
from flows.recipe import Recipe, load
from flows.report import Gathering
from flows.summary import RunSummary
from tasks.errors import RecipeError, UserError
from tasks.shards import Engine, Runner
from tasks.store import Store


@pytest.fixture
def config(tmp_path) -> dict:
    (tmp_path / "texts.jsonl").write_text('{"text": "some words", "question": "How many?", "answer": "2 #### 2"}\n')
    source = {"format": "jsonl", "paths": [str(tmp_path / "texts.jsonl")]}
    files = {"paths": source["paths"]}
    return {
        "name": "tiny",
        "store": str(tmp_path / "store"),
        "sources": {"web": source},
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [source]},
        "sequence_length": 32,
        "mixes": {"all": {"sources": {"web": {"repeat": 1}}}},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden": 32},
        "pretrain": {"mix": "all", "learning_rate": 0.001, "global_batch_instances": 1, "micro_batch_instances": 1, "warmup_steps": 1},
        "anneal": {"mix": "all", "seeds": [1, 2]},
        "evaluation": {"tasks": {"gsm_star": files, "gsm8k": files}},
    }


def planned(config: dict, stage: str) -> dict[str, list[str]]:
    """The names of what a stage would make, by step."""
    recipe = Recipe.model_validate(config)
    runner = Runner(Store(recipe.store), Engine(), plan_only=True)
    getattr(Pipeline(recipe, runner), stage)()
    names: dict[str, list[str]] = {}
    for artifact in runner.artifacts.values():
        names.setdefault(artifact.step, []).append(artifact.name)
    return names


def test_the_held_out_tasks_run_for_nobody_who_does_not_ask(config):
    models = ["pretrained", "anneal 1", "anneal 2", "soup"]
    assert planned(config, "evaluate_all")["downstream"] == models
    assert planned(config, "end_to_end")["downstream"] == models
    asked = planned(config, "evaluate_held_out")["downstream"]
    assert asked == [*models, *(f"{name}: held-out" for name in models)]
    assert Store(config["store"]).names("held-out") == []  # a plan looks at nothing


def test_micro_anneals_are_scored_on_development_s_tasks_beside_their_start(config):
    config["sources"]["maths"] = config["sources"]["web"]
    config["micro_anneals"] = {"soup": {"sources": {"maths": 1}, "general": {"web": 1}}}
    assert planned(config, "micro_anneal_all")["downstream"] == ["pretrained", "micro-anneal soup"]


def test_the_flag_is_of_evaluate_alone(config, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(cli.app, ["run", "curate", str(path), "--held-out"])
    assert isinstance(done.exception, RecipeError)
    assert "--held-out is of `run evaluate`" in str(done.exception)


def test_a_recipe_without_held_out_tasks_says_so(config):
    del config["evaluation"]["tasks"]["gsm8k"]
    with pytest.raises(UserError, match="has no held-out task"):
        planned(config, "evaluate_held_out")


def test_tasks_without_lm_eval_are_told_before_anything_is_trained(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    runner = Runner(Store(config["store"]), Engine())
    with pytest.raises(UserError, match="extra `eval`"):
        Pipeline(Recipe.model_validate(config), runner).pretrain()
    assert not runner.artifacts


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"arc": {"paths": ["a"]}}, "evaluation: tasks.arc: there is no such task; there are arc_challenge, arc_easy"),
        ({"mmlu": {"paths": ["a"]}}, "tasks.mmlu: shot_paths are needed"),
        (
            {"csqa": {"paths": ["a"], "shot_paths": ["b"]}},
            "tasks.csqa: shot_paths are for tasks that have no shots of their own: mmlu, boolq, jeopardy",
        ),
        ({"gsm_star": {"paths": ["a"], "instances": 5}, "gsm8k": {"paths": ["a"]}}, "give both the same `instances`"),
        ({"csqa": {"paths": []}}, "evaluation.tasks.csqa.paths"),
    ],
)
def test_tasks_that_cannot_be_are_a_sentence(config, tmp_path, tasks, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**config, "evaluation": {"tasks": tasks}}))
    with pytest.raises(RecipeError) as error:
        load(path)
    assert said in str(error.value)


def test_models_that_lm_eval_cannot_load_are_refused_before_the_run(config):
    del config["anneal"]
    config["model"]["qkv_normalization"] = "none"
    with pytest.raises(ValueError, match=r"the models that `evaluation\.tasks` scores are exported"):
        Recipe.model_validate(config)


def test_tasks_change_no_key_of_what_was_there_nor_do_scores_while_training(config):
    keys, scored = [], {**config["evaluation"], "while_training_every": 5}
    for evaluation in ({}, config["evaluation"], scored):
        recipe = Recipe.model_validate({**config, "evaluation": evaluation})
        runner = Runner(Store(recipe.store), Engine(), plan_only=True)
        Pipeline(recipe, runner).end_to_end()
        made = runner.artifacts.values()
        keys.append({key for each in made if each.step not in ("downstream", "model", "gold-answers") for key in each.keys})
    assert keys[0] == keys[1] == keys[2]
    assert [each.name for each in made if each.step == "gold-answers"] == ["gsm_star"]  # no held-out task


def test_the_report_names_evaluations_that_nothing_was_searched_for(config):
    train = {"type": "contamination", "evaluations": {"gsm": [config["sources"]["web"]]}}
    config["scorers"] = {"found": {"scorer": {"type": "contamination"}, "train": train}}
    recipe = Recipe.model_validate(config)

    def notices(searched: list[str]) -> list[str]:
        nodes = {"train-scorer": ("found", searched), "downstream": ("soup", ["/data/arc.jsonl", "/data/gsm.jsonl"])}
        artifacts = {
            step: {"step": step, "name": name, "keys": [], "inputs": [], "raw_files": [{"url": url, "size": 1} for url in urls]}
            for step, (name, urls) in nodes.items()
        }
        summary = RunSummary.of(Pipeline(recipe, Runner(Store(recipe.store), Engine(), plan_only=True)), "evaluate", "now", 1.0)
        summary.artifacts = artifacts
        return [text for text in Gathering(Store(recipe.store), recipe, summary).data().notices if "not searched" in text]

    assert notices(["/data/arc.jsonl", "/data/gsm.jsonl"]) == []
    (notice,) = notices(["/data/arc.jsonl"])
    assert "/data/gsm.jsonl" in notice and "arc.jsonl" not in notice
