"""A recipe's mappings have no order: Prefect's database gives them back in another one, and the artifacts must be the same."""

import json

import pytest

from flows.pipeline import Pipeline, make_runner
from flows.recipe import Recipe

LABELS = {"format": "jsonl", "paths": ["labels.jsonl"]}
KIND, STARS = {"field": "kind", "type": "string"}, {"field": "stars", "type": "float"}
FASTTEXT = {"type": "fasttext", "examples": [{**LABELS, "fields": {"columns": {"label": KIND}}, "label_column": "label"}]}
EDU = {"type": "edu", "examples": [{**LABELS, "fields": {"columns": {"stars": STARS, "kind": KIND}}, "label_column": "stars"}]}


def config(store) -> dict:
    both = {"web": {"repeat": 1}, "b": {"repeat": 2}}
    return {
        "name": "ordered",
        "store": str(store),
        "scorers": {
            "quality": {"scorer": {"type": "fasttext"}, "train": FASTTEXT},
            "edu": {"scorer": {"type": "edu"}, "train": EDU},
            "overlap": {
                "scorer": {"type": "contamination"},
                "train": {"type": "contamination", "evaluations": {"z": [LABELS], "a": [{**LABELS, "paths": ["b.jsonl"]}]}},
            },
        },
        "sources": {
            "web": {
                "format": "jsonl",
                "paths": ["web.jsonl"],
                "fields": {"columns": {"votes": {"field": "votes", "type": "int"}, "at": {"field": "kind", "type": "string"}}},
                "scores": {"quality": {}, "edu": {"where": [{"column": "quality", "min": 0.1}]}, "overlap": {}},
                "subsets": {"good": {"filters": [{"column": "votes", "min": 2}]}, "few": {"filters": [{"column": "votes", "min": 3}]}},
            },
            "b": {"format": "jsonl", "paths": ["b.jsonl"], "scores": {"overlap": {}}},
        },
        "sequence_length": 32,
        "mixes": {"pre": {"sources": {**both, "web/good": {"repeat": 1}}}, "mid": {"sources": both}},
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden": 64},
        "pretrain": {"mix": "pre", "learning_rate": 0.01, "global_batch_instances": 4, "micro_batch_instances": 4},
        "micro_anneals": {
            "second": {"sources": {"web": 1}, "general": {"b": 1}, "tokens": 256},
            "first": {"sources": {"b": 1}, "general": {"web": 1}, "tokens": 256},
        },
        "anneal": {"mix": "mid", "seeds": [1, 2], "soup": {"kind": "greedy"}, "steps": 3},
    }


def as_postgres_keeps_it(value):
    """JSONB orders keys by length and then by bytes."""
    if isinstance(value, dict):
        return {key: as_postgres_keeps_it(value[key]) for key in sorted(value, key=lambda key: (len(key), key.encode()))}
    return [as_postgres_keeps_it(each) for each in value] if isinstance(value, list) else value


def turned_round(value):
    if isinstance(value, dict):
        return {key: turned_round(each) for key, each in reversed(value.items())}
    return [turned_round(each) for each in value] if isinstance(value, list) else value


def artifacts(raw: dict) -> dict:
    recipe = Recipe.model_validate(raw)
    pipeline = Pipeline(recipe, make_runner(recipe, plan_only=True))
    pipeline.end_to_end()
    return {(artifact.step, artifact.name): artifact.id for artifact in pipeline.runner.artifacts.values()}


@pytest.mark.parametrize("other_order", [as_postgres_keeps_it, turned_round])
def test_the_order_of_a_mapping_changes_no_artifact(other_order, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("labels", "web", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name, "kind": "hq", "stars": 2, "votes": 3}) + "\n")
    raw = config(tmp_path / "store")
    assert list(other_order(raw)["sources"]["web"]["scores"]) != list(raw["sources"]["web"]["scores"])
    assert artifacts(other_order(raw)) == artifacts(raw)


def test_scorers_that_read_each_other_are_refused(tmp_path):
    raw = config(tmp_path / "store")
    raw["sources"]["web"]["scores"]["quality"] = {"where": [{"column": "edu", "min": 1}]}
    with pytest.raises(ValueError, match=r"sources\.web\.scores: the `where` of edu, quality read each other's columns"):
        Recipe.model_validate(raw)
