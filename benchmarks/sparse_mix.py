"""A mix as large as one for pretraining, with holes for what nobody looks at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def write(folder: Path, sequence_length: int, instances: int, files: int, numbers: list[int]) -> Path:
    """A mix of very many instances, an extent each, of which only what reading the instances `numbers` looks at is on the disk.

    Token files and extents have their full size, but for that they are holes. The first id of instance n is n + 1.
    """
    folder.mkdir(parents=True)
    per_file = -(-instances // files)
    names = [f"tokens-{file:05}.npy" for file in range(files)]
    for name in names:
        with (folder / name).open("wb") as tokens:
            tokens.truncate(4 * sequence_length * per_file)
    with (folder / "extents.npy").open("wb") as extents:
        np.lib.format.write_array_header_1_0(extents, {"descr": "<i8", "fortran_order": False, "shape": (instances, 4)})
        begin = extents.tell()
        extents.truncate(begin + 32 * instances)
        for row in {row for number in numbers for row in _looked_at(number, instances)} | {instances - 1}:
            around = np.arange(row // 128 * 128, min(row // 128 * 128 + 256, instances))
            rows = np.stack(
                [
                    around // per_file,
                    around % per_file * sequence_length,
                    np.full(len(around), sequence_length),
                    (around + 1) * sequence_length,
                ],
                axis=1,
            )
            extents.seek(begin + 32 * int(around[0]))
            extents.write(rows.astype("<i8").tobytes())
    for number in numbers:
        with (folder / names[number // per_file]).open("r+b") as tokens:
            tokens.seek(4 * sequence_length * (number % per_file))
            tokens.write(np.array([number + 1], "<u4").tobytes())
    header = {"version": 1, "sequence_length": sequence_length, "tokens": instances * sequence_length, "instances": instances}
    header |= {"vocab_size": 2**32, "eos_id": 0, "pad_id": 0, "tokenizer": "", "files": names, "bytes": 4 * instances * sequence_length}
    (folder / "mix.json").write_text(json.dumps(header))
    return folder


def _looked_at(number: int, rows: int) -> Iterator[int]:
    """The rows that a binary search for row `number` compares with."""
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        yield middle
        if number < middle:
            high = middle
        else:
            low = middle + 1
    yield number
