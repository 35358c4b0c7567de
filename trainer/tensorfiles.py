"""Tensors in safetensors files, written and read by byte ranges: parts of any number of ranks in, parts of any other number out.

The format is plain (safetensors' README, "Format"): 8 bytes of length, a JSON header, the tensors' bytes. A rank's part of a tensor is a range
of its rows, hence a range of its elements, so that sharding anew is an intersection of ranges. Each file notes where its parts begin
(`DCP_SHARDING_INFO`, as torch.distributed.checkpoint's safetensors storage does, which reads these files too); `tensors.json` gathers the
notes of all files, so that a reader opens only the files that it needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import TrainerError

INDEX = "tensors.json"
_NOTES = "__metadata__"
_SHARDING = "DCP_SHARDING_INFO"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Part:
    """Rows `first_row` to `first_row + shape[0]` of the tensor `name`, which is as wide as `shape` says; a scalar is one row."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    first_row: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def start(self) -> int:
        """Number of its first element in the whole tensor, flattened."""
        return self.first_row * math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize


def header(parts: list[Part]) -> bytes:
    """The beginning of a safetensors file whose data are the parts' bytes, one after the other."""
    notes = {part.name: {"saved_offsets": [part.first_row, *[0] * (len(part.shape) - 1)][: len(part.shape)]} for part in parts}
    content: dict[str, Any] = {_NOTES: {_SHARDING: json.dumps(notes, separators=(",", ":")), "DCP_VERSION": "1.0", "format": "pt"}}
    end = 0
    for part in parts:
        begin, end = end, end + part.bytes
        content[part.name] = {"dtype": _NAMES[part.dtype], "shape": list(part.shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Stored:
    """A tensor in files. `pieces`: int64 of shape (pieces, 4), by their start: file's number, byte in it, first element, elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: np.ndarray


@dataclass(frozen=True)
class Index:
    """Where each tensor of a folder lies."""

    folder: Path
    files: list[str]
    tensors: dict[str, Stored]

    def encode(self) -> bytes:
        """As JSON: `tensors.json`."""
        tensors = {
            name: {"dtype": _NAMES[each.dtype], "shape": list(each.shape), "pieces": each.pieces.reshape(-1).tolist()}
            for name, each in self.tensors.items()
        }
        return json.dumps({"version": 1, "files": self.files, "tensors": tensors}, separators=(",", ":")).encode()

    @staticmethod
    def decode(folder: Path, text: bytes) -> Index:
        """The index that `encode` wrote. Raises TrainerError where it is none."""
        try:
            content = json.loads(text)
            tensors = {
                name: Stored(_DTYPES[each["dtype"]], tuple(each["shape"]), np.array(each["pieces"], np.int64).reshape(-1, 4))
                for name, each in content["tensors"].items()
            }
            return Index(folder, content["files"], tensors)
        except (ValueError, KeyError, TypeError):
            raise TrainerError(f"{folder / INDEX} is no index of tensors; give a whole checkpoint.") from None

    def pieces(self, name: str, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """What to read for `count` elements of a tensor from `start` on: (file's number, byte in it, elements before it, elements).

        Raises TrainerError where the files hold less.
        """
        stored, done = self.tensors[name], 0
        first = max(0, int(np.searchsorted(stored.pieces[:, 2], start, side="right")) - 1)
        for file, offset, begin, length in stored.pieces[first:].tolist():
            skip = start + done - begin
            if done == count or skip < 0:
                break
            take = min(length - skip, count - done)
            if take > 0:
                yield file, offset + skip * stored.dtype.itemsize, done, take
                done += take
        if done < count:
            raise TrainerError(f"{self.folder} holds only a part of {name}; give a whole checkpoint.")

    def read(self, wanted: Iterable[tuple[str, int, Tensor]]) -> None:
        """Fill each contiguous CPU tensor of (name, start, tensor) with the elements from `start` on; every file is opened once."""
        reads: dict[int, list[tuple[int, memoryview]]] = {}
        for name, start, tensor in wanted:
            view, size = bytes_of(tensor), tensor.element_size()
            for file, offset, before, count in self.pieces(name, start, tensor.numel()):
                reads.setdefault(file, []).append((offset, view[before * size : (before + count) * size]))
        for file, ranges in sorted(reads.items()):
            with (self.folder / self.files[file]).open("rb", buffering=0) as stream:
                for offset, view in sorted(ranges, key=lambda each: each[0]):
                    read_exactly(stream, offset, view)

    def whole(self, name: str) -> Tensor:
        """A tensor with all its rows, on the CPU."""
        tensor = torch.empty(self.tensors[name].shape, dtype=self.tensors[name].dtype)
        self.read([(name, 0, tensor)])
        return tensor


def make_index(folder: Path, files: list[str], tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]], table: np.ndarray) -> Index:
    """The index of `tensors` (name: dtype and whole shape) whose parts are the rows of `table`.

    `table` is int64 of shape (parts, 5): number of the tensor, of the file, byte in it, first element, elements.
    """
    table = table[np.lexsort((table[:, 3], table[:, 0]))]
    bounds = np.searchsorted(table[:, 0], np.arange(len(tensors) + 1))
    stored = {name: Stored(*each, table[bounds[n] : bounds[n + 1], 1:]) for n, (name, each) in enumerate(tensors.items())}
    return Index(folder, files, stored)


def read_index(folder: Path) -> Index:
    """A folder's `tensors.json`, or the same from the headers of its safetensors files where it has none."""
    if (folder / INDEX).exists():
        return Index.decode(folder, (folder / INDEX).read_bytes())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    numbers: dict[str, int] = {}
    table = []
    for file, file_name in enumerate(files):
        for offset, part in _read_header(folder / file_name):
            _, known = tensors.setdefault(part.name, (part.dtype, part.shape))
            if known[1:] != part.shape[1:]:
                raise TrainerError(f"the files of {folder} disagree about the shape of {part.name}; give a whole checkpoint.")
            if part.shape:
                tensors[part.name] = part.dtype, (max(known[0], part.first_row + part.shape[0]), *part.shape[1:])
            table.append((numbers.setdefault(part.name, len(numbers)), file, offset, part.start, part.elements))
    return make_index(folder, files, tensors, np.array(table, np.int64).reshape(-1, 5))


def _read_header(path: Path) -> Iterator[tuple[int, Part]]:
    """(byte in the file, part) of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            content = json.loads(file.read(min(length, path.stat().st_size)))
        notes = json.loads(content.pop(_NOTES, {}).get(_SHARDING, "{}"))
        for name, each in content.items():
            offsets = notes[name]["saved_offsets"] if name in notes else []
            if any(offsets[1:]):
                raise TrainerError(f"{path} holds a block of {name}, not rows of it; give a checkpoint that is cut along rows.")
            part = Part(name, _DTYPES[each["dtype"]], tuple(each["shape"]), offsets[0] if offsets else 0)
            yield 8 + length + each["data_offsets"][0], part
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TrainerError(f"{path} is no safetensors file of floats; give a whole checkpoint.") from None


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def read_exactly(stream: FileIO, offset: int, view: memoryview) -> None:
    """Fill `view` from the byte `offset` on. Raises TrainerError where the file ends before."""
    stream.seek(offset)
    while len(view):
        count = stream.readinto(view)
        if not count:
            raise TrainerError(f"{stream.name} ends early; give a whole checkpoint.")
        view = view[count:]


def write_all(stream: FileIO, content: bytes | memoryview) -> None:
    """Write all of it, however little the system takes at once."""
    view = memoryview(content)
    while len(view):
        view = view[stream.write(view) or 0 :]
