"""The report's repetition rule, decided exactly and fast (OLMo 2 report, section 3.1: no n-gram of 1 to 13 tokens 32 or more times).

An n-gram of p tokens repeated `repeats` times in a row is a run of at least `(repeats - 1) * p` consecutive positions i of one document
with `tokens[i] == tokens[i - p]`. Such a run covers a multiple of its own length, so looking at every `(repeats - 1) * p`-th position and
walking outward from the few that match decides the question while most tokens are never compared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# A block of this many tokens stays in cache while all the periods probe it; smaller ones pay for more calls (measured).
_BLOCK_TOKENS = 1 << 20
# Distances at which a hit's neighbours are looked at before its whole run is: these few tell nearly all chance hits (measured).
_SPOTS = (1, 2, 5, 15)
# Tokens gathered at once around hits.
_GATHERED = 1 << 18
Bound = int | npt.NDArray[np.int64]


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
    for begin in range(0, len(tokens), _BLOCK_TOKENS):
        block_end = min(begin + _BLOCK_TOKENS, len(tokens))
        for period in range(1, max_period + 1):
            hits = _probe(tokens, begin, block_end, period, (repeats - 1) * period)
            if len(hits):
                _walk(tokens, starts, ends, hits, period, (repeats - 1) * period, flagged)
    return flagged


def _probe(tokens: npt.NDArray[np.uint32], begin: int, end: int, period: int, run: int) -> npt.NDArray[np.int64]:
    """The multiples of `run` in [begin, end) that match the token one `period` before them, without most of those that do by chance."""
    first = max(-(-begin // run), 1) * run
    if first >= end:
        return np.empty(0, np.int64)
    hits = np.flatnonzero(tokens[first:end:run] == tokens[first - period : end - period : run]) * run + first
    # At least half of a long enough run lies on one side of any of its positions, so all near matches of that side are there.
    left = right = np.ones(len(hits), np.bool_)
    for distance in _SPOTS:
        if distance > (run - 1) // 2 or len(hits) == 0:
            break
        left = left & _matches(tokens, hits - distance, period, period, len(tokens) - 1)
        right = right & _matches(tokens, hits + distance, period, period, len(tokens) - 1)
        alive = left | right
        hits, left, right = hits[alive], left[alive], right[alive]
    return hits


def _matches(
    tokens: npt.NDArray[np.uint32], positions: npt.NDArray[np.int64], period: int, low: Bound, high: Bound
) -> npt.NDArray[np.bool_]:
    """Which positions lie in [low, high] and have the token that stands one `period` before them."""
    inside = (positions >= low) & (positions <= high)
    safe = np.where(inside, positions, period)
    return inside & (tokens[safe] == tokens[safe - period])


def _walk(
    tokens: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    hits: npt.NDArray[np.int64],
    period: int,
    run: int,
    flagged: npt.NDArray[np.bool_],
) -> None:
    """Flag the documents in which a hit belongs to at least `run` consecutive matches at this period."""
    document = np.searchsorted(starts, hits, side="right") - 1
    inside = (document >= 0) & ~flagged[document]
    inside &= (hits - period >= starts[document]) & (hits < ends[document])
    hits, document = hits[inside], document[inside]
    low, high = (starts[document] + period)[:, None], (ends[document] - 1)[:, None]
    steps = np.arange(1, run + 1)
    at_once = max(1, _GATHERED // run)
    for part in (slice(at, at + at_once) for at in range(0, len(hits), at_once)):
        length = np.ones(len(hits[part]), np.int64)
        for side in (-steps, steps):
            matches = _matches(tokens, hits[part, None] + side, period, low[part], high[part])
            length += np.where(matches.all(axis=1), run, matches.argmin(axis=1))
        flagged[document[part][length >= run]] = True
