"""Processes and sharding: one process a device, FSDP over all of them, one code path from a laptop's CPU up."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from olmo_model.config import ModelConfig
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from trainer.errors import TrainerError

# Longer than any step or checkpoint write should take; a rank that died silently ends the others after it.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int
    size: int
    device: torch.device
    host: str

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


def start(device: str, threads: int | None, deterministic: bool = False) -> World:
    """Join the process group that torchrun describes in the environment, or one of a single process where there is none.

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        threads: CPU threads of this process; None: torch's choice.
        deterministic: refuse nondeterministic operations.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainerError("device is cuda but torch sees no GPU here; use device auto or cpu, or run where a GPU is.")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        torch.use_deterministic_algorithms(True)
    if device != "cpu" and torch.cuda.is_available():
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if own.index >= torch.cuda.device_count():
            raise TrainerError(f"host {socket.gethostname()} has {torch.cuda.device_count()} GPUs; start no more ranks than that on it.")
        torch.cuda.set_device(own)
    else:
        own = torch.device("cpu")
    # gloo beside nccl carries small Python objects without touching the GPU.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size(), own, socket.gethostname())
    level = logging.INFO if world.rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s rank {world.rank} %(levelname)s %(message)s")
    return world


def stop() -> None:
    """Leave together: a rank that leaves while another still talks to it can abort at exit."""
    dist.barrier()
    dist.destroy_process_group()


def build_model(config: ModelConfig, world: World, precision: str, seed: int) -> Olmo2:
    """An OLMo 2 model sharded over all ranks, fp32 master weights, with initial values that depend on `seed` alone.

    `precision` "bf16" computes in bf16; gradients are reduced in fp32 either way, and summed over ranks (not averaged), since the loss
    already carries the global divisor.
    """
    with torch.device("meta"):
        model = Olmo2(config)
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    model.to_empty(device=world.device)
    init_weights(model, seed)
    return model
