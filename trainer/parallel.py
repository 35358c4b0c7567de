"""Processes and sharding: one process a device, FSDP or HSDP over all of them, the same training loop from a laptop's CPU up."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from olmo_model.config import ModelConfig
from olmo_model.init import init_weights
from olmo_model.model import Olmo2
from trainer.config import ParallelConfig
from trainer.errors import TrainerError
from trainer.loss import Exponentials, next_token_loss, plain_next_token_loss, row_exponentials
from trainer.verdict import DeviceError, Fault, gpu_name

# Longer than any step or checkpoint write should take; a rank that died silently ends the others after it.
_TIMEOUT = timedelta(minutes=30)

# What selected activation checkpointing keeps, since it costs more than the memory is worth.
_DEAR_OPS = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


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
    host = os.environ.get("SLURMD_NODENAME") or os.environ.get("OLMOFLOW_HOST") or socket.gethostname()  # as who started the ranks calls it
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
            raise TrainerError(f"host {host} has {torch.cuda.device_count()} GPUs; start no more ranks than that on it.")
        try:
            torch.cuda.set_device(own)
            torch.zeros(1, device=own)  # takes the device, which may refuse
        except RuntimeError as error:
            rank, cause = int(os.environ.get("RANK", "0")), (str(error).splitlines() or [type(error).__name__])[0].rstrip(".;")
            raise DeviceError(Fault(host, str(own), gpu_name(own.index), rank, f"raised {cause}", own=True)) from error
    else:
        own = torch.device("cpu")
    # gloo beside nccl carries small Python objects without touching the GPU.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size(), own, host)
    level = logging.INFO if world.rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s rank {world.rank} %(levelname)s %(message)s")
    return world


def stop() -> None:
    """Leave together: a rank that leaves while another still talks to it can abort at exit."""
    dist.barrier()
    dist.destroy_process_group()


class TrainedOlmo2(Olmo2):
    """An OLMo 2 model with the training loss as a second forward method, so that FSDP gathers the head's weight for it as for any other."""

    _exponentials: Exponentials | None = None
    plain_loss = False

    def loss(self, ids: Tensor, kept: Tensor, divisor: int, z_loss: float) -> tuple[Tensor, Tensor]:
        """See `trainer.loss.next_token_loss`; `ids` is of shape (instances, L)."""
        if self.plain_loss:
            return plain_next_token_loss(self.model(ids), self.lm_head.weight, ids, kept, divisor, z_loss)
        return next_token_loss(self.model(ids), self.lm_head.weight, ids, kept, divisor, z_loss, self._exponentials)

    def compile_parts(self) -> None:
        """Compile each layer and the loss's passes over logits. A layer's forward, not its call: FSDP's hooks stay outside the graph."""
        for layer in self.model.layers:
            layer.forward = torch.compile(layer.forward)
        self._exponentials = torch.compile(row_exponentials)

    def checkpoint_activations(self, selected: bool) -> None:
        """Compute layers again in the backward pass; `selected`: all of them but matrix products and attention.

        A layer's forward is replaced and no module wrapped around it, so that parameters keep their names.
        """
        options: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _kept)} if selected else {}
        for layer in self.model.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, **options)


def _kept(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _DEAR_OPS else CheckpointPolicy.PREFER_RECOMPUTE


def build_model(config: ModelConfig, world: World, precision: str, seed: int, settings: ParallelConfig | None = None) -> TrainedOlmo2:
    """An OLMo 2 model sharded over the ranks, fp32 master weights, with initial values that depend on `seed` alone.

    `precision` "bf16" computes in bf16; gradients are reduced in fp32 either way, and summed over ranks (not averaged), since the loss
    already carries the global divisor. Raises TrainerError where the ranks cannot be shared among `settings.replicas` copies.
    """
    settings = settings or ParallelConfig()
    with torch.device("meta"):
        model = TrainedOlmo2(config)
    if settings.activation_checkpointing != "none":
        model.checkpoint_activations(selected=settings.activation_checkpointing == "selected")
    if settings.compile:
        model.compile_parts()
    mesh = _mesh(world, settings.replicas)
    if world.size > 1 or precision == "bf16":
        _shard(model, mesh, precision, world)
    model.to_empty(device=world.device)
    init_weights(model, seed)
    return model


def _shard(model: TrainedOlmo2, mesh: DeviceMesh, precision: str, world: World) -> None:
    """FSDP or HSDP. A single rank shares with nobody, but has its weights cast by it; in fp32 it would only copy weights and gradients."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")
    for module in model.modules():
        if isinstance(module, FSDPModule) and world.size > 1:  # a single rank would copy its gradients once more for a factor of 1
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def _mesh(world: World, replicas: int) -> DeviceMesh:
    if world.size % replicas:
        raise TrainerError(f"parallel.replicas is {replicas}, which does not divide {world.size} ranks; give a number that does, or 1.")
    if replicas == 1:
        return init_device_mesh(world.device.type, (world.size,))
    return init_device_mesh(world.device.type, (replicas, world.size // replicas), mesh_dim_names=("replicate", "shard"))


def begin_micro_batch(model: TrainedOlmo2, last: bool, accumulate: str) -> None:
    """Say whether the coming micro-batch is its step's last: only then are gradients reduced over all ranks.

    `accumulate` as in `ParallelConfig`; with `sharded`, copies of the model still exchange gradients only once.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_is_last_backward(last)
    if accumulate == "whole":
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)
    else:
        model.set_requires_all_reduce(last)
