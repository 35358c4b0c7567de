"""The comparison of tokenizers: the same documents for training and evaluation under each, and Table 5's form."""

import json
import random
import shutil
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import InProcess, launch_here
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

from flows import cli
from flows.pipeline import Pipeline
from flows.plan import make_plan
from flows.recipe import Recipe, load
from flows.report import Gathering
from flows.summary import RunSummary
from flows.tokenizers_text import as_json, tokenizers_table
from tasks import evaluate, train
from tasks.errors import UserError
from tasks.report_page import render
from tasks.shards import Runner, ShardRef, input_files
from tasks.store import Store
from tasks.tokenizer import Tokenizer

BATCH, LENGTH = 4, 16
NAMES = ["bpe", "larger", "words"]  # as the recipe has them; the first is its own


def config(folder: Path) -> dict:
    def trained(size: int) -> dict:
        return {"kind": "bpe", "vocab_size": size, "train_on": [{"format": "jsonl", "paths": [f"{folder}/web.jsonl"]}]}

    return {
        "name": "tokenizers",
        "store": str(folder / "store"),
        "sources": {name: {"format": "jsonl", "paths": [f"{folder}/{name}.jsonl"]} for name in ("web", "maths", "other")},
        "tokenizer": trained(300),
        "other_tokenizers": {"larger": trained(420), "words": {"kind": "huggingface", "path": f"{folder}/words.json", "eos_token": "</s>"}},
        "sequence_length": LENGTH,
        "held_out": {"share": 0.2, "tokens_per_source": 200},
        "mixes": {"pre": {"sources": {"web": {"repeat": 0.6}, "maths": {"repeat": 1.5}}}},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden": 32},
        "pretrain": {
            "mix": "pre",
            "learning_rate": 0.003,
            "warmup_steps": 1,
            "global_batch_instances": BATCH,
            "micro_batch_instances": BATCH,
            "precision": "fp32",
        },
        "where": {"launcher": {"processes": 1, "threads": 1, "device": "cpu"}},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    rng = random.Random(0)
    words = ["rivers", "hills", "seas", "models", "tokens", "steps", "seven"]
    texts = {
        "web": [f"Document {i} about {' '.join(rng.choices(words, k=rng.randint(2, 12)))}." for i in range(90)],
        "maths": [f"What is {i} and {i}? It is {2 * i}." for i in range(60)],
        "other": ["Nobody trains on this."],
    }
    for name, each in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(each)))
    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        texts["web"], trainers.BpeTrainer(vocab_size=500, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    )
    library.save(str(folder / "words.json"))
    return folder


@pytest.fixture(scope="module")
def made(folder):
    recipe = Recipe.model_validate(config(folder))
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluate, train):
            patch.setattr(module, "launch", launch_here)
        pipeline = Pipeline(recipe, Runner(Store(recipe.store), InProcess()))
        pipeline.tokenizers_all()
    summary = RunSummary.of(pipeline, "compare-tokenizers", "now", 1.0)
    return pipeline, Gathering(pipeline.store, recipe, summary)


def files(made, step: str, name: str) -> list[dict[str, Path]]:
    """Of the artifact of that step and name under each tokenizer."""
    pipeline, _ = made
    names = [f"{name} ({label})" if label != "bpe" else name for label in NAMES]
    found = {artifact.name: artifact for artifact in pipeline.runner.artifacts.values() if artifact.step == step}
    return [input_files(pipeline.store, ShardRef(step, found[name].keys[0])) for name in names]


def texts_of(made, compiled: list[dict[str, Path]]) -> list[Counter]:
    """The documents of a compiled mix under each tokenizer, decoded again."""
    pipeline, _ = made
    kinds = [f"{kind} ({label})" if label != "bpe" else kind for kind, label in zip(("bpe", "bpe", "huggingface"), NAMES, strict=True)]
    tokenizers = {artifact.name: artifact for artifact in pipeline.runner.artifacts.values() if artifact.step == "tokenizer"}
    decoded = []
    for kind, each in zip(kinds, compiled, strict=True):
        place = input_files(pipeline.store, tokenizers[kind].refs[0])["tokenizer.json"].parent
        tokenizer, header = Tokenizer.load(place), json.loads(each["mix.json"].read_text())
        streams = [
            np.fromfile(input_files(pipeline.store, ShardRef(*name.split("/")[:2]))["tokens.npy"], "<u4") for name in header["files"]
        ]
        ids = np.concatenate([streams[file][start : start + length] for file, start, length, _ in np.load(each["extents.npy"])])
        assert header["vocab_size"] == tokenizer.padded_vocab_size and header["tokenizer"] == tokenizer.sha256
        ends = np.flatnonzero(ids == tokenizer.eos_id)
        decoded.append(Counter(tokenizer.decode(part[:-1]) for part in np.split(ids, ends + 1)[:-1]))
    return decoded


def test_every_model_is_trained_on_the_same_documents_as_often(made):
    mixes = files(made, "mix", "pre")
    own, *others = texts_of(made, mixes)
    assert max(own.values()) == 2 and others == [own, own]
    plans = [pq.read_table(each["plan.parquet"]).select(["source", "key", "copies"]).to_pylist() for each in mixes]
    assert plans[1:] == [plans[0]] * 2
    headers = [json.loads(each["mix.json"].read_text()) for each in mixes]
    assert len({header["tokens"] for header in headers}) == 3
    size = sum(len(text.encode()) * copies for text, copies in own.items())
    assert [(header["bytes"], header["documents"]) for header in headers] == [(size, own.total())] * 3


@pytest.mark.parametrize("source", ["web", "maths"])
def test_every_model_is_evaluated_on_the_same_documents(made, source):
    held = files(made, "held-out", source)
    own, *others = texts_of(made, held)
    assert own and others == [own, own]
    mixed = texts_of(made, files(made, "mix", "pre"))[0]
    assert not own.keys() & mixed.keys()
    scores = [
        next(iter(json.loads(each["evaluation.json"].read_text())["checkpoints"].values()))
        for each in files(made, "evaluate", "tokenizers")
    ]
    assert {score[source]["bytes"] for score in scores} == {sum(len(text.encode()) for text in own)}
    assert {tuple(score) for score in scores} == {("maths", "web", "all")}  # nothing of what nobody trains on


def test_a_model_s_steps_are_one_pass_over_the_tokens_that_it_needs(made):
    headers = [json.loads(each["mix.json"].read_text()) for each in files(made, "mix", "pre")]
    _, gathering = made
    rows = gathering.tokenizers()
    assert [row.name for row in rows] == NAMES
    for row, header in zip(rows, headers, strict=True):
        assert row.steps == header["tokens"] // LENGTH // BATCH and row.trained_tokens == row.steps * BATCH * LENGTH
        assert header["bytes"] - row.trained_bytes < (BATCH + 1) * LENGTH * header["bytes"] / header["tokens"]
    assert len({row.steps for row in rows}) > 1


def test_the_table_has_what_each_tokenizer_makes_of_the_text_and_what_its_model_costs(made):
    """Parameters and FLOPs by hand: width 16, one layer: 2640 without embeddings, and 2 x 16 an id."""
    _, gathering = made
    rows = gathering.tokenizers()
    assert [row.vocabulary for row in rows] == [384, 384, 512]  # of 300, of fewer than 420 for want of pairs, of 500
    evaluated = files(made, "evaluate", "tokenizers")
    for row, mix, each in zip(rows, files(made, "mix", "pre"), evaluated, strict=True):
        header = json.loads(mix["mix.json"].read_text())
        assert row.bytes_per_token == header["bytes"] / (header["tokens"] - header["documents"])
        assert row.parameters == 2640 + 2 * 16 * row.vocabulary
        assert row.flops == row.trained_tokens * (6 * (2640 + 16 * row.vocabulary) + 12 * 16 * LENGTH)
        scores = json.loads(each["evaluation.json"].read_text())["checkpoints"]["pretrained"]
        assert {name: score.bits_per_byte for name, score in row.scores.items()} == {k: v["bits_per_byte"] for k, v in scores.items()}
    assert {row.name: row.flops for row in gathering.compute()} == {
        "pretrained": rows[0].flops, "pretrained (larger)": rows[1].flops, "pretrained (words)": rows[2].flops
    }  # fmt: skip


def test_page_terminal_and_json_have_the_table(made):
    _, gathering = made
    rows = gathering.tokenizers()
    change = rows[2].scores["maths"].bits_per_byte - rows[0].scores["maths"].bits_per_byte
    page = render(gathering.data())
    for text in ("held-out bits per byte, maths", "bytes of text a token", f"{change:+.4f}".replace("-", "−"), "is a tokenizer"):
        assert text in page
    with cli.console.capture() as captured:
        cli.console.print(tokenizers_table(rows))
    for text in (*NAMES, "held-out bits per byte, maths", f"{change:+.4f}".replace("-", "−"), "training FLOPs"):
        assert text in captured.get()
    told = json.loads(json.dumps(as_json(rows)))
    assert [(row["name"], row["bytes_per_token"]) for row in told] == [(row.name, row.bytes_per_token) for row in rows]


def test_a_tokenizer_whose_run_is_gone_is_named(made):
    pipeline, gathering = made
    other = Gathering(pipeline.store, pipeline.recipe, gathering.summary)
    gone = next(node for node in other.nodes if node["name"] == "pretrain (words)")
    other.records[gone["id"]] = []
    assert [row.name for row in other.tokenizers()] == NAMES[:2]
    assert "No comparison with the tokenizers words: their runs or mixes" in render(other.data())
    assert gathering.uncompared() == ""


def test_the_recipe_s_own_pretraining_is_the_one_that_it_has_without_the_others(made):
    pipeline, _ = made
    alone = pipeline.recipe.model_copy(update={"other_tokenizers": {}})
    other = Pipeline(alone, Runner(Store(alone.store), InProcess(), plan_only=True))
    assert other.pretrain().keys == pipeline.made["train", "pretrain"].keys and other.pretrain().is_whole
    steps = Counter(artifact.step for artifact in pipeline.runner.artifacts.values())
    assert (steps["ingest"], steps["tokenize"], steps["select"], steps["train"]) == (3 - 1, 2 * 3, 2, 3)


def test_a_plan_knows_the_runs_and_once_they_are_mixed_their_steps(made, folder, tmp_path):
    pipeline, gathering = made
    fresh = Recipe.model_validate(config(folder) | {"store": str(tmp_path / "fresh")})
    planned = {run["name"]: run for run in make_plan(fresh, "tokenizers_all", 0.0)["training"]}
    assert list(planned) == ["pretrain", "pretrain (larger)", "pretrain (words)"] and planned["pretrain (words)"]["steps"] is None
    assert make_plan(pipeline.recipe, "tokenizers_all", 0.0)["training"] == []  # all is there
    shutil.copytree(pipeline.recipe.store, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "shards" / "train")
    mixed = Recipe.model_validate(config(folder) | {"store": str(tmp_path / "mixed")})
    runs = make_plan(mixed, "tokenizers_all", 0.0)["training"]
    assert [(run["steps"], run["flops"]) for run in runs] == [(row.steps, row.flops) for row in gathering.tokenizers()]


def test_a_plan_does_not_guess_the_vocabulary_of_a_file(folder, tmp_path):
    changed = config(folder) | {"store": str(tmp_path), "tokenizer": config(folder)["other_tokenizers"]["words"], "other_tokenizers": {}}
    changed["pretrain"]["steps"] = 3
    plan = make_plan(Recipe.model_validate(changed), "pretrain", 0.0)
    assert [(run["tokens"], run["flops"]) for run in plan["training"]] == [(3 * BATCH * LENGTH, None)]
    assert "not known before their mixes are made: tokens or FLOPs of pretrain" in plan["notes"]


def test_the_flow_without_others_says_what_to_add(made):
    pipeline, _ = made
    alone = pipeline.recipe.model_copy(update={"other_tokenizers": {}})
    with pytest.raises(UserError, match="has no `other_tokenizers`: add it"):
        Pipeline(alone, Runner(Store(alone.store), InProcess())).tokenizers_all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pretrain": {"steps": 9}}, "pretrain.steps is 9, but other_tokenizers compares one pass"),
        ({"pretrain": {"decay_steps": 9}}, "pretrain.decay_steps is 9"),
        ({"other_tokenizers": {"bpe": {"kind": "cl100k"}}}, "other_tokenizers.bpe: is no name for it"),
        ({"other_tokenizers": {"a (b)": {"kind": "cl100k"}}}, "other_tokenizers.a (b): is no name for it"),
        ({"other_tokenizers": {"a": {"kind": "cl100k"}, "b": {"kind": "cl100k"}}}, "other_tokenizers.b is the same as other_tokenizers.a"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(folder, change, words):
    faulty = config(folder)
    for key, value in change.items():
        faulty[key] = {**faulty[key], **value}
    with pytest.raises(ValueError) as error:
        Recipe.model_validate(faulty)
    assert words in str(error.value)


def test_table_5_is_planned_with_the_report_s_tokens(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    path = Path(__file__).parents[2] / "deployments" / "recipes" / "olmo2-table-5.yaml"
    own, other = make_plan(load(path, [f"store={tmp_path}"]), "tokenizers_all", 0.0)["training"]
    assert round(own["tokens"] / 1e9, 1) == 100.0 and other["name"] == "pretrain (olmo-1)"
    done = CliRunner().invoke(cli.app, ["plan", str(path), "--set", f"store={tmp_path}", "--flow", "compare-tokenizers"])
    assert done.exit_code == 0 and "not known before their mixes are made" in done.output
