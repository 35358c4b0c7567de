"""A recipe over a few small files, and its store made in the test's own process."""

import json
import random
from pathlib import Path

from in_process import InProcess

from flows.pipeline import Pipeline
from flows.recipe import Recipe
from tasks.shards import Runner
from tasks.store import Store

WORDS = [
    "the",
    "quick",
    "model",
    "reads",
    "a",
    "long",
    "document",
    "about",
    "rivers",
    "mountains",
    "and",
    "small",
    "gradient",
    "steps",
    "while",
    "seven",
    "tokens",
    "wait",
]


def write_web(folder: Path, number: int, rows: int = 20, label: str = "") -> None:
    rng = random.Random(number)
    lines = [
        {
            "id": f"w{number}-{i}",
            "text": f"{label}{number} {i} {' '.join(rng.choices(WORDS, k=20))}",
            "votes": i % 5,
            "kind": ("cc", "hq")[i % 2],
        }
        for i in range(rows)
    ]
    (folder / "web").mkdir(parents=True, exist_ok=True)
    (folder / "web" / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def small(folder: Path) -> dict:
    """The recipe; writes its files where they are not there."""
    for number in range(3):
        if not (folder / "web" / f"{number}.jsonl").exists():
            write_web(folder, number)
            (folder / "labels.jsonl").write_text((folder / "web" / "0.jsonl").read_text())
    labelled = {
        "format": "jsonl",
        "paths": [f"{folder}/labels.jsonl"],
        "fields": {"columns": {"label": {"field": "kind", "type": "string"}}},
    }
    return {
        "name": "small",
        "store": str(folder / "store"),
        "scorers": {
            "quality": {
                "scorer": {"type": "fasttext"},
                "train": {
                    "type": "fasttext",
                    "dim": 4,
                    "bucket": 100,
                    "examples": [{**labelled, "label_column": "label"}],
                },
            }
        },
        "sources": {
            "web": {
                "format": "jsonl",
                "paths": [f"{folder}/web/*.jsonl"],
                "fields": {"columns": {"votes": {"field": "votes", "type": "int"}}},
                "scores": {"quality": {}},
                "filters": [{"column": "votes", "min": 2}, {"column": "quality", "min": 0.0}],
            },
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "train_on": [labelled]},
        "sequence_length": 16,
        "held_out": {"share": 0.1, "tokens_per_source": 100},
        "mixes": {"pre": {"sources": {"web": {"repeat": 1}}}},
    }


def with_training(config: dict) -> dict:
    """The recipe with a pretraining of 4 steps and an anneal of 2."""
    return config | {
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "mlp_hidden": 32},
        "pretrain": {
            "mix": "pre",
            "steps": 4,
            "learning_rate": 0.003,
            "warmup_steps": 1,
            "decay_steps": 8,
            "global_batch_instances": 4,
            "micro_batch_instances": 4,
            "precision": "fp32",
            "checkpoint_every": 2,
        },
        "where": {"engine": {"workers": 1}, "launcher": {"processes": 1, "threads": 1, "device": "cpu"}},
    }


def make(config: dict, stage: str = "mix_all", **options) -> Pipeline:
    recipe = Recipe.model_validate(config)
    pipeline = Pipeline(recipe, Runner(Store(recipe.store), InProcess(), **options))
    getattr(pipeline, stage)()
    return pipeline
