"""Export: a checkpoint as a Hugging Face `Olmo2ForCausalLM` folder, tokenizer included."""

from __future__ import annotations

import json

from tasks.score import model_folder
from tasks.shards import Shard, ShardRef, ShardTask, Step
from tasks.store import Books

STEP = Step("model", 1, "tasks.export", ("safetensors",))


def task(name: str, checkpoint: ShardRef, tokenizer: ShardRef) -> ShardTask:
    return ShardTask(name, {}, {"checkpoint": [checkpoint], "tokenizer": [tokenizer]})


def run(shard: Shard) -> Books:
    """checkpoint, tokenizer -> config.json, model*.safetensors, tokenizer.json, ..."""
    # only this function needs torch; the module is imported by the CLI
    from olmo_model.config import ModelConfig
    from olmo_model.hf import export
    from tasks.tokenizer import Tokenizer
    from trainer.checkpoint import load_model_tensors

    checkpoint = next(path.parent for name, path in shard.one("checkpoint").items() if name.endswith("checkpoint.json"))
    tokenizer_folder = model_folder(shard.one("tokenizer"))
    tokenizer = Tokenizer.load(tokenizer_folder)
    config = ModelConfig(**json.loads((checkpoint / "config.json").read_text())["model"])
    export(load_model_tensors(checkpoint), config, shard.folder, tokenizer_folder, tokenizer.eos_id, tokenizer.pad_id)
    return Books("checkpoints", 1, 1)
