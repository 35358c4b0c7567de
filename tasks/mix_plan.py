"""The plan of a mix: which documents of which source, how many times (report section 4.3, Table 13).

Everything here works on a token index (key, file, start, length of each document); no text and no token is read. A document's place in line
comes from its key and the mix's seed alone, so that a smaller share of a source is a subset of a larger one, and mixes of several sizes
share documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.errors import UserError

# Seed of the documents kept back for evaluation: one for all mixes, so that no mix trains on what another keeps back.
HELD_OUT_SEED = 0x68656C646F7574
MAX_COPIES = np.iinfo(np.uint16).max


class MixSource(BaseModel):
    """How much of one source a mix takes: `repeat` times the source's tokens, or a `share` of the mix's tokens."""

    model_config = ConfigDict(extra="forbid")

    repeat: float | None = Field(None, gt=0, le=MAX_COPIES, description="Copies of the source: 0.5 is half of it, 2 is all of it twice.")
    share: float | None = Field(None, gt=0, le=1, description="Share of the mix's tokens that come from the source.")
    max_repeat: float = Field(1.0, gt=0, le=MAX_COPIES, description="Most copies that a share may need before it is an error.")

    @model_validator(mode="after")
    def _one_of_two(self) -> MixSource:
        if (self.repeat is None) == (self.share is None):
            raise ValueError("a source of a mix has either a repeat or a share: give exactly one of the two")
        return self


class MixSpec(BaseModel):
    """A mix of sources.

    Sources with a `repeat` give that many times their tokens. Sources with a `share` give that share of the mix's total, which is `tokens`
    where all sources have shares (they then sum to 1), and else (tokens of the repeated sources) / (1 - sum of the shares): "all of the
    mathematics twice, and half of the mix from the web" needs no arithmetic.
    """

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(ge=0, lt=2**64, description="Chooses the documents of fractions of a source.")
    sequence_length: int = Field(gt=0, description="Tokens of a training instance.")
    tokens: int | None = Field(None, gt=0, description="Tokens of the whole mix, where all sources have shares.")
    sources: dict[str, MixSource] = Field(min_length=1, description="The sources by name, in the order in which the mix holds them.")
    pack: bool = Field(False, description="Write the mix out as contiguous token files, for runs on many nodes and for OLMo-core.")

    @model_validator(mode="after")
    def _adds_up(self) -> MixSpec:
        shares = math.fsum(source.share or 0.0 for source in self.sources.values())
        repeated = [name for name, source in self.sources.items() if source.repeat is not None]
        if not repeated and self.tokens is None:
            raise ValueError("all sources of the mix have shares, so nothing says how large it is: set tokens")
        if not repeated and abs(shares - 1) > 1e-6:
            raise ValueError(f"the shares of the mix sum to {shares:.6g}, not to 1: mend them, or give one source a repeat")
        if repeated and self.tokens is not None:
            raise ValueError(f"the size of the mix follows from the repeat of {repeated[0]}: leave out tokens, or give shares only")
        if repeated and shares >= 1:
            raise ValueError(f"the shares of the mix sum to {shares:.6g} and leave no room for {repeated[0]}: they must stay under 1")
        return self


def resolve(spec: MixSpec, available: Mapping[str, int]) -> dict[str, float]:
    """Copies of each source that the mix takes, from the tokens that each source has (`available`, after selection).

    Raises:
        UserError: a source is unknown or has no tokens, or a share needs more copies of its source than `max_repeat` allows.
    """
    for name in spec.sources:
        if name not in available:
            raise UserError(f"the mix wants the source {name}, but there are only {', '.join(available) or 'none'}")
        if available[name] <= 0:
            raise UserError(f"the source {name} of the mix has no tokens left: loosen its filters, or take it out of the mix")
    total = float(spec.tokens or 0)
    if spec.tokens is None:
        repeated = math.fsum(source.repeat * available[name] for name, source in spec.sources.items() if source.repeat is not None)
        total = repeated / (1 - math.fsum(source.share or 0.0 for source in spec.sources.values()))
    repeats, short = {}, []
    for name, source in spec.sources.items():
        repeats[name] = source.repeat if source.repeat is not None else (source.share or 0.0) * total / available[name]
        if source.share is not None and repeats[name] > source.max_repeat * (1 + 1e-9):
            short.append(f"{name} (max_repeat {source.max_repeat:g}; {math.ceil(repeats[name] * 1000) / 1000:.3f} would do)")
    if short:
        raise UserError(f"a mix of {total:.4g} tokens needs too many copies of {', '.join(short)}: raise max_repeat or lower the share")
    return repeats


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finalizer (Steele et al., 2014), uint64[n] to uint64[n]: a bijection whose outputs look random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def order(keys: np.ndarray, seed: int) -> np.ndarray:
    """Place in line of each document under a seed, uint64[n]: the smallest go first into a fraction of a source."""
    return splitmix64(np.asarray(keys, np.uint64) ^ splitmix64(np.array([seed], np.uint64)))


@dataclass(frozen=True)
class Front:
    """The documents first in line: all before `place`, and as many at it as `ties`, the first in the index before the others."""

    place: int
    ties: int

    @staticmethod
    def of(line: np.ndarray, count: int) -> Front:
        """The first `count` documents of a line, uint64[n], sorted; where `count` is 0, all that stand before the line."""
        if not count:
            return Front(int(line[0]) if len(line) else 0, 0)
        return Front(int(line[count - 1]), count - int(np.searchsorted(line, line[count - 1])))

    def take(self, places: np.ndarray) -> tuple[np.ndarray, Front]:
        """Which of the next documents of the index, uint64[n], are of the front, bool[n]; and the front for those after them."""
        taken = places < np.uint64(self.place)
        tied = np.flatnonzero(places == np.uint64(self.place))[: self.ties]
        taken[tied] = True
        return taken, Front(self.place, self.ties - len(tied))


def nearest_front(places: np.ndarray, lengths: np.ndarray, tokens: float, before: int = 0) -> Front:
    """The front whose tokens come nearest to `tokens`, the shorter of two that come equally near.

    places, lengths: uint64[n] and tokens of each, in the order of the index; documents with `before` tokens in all stand before them in line.
    """
    line = np.argsort(places, kind="stable")
    ends = before + np.concatenate([[0], np.cumsum(lengths[line], dtype=np.int64)])
    over = min(int(np.searchsorted(ends, tokens)), len(line))  # the shortest prefix that reaches the tokens
    under = max(over - 1, 0)
    return Front.of(places[line], over if ends[over] - tokens < tokens - ends[under] else under)


def plan_copies(keys: np.ndarray, lengths: np.ndarray, repeat: float, seed: int) -> np.ndarray:
    """Copies of each document of a source, uint16[n], from its keys, uint64[n], and lengths in tokens, int64[n].

    Each document has floor(repeat) copies, and those first in line under the seed one more: so many of them that the tokens come nearest to
    `repeat` times all tokens, at most half a document off. What a smaller `repeat` takes, a larger one takes too.
    """
    whole, tokens = split_repeat(repeat, int(lengths.sum()))
    places = order(keys, seed)
    taken, _ = nearest_front(places, lengths, tokens).take(places)
    return np.uint16(whole) + taken.astype(np.uint16)


def split_repeat(repeat: float, available: int) -> tuple[int, float]:
    """Copies that each document of a source has, and the tokens of those first in line that have one more, of `available` tokens."""
    if not 0 <= repeat <= MAX_COPIES:
        raise UserError(f"a source cannot be repeated {repeat:g} times: give a repeat from 0 to {MAX_COPIES}")
    whole = math.floor(repeat)
    return whole, (repeat - whole) * float(available)


def held_out(keys: np.ndarray, share: float, seed: int = HELD_OUT_SEED) -> np.ndarray:
    """Documents to keep back for evaluation, bool[n]: about `share` of them, each by its own key, whatever the other documents are."""
    if not 0 <= share < 1:
        raise UserError(f"the share of documents held out is {share:g}: give a number from 0 to under 1")
    return (order(keys, seed) >> np.uint64(11)) * 2.0**-53 < share


class Taken(TypedDict):
    """What a mix takes of a source."""

    available: int  # tokens that the source has
    tokens: int  # tokens taken, every copy counted; repeat x available when only planning
    documents: int  # documents taken, each counted once
    repeat: float  # copies asked for, as `resolve` gave them


class CompositionRow(TypedDict):
    """A source in a mix, in the columns of the report's Table 13. "Source %" over 100 means repetition: 400 is four copies."""

    source: str
    available_tokens: int
    source_percent: float  # tokens / available_tokens: what whole documents made of `repeat`
    tokens: int
    mix_percent: float  # tokens / tokens of the mix
    documents: int
    repeat: float


def composition(sources: Mapping[str, Taken]) -> list[CompositionRow]:
    """The composition of a mix, a row for each source in the order given; percentages are computed, never copied from a report."""
    total = sum(taken["tokens"] for taken in sources.values())
    return [
        CompositionRow(
            source=name,
            available_tokens=taken["available"],
            source_percent=100 * taken["tokens"] / taken["available"],
            tokens=taken["tokens"],
            mix_percent=100 * taken["tokens"] / total if total else 0.0,
            documents=taken["documents"],
            repeat=taken["repeat"],
        )
        for name, taken in sources.items()
    ]


def extents(file: np.ndarray, start: np.ndarray, length: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """The token stream of one source, as int64[m, 4]: file index, start, length, end (running total that includes the extent), in tokens.

    First come all documents with a copy, in the order given (file, row), then those with a second, and so on, so that copies lie a whole
    source apart. Documents that touch in a file are one extent.

    Args:
        file: index of each document's token file, int32[n].
        start: where it begins in the file, in tokens, int64[n].
        length: its tokens, EOS included, int32 or int64[n].
        copies: how many times the mix takes it, uint16[n].
    """
    passes = [np.flatnonzero((copies > done) & (length > 0)) for done in range(int(copies.max(initial=0)))]
    rows = np.concatenate([*passes, np.empty(0, np.int64)]).astype(np.int64)
    file, start, length = (np.asarray(column)[rows].astype(np.int64) for column in (file, start, length))
    begins = np.ones(len(rows), bool)
    begins[1:] = (file[1:] != file[:-1]) | (start[1:] != start[:-1] + length[:-1])
    first = np.flatnonzero(begins)
    ends = np.cumsum(length)[np.append(first[1:], len(rows)) - 1] if len(rows) else np.empty(0, np.int64)
    return np.column_stack([file[first], start[first], np.diff(ends, prepend=0), ends])


def join_extents(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Streams one after the other as one int64[m, 4], whose running total goes on from that of the first. Where two touch they share an extent."""
    parts = [part for part in parts if len(part)]
    joined = np.concatenate([*parts, np.empty((0, 4), np.int64)])
    before = int(joined[0, 3] - joined[0, 2]) if len(joined) else 0
    merged = []
    for seam in np.cumsum([len(part) for part in parts[:-1]]).tolist():
        file, start, length, _ = joined[seam - 1].tolist()
        if joined[seam, :2].tolist() == [file, start + length]:
            joined[seam, 1:3] = start, length + joined[seam, 2]
            merged.append(seam - 1)
    joined = np.delete(joined, merged, axis=0) if merged else joined
    joined[:, 3] = before + np.cumsum(joined[:, 2])
    return joined
