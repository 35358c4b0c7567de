"""Held-out loss against a loop over transformers' model, one position at a time."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from olmo_model.config import ModelConfig
from olmo_model.hf import export
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from olmo_model.shards import write_tensors
from trainer import parallel
from trainer.checkpoint import write_marker
from trainer.config import HeldOutMix
from trainer.errors import TrainerError
from trainer.evaluate import EvaluateConfig, evaluate

EOS, PAD, LENGTH = 0, 1, 32


@pytest.fixture
def world() -> Iterator[parallel.World]:
    yield parallel.start("cpu", 1)
    dist.destroy_process_group()


@pytest.fixture
def checkpoint(tmp_path: Path, model_dict: dict[str, Any]) -> tuple[str, Any]:
    """A checkpoint folder, and the same model as transformers reads it from our export."""
    config = ModelConfig(**model_dict)
    model = Olmo2(config)
    init_weights(model, 4)
    with torch.no_grad():
        for parameter in model.parameters():  # far from a uniform prediction
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_tensors(model.state_dict().items(), folder)
    (folder / "config.json").write_text(json.dumps({"model": model_dict}))
    write_marker(folder)
    export(model.state_dict().items(), config, tmp_path / "exported", None, eos_id=EOS, pad_id=PAD)
    return str(folder), AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()


@torch.no_grad()
def _brute_force(model: Any, documents: list[np.ndarray], length: int) -> tuple[float, int]:
    """Nats and counted tokens of one stream of documents."""
    stream = [EOS]
    for document in documents:
        stream += [*document.tolist(), EOS]
    nats, tokens = 0.0, 0
    for start in range(0, len(stream) - 1, length):
        window = stream[start : start + length]
        log_probabilities = model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        for position in range(len(window)):
            target = stream[start + position + 1 : start + position + 2]
            if target and target[0] != EOS:
                nats -= log_probabilities[position, target[0]].item()
                tokens += 1
    return nats, tokens


@pytest.mark.parametrize(("window", "batch"), [(32, 3), (16, 2), (32, 100)])
def test_loss_equals_a_loop_over_transformers(
    tmp_path: Path, world: parallel.World, checkpoint: Any, make_mix: Any, make_documents: Any, window: int, batch: int
) -> None:
    folder, oracle = checkpoint
    documents = {"web": make_documents(12, seed=1), "maths": make_documents(5, seed=2)}
    sources = {name: HeldOutMix(str(make_mix(tmp_path / name, each))) for name, each in documents.items()}
    result = evaluate(EvaluateConfig({"run": folder}, sources, window, batch, "", "cpu", "fp32"), world)["checkpoints"]["run"]

    nats, tokens, size = 0.0, 0, 0
    for name, each in documents.items():
        own_nats, own_tokens = _brute_force(oracle, each, window)
        own_bytes = 4 * sum(map(len, each))
        assert own_tokens == sum(map(len, each))
        assert (result[name]["tokens"], result[name]["bytes"]) == (own_tokens, own_bytes)
        assert result[name]["loss"] == pytest.approx(own_nats / own_tokens, rel=1e-6)
        assert result[name]["bits_per_byte"] == pytest.approx(own_nats / math.log(2) / own_bytes, rel=1e-6)
        nats, tokens, size = nats + own_nats, tokens + own_tokens, size + own_bytes
    assert (result["all"]["tokens"], result["all"]["bytes"]) == (tokens, size)
    assert result["all"]["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert result["all"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_last_window_may_be_one_short_full_or_one_token(
    tmp_path: Path, world: parallel.World, checkpoint: Any, make_mix: Any, extra: int
) -> None:
    folder, oracle = checkpoint
    document = np.arange(2, 2 + 2 * LENGTH - 1 + extra, dtype=np.uint32)  # with its EOS, two windows and `extra`
    sources = {"web": HeldOutMix(str(make_mix(tmp_path / "web", [document])))}
    result = evaluate(EvaluateConfig({"run": folder}, sources, LENGTH, 2, "", "cpu", "fp32"), world)["checkpoints"]["run"]["web"]
    nats, tokens = _brute_force(oracle, [document], LENGTH)
    assert result["tokens"] == tokens == len(document)
    assert result["loss"] == pytest.approx(nats / tokens, rel=1e-6)


def test_bf16_is_near_fp32(tmp_path: Path, world: parallel.World, checkpoint: Any, make_mix: Any, make_documents: Any) -> None:
    sources = {"web": HeldOutMix(str(make_mix(tmp_path / "web", make_documents(5))))}
    losses = []
    for precision in ("fp32", "bf16"):
        config = EvaluateConfig({"run": checkpoint[0]}, sources, LENGTH, 2, "", "cpu", precision)
        losses.append(evaluate(config, world)["checkpoints"]["run"]["web"]["loss"])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_two_ranks_write_what_one_writes(
    tmp_path: Path, checkpoint: Any, make_mix: Any, make_documents: Any, run_ranks: Callable[..., str]
) -> None:
    documents = make_documents(9)
    mix = make_mix(tmp_path / "web", documents)
    output = tmp_path / "results" / "evaluation.json"
    config = {
        "checkpoints": {"run": checkpoint[0]},
        "sources": {"web": {"mix": str(mix)}},
        "sequence_length": LENGTH,
        "batch_instances": 2,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "output": str(output),
    }
    run_ranks(config, 2, module="trainer.evaluate")
    result = json.loads(output.read_text())["checkpoints"]["run"]["web"]
    nats, tokens = _brute_force(checkpoint[1], documents, LENGTH)
    assert result["tokens"] == tokens
    assert result["loss"] == pytest.approx(nats / tokens, rel=1e-6)


def test_what_does_not_fit_is_named(tmp_path: Path, world: parallel.World, checkpoint: Any, make_mix: Any, make_documents: Any) -> None:
    folder = checkpoint[0]
    good = HeldOutMix(str(make_mix(tmp_path / "good", make_documents(3))))
    foreign = HeldOutMix(str(make_mix(tmp_path / "foreign", make_documents(3), vocab_size=256)))
    empty = HeldOutMix(str(make_mix(tmp_path / "empty", [])))
    outside = HeldOutMix(str(make_mix(tmp_path / "outside", make_documents(3, low=200, high=210))))
    otherwise = HeldOutMix(str(make_mix(tmp_path / "otherwise", make_documents(3))))
    Path(otherwise.mix, "mix.json").write_text(Path(otherwise.mix, "mix.json").read_text().replace('"tokenizer": "9f', '"tokenizer": "aa'))
    short = HeldOutMix(str(make_mix(tmp_path / "short", make_documents(3))))
    Path(short.mix, "tokens-0.npy").write_bytes(b"")
    damaged = str(shutil.copytree(folder, tmp_path / "damaged"))
    with Path(damaged, "config.json").open("a") as file:
        file.write(" ")
    for checkpoints, sources, length, message in (
        ({"run": folder}, {"foreign": foreign}, LENGTH, "foreign.*256.*128"),
        ({"run": folder}, {"empty": empty}, LENGTH, "empty.*no text"),
        ({"run": folder}, {"outside": outside}, LENGTH, "outside.*vocabulary"),
        ({"run": folder}, {"good": good, "otherwise": otherwise}, LENGTH, "otherwise was made by another tokenizer"),
        ({"run": folder}, {"short": short}, LENGTH, "tokens-0.npy has 0 bytes"),
        ({"run": folder}, {"good": good}, 2 * LENGTH, "sequence_length"),
        ({"run": folder}, {"all": good}, LENGTH, "all"),
        ({"run": damaged}, {"good": good}, LENGTH, "damaged.*config.json"),
        ({"run": str(tmp_path / "none")}, {"good": good}, LENGTH, "none"),
    ):
        with pytest.raises(TrainerError, match=message):
            evaluate(EvaluateConfig(checkpoints, sources, length, 2, "", "cpu", "fp32"), world)
