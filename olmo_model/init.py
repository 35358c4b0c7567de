"""Starting values of the weights (OLMo 2 report, section 3.2)."""

from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from olmo_model.model import Olmo2

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")  # what torch.compile and activation checkpointing add to names


@torch.no_grad()
def init_weights(model: Olmo2, seed: int) -> None:
    """Fills every parameter in place: matrices from a normal with mean 0 and std ``config.init_std`` cut off at 3 std, gains with 1.

    Each parameter has a generator of its own, seeded by (seed, name), and is drawn whole before a rank takes its piece, so the
    values do not depend on how many ranks there are or how they share the model. CPU and GPU draw different numbers.
    Raises ValueError where a parameter is still on the meta device (call ``to_empty`` first).
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"parameter {name} is on the meta device; call model.to_empty(device=...) before init_weights")
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            _copy(parameter, _draw(parameter, _parameter_seed(seed, name), model.config.init_std))


def _parameter_seed(seed: int, name: str) -> int:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
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
