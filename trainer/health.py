"""Does this machine compute, remember and talk? Asked before training: one bad host spoils the run of all (report, section 6.3)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from olmo_model.config import ModelConfig
from trainer import verdict
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.verdict import Fault

# Weights, gradients and AdamW's two moments, fp32. Activations come on top; this is what the run cannot do without.
_BYTES_PER_PARAMETER = 16
_PATTERN_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}
_MATRIX = {"cuda": 4096, "cpu": 256}


def check(model: ModelConfig, world: World, replicas: int = 1, folder: Path | None = None) -> None:
    """Collective. Raises TrainerError on every rank, naming each host and device that failed and how, where one did.

    `replicas`: copies of the model among the ranks. `folder`: where the faults are also left as `health.json`.
    """
    need_bytes = model.num_parameters() * _BYTES_PER_PARAMETER * replicas // world.size
    _raise_any(world, _local_fault(need_bytes, world), folder)
    _raise_any(world, _reduction_fault(world), folder)


def _raise_any(world: World, fault: Fault | None, folder: Path | None) -> None:
    try:
        faults = [each for each in world.gather(fault) if each]
        if faults and world.rank == 0 and folder is not None:
            verdict.write(faults, folder)
        if faults:
            dist.barrier()  # whoever leaves first may take the others with it
    except RuntimeError as error:  # what broke the all-reduce can break this too; what this rank knows is told all the same
        faults = [fault or _fault(world, f"hearing from the other ranks raised {_first_line(error)}")]
        if faults[0].own and folder is not None:
            verdict.write(faults, folder)
    if faults:
        raise TrainerError(f"the health check failed: {'; '.join(map(str, faults))}; take the host out and start again.")


def _local_fault(need_bytes: int, world: World) -> Fault | None:
    try:
        broken = product_fault(world.device)
        short = None if broken else room_fault(world.device, need_bytes)
        if not broken and not short:
            broken = memory_fault(world.device)
    except RuntimeError as error:  # what a broken GPU raises; one sentence for the launcher instead of a traceback from each rank
        return _fault(world, f"raised {_first_line(error)}", own=not isinstance(error, torch.OutOfMemoryError))
    told = broken or short
    return _fault(world, told, own=broken is not None) if told else None


def product_fault(device: torch.device) -> str | None:
    """What is wrong with a product of two matrices whose entries are known small whole numbers, in fp32 and bf16; None: nothing."""
    size = _MATRIX[device.type]
    n = torch.arange(size, device=device)
    rows, columns = (n % 5 - 2).float(), (n % 7 - 3).float()
    # An outer product times an outer product: entry (i, k) is rows[i] * columns[k] * (how often inner is 1). With 32 ones in bf16 no
    # partial sum is over 192, so that every order of summation is exact in its 8 bits.
    for dtype, ones in ((torch.float32, size), (torch.bfloat16, 32)):
        inner = (n % (size // ones) == 0).float()
        left, right = (rows[:, None] * inner).to(dtype), (inner[:, None] * columns).to(dtype)
        if not torch.equal((left @ right).float(), rows[:, None] * columns * ones):
            return f"a {dtype} product of two {size} x {size} matrices came out wrong"
    return None


def room_fault(device: torch.device, need_bytes: int) -> str | None:
    """What is wrong with the free memory where it is less than `need_bytes`; None: nothing."""
    free = _free_bytes(device)
    if free is None or free >= need_bytes:
        return None
    return f"{free / 2**30:.1f} GiB of memory free, the weights, gradients and optimizer state alone take {need_bytes / 2**30:.1f} GiB"


def memory_fault(device: torch.device) -> str | None:
    """What is wrong with the memory, whose written pattern reads back otherwise; None: nothing."""
    pattern = torch.arange(_PATTERN_BYTES[device.type] // 8, device=device)
    pattern = pattern.bitwise_xor_(0x5555_5555)
    if not torch.equal(pattern.bitwise_xor_(0x5555_5555), torch.arange(len(pattern), device=device)):
        return "memory returned other values than were written"
    return None


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    # Ranks on one host share its memory.
    return int(lines["MemAvailable"].split()[0]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _reduction_fault(world: World) -> Fault | None:
    """What is wrong with a sum over all ranks; None: nothing."""
    try:
        total = torch.full((1 << 16,), float(world.rank + 1), device=world.device)
        dist.all_reduce(total)
        right = bool((total == world.size * (world.size + 1) / 2).all())
    except RuntimeError as error:
        return _fault(world, f"an all-reduce raised {_first_line(error)}")
    return None if right else _fault(world, "an all-reduce returned other sums than it should")


def _fault(world: World, fault: str, own: bool = False) -> Fault:
    gpu = verdict.gpu_name(world.device.index) if world.device.type == "cuda" else None
    return Fault(world.host, str(world.device), gpu, world.rank, fault, own)


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".;")
