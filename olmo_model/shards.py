"""A model's tensors as safetensors files, named and indexed as Hugging Face expects, written and read one at a time."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from olmo_model.config import ModelConfig

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 4_000_000_000


def check_tensors(tensors: Iterable[tuple[str, Tensor]], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Passes the tensors on; raises ValueError at one that the model does not have, of another shape, given twice, or left out."""
    expected = config.parameter_shapes()
    for name, tensor in tensors:
        shape = expected.pop(name, None)
        if shape is None:
            raise ValueError(f"tensor {name} does not belong to this model, or came twice")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"tensor {name} has the shape {list(tensor.shape)} where this model has {list(shape)}")
        yield name, tensor
    if expected:
        raise ValueError(f"{len(expected)} of the model's tensors are missing, the first being {next(iter(expected))}")


def write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes `model.safetensors`, or numbered files of at most ``max_shard_bytes`` and the index that names the file of each tensor.

    Holds one file's tensors at a time; a tensor over the limit gets a file to itself. Files of an earlier model are removed first.
    """
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    names: list[list[str]] = []
    total_bytes = 0
    for number, group in enumerate(_grouped(tensors, max_shard_bytes), start=1):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}, _part(folder, number), {"format": "pt"})
        names.append(list(group))
        total_bytes += sum(tensor.nbytes for tensor in group.values())
    if len(names) == 1:
        _part(folder, 1).rename(folder / SINGLE)
        return
    # A file's name tells how many there are, which is known only now.
    weight_map: dict[str, str] = {}
    for number, group_names in enumerate(names, start=1):
        final = _part(folder, number).rename(folder / f"model-{number:05d}-of-{len(names):05d}.safetensors")
        weight_map |= dict.fromkeys(group_names, final.name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder made by `write_tensors` or by Hugging Face, one at a time. Raises FileNotFoundError without a model."""
    index = folder / INDEX
    files = [SINGLE]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a file handle, not a dict)
                yield name, tensors.get_tensor(name)


def _part(folder: Path, number: int) -> Path:
    return folder / f"model-{number:05d}.safetensors.part"


def _grouped(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    group_bytes = 0
    for name, tensor in tensors:
        if group and group_bytes + tensor.nbytes > max_bytes:
            yield group
            group, group_bytes = {}, 0
        group[name] = tensor
        group_bytes += tensor.nbytes
    yield group
