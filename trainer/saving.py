"""Saving without waiting: a training step stops for a copy of the state only; a thread writes, hashes and marks the checkpoint.

The copy goes into one host buffer a rank, laid out as the rank's file and used again by the next save. On a GPU the copy itself runs beside
the next step's forward and backward pass, and only the optimizer's update waits for it. The ranks' threads talk over a gloo group of their
own, so that the training's collectives and theirs never meet.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from trainer.checkpoint import parts_to_write, remove_older, tensors_of, write_json, write_marker
from trainer.config import CheckpointConfig
from trainer.errors import TrainerError
from trainer.parallel import World
from trainer.tensorfiles import INDEX, bytes_of, header, make_index, write_all

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 24
_GRACE_SECONDS = 20  # for a checkpoint under way when the run fails; torchrun kills 30 s after SIGTERM

T = TypeVar("T")


class Saver:
    """Writes the checkpoints of one run; a context manager, made and used by all ranks together.

    Attributes:
        stall_seconds: time that `save` has kept its callers waiting, since the start.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.AdamW, config: dict[str, Any], keep: CheckpointConfig, world: World
    ) -> None:
        self._config, self._keep, self._world = config, keep, world
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self.stall_seconds = 0.0
        tensors = tensors_of(model, optimizer)
        parts = parts_to_write(tensors, world)
        self._sources = [local for _, local in parts]
        self._header = header([part for part, _ in parts])
        self._index = self._gather_index(tensors, [part for part, _ in parts])
        self._step_count = next(iter(optimizer.state.values()))["step"]
        self._step_count_copy = torch.zeros((), dtype=torch.float32)
        self._buffer = torch.empty(sum(part.bytes for part, _ in parts), dtype=torch.uint8)
        ends = np.cumsum([part.bytes for part, _ in parts]).tolist()
        self._copies = [
            self._buffer[end - part.bytes : end].view(part.dtype).view(local.shape) for end, (part, local) in zip(ends, parts, strict=True)
        ]
        self._copied: torch.cuda.Event | None = None
        if world.device.type == "cuda":
            _pin(self._buffer)
            self._step_count_copy = self._step_count_copy.pin_memory()
            self._stream = torch.cuda.Stream(world.device)
            self._hook = optimizer.register_step_pre_hook(self._update_after_copy)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for a checkpoint under way; where the run fails, no longer than the others' end allows."""
        if self._thread is not None:
            self._thread.join(None if kind is None else _GRACE_SECONDS)
            if self._thread.is_alive():
                return  # it is a daemon, and still uses the buffer and the group
        if self._world.device.type == "cuda":
            self._hook.remove()
            _unpin(self._buffer)
        if kind is None:
            dist.destroy_process_group(self._group)

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written. Ranks learn of it at different times: agree on it, then call `wait`."""
        return self._error is not None

    def save(self, folder: Path, state: dict[str, Any], of_rank: dict[str, Any]) -> None:
        """Copy the state and begin to write the checkpoint `folder`; collective. Waits for the one before it first.

        Args:
            state: rank 0's becomes `state.json`, with the optimizer's step count beside it.
            of_rank: each rank's own values by key; `state.json` holds a list of them, in rank order, under each key.

        Raises TrainerError on all ranks where the checkpoint before could not be written.
        """
        began = time.perf_counter()
        self.wait()
        self._copy()
        self._thread = threading.Thread(target=self._run, args=(folder, state, of_rank), name="checkpoint", daemon=True)
        self._thread.start()
        self.stall_seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Until the checkpoint under way is whole. Raises TrainerError on all ranks where it could not be written."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise TrainerError(self._error)

    def _copy(self) -> None:
        pairs = [(self._step_count_copy, self._step_count), *zip(self._copies, self._sources, strict=True)]
        if self._world.device.type != "cuda":
            for copy, source in pairs:
                copy.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._world.device))
        with torch.cuda.stream(self._stream):
            for copy, source in pairs:
                copy.copy_(source, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(self._stream)

    def _update_after_copy(self, *arguments: Any) -> None:
        """Before each of the optimizer's steps: it writes what is still being copied. Waits on the GPU, not here."""
        if self._copied is not None:
            torch.cuda.current_stream(self._world.device).wait_event(self._copied)

    def _run(self, folder: Path, state: dict[str, Any], of_rank: dict[str, Any]) -> None:
        try:
            self._write(folder, state, of_rank)
        except TrainerError as error:
            self._error = str(error)
        except Exception as error:  # a peer that is gone, or a bug: the training loop must hear of it either way
            self._error = f"checkpoint {folder} could not be written: {' '.join(str(error).split())}."

    def _write(self, folder: Path, state: dict[str, Any], of_rank: dict[str, Any]) -> None:
        self._all(folder, lambda: self._begin(folder))
        try:
            written = self._all(folder, lambda: (self._write_tensors(folder), of_rank))
            self._all(folder, lambda: self._finish(folder, state, written))
        except TrainerError:
            if self._world.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room, and nobody reads half a checkpoint
            raise
        self._all(folder, lambda: self._remove_older(folder))

    def _all(self, folder: Path, work: Callable[[], T]) -> list[T]:
        """Do a part of the work on every rank and return all results; TrainerError on every rank where it failed on one.

        Whatever a rank's failure is, the others hear of it: they would wait for that rank in the next part.
        """
        result, fault = None, None
        where = f"(host {self._world.host}, rank {self._world.rank})"
        try:
            result = work()
        except OSError as error:
            fault = f"{error.strerror or error} {where}; make room there, then start again"
        except Exception as error:
            log.exception("checkpoint %s", folder)
            fault = f"{type(error).__name__}: {' '.join(str(error).split())} {where}; start again"
        outcomes: list[Any] = [None] * self._world.size
        dist.all_gather_object(outcomes, (result, fault), group=self._group)
        faults = [fault for _, fault in outcomes if fault]
        if faults:
            raise TrainerError(f"checkpoint {folder} could not be written: {faults[0]}: the run goes on from its newest whole checkpoint.")
        return [result for result, _ in outcomes]

    def _begin(self, folder: Path) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        if self._world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier, torn attempt
            folder.mkdir(parents=True)

    def _write_tensors(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write this rank's file; returns its entry in the marker."""
        name, data, digest = _file_name(self._world.rank, self._world.size), bytes_of(self._buffer), hashlib.sha256()
        with (folder / name).open("wb", buffering=0) as file:
            blocks = [memoryview(self._header), *(data[begin : begin + _BLOCK_BYTES] for begin in range(0, len(data), _BLOCK_BYTES))]
            for block in blocks:
                write_all(file, block)
                digest.update(block)
            os.fsync(file.fileno())
        return {name: {"bytes": len(self._header) + len(data), "sha256": digest.hexdigest()}}

    def _finish(self, folder: Path, state: dict[str, Any], written: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        if self._world.rank != 0:
            return
        per_rank = {key: [own[key] for _, own in written] for key in written[0][1]}
        write_json(folder / "config.json", self._config)
        write_json(folder / "state.json", {**state, **per_rank, "optimizer": {"step": int(self._step_count_copy.item())}})
        (folder / INDEX).write_bytes(self._index)
        write_marker(folder, {name: entry for files, _ in written for name, entry in files.items()})

    def _remove_older(self, folder: Path) -> None:
        if self._world.rank == 0:
            remove_older(folder, self._keep.keep, self._keep.permanent_every_steps)

    def _gather_index(self, tensors: dict[str, torch.Tensor], parts: list[Any]) -> bytes:
        """Rank 0: `tensors.json`, the same for every checkpoint of the run; the others: nothing. Collective."""
        numbers = {name: number for number, name in enumerate(tensors)}
        offset, rows = len(self._header), []
        for part in parts:
            rows.append((numbers[part.name], self._world.rank, offset, part.start, part.elements))
            offset += part.bytes
        gathered: list[Any] | None = [None] * self._world.size if self._world.rank == 0 else None
        dist.gather_object(np.array(rows, np.int64).reshape(-1, 5), gathered, group=self._group)
        if gathered is None:
            return b""
        files = [_file_name(rank, self._world.size) for rank in range(self._world.size)]
        known = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        return make_index(Path(), files, known, np.concatenate(gathered)).encode()


def _file_name(rank: int, ranks: int) -> str:
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


def _pin(buffer: torch.Tensor) -> None:
    """Lock the buffer's pages in memory. torch's own pinned memory comes in powers of two, up to twice what is asked for."""
    code = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)
    if int(code) != 0:
        raise TrainerError(
            f"{buffer.numel() / 2**30:.1f} GiB of host memory for checkpoints could not be locked (CUDA error {int(code)}); free memory on the "
            "host, raise its limit of locked memory, or use more ranks."
        )


def _unpin(buffer: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())
