"""Gold answers as tokens: a training's bits per byte are those that lm-eval finds for the exported model."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist

from olmo_model.config import ModelConfig
from olmo_model.hf import export
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from tasks import gold_answers
from tasks.downstream import TaskFiles
from tasks.gold_answers import task
from tasks.olmes import data, requests
from tasks.olmes.definitions import TASKS
from tasks.shards import Shard, ShardRef
from tasks.tokenizer import Tokenizer, train_bpe
from trainer import parallel
from trainer.answers import Answers, bits_per_byte

WINDOW = 64


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(
        ["Question: How many apples are 3 and 4?\nAnswer: 7 apples apples. So the answer is 7. The cat sat on the mat."] * 3, 300, folder
    )
    return folder


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """A small model, and the folder of Hugging Face's form of it."""
    loaded = Tokenizer.load(tokenizer)
    config = ModelConfig(32, 1, 2, 2, 48, loaded.padded_vocab_size, max_sequence_length=WINDOW)
    ours = Olmo2(config)
    init_weights(ours, 4)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    folder = tmp_path_factory.mktemp("model")
    export(ours.state_dict().items(), config, folder, tokenizer, loaded.eos_id, loaded.pad_id)
    return ours, folder


@pytest.fixture
def records(arc):
    subjects = ["law"] * 9 + ["art"] * 3
    mmlu = [
        {"question": f"Is it {i}?", "subject": subject, "choices": ["a", "bc", "no, 7"], "answer": i % 3}
        for i, subject in enumerate(subjects)
    ]
    return {
        "arc_easy": arc(7),
        "mmlu": mmlu,
        "winogrande": [{"sentence": "The cat sat on _ since it is 3 .", "option1": "mats", "option2": "the mat", "answer": "2"}] * 2,
        "gsm_star": [
            {"question": "How many?", "answer": "It is 7.\n#### 7"},
            {"question": "Why?", "answer": "So " * 70 + "\n#### 7"},  # longer than the window
        ],
    }


@pytest.fixture
def made(tokenizer, records, write, tmp_path):
    """The step's folder and books of a task, with a shot where there are enough."""

    def make(name: str):
        raw = write(records[name], f"{name}.jsonl")
        shot_files = [raw] if TASKS[name].needs_shot_files else []
        files = TaskFiles(paths=["-"], shot_paths=["-"] * len(shot_files), shots=1)
        asked = task(name, files, WINDOW, ShardRef("tokenizer", "key"), [raw], shot_files)
        folder = tmp_path / f"gold-{name}"
        folder.mkdir()
        inputs = {"tokenizer": [{path.name: path for path in tokenizer.iterdir()}], "files": [raw], "shot_files": shot_files}
        return folder, gold_answers.run(Shard(asked.config, inputs, folder)), raw

    return make


def test_bits_per_byte_in_training_are_those_of_the_evaluation(model, records, made):
    """In fp32 to 1e-5; contexts are cut to the window, subjects count alike, and answers longer than the window not at all."""
    pytest.importorskip("lm_eval")
    from tasks.olmes import run

    ours, exported = model
    engine = run.Engine(str(exported), "cpu", "float32", 4)
    world = parallel.start("cpu", 1)
    try:
        for name in records:
            folder, _, raw = made(name)
            asked = data.read(TASKS[name], [raw])
            forms = {form.name: form for form in requests.forms(TASKS[name], asked, 1, asked)}
            scores, _ = run.evaluate(TASKS[name], forms, engine)
            told = bits_per_byte(ours.eval(), Answers(folder), 3, WINDOW, world)
            assert told == pytest.approx(scores["bits_per_byte"]["score"], rel=1e-5), name
            assert 0.1 < told < 100
    finally:
        dist.destroy_process_group()
    assert scores["gold_answers"] == 1


def test_what_is_scored_are_the_answers_tokens_and_a_cut_context_keeps_its_end(tokenizer, made, records):
    folder, books, _ = made("arc_easy")
    tokens, rows = np.load(folder / "tokens.npy"), np.load(folder / "rows.npy")
    loaded, start = Tokenizer.load(tokenizer), 0
    assert rows[:, 0].max() == WINDOW + 1  # the shot is long
    for (length, scored, size), record in zip(rows.tolist(), records["arc_easy"], strict=True):
        answer = record["choices"]["text"]["ABCD".index(record["answerKey"])]
        instance = tokens[start : start + length]
        start += length
        assert (loaded.decode(instance[-scored:]), size) == (f" {answer}", len(answer))
        assert loaded.decode(instance[:-scored]).endswith(f"{record['question']}\nAnswer:")
    assert start == len(tokens)
    assert (books.read, books.kept) == (7, 7)


def test_answers_longer_than_the_window_are_booked(made):
    folder, books, _ = made("gsm_star")
    assert (books.read, books.kept, books.dropped) == (2, 1, {"longer_than_the_window": 1})
    assert json.loads((folder / "answers.json").read_text())["instances"] == 1
