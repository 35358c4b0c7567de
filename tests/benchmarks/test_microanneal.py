"""The benchmark of micro-anneals: what its recipe trains, and what its claims say of given scores."""

import json
from pathlib import Path

import pytest

from benchmarks import microanneal
from flows.recipe import Recipe
from tasks.spread import spread

MICRO = {"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2], "c": [3.0, 3.1, 3.2], "d": [4.0, 4.1, 4.2], "e": [5.0, 5.1, 5.2]}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe.model_validate(microanneal.recipe(tmp_path))


def test_full_anneals_have_ten_times_the_tokens_of_the_same_mixes(recipe: Recipe) -> None:
    assert recipe.pretrain and recipe.anneal and len(recipe.micro_anneals) >= 5
    tokens = recipe.pretrain.global_batch_instances * recipe.sequence_length
    by_mix = recipe.anneal.by_mix()
    for name, micro in recipe.micro_anneals.items():
        full = recipe.mixes[name].spec(recipe.sequence_length)
        steps = micro.steps(tokens)
        assert micro.spec(recipe.sequence_length) == full
        assert steps and steps >= 200 and len(micro.runs(name)) == len(by_mix[name]) == 3
        assert {run.steps for run in recipe.anneal.runs() if run.mix == name} == {10 * steps}


def test_no_micro_anneal_is_the_beginning_of_a_full_one(recipe: Recipe) -> None:
    assert recipe.anneal
    assert not {run.seed for run in recipe.micro_anneal_runs()} & {run.seed for run in recipe.anneal.runs()}


def test_nothing_trains_on_the_target_and_the_model_is_small(recipe: Recipe) -> None:
    assert recipe.model
    assert all(microanneal.TARGET not in mix.sources for mix in recipe.mixes.values())
    assert recipe.model.config(2048, recipe.sequence_length).num_parameters() <= 5e6


def test_no_problem_is_dealt_to_two_sources(tmp_path: Path) -> None:
    microanneal.write_maths(tmp_path, 200)
    dealt = {path.stem: [json.loads(line) for line in path.open()] for path in tmp_path.glob("*.jsonl")}
    asked = [each["question"] for records in dealt.values() for each in records]
    assert len(set(asked)) == len(asked) and len(dealt[microanneal.TARGET]) == len(dealt["unsolved"]) == 200
    assert {each["template"] for each in dealt["solved"]} == microanneal.SOLVED_KINDS < {each["template"] for each in dealt["unsolved"]}
    assert all(each["answer"].startswith("#### ") for each in dealt["unsolved"])


def test_a_ranking_is_told_with_its_interval_and_whether_it_is_one() -> None:
    claim = microanneal.rank_claim(MICRO, {**MICRO, "a": [2.3, 2.4, 2.5]})
    assert claim["value"] == 0.8 and claim["low"] <= 0.8 <= claim["high"]
    assert (claim["rounds"], claim["sources"], claim["verdict"]) == (3, 5, "resolved")


@pytest.mark.parametrize("which", ["micro", "full"])
def test_it_says_not_resolved_where_either_length_cannot_tell_best_from_worst(which: str) -> None:
    noise = {name: [0.0, 1.0, 2.0 + number / 10] for number, name in enumerate(MICRO)}
    claim = microanneal.rank_claim(noise, MICRO) if which == "micro" else microanneal.rank_claim(MICRO, noise)
    assert claim["verdict"] == "not resolved"
    assert [claim[f"{each}_best_and_worst"].startswith("not resolved: a before e") for each in ("micro", "full")] == [
        which == "micro",
        which == "full",
    ]


def test_a_soup_is_held_against_the_best_of_its_own_ingredients() -> None:
    soups = {"a": 0.9, "b": 2.1, "c": 2.7, "d": 4.0, "e": 5.5}
    ratios = [0.9, 1.05, 0.9, 1.0, 1.1]
    said = spread(ratios)
    claim = microanneal.soup_claim(soups, MICRO)
    assert said.interval and (claim["value"], claim["low"], claim["high"]) == pytest.approx((said.mean, *said.interval), abs=1e-5)
    assert claim["each"] == pytest.approx(dict(zip(MICRO, ratios, strict=True)))
    assert claim["rounds"] == 5 and claim["against_mean_single"] < claim["value"]
