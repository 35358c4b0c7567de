"""The architecture against transformers' own, and what the trainer relies on: compilation, bf16 and sharding."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import Olmo2ForCausalLM

from olmo_model.config import ModelConfig
from olmo_model.model import Attention, Olmo2, RMSNorm, RotaryTable

Models = tuple[Olmo2, Olmo2ForCausalLM]


def _ids(config: ModelConfig, length: int = 48) -> Tensor:
    return torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(3))


def test_logits_equal_transformers(models: Models, config: ModelConfig) -> None:
    ours, theirs = models
    ids = _ids(config)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=2e-5)


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_equal_transformers(models: Models, config: ModelConfig) -> None:
    ids = _ids(config)
    ours, theirs = (
        _gradients(model, F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
        for model, logits in ((models[0], models[0](ids)), (models[1], models[1](ids).logits))
    )
    assert ours.keys() == theirs.keys() == config.parameter_shapes().keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5 * max(expected.abs().max().item(), 1.0))


def test_a_token_does_not_see_the_ones_after_it(models: Models, config: ModelConfig) -> None:
    ids = _ids(config)
    changed = ids.clone()
    changed[:, 30:] = (changed[:, 30:] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = models[0](ids), models[0](changed)
    torch.testing.assert_close(before[:, :30], after[:, :30])
    assert not torch.allclose(before[:, 30:], after[:, 30:])


def test_norm_keeps_fp32_inside_for_bf16_input() -> None:
    norm = RMSNorm(512, 1e-6)
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide = x.double()
    exact = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), exact.bfloat16())


def test_bf16_stays_near_fp32(models: Models, config: ModelConfig) -> None:
    ids = _ids(config)
    with torch.no_grad():
        exact = models[0](ids)
        rounded = models[0].bfloat16()(ids)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() / exact.norm() < 0.1


def test_a_compiled_layer_gives_the_same_gradients_and_compiles_once(models: Models, config: ModelConfig) -> None:
    model = models[0]
    ids = _ids(config)
    expected = _gradients(model, model(ids).square().mean())
    torch._dynamo.reset()
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")  # traces as inductor does, and needs no C++ compiler
    compiled = _gradients(model, model(ids).square().mean())
    for name, gradient in expected.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-5 * max(gradient.abs().max().item(), 1.0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        model(ids.flip(0)).square().mean().backward()


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
def test_positions_stay_fp32_under_fsdps_bf16(models: Models, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP casts tensor arguments of a layer to bf16, in which 257 and 258 are one position."""
    seen: list[torch.dtype] = []
    forward = Attention.forward

    def spy(self: Attention, x: Tensor, rope: RotaryTable) -> Tensor:
        seen.extend((x.dtype, rope.cos.dtype, rope.sin.dtype))
        return forward(self, x, rope)

    monkeypatch.setattr(Attention, "forward", spy)
    model = models[0]
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model(_ids(config)).float().square().mean().backward()
    assert seen == [torch.bfloat16, torch.float32, torch.float32] * config.n_layers
    assert all(parameter.grad is not None for parameter in model.parameters())
