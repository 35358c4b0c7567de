"""Checkpoints of a training run: safetensors and JSON, no pickles, and a marker that says when one is whole.

A checkpoint folder holds one safetensors file a rank (weights under the model's own names, AdamW's moments as
`optimizer.<name>.exp_avg` and `.exp_avg_sq`; see `trainer/tensorfiles.py`), `tensors.json` that tells where in them each tensor lies,
`config.json`, `state.json`, and `checkpoint.json`, written last with the size and sha256 of every other file. A folder without it, or
whose files differ from it, is torn and is never read. All ranks must see the folder. `trainer/saving.py` writes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from olmo_model.config import ModelConfig
from olmo_model.model import Olmo2
from trainer.errors import TrainerError
from trainer.optim import moments, set_step_count
from trainer.parallel import World
from trainer.parsing import parse, read_yaml
from trainer.tensorfiles import INDEX, Index, Part, read_index

log = logging.getLogger(__name__)

MARKER = "checkpoint.json"
_STAGING_BYTES = 1 << 30  # host memory for what is read on its way to a GPU
_NOT_IN_WEIGHTS = ("max_sequence_length", "init", "init_std")  # weights of one model go into one that differs in these alone


def load(folder: Path, model: Olmo2, optimizer: torch.optim.AdamW) -> dict[str, Any]:
    """Read weights and optimizer state in place, on any number of ranks; collective. Returns `state.json`.

    Raises TrainerError where the checkpoint is of another model or holds no optimizer state.
    """
    path = folder / "state.json"
    if not path.exists():
        raise TrainerError(f"{folder} has no state.json, so it holds weights only; give the checkpoint folder of a training run.")
    _check_model(folder, model.config)
    state: dict[str, Any] = json.loads(path.read_text())
    tensors = tensors_of(model, optimizer)
    index = _shared_index(folder)
    _check_shapes(folder, tensors, index)
    for batch in _batches(tensors):
        staged = [(local, local if local.device.type == "cpu" else torch.empty_like(local, device="cpu")) for _, local in batch]
        index.read((part.name, part.start, host) for (part, _), (_, host) in zip(batch, staged, strict=True))
        for local, host in staged:
            if host is not local:
                local.copy_(host)
    set_step_count(optimizer, state["optimizer"]["step"])
    return state


def tokenizer_of(folder: str | Path) -> str | None:
    """Hash of the tokenizer that made what a training checkpoint was trained on; None where the folder does not say, as a soup's."""
    path = Path(folder) / "state.json"
    return json.loads(path.read_text()).get("loader", {}).get("tokenizer") if path.exists() else None


def _shared_index(folder: Path) -> Index:
    """Rank 0 reads the index and tells the others, instead of every rank opening every file's header."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            path = folder / INDEX
            box = [path.read_bytes() if path.exists() else read_index(folder).encode()]
        except (TrainerError, OSError) as error:
            box = [error]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    if isinstance(box[0], Exception):
        raise box[0]
    return Index.decode(folder, box[0])


def _batches(tensors: dict[str, Tensor]) -> Iterator[list[tuple[Part, Tensor]]]:
    batch: list[tuple[Part, Tensor]] = []
    for name, tensor in tensors.items():
        part, local = local_part(name, tensor)
        if not part.elements:
            continue
        if batch and sum(each.bytes for each, _ in batch) + part.bytes > _STAGING_BYTES:
            yield batch
            batch = []
        batch.append((part, local))
    yield batch


def tensors_of(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Everything that a checkpoint stores as tensors, by flat name; loading writes into these. Weights first, each kind sorted by name."""
    weights = {name: parameter.detach() for name, parameter in sorted(model.named_parameters())}
    return weights | dict(sorted(moments(model, optimizer).items()))


def local_part(name: str, tensor: Tensor) -> tuple[Part, Tensor]:
    """Which rows of a tensor this rank holds, and their memory. Sharding: by rows over one dimension of the mesh, as FSDP and HSDP do."""
    if not isinstance(tensor, DTensor):
        return Part(name, tensor.dtype, tuple(tensor.shape)), tensor
    local, first_row = tensor.to_local(), 0
    for dimension, placement in enumerate(tensor.placements):
        if placement == Shard(0) and tensor.placements.count(placement) == 1:
            rows = math.ceil(tensor.shape[0] / tensor.device_mesh.size(dimension))
            first_row = min(rows * tensor.device_mesh.get_local_rank(dimension), tensor.shape[0])
        elif placement != Replicate():
            raise TypeError(f"{name} is placed {tensor.placements}; a checkpoint can only hold rows")
    return Part(name, tensor.dtype, tuple(local.shape), first_row), local


def parts_to_write(tensors: dict[str, Tensor], world: World) -> list[tuple[Part, Tensor]]:
    """This rank's share of what to write. Ranks that hold the same rows take the tensors in turns, so that each is written once."""
    mine = []
    for number, (name, tensor) in enumerate(tensors.items()):
        part, local = local_part(name, tensor)
        replica, replicas = world.rank, world.size
        if isinstance(tensor, DTensor):
            mesh, placements = tensor.device_mesh, tensor.placements
            replica, replicas = 0, 1
            for dimension, placement in enumerate(placements):
                if placement == Replicate():
                    replica = replica * mesh.size(dimension) + mesh.get_local_rank(dimension)
                    replicas *= mesh.size(dimension)
        if part.elements and number % replicas == replica:
            mine.append((part, local))
    return mine


def read_model_config(folder: str | Path) -> ModelConfig:
    """The model's sizes from the `config.json` of a training checkpoint or a soup. Raises TrainerError where there is none."""
    path = Path(folder) / "config.json"
    content = read_yaml(path)
    if not isinstance(content, dict) or "model" not in content:
        raise TrainerError(f"{path} names no model; give the folder of a training checkpoint or of a soup.")
    return parse(ModelConfig, content["model"], str(path), "model")


def _check_model(folder: Path, model: ModelConfig) -> None:
    stored = read_model_config(folder)
    names = [each.name for each in dataclasses.fields(model) if each.name not in _NOT_IN_WEIGHTS]
    differing = [name for name in names if getattr(stored, name) != getattr(model, name)]
    if differing:
        there, here = (", ".join(f"{name} {getattr(each, name)}" for name in differing) for each in (stored, model))
        raise TrainerError(
            f"{folder} is a checkpoint of another model ({there}) than the config's ({here}); give a checkpoint of the same model."
        )


def _check_shapes(folder: Path, tensors: dict[str, Tensor], index: Index) -> None:
    for name, tensor in tensors.items():
        if name not in index.tensors:
            raise TrainerError(f"{folder} holds no {name}; give a training checkpoint of the config's model.")
        stored = index.tensors[name]
        if stored.shape != tuple(tensor.shape) or stored.dtype != tensor.dtype:
            raise TrainerError(
                f"{folder} holds {name} of shape {list(stored.shape)}, the config's model has {list(tensor.shape)}; give a checkpoint "
                "of the same model."
                if stored.shape != tuple(tensor.shape)
                else f"{folder} holds {name} in {stored.dtype}, a run keeps it in {tensor.dtype}; give a checkpoint of a training run."
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


def remove_older(newest: Path, keep: int | None, permanent_every_steps: int | None = None) -> None:
    """Remove checkpoints beside `newest` that are older. Called on one rank.

    Those of every `permanent_every_steps`-th step stay for ever; of the others the `keep` youngest whole ones (None: all).
    """
    if keep is None:
        return
    older = sorted((path for path in newest.parent.glob("step*") if path.name < newest.name), reverse=True)
    ephemeral = [path for path in older if not (permanent_every_steps and int(path.name.removeprefix("step")) % permanent_every_steps == 0)]
    kept = [path for path in ephemeral if (path / MARKER).exists()][:keep]
    for path in ephemeral:
        if path not in kept:
            (path / MARKER).unlink(missing_ok=True)  # first, so that an interrupted removal leaves no folder that looks whole
            shutil.rmtree(path, ignore_errors=True)


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


def write_marker(folder: Path, known: dict[str, dict[str, Any]] | None = None) -> None:
    """Make a finished folder a whole checkpoint: write `checkpoint.json` over the files in it. The last thing to do to it.

    `known`: entries of files whose size and sha256 the writer has already, as `{"bytes": ..., "sha256": ...}` by name.
    """
    files = dict(known or {})
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != MARKER and path.name not in files:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_json(folder / MARKER, {"version": 1, "files": dict(sorted(files.items()))})


def load_model_tensors(folder: Path | str) -> Iterator[tuple[str, Tensor]]:
    """The weights of a checkpoint, of a run on any number of ranks or of a soup: (name, whole CPU tensor) one at a time, sorted by name.

    Moments of the optimizer are left out. Raises TrainerError where the folder holds no whole checkpoint's files; call `fault_in` to have
    the checksums compared too.
    """
    index = model_index(Path(folder))
    for name in sorted(index.tensors):
        if not name.startswith("optimizer."):
            yield name, index.whole(name)


def model_index(folder: Path) -> Index:
    """Where the tensors of a checkpoint lie. Raises TrainerError where the folder holds no whole checkpoint's files."""
    if not (folder / MARKER).exists():
        raise TrainerError(f"{folder} is no whole checkpoint (it has no {MARKER}); give the folder of a finished checkpoint.")
    return read_index(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # the disk reads on while a block is hashed
        return hashlib.file_digest(file, "sha256").hexdigest()
