"""To and from a Hugging Face `Olmo2ForCausalLM` folder. The parameters' names are already theirs, so no tensor is touched."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from olmo_model.config import ModelConfig
from olmo_model.shards import check_tensors, read_tensors, write_tensors


def hf_config(config: ModelConfig, eos_id: int, pad_id: int) -> dict[str, Any]:
    """The contents of `config.json`, as transformers 5 writes it (`rope_parameters` instead of `rope_theta`).

    Raises ValueError for an ablation that `Olmo2ForCausalLM` cannot compute.
    """
    for key, value in config.ablations().items():
        if key != "init":  # which leaves the architecture as it is
            raise ValueError(
                f"model: {key} is {value}, which Hugging Face's Olmo2ForCausalLM does not have; only OLMo 2 itself can be exported"
            )
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.mlp_hidden,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_sequence_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
    }


def export(
    state_dict_iter: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    folder: str | Path,
    tokenizer_folder: str | Path | None,
    eos_id: int,
    pad_id: int,
) -> None:
    """Writes a folder that `AutoModelForCausalLM.from_pretrained` reads: weights in their own dtype, config, generation config, tokenizer.

    Tensors are taken one at a time, and at most one file of 4 GB is held. `config.json` is written last: without it there is no model.
    Raises ValueError where the tensors are not exactly those of ``config``, or differ in dtype, and for an ablation of OLMo 2.
    """
    folder = Path(folder)
    described = hf_config(config, eos_id, pad_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    dtypes: set[str] = set()
    write_tensors(_noting_dtype(check_tensors(state_dict_iter, config), dtypes), folder)
    if tokenizer_folder is not None:
        _copy_tokenizer(Path(tokenizer_folder), folder)
    _write_json(folder / "generation_config.json", {"eos_token_id": eos_id, "pad_token_id": pad_id})
    _write_json(folder / "config.json", described | {"dtype": dtypes.pop()})


def import_(folder: str | Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the weights of a Hugging Face OLMo 2 folder, ready for ``Olmo2(config).load_state_dict``; the dtype is kept.

    Raises ValueError where it is no OLMo 2, or uses something that this model does not have (biases, tied embeddings, scaled RoPE).
    """
    folder = Path(folder)
    config = _from_hf_config(json.loads((folder / "config.json").read_text()), folder / "config.json")
    return config, dict(check_tensors(read_tensors(folder), config))


def _from_hf_config(hf: dict[str, Any], path: Path) -> ModelConfig:
    rope = hf.get("rope_parameters") or {}
    expected = {
        "model_type": (hf.get("model_type"), "olmo2"),
        "attention_bias": (hf.get("attention_bias", False), False),
        "tie_word_embeddings": (hf.get("tie_word_embeddings", False), False),
        "hidden_act": (hf.get("hidden_act", "silu"), "silu"),
        "rope_parameters.rope_type": (rope.get("rope_type", "default"), "default"),
        "rope_scaling": (hf.get("rope_scaling"), None),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise ValueError(f"{path}: {key} is {found!r}, but this model supports only {wanted!r}")
    theta = rope.get("rope_theta", hf.get("rope_theta"))  # transformers before 5 had it at the top level
    if theta is None:
        raise ValueError(f"{path}: it gives no rope_theta; add rope_parameters.rope_theta")
    heads = hf["num_attention_heads"]
    return ModelConfig(
        d_model=hf["hidden_size"],
        n_layers=hf["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=hf.get("num_key_value_heads") or heads,
        mlp_hidden=hf["intermediate_size"],
        vocab_size=hf["vocab_size"],
        max_sequence_length=hf["max_position_embeddings"],
        rope_theta=float(theta),
        norm_eps=hf["rms_norm_eps"],
        init_std=hf.get("initializer_range", 0.02),
    )


def _noting_dtype(tensors: Iterable[tuple[str, Tensor]], dtypes: set[str]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        dtypes.add(str(tensor.dtype).removeprefix("torch."))
        if len(dtypes) > 1:
            raise ValueError(f"tensor {name} is {tensor.dtype}, others are not; export one dtype, since config.json names only one")
        yield name, tensor


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """Every file but those that describe a model: a tokenizer is often kept in a whole model's folder."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in ("config.json", "generation_config.json") and ".safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
