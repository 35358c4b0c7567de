"""Starting values of the weights (OLMo 2 report, section 3.2): one standard deviation for every matrix of every layer, whatever the size.

OLMo-0424's scaled initialisation, which the report compares it with, is here too. The model, the seed and the kind of device alone decide the values.
"""

import math
import re
from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from olmo_model.config import ModelConfig
from olmo_model.model import Olmo2

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")  # what torch.compile and activation checkpointing add to names


@torch.no_grad()
def init_weights(model: Olmo2, seed: int) -> None:
    """Fills every parameter in place: matrices from a normal with mean 0 cut off at 3 std, gains with 1.

    The std is ``config.init_std`` for all matrices; with ``config.init`` "scaled", OLMo-0424's, see `scaled_std`.

    Each parameter has a generator of its own, seeded by (seed, name), and is drawn whole before a rank takes its piece, so the
    values do not depend on how many ranks there are or how they share the model. CPU and GPU draw different numbers.
    Raises ValueError where a parameter is still on the meta device (call ``to_empty`` first).
    """
    config = model.config
    for wrapped, parameter in model.named_parameters():
        name = _unwrapped(wrapped)
        if parameter.is_meta:
            raise ValueError(f"parameter {name} is on the meta device; call model.to_empty(device=...) before init_weights")
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            std = config.init_std if config.init == "normal" else scaled_std(name, config)
            _copy(parameter, _draw(parameter, _parameter_seed(seed, name), std))


def scaled_std(name: str, config: ModelConfig) -> float:
    """Std of a matrix in the scaled initialisation of OLMo-0424 (Zhang et al., 2019; Gururangan et al., 2023; report, section 3.2).

    1 / sqrt(d_model), embeddings and head included; for the last matrix of attention and MLP 1 / sqrt(2 * its inputs * layer), layers
    counted from 1. The report prints sqrt(2 * d_model * layer) without the fraction and says that later layers start larger; in OLMo's
    code they start smaller, and the MLP's inputs are counted, not d_model.
    """
    residual = re.search(r"layers\.(\d+)\..*(o_proj|down_proj)", name)
    if residual is None:
        return 1 / math.sqrt(config.d_model)
    inputs = config.d_model if residual[2] == "o_proj" else config.mlp_hidden
    return 1 / math.sqrt(2 * inputs * (int(residual[1]) + 1))


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _parameter_seed(seed: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "little")


def _draw(parameter: Tensor, seed: int, std: float) -> Tensor:
    """The whole (unsharded) tensor in fp32, on the parameter's device."""
    generator = torch.Generator(parameter.device).manual_seed(seed)
    whole = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
    return nn.init.trunc_normal_(whole, mean=0.0, std=std, a=-3 * std, b=3 * std, generator=generator)


def _copy(parameter: Tensor, whole: Tensor) -> None:
    if isinstance(parameter, DTensor):
        # src_data_rank=None: every rank has drawn the same tensor and cuts out its own piece, without communication.
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
        parameter = parameter.to_local()
    parameter.copy_(whole)
