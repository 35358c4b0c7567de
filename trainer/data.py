"""A compiled mix, and the order in which training reads its instances. numpy only.

The token stream of a mix is its extents laid end to end; instance i is tokens [i * L, (i + 1) * L) of it, documents not masked from one
another. An epoch visits every instance once in an order of its own; the tail that fills no whole batch is left out.
"""

from __future__ import annotations

import hashlib
import json
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.repetition import repeated_documents
from trainer.token_files import NEVER, Piece, TokenFiles

if TYPE_CHECKING:
    from trainer.parallel import World

_HEADER_KEYS = ("version", "sequence_length", "tokens", "instances", "vocab_size", "eos_id", "pad_id", "files", "bytes")
_ROWS = 8  # extents looked up at once: about as many as an instance of 4096 tokens has
_SCANNED_EXTENTS = 1 << 14  # read at once where all of them are looked at: 512 KiB, which stay in the processor's cache


class Mix:
    """A compiled mix opened for reading.

    Attributes:
        folder: where it lies.
        header: `mix.json` as a dict.
        sequence_length, tokens, instances, vocab_size, eos_id, pad_id, bytes: from the header (`bytes`: UTF-8 bytes of the texts).
        identity: sha256 of `mix.json`, hexadecimal.
        tokenizer: hash of the tokenizer that made it; None where the header does not say.
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
        self.tokenizer: str | None = self.header.get("tokenizer")
        self._extents = self._open_extents()
        # A view, read a few entries at a time by bisect: numpy's searchsorted would copy the whole strided column at each call.
        self._ends = self._extents[:, 3]
        self._files = TokenFiles(self._file_paths(files), str(self.folder))

    @property
    def remote(self) -> bool:
        """Whether token files lie behind URLs, so that reading waits for a network."""
        return self._files.remote

    def read(self, start: int, length: int) -> npt.NDArray[np.uint32]:
        """Tokens [start, start + length) of the mix's stream, shape (length,)."""
        return self._gather([start], length, NEVER)[0]

    def instance(self, number: int) -> npt.NDArray[np.uint32]:
        """Instance `number`, shape (sequence_length,)."""
        return self.read(number * self.sequence_length, self.sequence_length)

    def read_instances(self, numbers: Sequence[int], stopped: threading.Event = NEVER) -> npt.NDArray[np.uint32]:
        """These instances, read together, shape (instances, sequence_length). `stopped` as in `TokenFiles.gather`."""
        return self._gather([number * self.sequence_length for number in numbers], self.sequence_length, stopped)

    def fault_in_files(self, rank: int = 0, ranks: int = 1) -> str | None:
        """What is wrong with a token file that is missing or holds fewer tokens than the extents take from it; None: nothing.

        Each rank looks at its share of the extents and at the files that they name; nothing of them stays in memory.
        """
        rows = len(self._extents)
        first, last = rows * rank // ranks, rows * (rank + 1) // ranks
        needed = np.zeros(self._files.number, np.int64)
        # Not by the memory map, of which every page would count as this process's memory.
        with (self.folder / "extents.npy").open("rb") as file:
            file.seek(-32 * (rows - first), 2)
            block = np.empty((_SCANNED_EXTENTS, 4), "<i8")
            for start in range(first, last, len(block)):
                read = block[: last - start]
                file.readinto(read.data.cast("B"))
                # Extents of one file follow each other, nearly always.
                begins = np.append(0, np.flatnonzero(read[1:, 0] != read[:-1, 0]) + 1)
                files = read[begins, 0]
                if files.min() < 0 or files.max() >= len(needed):
                    return f"{file.name} names a token file that mix.json does not; compile the mix again."
                np.maximum.at(needed, files, np.maximum.reduceat(read[:, 1] + read[:, 2], begins))
        return self._files.fault(needed)

    def _gather(self, starts: Sequence[int], length: int, stopped: threading.Event) -> npt.NDArray[np.uint32]:
        pieces: list[Piece] = []
        for number, start in enumerate(starts):
            if start < 0 or start + length > self.tokens:
                raise ValueError(f"tokens {start} to {start + length} are not inside the mix's {self.tokens}")
            filled = 0
            for file, first, size, end in self._extents_from(start):
                offset = start + filled - (end - size)
                take = min(size - offset, length - filled)
                if offset < 0 or take < 0:
                    break
                if take:
                    pieces.append((file, first + offset, take, number * length + filled))
                filled += take
                if filled == length:
                    break
            if filled < length:
                raise TrainerError(f"{self.folder / 'extents.npy'} contradicts itself at token {start + filled}; compile the mix again.")
        out = np.empty((len(starts), length), np.uint32)
        self._files.gather(pieces, out.reshape(-1), stopped)
        return out

    def _extents_from(self, token: int) -> Iterator[list[int]]:
        """The extents in order from the one that holds `token`: file, first token in it, tokens, end."""
        for row in range(bisect_right(self._ends, token), len(self._extents), _ROWS):
            yield from self._extents[row : row + _ROWS].tolist()

    def _open_extents(self) -> npt.NDArray[np.int64]:
        path = self.folder / "extents.npy"
        try:
            extents = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise TrainerError(f"{path} cannot be read ({error}); compile the mix again.") from None
        if extents.ndim != 2 or extents.shape[1] != 4 or extents.dtype != np.int64 or not extents.flags.c_contiguous:
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

    def batch(self, number: int, stopped: threading.Event = NEVER) -> Batch:
        """Read batch `number`; `stopped` as in `TokenFiles.gather`.

        Raises TrainerError naming the file that cannot be read, or the instance where an id is outside the vocabulary.
        """
        numbers, length = self.instance_numbers(number), self.mix.sequence_length
        ids = self.mix.read_instances(numbers.tolist(), stopped)
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


def check_files(mix: Mix, world: World) -> None:
    """Collective. TrainerError on every rank, naming the file, where a token file is missing or holds less than the mix takes from it."""
    faults = [fault for fault in world.gather(mix.fault_in_files(world.rank, world.size)) if fault]
    if faults:
        raise TrainerError(faults[0])


def check_tokenizer(mix: Mix, tokenizer: str | None, of: str) -> None:
    """TrainerError where a mix was made by another tokenizer than the one with that hash, which made `of`; what is not known may be right."""
    if mix.tokenizer and tokenizer and mix.tokenizer != tokenizer:
        raise TrainerError(
            f"the mix {mix.folder} was made by another tokenizer ({mix.tokenizer[:12]}) than {of} ({tokenizer[:12]}); compile it with the "
            "same tokenizer."
        )


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
