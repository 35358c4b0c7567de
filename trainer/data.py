"""A compiled mix, and the order in which training reads its instances. numpy only.

The token stream of a mix is its extents laid end to end; instance i is tokens [i * L, (i + 1) * L) of it, documents not masked from one
another. An epoch visits every instance once in an order of its own; the tail that fills no whole batch is left out.
"""

from __future__ import annotations

import hashlib
import json
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.repetition import repeated_documents

_HEADER_KEYS = ("version", "sequence_length", "tokens", "instances", "vocab_size", "eos_id", "pad_id", "files", "bytes")
RANGE_WAITS_SECONDS: tuple[float, ...] = (1, 2, 4, 8, 15, 30)  # between the attempts at a ranged read
_OPEN_FILES = 512  # memory maps kept at once, well under Linux's limit of 65530 mappings a process


class Mix:
    """A compiled mix opened for reading.

    Attributes:
        folder: where it lies.
        header: `mix.json` as a dict.
        sequence_length, tokens, instances, vocab_size, eos_id, pad_id, bytes: from the header (`bytes`: UTF-8 bytes of the texts).
        identity: sha256 of `mix.json`, hexadecimal.
    """

    def __init__(self, folder: str | Path, files: str | Path | None = None) -> None:
        """Open the mix in `folder`; `files` as in `DataConfig.files`. Raises TrainerError where it is missing or contradicts itself."""
        self.folder = Path(folder)
        content = _read(self.folder / "mix.json")
        self.identity = hashlib.sha256(content).hexdigest()
        self.header: dict[str, Any] = _json(content, self.folder / "mix.json")
        missing = [key for key in _HEADER_KEYS if key not in self.header]
        if missing or self.header["version"] != 1:
            fault = f"has no {missing[0]}" if missing else f"is version {self.header['version']}, not 1"
            raise TrainerError(f"{self.folder / 'mix.json'} {fault}; compile the mix again with this release.")
        self.sequence_length: int = self.header["sequence_length"]
        self.tokens: int = self.header["tokens"]
        self.instances: int = self.header["instances"]
        self.vocab_size: int = self.header["vocab_size"]
        self.eos_id: int = self.header["eos_id"]
        self.pad_id: int = self.header["pad_id"]
        self.bytes: int = self.header["bytes"]
        self._extents = self._open_extents()
        # A view, read a few entries at a time by bisect: numpy's searchsorted would copy the whole strided column at each call.
        self._ends = self._extents[:, 3]
        self._paths = self._file_paths(files)
        self._open = lru_cache(maxsize=_OPEN_FILES)(_open_tokens)

    def read(self, start: int, length: int) -> npt.NDArray[np.uint32]:
        """Tokens [start, start + length) of the mix's stream, shape (length,)."""
        if start < 0 or start + length > self.tokens:
            raise ValueError(f"tokens {start} to {start + length} are not inside the mix's {self.tokens}")
        out = np.empty(length, np.uint32)
        filled, row = 0, bisect_right(self._ends, start)
        while filled < length:
            file, first, size, end = (int(number) for number in self._extents[row])
            offset = start + filled - (end - size)
            take = min(size - offset, length - filled)
            out[filled : filled + take] = self._read_file(file, first + offset, take)
            filled, row = filled + take, row + 1
        return out

    def instance(self, number: int) -> npt.NDArray[np.uint32]:
        """Instance `number`, shape (sequence_length,)."""
        return self.read(number * self.sequence_length, self.sequence_length)

    def _read_file(self, file: int, start: int, length: int) -> npt.NDArray[np.uint32]:
        path = self._paths[file]
        tokens = _read_range(path, start, length) if "://" in path else self._open(path)[start : start + length]
        if len(tokens) != length:
            raise TrainerError(
                f"{path} ends before token {start + length}, which the mix {self.folder} asks for; tokenize its source again."
            )
        return tokens

    def _open_extents(self) -> npt.NDArray[np.int64]:
        path = self.folder / "extents.npy"
        try:
            extents = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise TrainerError(f"{path} cannot be read ({error}); compile the mix again.") from None
        if extents.ndim != 2 or extents.shape[1] != 4 or extents.dtype != np.int64:
            raise TrainerError(f"{path} holds {extents.dtype}{list(extents.shape)}, not int64[n, 4]; compile the mix again.")
        total = int(extents[-1, 3]) if len(extents) else 0
        if total != self.tokens:
            raise TrainerError(f"{path} holds {total} tokens where mix.json says {self.tokens}; compile the mix again.")
        return extents.view(np.ndarray)  # plain indexing is several times faster than memmap's

    def _file_paths(self, files: str | Path | None) -> list[str]:
        names = self.header["files"]
        if files is None:
            return [str(self.folder / name) for name in names]
        paths = _json(_read(Path(files)), Path(files))
        if not isinstance(paths, list) or len(paths) != len(names):
            raise TrainerError(f"{files} must be a list of {len(names)} paths, one for each of the files of {self.folder / 'mix.json'}.")
        return [str(path) for path in paths]


def permute(positions: npt.NDArray[np.int64], size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Instances at the given positions of the permutation of range(size) that (seed, epoch) chooses.

    A Feistel network over the next power of four, walked until it falls inside the range: any part of the order is had without holding
    the whole, which at 5e12 tokens would be 10 GB a rank.
    """
    half = max(2, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = _splitmix64(np.arange(8, dtype=np.uint64) + _splitmix64(np.array([epoch], np.uint64) ^ _splitmix64(np.array([seed], np.uint64))))
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), np.bool_)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_splitmix64(right ^ key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= size
    return values.astype(np.int64)


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), element by element."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch: `ids` int64 of shape (instances, sequence_length); `kept` bool a instance, False: loss masked."""

    ids: npt.NDArray[np.int64]
    kept: npt.NDArray[np.bool_]


class Loader:
    """One rank's view of a run's batches. Stateless: batch `number` (from 0) is a function of the mix and the config alone.

    Ranks take consecutive pieces of each global batch, so the global batch does not depend on their number.
    """

    def __init__(self, mix: Mix, config: TrainConfig, rank: int, ranks: int) -> None:
        """Raises TrainerError where mix, model, batch and ranks do not fit together."""
        check_fit(mix, config, ranks)
        self.mix = mix
        self.batches_per_epoch = mix.instances // config.global_batch_instances
        self._batch = config.global_batch_instances
        self._first = rank * (self._batch // ranks)
        self._own = self._batch // ranks
        self._seed = config.data.seed
        self._mask_repetitions = config.data.mask_repetitions

    def instance_numbers(self, number: int) -> npt.NDArray[np.int64]:
        """Which instances of the mix this rank sees in batch `number`, shape (instances of this rank,)."""
        epoch, batch = divmod(number, self.batches_per_epoch)
        positions = np.arange(self._own, dtype=np.int64) + (batch * self._batch + self._first)
        return permute(positions, self.mix.instances, self._seed, epoch)

    def batch(self, number: int) -> Batch:
        """Read batch `number`. Raises TrainerError naming the instance where an id is outside the vocabulary."""
        numbers, length = self.instance_numbers(number), self.mix.sequence_length
        ids = np.stack([self.mix.instance(int(each)) for each in numbers])
        if ids.max() >= self.mix.vocab_size:
            bad = int(numbers[np.flatnonzero((ids >= self.mix.vocab_size).any(axis=1))[0]])
            raise TrainerError(
                f"instance {bad} of the mix {self.mix.folder} holds id {ids.max()}, outside its vocabulary of {self.mix.vocab_size}; "
                "a token file is damaged or of another tokenizer: tokenize its source again."
            )
        kept = np.ones(len(ids), np.bool_)
        if self._mask_repetitions:
            kept = ~repeated_documents(ids.reshape(-1), np.arange(len(ids)) * length, np.full(len(ids), length))
        return Batch(ids.astype(np.int64), kept)


def check_fit(mix: Mix, config: TrainConfig, ranks: int) -> None:
    """TrainerError where a mix, a config and a number of ranks do not go together."""
    batch, share = config.global_batch_instances, ranks * config.micro_batch_instances
    if mix.vocab_size != config.model.vocab_size:
        raise TrainerError(
            f"the mix {mix.folder} was made with another vocabulary ({mix.vocab_size} ids) than the model's (model.vocab_size "
            f"{config.model.vocab_size}); compile the mix with the model's tokenizer or change model.vocab_size."
        )
    if mix.sequence_length != config.sequence_length:
        raise TrainerError(
            f"sequence_length is {config.sequence_length} but the mix {mix.folder} is cut into instances of {mix.sequence_length} tokens; "
            "set the same in both."
        )
    if batch % share:
        raise TrainerError(
            f"global_batch_instances {batch} is not divisible by ranks x micro_batch_instances ({ranks} x {config.micro_batch_instances} = "
            f"{share}); change one of them."
        )
    if mix.instances < batch:
        raise TrainerError(
            f"the mix {mix.folder} has {mix.instances} instances, fewer than one batch of {batch} (global_batch_instances); take a larger "
            "mix or a smaller batch."
        )


def _open_tokens(path: str) -> npt.NDArray[np.uint32]:
    try:
        # An empty file cannot be mapped.
        return np.memmap(path, "<u4", "r").view(np.ndarray) if Path(path).stat().st_size else np.empty(0, np.uint32)
    except (OSError, ValueError) as error:
        raise TrainerError(f"token file {path} cannot be read ({error}); check data.files and the mix's folder.") from None


def _read_range(url: str, start: int, length: int) -> npt.NDArray[np.uint32]:
    """Tokens of a file behind a URL, by one ranged read; asked for again where the storage fails or sends less."""
    import fsspec  # the one optional dependency: only for token files that are not on a disk

    filesystem, path = fsspec.core.url_to_fs(url)
    waits = iter(RANGE_WAITS_SECONDS)
    while True:
        try:
            content = filesystem.cat_file(path, start=4 * start, end=4 * (start + length))
            if len(content) == 4 * length:
                return np.frombuffer(content, "<u4")
            fault = f"it has {len(content)} bytes where {4 * length} were asked for"
        except FileNotFoundError as error:
            raise TrainerError(f"token file {url} cannot be read ({error}); check data.files.") from None
        except Exception as error:  # clients of object stores raise whatever they like
            fault = f"{type(error).__name__}: {error}"
        wait = next(waits, None)
        if wait is None:
            raise TrainerError(f"token file {url} cannot be read ({fault}); check data.files and its storage, and start again.")
        time.sleep(wait)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainerError(f"{path} cannot be read ({error.strerror}); check data.mix and data.files.") from None


def _json(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise TrainerError(f"{path} is not valid JSON ({error}).") from None
