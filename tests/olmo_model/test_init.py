"""Starting values: their distribution, and that they depend on the seed and nothing else."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

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


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with torch.device("meta"):
        model = Olmo2(CONFIG)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    model.to_empty(device="cpu")
    init_weights(model, 1)
    torch.save(
        {name: parameter.to_local() for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}, f"{folder}/{rank}"
    )
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_sharing_a_model_get_the_weights_of_one(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    pieces = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for name, whole in _initialised(1).state_dict().items():
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), whole), name


def test_wrapping_a_layer_does_not_change_its_weights() -> None:
    model = Olmo2(CONFIG)
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    init_weights(model, 1)
    for wrapped, plain in zip(model.parameters(), _initialised(1).parameters(), strict=True):
        assert torch.equal(wrapped, plain)
