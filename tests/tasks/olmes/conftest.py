"""Raw files of evaluation records, and a tiny model whose predictions are far from uniform."""

import json
import os
from pathlib import Path

import pytest

from tasks.sources.base import RawFile
from tasks.store import sha256_of


def _raw_file(path: Path) -> RawFile:
    return RawFile(f"file://{path}", path.name, path.stat().st_size, sha256_of(path))


@pytest.fixture
def raw_file():
    return _raw_file


@pytest.fixture
def write(tmp_path):
    """Records as a file of JSON lines."""

    def make(records, name: str = "records.jsonl") -> RawFile:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return _raw_file(path)

    return make


@pytest.fixture
def samples() -> Path:
    folder = Path(os.environ.get("OLMOFLOW_DATA", Path(__file__).parents[4] / "shared" / "data"))
    if not (folder / "eval").is_dir():
        pytest.skip("no folder of real samples: set OLMOFLOW_DATA")
    return folder


def _arc(number: int) -> list[dict]:
    """Questions about sums, in the form of ARC."""
    records = []
    for i in range(number):
        texts = [str(2 * i + wrong) + " apples" * (wrong + 1) for wrong in range(4)]
        choices = {"text": texts, "label": ["A", "B", "C", "D"]}
        records.append({"id": str(i), "question": f"How many apples are {i} and {i}?", "choices": choices, "answerKey": "ABCD"[i % 4]})
    return records


@pytest.fixture
def arc():
    return _arc


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A Hugging Face folder, as `olmoflow` exports one."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from olmo_model.config import ModelConfig
    from olmo_model.hf import export
    from olmo_model.init import init_weights
    from olmo_model.model import Olmo2

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([json.dumps(_arc(50))], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>").save_pretrained(folder / "tokenizer")
    config = ModelConfig(
        d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, mlp_hidden=48, vocab_size=tokenizer.get_vocab_size(), max_sequence_length=1024
    )
    ours = Olmo2(config)
    init_weights(ours, 4)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    export(ours.state_dict().items(), config, folder / "model", folder / "tokenizer", eos_id=0, pad_id=1)
    return folder / "model"
