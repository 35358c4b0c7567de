"""The model and its presets against OLMo-core's, the code that trained OLMo 2."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Olmo2ForCausalLM

from olmo_model.config import PRESETS, ModelConfig
from olmo_model.hf import hf_config
from olmo_model.model import Olmo2

pytest.importorskip("olmo_core")
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.hf.config import get_hf_config
from olmo_core.nn.hf.convert import convert_state_from_hf
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.nn.transformer.config import TransformerBlockType

# What OLMo-core's model decides; the tokens' ids and the longest sequence are set apart from it.
DECIDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
DECIDED += ("hidden_act", "attention_bias", "tie_word_embeddings", "rms_norm_eps", "rope_parameters", "model_type")


@pytest.mark.parametrize(("name", "theirs"), [("1b", "olmo2_1B_v2"), ("7b", "olmo2_7B"), ("13b", "olmo2_13B"), ("32b", "olmo2_32B")])
def test_a_presets_exported_config_is_that_of_olmo_cores_own(name: str, theirs: str) -> None:
    ours = PRESETS[name]
    model = getattr(TransformerConfig, theirs)(vocab_size=ours.vocab_size).build(init_device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == ours.num_parameters()
    expected = get_hf_config(model).to_dict()
    exported = hf_config(ours, eos_id=100257, pad_id=100277)
    assert {key: exported[key] for key in DECIDED} == {key: expected[key] for key in DECIDED}


def test_logits_and_gradients_are_olmo_cores(models: tuple[Olmo2, Olmo2ForCausalLM], config: ModelConfig) -> None:
    ours, hugging_face = models
    core = TransformerConfig.llama_like(
        d_model=config.d_model,
        vocab_size=config.vocab_size,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        qk_norm=True,
        rope_theta=int(config.rope_theta),
        layer_norm_eps=config.norm_eps,
        block_name=TransformerBlockType.reordered_norm,
        feed_forward=FeedForwardConfig(hidden_size=config.mlp_hidden, bias=False),
    ).build(init_device="cpu")
    core.load_state_dict(convert_state_from_hf(hugging_face.config, hugging_face.state_dict(), model_type="olmo2"))
    ids = torch.randint(config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(5))
    found = ours(ids)
    expected = core(ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    for logits in (found, expected):
        _loss(logits, ids).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    converted = convert_state_from_hf(hugging_face.config, gradients, model_type="olmo2")
    for name, parameter in core.named_parameters():
        assert parameter.grad is not None
        scale = max(parameter.grad.abs().max().item(), 1.0)
        torch.testing.assert_close(converted[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
