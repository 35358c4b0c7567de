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
    """The multiples of `run` in [begin, end) whose token equals the one `period` before it."""
    first = max(-(-begin // run), 1) * run
    if first >= end:
        return np.empty(0, np.int64)
    hits = np.flatnonzero(tokens[first:end:run] == tokens[first - period : end - period : run]) * run + first
    if run < 5 or len(hits) == 0:
        return hits
    # A run of 5 or more has two further matches on at least one side of any of its positions; few chance hits have that, and looking is
    # cheaper than finding their documents. At the array's ends a position stands for its missing neighbours, which keeps the hit.
    last = len(tokens) - 1
    left1, left2 = np.maximum(hits - 1, period), np.maximum(hits - 2, period)
    right1, right2 = np.minimum(hits + 1, last), np.minimum(hits + 2, last)
    left = (tokens[left1] == tokens[left1 - period]) & (tokens[left2] == tokens[left2 - period])
    right = (tokens[right1] == tokens[right1 - period]) & (tokens[right2] == tokens[right2 - period])
    return hits[left | right]


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
    if len(hits) == 0:
        return
    length = 1 + _matches(tokens, hits, starts[document] + period, -1, period, run)
    length += _matches(tokens, hits, ends[document] - 1, 1, period, run)
    flagged[document[length >= run]] = True


def _matches(
    tokens: npt.NDArray[np.uint32], hits: npt.NDArray[np.int64], limit: npt.NDArray[np.int64], direction: int, period: int, run: int
) -> npt.NDArray[np.int64]:
    """How many consecutive matches follow each hit in one direction, up to and including `limit`, counted to `run - 1`."""
    count = np.zeros(len(hits), np.int64)
    room = np.minimum((limit - hits) * direction, run - 1)
    active = np.arange(len(hits))
    for step in range(1, run):
        active = active[room[active] >= step]
        if len(active) == 0:
            break
        position = hits[active] + direction * step
        active = active[tokens[position] == tokens[position - period]]
        count[active] = step
    return count
