"""Folders in Hugging Face's format, out and in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Olmo2ForCausalLM

from olmo_model.config import ModelConfig
from olmo_model.hf import export, import_
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from olmo_model.shards import read_tensors, write_tensors
from tasks.tokenizer import Tokenizer, train_bpe

Models = tuple[Olmo2, Olmo2ForCausalLM]


def test_transformers_loads_an_export_and_gives_the_same_logits(models: Models, config: ModelConfig, tmp_path: Path) -> None:
    ours = models[0]
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text('{"version": "1.0"}')
    (tokenizer / "config.json").write_text("of another model")
    folder = tmp_path / "model"
    export(ours.state_dict().items(), config, folder, tokenizer, eos_id=1, pad_id=0)

    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    assert isinstance(theirs, Olmo2ForCausalLM)
    assert theirs.dtype == torch.float32
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=2e-5)
    assert (theirs.config.eos_token_id, theirs.config.pad_token_id, theirs.config.bos_token_id) == (1, 0, None)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 1
    assert (folder / "tokenizer.json").read_text() == '{"version": "1.0"}'


def test_an_export_generates_text_with_its_own_tokenizer(tmp_path: Path) -> None:
    train_bpe(["one two three, one two three; four five six. " * 9], 300, tmp_path / "tokenizer")
    vocabulary = Tokenizer.load(tmp_path / "tokenizer")
    config = ModelConfig(32, 2, 4, 2, 48, vocabulary.padded_vocab_size, max_sequence_length=64)
    ours = Olmo2(config)
    init_weights(ours, seed=0)
    export(ours.state_dict().items(), config, tmp_path / "model", tmp_path / "tokenizer", vocabulary.eos_id, vocabulary.pad_id)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    prompt = tokenizer("one two", return_tensors="pt")
    assert prompt["input_ids"][0].tolist() == vocabulary.encode("one two").tolist()
    generated = theirs.generate(**prompt, max_new_tokens=12, do_sample=False)[0]

    ids = prompt["input_ids"]
    with torch.no_grad():
        for _ in range(12):  # the most likely token each time, without a cache
            ids = torch.cat([ids, ours(ids)[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == vocabulary.eos_id:
                break
    assert generated.tolist() == ids[0].tolist()
    assert tokenizer.decode(generated) == vocabulary.decode(ids[0].numpy())


def test_a_long_sequence_gives_the_same_logits(tmp_path: Path) -> None:
    config = ModelConfig(64, 2, 4, 2, 96, 256, max_sequence_length=4096)
    ours = Olmo2(config)
    init_weights(ours, seed=0)
    export(ours.state_dict().items(), config, tmp_path, None, eos_id=1, pad_id=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    ids = torch.randint(256, (1, 4096), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_then_import_returns_every_bit(models: Models, config: ModelConfig, tmp_path: Path, dtype: torch.dtype) -> None:
    state = models[0].to(dtype).state_dict()
    export(state.items(), config, tmp_path, None, eos_id=1, pad_id=0)
    again, tensors = import_(tmp_path)
    assert again == config
    assert tensors.keys() == state.keys()
    assert all(tensors[name].dtype == dtype and torch.equal(tensors[name], state[name]) for name in state)


def test_a_folder_that_transformers_saved_is_imported(models: Models, config: ModelConfig, tmp_path: Path) -> None:
    models[1].save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    again, tensors = import_(tmp_path)
    assert again == config
    assert all(torch.equal(tensors[name], tensor) for name, tensor in models[1].state_dict().items())


def test_rope_theta_of_transformers_4_is_read(models: Models, config: ModelConfig, tmp_path: Path) -> None:
    export(models[0].state_dict().items(), config, tmp_path, None, eos_id=1, pad_id=0)
    old = json.loads((tmp_path / "config.json").read_text())
    old["rope_theta"] = old.pop("rope_parameters")["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert import_(tmp_path)[0] == config


@pytest.mark.parametrize(
    "change", [{"model_type": "llama"}, {"attention_bias": True}, {"tie_word_embeddings": True}, {"rope_scaling": {"type": "yarn"}}]
)
def test_a_model_that_is_not_ours_is_refused_by_its_key(
    models: Models, config: ModelConfig, tmp_path: Path, change: dict[str, object]
) -> None:
    export(models[0].state_dict().items(), config, tmp_path, None, eos_id=1, pad_id=0)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=next(iter(change))):
        import_(tmp_path)


def test_missing_foreign_and_misshapen_tensors_leave_no_config(models: Models, config: ModelConfig, tmp_path: Path) -> None:
    state = models[0].state_dict()
    short = {name: tensor for name, tensor in state.items() if name != "model.norm.weight"}
    for wrong, name in (
        (short, "model.norm.weight"),
        (state | {"model.extra": torch.ones(1)}, "model.extra"),
        (state | {"lm_head.weight": torch.ones(2, 2)}, "lm_head.weight"),
        (state | {"lm_head.weight": state["lm_head.weight"].half()}, "lm_head.weight"),
    ):
        with pytest.raises(ValueError, match=name):
            export(wrong.items(), config, tmp_path, None, eos_id=1, pad_id=0)
        assert not (tmp_path / "config.json").exists()


def test_files_keep_under_the_limit_and_replace_those_of_an_earlier_model(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.full((100,), float(n)) for n in range(7)} | {"large": torch.ones(1000)}
    write_tensors(tensors.items(), tmp_path, max_shard_bytes=400)
    write_tensors(tensors.items(), tmp_path, max_shard_bytes=900)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"model-0000{n}-of-00005.safetensors" for n in range(1, 6)] + ["model.safetensors.index.json"]
    for file in files[:-1]:
        with safe_open(tmp_path / file, framework="np") as opened:
            names = list(opened.keys())
            assert names == ["large"] or sum(tensors[name].nbytes for name in names) <= 900
    again = dict(read_tensors(tmp_path))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
