"""OLMo-0424's choices against transformers' models that have them, and the growth exponent against its definition."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, OlmoConfig, OlmoForCausalLM

from olmo_model.config import OLMO_0424, ModelConfig
from olmo_model.growth import growth
from olmo_model.hf import hf_config
from olmo_model.init import init_weights
from olmo_model.model import Olmo2, RotaryTable

CONFIG = ModelConfig(d_model=64, n_layers=3, n_heads=8, n_kv_heads=2, mlp_hidden=96, vocab_size=256, max_sequence_length=64)
IDS = torch.randint(256, (2, 48), generator=torch.Generator().manual_seed(3))
SIZES = {
    **{"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None, "eos_token_id": 1},
}


@pytest.mark.parametrize("kind", ["OLMo-0424", "Llama"])
def test_logits_and_gradients_of_earlier_designs_equal_transformers(kind: str) -> None:
    if kind == "Llama":
        ablation = {"layer_norm_applied_to": "inputs", "qkv_normalization": "none"}
        rope = {"rope_type": "default", "rope_theta": 5e5}
        theirs = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope, rms_norm_eps=1e-6))
    else:
        ablation = OLMO_0424
        theirs = OlmoForCausalLM(OlmoConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, clip_qkv=8.0))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in theirs.parameters():  # so large that queries are clipped
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 2.0, generator=generator)
            else:
                parameter.normal_(0, 0.8, generator=generator)
    config = dataclasses.replace(CONFIG, **ablation)
    ours = Olmo2(config)
    ours.load_state_dict(theirs.state_dict())
    assert list(config.parameter_shapes()) == [name for name, _ in ours.named_parameters()]
    logits = ours(IDS), theirs(IDS).logits
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-3)
    for each in logits:
        F.cross_entropy(each.flatten(0, 1), IDS.flatten()).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad - other.grad).norm() <= 1e-3 * other.grad.norm(), name


def test_an_ablation_is_not_exported_as_olmo2() -> None:
    with pytest.raises(ValueError, match="layer_norm_applied_to"):
        hf_config(dataclasses.replace(CONFIG, layer_norm_applied_to="inputs"), 1, 0)


def test_scaled_initialisation_goes_by_width_and_depth() -> None:
    model = Olmo2(dataclasses.replace(CONFIG, init="scaled"))
    init_weights(model, 0)
    truncated = 0.9866  # std of a normal cut off at 3
    for n, layer in enumerate(model.model.layers):
        for matrix, std in (
            (layer.self_attn.q_proj, 1 / 8),
            (layer.self_attn.o_proj, 1 / math.sqrt(2 * 64 * (n + 1))),
            (layer.mlp.down_proj, 1 / math.sqrt(2 * 96 * (n + 1))),
        ):
            assert matrix.weight.std().item() == pytest.approx(truncated * std, rel=0.05)


def test_growth_is_of_the_mean_vectors_of_the_first_and_last_layer() -> None:
    model = Olmo2(CONFIG)
    init_weights(model, 0)
    totals = torch.zeros(2, 2, 64)
    for ids in IDS:  # layer by layer by hand, without hooks
        x, states = model.model.embed_tokens(ids[None]), []
        for layer in model.model.layers:
            x = layer(x, RotaryTable(48, CONFIG, x.device))
            x.retain_grad()
            states.append(x)
        F.cross_entropy(model.lm_head(model.model.norm(x))[0, :-1], ids[1:]).backward()
        for at, state in enumerate((states[0], states[-1])):
            totals[0, at] += state.detach().sum((0, 1))
            totals[1, at] += state.grad.sum((0, 1))
    for found, (first, last) in zip(growth(model, IDS), totals.norm(dim=-1).tolist(), strict=True):
        assert found.exponent == pytest.approx(math.log(last / first) / 3, rel=1e-4)
        assert found.first == pytest.approx(first / 96, rel=1e-4)
