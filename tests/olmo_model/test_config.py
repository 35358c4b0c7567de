"""The presets' sizes and the counts made from them."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from olmo_model.config import PRESETS, ModelConfig
from olmo_model.model import Olmo2


# Parameters in billions, to the digits that the report and the public model cards print.
@pytest.mark.parametrize(("name", "billions"), [("1b", 1.485), ("7b", 7.299), ("13b", 13.716), ("32b", 32.234)])
def test_preset_has_the_published_number_of_parameters(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = Olmo2(PRESETS[name])
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert round(counted / 1e9, 3) == billions
    assert PRESETS[name].num_parameters() == counted
    assert PRESETS[name].num_parameters_without_input_embedding() == counted - model.model.embed_tokens.weight.numel()


def test_parameter_shapes_are_the_models_own_in_order() -> None:
    config = ModelConfig(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden=48, vocab_size=128)
    shapes = [(name, tuple(parameter.shape)) for name, parameter in Olmo2(config).named_parameters()]
    assert list(config.parameter_shapes().items()) == shapes


def test_flops_put_55k_tokens_per_second_of_1b_at_51_6_percent_of_an_h100() -> None:
    assert round(55_000 * PRESETS["1b"].flops_per_token(4096) / 989.5e12, 3) == 0.516


@pytest.mark.parametrize(
    ("change", "key"),
    [({"n_heads": 5}, "d_model"), ({"n_kv_heads": 3}, "n_kv_heads"), ({"n_layers": 0}, "n_layers"), ({"norm_eps": 0.0}, "norm_eps")],
)
def test_sizes_that_do_not_fit_are_named(change: dict[str, float], key: str) -> None:
    sizes: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden": 48, "vocab_size": 128}
    with pytest.raises(ValueError, match=key):
        ModelConfig(**{**sizes, **change})


def test_the_config_opens_without_torch() -> None:
    code = "import sys, olmo_model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
