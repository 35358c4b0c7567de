"""A pair of equal tiny models: ours and transformers'."""

from collections.abc import Iterator

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from olmo_model.config import ModelConfig
from olmo_model.model import Olmo2


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[8, 2], ids=["multi-head", "grouped-query"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return ModelConfig(
        d_model=64, n_layers=3, n_heads=8, n_kv_heads=request.param, mlp_hidden=96, vocab_size=256, max_sequence_length=64, rope_theta=1e3
    )


@pytest.fixture
def models(config: ModelConfig) -> tuple[Olmo2, Olmo2ForCausalLM]:
    """Random gains, since equal ones hide swapped norms; large weights, so that attention is far from uniform."""
    theirs = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.mlp_hidden,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.max_sequence_length,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_eps,
            pad_token_id=None,  # with one, its embedding gets no gradient
            eos_token_id=1,
        )
    ).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 2.0, generator=generator)
            else:
                parameter.normal_(0.0, 0.2, generator=generator)
    ours = Olmo2(config)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs
