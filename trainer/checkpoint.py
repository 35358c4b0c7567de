"""Checkpoints of a training run: safetensors and JSON, no pickles, and a marker that says when one is whole.

A checkpoint folder holds one safetensors file a rank (torch.distributed.checkpoint's safetensors storage: weights under the model's own
names, AdamW's moments as `optimizer.<name>.exp_avg` and `.exp_avg_sq`), `config.json`, `state.json`, and `checkpoint.json`, written last
with the size and sha256 of every other file. A folder without it, or whose files differ from it, is torn and is never read. All ranks
must see the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata

from trainer.errors import TrainerError
from trainer.optim import moments, set_step_count, step_count
from trainer.parallel import World

log = logging.getLogger(__name__)

MARKER = "checkpoint.json"
_SHARDING = "DCP_SHARDING_INFO"  # where torch's safetensors storage notes the offsets of a rank's part of a tensor
_HASH_BYTES = 1 << 24


def save(folder: Path, model: nn.Module, optimizer: torch.optim.AdamW, config: dict[str, Any], state: dict[str, Any], world: World) -> None:
    """Write a checkpoint; collective. `state` (rank 0's counts) becomes `state.json`, with the optimizer's step count beside it.

    What an earlier, torn attempt left in `folder` is removed first.
    """
    if world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    dcp.save(_tensors(model, optimizer), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    if world.rank == 0:
        write_json(folder / "config.json", config)
        write_json(folder / "state.json", {**state, "optimizer": {"step": step_count(optimizer)}})
    dist.barrier()
    for path in sorted(folder.glob("*.safetensors"))[world.rank :: world.size]:
        _order_notes(path)
    dist.barrier()
    sums: dict[str, Any] = {}
    for part in world.gather(_checksums(folder, world.rank, world.size)):
        sums |= part
    if world.rank == 0:
        write_json(folder / MARKER, {"version": 1, "files": sums})
    dist.barrier()


def _order_notes(path: Path) -> None:
    """Sort the notes (`__metadata__`) in a safetensors header: the library writes them in a random order, and equal runs leave equal bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(ordered) == length, f"the header of {path} would grow"
        file.seek(8)
        file.write(ordered)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Any]:
    """Read weights and optimizer state in place, on any number of ranks; collective. Returns `state.json`.

    Raises TrainerError where the checkpoint is of another model or holds no optimizer state.
    """
    path = folder / "state.json"
    if not path.exists():
        raise TrainerError(f"{folder} has no state.json, so it holds weights only; give the checkpoint folder of a training run.")
    state: dict[str, Any] = json.loads(path.read_text())
    tensors = _tensors(model, optimizer)
    reader = _Reader(str(folder))
    _check_shapes(folder, tensors, reader.read_metadata())
    dcp.load(tensors, storage_reader=reader)
    set_step_count(optimizer, state["optimizer"]["step"])
    return state


class _Reader(HuggingFaceStorageReader):
    """Rank 0 reads the files' headers and tells the others, instead of every rank opening every file."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            box = [super().read_metadata() if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
            self._metadata = box[0]
        assert self._metadata is not None
        return self._metadata


def _tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Everything that a checkpoint stores as tensors, by flat name; loading writes into these."""
    return {**{name: parameter.detach() for name, parameter in model.named_parameters()}, **moments(model, optimizer)}


def _check_shapes(folder: Path, tensors: dict[str, Tensor], metadata: Metadata) -> None:
    stored: dict[str, Any] = metadata.state_dict_metadata
    for name, tensor in tensors.items():
        if name not in stored:
            raise TrainerError(f"{folder} holds no {name}; give a training checkpoint of the config's model.")
        if stored[name].size != tensor.shape:
            raise TrainerError(
                f"{folder} holds {name} of shape {list(stored[name].size)}, the config's model has {list(tensor.shape)}; give a checkpoint "
                "of the same model."
            )


def newest_whole(folder: Path, world: World) -> Path | None:
    """The newest whole checkpoint under `folder`, or None; collective. Each torn or damaged one that is passed over is named in the log."""
    names = sorted((path.name for path in folder.glob("step*") if path.is_dir()), reverse=True) if world.rank == 0 else []
    for name in world.broadcast(names):
        faults = [fault for fault in world.gather(fault_in(folder / name, world.rank, world.size)) if fault]
        if not faults:
            return folder / name
        log.info("checkpoint %s is passed over: %s", folder / name, faults[0])
    return None


def remove_older(newest: Path, keep: int | None) -> None:
    """Remove the checkpoints beside `newest` that are older, but for the `keep` youngest of them; None: none. Called on one rank."""
    if keep is None:
        return
    older = sorted((path for path in newest.parent.glob("step*") if path.name < newest.name), reverse=True)
    for path in older[keep:]:
        (path / MARKER).unlink(missing_ok=True)  # first, so that an interrupted removal leaves no folder that looks whole
        shutil.rmtree(path)


def fault_in(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What keeps a checkpoint (of a run, or a soup) from being whole, in words; None where it is whole.

    `part` of `parts` shares the work of hashing: each caller hashes every `parts`-th file.
    """
    try:
        files = json.loads((folder / MARKER).read_text())["files"]
        expected = {name: (each["bytes"], each["sha256"]) for name, each in files.items()}
    except FileNotFoundError:
        return f"it has no {MARKER}, so writing it never ended"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"its {MARKER} is damaged"
    for name in sorted(expected)[part::parts]:
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if (path.stat().st_size, _sha256(path)) != expected[name]:
            return f"its file {name} is damaged (size or sha256 differs)"
    return None


def write_marker(folder: Path) -> None:
    """Make a finished folder a whole checkpoint: write `checkpoint.json` over the files in it. The last thing to do to it."""
    write_json(folder / MARKER, {"version": 1, "files": _checksums(folder, 0, 1)})


def load_model_tensors(folder: Path | str) -> Iterator[tuple[str, Tensor]]:
    """The weights of a checkpoint, of a run on any number of ranks or of a soup: (name, whole CPU tensor) one at a time, sorted by name.

    Moments of the optimizer are left out. Raises TrainerError where the folder holds no whole checkpoint's files; call `fault_in` to have
    the checksums compared too.
    """
    folder = Path(folder)
    if not (folder / MARKER).exists():
        raise TrainerError(f"{folder} is no whole checkpoint (it has no {MARKER}); give the folder of a finished checkpoint.")
    pieces: dict[str, list[tuple[Path, list[int], list[int]]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            sharding = json.loads((file.metadata() or {}).get(_SHARDING, "null"))
            for name in file.keys():  # noqa: SIM118 - safe_open offers no iteration
                if name.startswith("optimizer."):
                    continue
                shape = file.get_slice(name).get_shape()
                offsets = sharding[name]["saved_offsets"] if sharding else [0] * len(shape)
                pieces.setdefault(name, []).append((path, offsets, shape))
    for name in sorted(pieces):
        yield name, _assemble(name, pieces[name])


def _assemble(name: str, pieces: list[tuple[Path, list[int], list[int]]]) -> Tensor:
    whole: Tensor | None = None
    size = [max(offsets[axis] + shape[axis] for _, offsets, shape in pieces) for axis in range(len(pieces[0][2]))]
    for path, offsets, shape in pieces:
        with safe_open(path, framework="pt") as file:
            piece = file.get_tensor(name)
        if len(pieces) == 1:
            return piece
        whole = torch.empty(size, dtype=piece.dtype) if whole is None else whole
        whole[tuple(slice(start, start + length) for start, length in zip(offsets, shape, strict=True))] = piece
    assert whole is not None
    return whole


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _checksums(folder: Path, part: int, parts: int) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MARKER)
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths[part::parts]}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
