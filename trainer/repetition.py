"""The report's repetition rule, decided exactly and fast (OLMo 2 report, section 3.1: no n-gram of 1 to 13 tokens 32 or more times).

An n-gram of p tokens repeated `repeats` times in a row is a run of at least `(repeats - 1) * p` consecutive positions i of one document
with `tokens[i] == tokens[i - p]`. What repeats every p tokens also repeats every d = m * p, in a run of at least `repeats * p - d`
positions. So several periods share one distance d, and probing one position in every so many of the shortest such run misses none; two
tokens are compared at once, as one 64-bit number. The few probes that match are looked at more closely, and what is left is counted out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Bytes probed at all distances before going on, so that only the first distance waits for memory: half of a usual second-level cache.
_BLOCK_BYTES = 1 << 20
# Blocks whose hits are looked at together: a look costs a few calls, however few the hits.
_BLOCKS = 64
# Where a hit's neighbours are looked at, as shares of what lies on at least one side of it in a run. The first two tell most chance hits.
_SPOTS = (1 / 6, 1, 1 / 2, 3 / 4, 1 / 3, 9 / 10)
# Tokens gathered at once around hits.
_GATHERED = 1 << 18
Positions = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Bound = int | Positions


def has_repetition(ids: npt.NDArray[np.uint32], max_period: int = 13, repeats: int = 32) -> bool:
    """Whether some n-gram of 1 to `max_period` tokens stands `repeats` or more times in a row in `ids`, an array of shape (tokens,)."""
    return bool(repeated_documents(ids, np.zeros(1, np.int64), np.array([len(ids)], np.int64), max_period, repeats)[0])


def repeated_documents(
    tokens: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    max_period: int = 13,
    repeats: int = 32,
) -> npt.NDArray[np.bool_]:
    """For each document `tokens[start : start + length]` of a shard: does an n-gram repeat in it, as `has_repetition` means it?

    Args:
        tokens: all tokens of the shard, shape (tokens,); may be memory-mapped.
        starts: first token of each document, ascending; documents do not overlap, there may be gaps between them.
        lengths: tokens of each document.

    Returns:
        One bool a document. A repetition never counts across a document's border.
    """
    starts = np.asarray(starts, np.int64)
    ends = starts + np.asarray(lengths, np.int64)
    flagged = np.zeros(len(starts), np.bool_)
    if len(starts) == 0:
        return flagged
    if repeats < 2:
        raise ValueError("repeats must be at least 2")
    plan = _plan(max_period, repeats, _BLOCK_BYTES)
    # A 64-bit number must start at a multiple of 8 bytes: an array that does not is read from its second token on.
    shift = int(plan.width == 2 and tokens.ctypes.data % 8 != 0)
    words: Words = tokens
    if plan.width == 2:
        words = np.ascontiguousarray(tokens[shift : len(tokens) - (len(tokens) - shift) % 2]).view(np.uint64)
    for first in range(0, len(words), _BLOCKS * plan.block):
        hits, groups = _probe(words, first, plan)
        hits, groups = _likely(words, hits, groups, plan.word_distances, plan.word_spots)
        members = [plan.members[group] for group in groups.tolist()]
        periods = np.array([period for each in members for period in each], np.int64)
        hits = np.repeat(hits * plan.width + shift, [len(each) for each in members])
        same = _matches(tokens, hits, periods)
        hits, periods = _likely(tokens, hits[same], periods[same], plan.periods, plan.spots)
        for period in np.unique(periods).tolist():
            _walk(tokens, starts, ends, hits[periods == period], period, (repeats - 1) * period, flagged)
    return flagged


@dataclass(frozen=True)
class _Plan:
    """How to probe. A word is `width` tokens, compared at once; groups are of periods that share a distance.

    Attributes:
        width, block: tokens a word; words a block.
        members: the periods of each group.
        probes: of each group (distance and stride in words, its first column): a block's probes are one row, groups side by side.
        position, group: of each column its word in the block and its group, shape (columns,).
        word_distances, word_spots: of each group, in words: shape (groups,) and (spots, groups).
        periods, spots: of each period (from 0, never used, up), in tokens: shape (max_period + 1,) and (spots, max_period + 1).
    """

    width: int
    block: int
    members: list[tuple[int, ...]]
    probes: list[tuple[int, int, int]]
    position: Positions
    group: Positions
    word_distances: Positions
    word_spots: Positions
    periods: Positions
    spots: Positions


@lru_cache(maxsize=8)
def _plan(max_period: int, repeats: int, block_bytes: int) -> _Plan:
    width = 2 if repeats >= 5 else 1  # with fewer repeats a run of single tokens may hold no whole word
    members = _groups(max_period, repeats, width)
    block = max(1, block_bytes // (4 * width))
    probes: list[tuple[int, int, int]] = []
    positions: list[Positions] = []
    distances, sides = [], []
    for group in members:
        distance, run = _shared(group, repeats, width)
        stride = _stride(run, width)
        probes.append((distance // width, stride, sum(len(each) for each in positions)))
        positions.append(np.arange(0, block, stride))
        distances.append(distance // width)
        sides.append((run - width) // (2 * width))
    periods = np.arange(max_period + 1)
    return _Plan(
        width,
        block,
        members,
        probes,
        np.concatenate(positions),
        np.repeat(np.arange(len(members)), [len(each) for each in positions]),
        np.array(distances),
        _spots(np.array(sides)),
        periods,
        _spots(np.maximum((repeats - 1) * periods - 1, 0) // 2),
    )


def _groups(max_period: int, repeats: int, width: int) -> list[tuple[int, ...]]:
    """The periods in groups that share a distance, joined two at a time while that makes the probes fewer."""

    def cost(group: tuple[int, ...]) -> float:
        stride = _stride(_shared(group, repeats, width)[1], width)
        return 1 / stride if stride > 0 else math.inf

    groups: list[tuple[int, ...]] = [(period,) for period in range(1, max_period + 1)]
    while True:
        pairs = [(one, other) for at, one in enumerate(groups) for other in groups[at + 1 :]]
        saved = [cost(one) + cost(other) - cost(tuple(sorted(one + other))) for one, other in pairs]
        if not saved or max(saved) <= 0:
            return groups
        one, other = pairs[saved.index(max(saved))]
        groups = [group for group in groups if group not in (one, other)] + [tuple(sorted(one + other))]


def _shared(group: tuple[int, ...], repeats: int, width: int) -> tuple[int, int]:
    """(distance, shortest run of matches at that distance) in tokens of a group of periods; the distance is whole words."""
    distance = math.lcm(width, *group)
    return distance, repeats * min(group) - distance


def _stride(run: int, width: int) -> int:
    """Words that lie wholly in any run of so many tokens, wherever it begins: so far apart may probes be."""
    return (run - width + 1) // width


def _spots(sides: Positions) -> Positions:
    return np.array([(sides * share).astype(np.int64) for share in _SPOTS])


def _probe(words: Words, first: int, plan: _Plan) -> tuple[Positions, Positions]:
    """(words that equal the one a group's distance before them, their groups) among the probes of some blocks from `first` on."""
    begins = range(first, min(first + _BLOCKS * plan.block, len(words)), plan.block)
    equal = np.zeros((len(begins), len(plan.position)), np.bool_)
    for row, begin in zip(equal, begins, strict=True):
        end = min(begin + plan.block, len(words))
        for distance, stride, column in plan.probes:
            skipped = -(-max(distance - begin, 0) // stride)
            at = begin + skipped * stride
            probed = words[at:end:stride]
            column += skipped
            np.equal(probed, words[at - distance : end - distance : stride][: len(probed)], out=row[column : column + len(probed)])
    rows, columns = np.divmod(np.flatnonzero(equal.reshape(-1)), len(plan.position))
    return rows * plan.block + first + plan.position[columns], plan.group[columns]


def _likely(words: Words, hits: Positions, kinds: Positions, distances: Positions, spots: Positions) -> tuple[Positions, Positions]:
    """Those hits that can belong to a long enough run, and few others; `distances` and `spots` are by kind.

    At least half of such a run lies on one side of any of its positions, so all spots on that side match too.
    """
    left = right = np.ones(len(hits), np.bool_)
    for spot in spots:
        away, distance = spot.take(kinds), distances.take(kinds)
        before, after = hits - away, hits + away
        left = left & _matches(words, before, distance)
        right = right & _matches(words, after, distance)
        alive = np.flatnonzero(left | right)
        hits, kinds, left, right = hits[alive], kinds[alive], left[alive], right[alive]
    return hits, kinds


def _matches(words: Words, positions: Positions, distance: Bound) -> npt.NDArray[np.bool_]:
    """Which words equal the one `distance` before them; beyond the array's ends the answer is arbitrary."""
    return words.take(positions, mode="clip") == words.take(positions - distance, mode="clip")


def _walk(
    tokens: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    hits: Positions,
    period: int,
    run: int,
    flagged: npt.NDArray[np.bool_],
) -> None:
    """Flag the documents in which a hit belongs to at least `run` consecutive matches at this period."""
    document = np.searchsorted(starts, hits, side="right") - 1
    inside = (document >= 0) & (hits - period >= starts[document]) & (hits < ends[document])
    hits, document = hits[inside], document[inside]
    steps = np.arange(1, run + 1)
    at_once = max(1, _GATHERED // run)
    # One hit of each document first: it nearly always decides for the others, which a long run has many of.
    first = np.unique(document, return_index=True)[1]
    for chosen in (first, np.delete(np.arange(len(hits)), first)):
        chosen = chosen[~flagged[document[chosen]]]
        for part in (chosen[at : at + at_once] for at in range(0, len(chosen), at_once)):
            owner, length = document[part], np.ones(len(part), np.int64)
            for side, room in ((-steps, hits[part] - period - starts[owner]), (steps, ends[owner] - 1 - hits[part])):
                matches = _matches(tokens, hits[part, None] + side, period)
                length += np.minimum(np.where(matches.all(axis=1), run, matches.argmin(axis=1)), room)
            flagged[owner[length >= run]] = True
