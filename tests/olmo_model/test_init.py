"""Starting values: their distribution, and that they depend on the seed and nothing else."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from olmo_model.config import ModelConfig
from olmo_model.init import init_weights
from olmo_model.model import Olmo2

CONFIG = ModelConfig(d_model=60, n_layers=2, n_heads=3, n_kv_heads=1, mlp_hidden=97, vocab_size=1001)


def _initialised(seed: int) -> Olmo2:
    model = Olmo2(CONFIG)
    init_weights(model, seed)
    return model


def test_matrices_are_truncated_normal_and_gains_are_one() -> None:
    model = _initialised(1)
    # Variance of a normal cut off at +-3: 1 - 2 * 3 * phi(3) / (2 * Phi(3) - 1).
    inside = math.erf(3 / math.sqrt(2))
    std = 0.02 * math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / inside)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        count = parameter.numel()
        assert abs(parameter.mean()) < 5 * std / math.sqrt(count), name
        assert abs(parameter.std() / std - 1) < 5 / math.sqrt(2 * count), name
        assert parameter.abs().max() <= 0.06, name
    assert model.lm_head.weight.abs().max() > 0.055  # the tails reach the cut


def test_the_seed_decides_and_every_parameter_has_its_own_numbers() -> None:
    first, again, other = (_initialised(seed).state_dict() for seed in (1, 1, 2))
    matrices = [name for name, tensor in first.items() if tensor.ndim == 2]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    starts = {tuple(first[name].flatten()[:4].tolist()) for name in matrices}
    assert len(starts) == len(matrices)


def test_a_model_from_the_meta_device_gets_the_same_weights() -> None:
    with torch.device("meta"):
        model = Olmo2(CONFIG)
    with pytest.raises(ValueError, match="to_empty"):
        init_weights(model, 1)
    model.to_empty(device="cpu")
    init_weights(model, 1)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in _initialised(1).state_dict().items())


def test_a_rank_that_shares_a_model_gets_its_rows_of_the_whole_weights_without_the_others() -> None:
    """The second of three ranks, whose process group sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    try:
        with torch.device("meta"):
            model = Olmo2(CONFIG)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        model.to_empty(device="cpu")
        init_weights(model, 1)
        pieces = {name: parameter.to_local() for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    finally:
        dist.destroy_process_group()
    whole = _initialised(1).state_dict()
    assert pieces.keys() == whole.keys()
    for name, piece in pieces.items():
        assert torch.equal(piece, whole[name].chunk(3)[1]), name


def test_wrapping_a_layer_does_not_change_its_weights() -> None:
    model = Olmo2(CONFIG)
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    init_weights(model, 1)
    for wrapped, plain in zip(model.parameters(), _initialised(1).parameters(), strict=True):
        assert torch.equal(wrapped, plain)
