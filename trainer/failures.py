"""What a user can mend, told in one sentence: a step that is no number, a full disk, memory that does not suffice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import torch

from trainer.bookkeeping import NotFinite
from trainer.config import TrainConfig
from trainer.data import Loader
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.sinks import NAME
from trainer.stability import write_batch

_WRITTEN_RANKS = 8  # where the weights themselves are no numbers, every rank's batch is bad and none tells more than another
_NAMED_INSTANCES = 16


def not_finite(error: NotFinite, config: TrainConfig, loader: Loader, world: World) -> TrainerError:
    """Name the rank, the step and the instances, and write their batches to `bad-batches/` in the run folder; collective."""
    suspects = sorted(error.bad) or list(range(world.size))
    told = world.gather(_tell(error, config, loader, world) if world.rank in suspects[:_WRITTEN_RANKS] else None)
    first = next(each for each in told if each)
    where = (
        f"it came from {first}"
        if error.bad
        else f"every rank's loss is finite, so it came from the gradients; one batch is that of {first}"
    )
    others = f", and from {len(error.bad) - 1} other ranks" if len(error.bad) > 1 else ""
    return TrainerError(
        f"the loss or gradient norm of step {error.step} is no finite number ({error.loss}, {error.grad_norm}): {where}{others}; look at the "
        f"steps before it in {Path(config.run_folder) / NAME}, and go on from an older checkpoint with a lower learning rate or other data."
    )


def _tell(error: NotFinite, config: TrainConfig, loader: Loader, world: World) -> str:
    numbers = loader.instance_numbers(error.step - 1).tolist()
    micro, size = error.bad.get(world.rank), config.micro_batch_instances
    named = numbers if micro is None else numbers[micro * size : (micro + 1) * size]
    told = {"mix": str(loader.mix.folder), "instances": numbers, "bad_instances": None if micro is None else named}
    told |= {"loss_of_rank": repr(error.losses[world.rank]), "loss": repr(error.loss), "grad_norm": repr(error.grad_norm)}
    path = write_batch(Path(config.run_folder) / "bad-batches", error.step, loader.batch(error.step - 1), told, world)
    shown = ", ".join(map(str, named[:_NAMED_INSTANCES])) + (" and others" if len(named) > _NAMED_INSTANCES else "")
    return f"rank {world.rank} (host {world.host}, device {world.device}), instances {shown} of {loader.mix.folder}, written to {path}"


def explain(error: BaseException, config: TrainConfig, world: World) -> TrainerError | None:
    """The sentence for a full disk or too little memory, whatever wrapped it; None for anything else."""
    where = f"rank {world.rank}, host {world.host}"
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return TrainerError(
                f"the disk of {config.run_folder} is full ({where}: {each}); make room, for instance by a smaller checkpoint.keep, and start "
                "again: the run goes on from its newest whole checkpoint."
            )
        if isinstance(each, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(each):
            return TrainerError(
                f"out of memory ({where}: {_first_line(each)}); lower micro_batch_instances (now {config.micro_batch_instances}), set "
                f"parallel.activation_checkpointing (now {config.parallel.activation_checkpointing}) to selected or full, or take more ranks, "
                "which share the weights and the optimizer's state."
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
