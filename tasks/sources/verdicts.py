"""What becomes of each post of a Stack Exchange dump, decided from numbers alone: 9 bytes a post, whatever the posts' text.

The first pass over a dump fills a Census, `judge` settles each row's Fate, and the second pass reads the text of the kept rows only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.sources.config import SourceConfig
from tasks.sources.posts_xml import ANSWER, QUESTION, Post

_BLOCK_ROWS = 1 << 17  # rows looked at together, so that what numpy needs meanwhile stays small


class Fate(IntEnum):
    """The state of a row: what is known of it after the first pass, then what becomes of it."""

    BAD = 0  # booked when it was read
    TWICE = 1
    KEPT_QUESTION = 2
    KEPT_ANSWER = 3
    OTHER_KIND = 4
    QUESTION_UNACCEPTED = 5
    QUESTION_VOTES = 6
    ACCEPTED_MISSING = 7
    ACCEPTED_ELSEWHERE = 8
    ANSWERS_DROPPED = 9
    UNANSWERED = 10
    ANSWER_VOTES = 11
    ANSWER_UNACCEPTED = 12
    PARENT_DROPPED = 13
    PARENT_MISSING = 14
    QUESTION = 15  # these two are not settled yet
    ANSWER = 16

    @property
    def reason(self) -> str:
        """The books' reason for a dropped post; the votes' reasons are templates that take the recipe's least votes."""
        return _REASONS[self]


_REASONS = {
    Fate.OTHER_KIND: "not a question or answer",
    Fate.QUESTION_UNACCEPTED: "question without accepted answer",
    Fate.QUESTION_VOTES: "question votes < {question}",
    Fate.ACCEPTED_MISSING: "accepted answer missing",
    Fate.ACCEPTED_ELSEWHERE: "accepted answer of another question",
    Fate.ANSWERS_DROPPED: "question of a dropped answer",
    Fate.UNANSWERED: "question without answers",
    Fate.ANSWER_VOTES: "answer votes < {answer}",
    Fate.ANSWER_UNACCEPTED: "answer not accepted",
    Fate.PARENT_DROPPED: "answer of a dropped question",
    Fate.PARENT_MISSING: "answer of a missing question",
}

Ids = NDArray[np.uint32]
Rows = NDArray[Any]


class Census:
    """The numbers of each row, in the file's order: its id, the id it points to (accepted answer or question), and its state."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.ids = array("I")
        self.links = array("I")
        self.fates = bytearray()
        self.last_id = 0
        self.is_sorted = True

    def add(self, post: Post | None) -> None:
        """Take in a row; None for one that is Bad."""
        if post is None:
            self.ids.append(0)
            self.links.append(0)
            self.fates.append(Fate.BAD)
            return
        self.ids.append(post.id)
        self.links.append(post.link)
        self.fates.append(self._first_look(post))
        self.is_sorted = self.is_sorted and post.id > self.last_id
        self.last_id = post.id

    def _first_look(self, post: Post) -> Fate:
        if post.kind == QUESTION:
            if self.config.answers == "accepted" and not post.link:
                return Fate.QUESTION_UNACCEPTED
            return Fate.QUESTION if post.score >= self.config.min_question_votes else Fate.QUESTION_VOTES
        if post.kind == ANSWER:
            return Fate.ANSWER if post.score >= self.config.min_answer_votes else Fate.ANSWER_VOTES
        return Fate.OTHER_KIND


def judge(census: Census) -> tuple[bytearray, Ids]:
    """The Fate of each row, and the ids of the kept questions in ascending order.

    A pair is kept where both have their votes and the answer says that it answers this question: the accepted answer, or any by the recipe.
    """
    ids, links = np.frombuffer(census.ids, np.uint32), np.frombuffer(census.links, np.uint32)
    fates = np.frombuffer(census.fates, np.uint8)
    if not len(ids):
        return census.fates, ids
    if not census.is_sorted:
        _mark_twice(ids, fates)
    rows = _rows_of(fates, Fate.QUESTION)
    rows = rows if census.is_sorted else rows[np.argsort(ids[rows])]
    questions, accepted = ids[rows], links[rows]
    closed = np.sort(ids[_rows_of(fates, Fate.QUESTION_UNACCEPTED, Fate.QUESTION_VOTES)])
    only_accepted = census.config.answers == "accepted"
    settled = np.full(len(rows), Fate.ACCEPTED_MISSING if only_accepted else Fate.UNANSWERED, np.uint8)
    for answers in _blocks(fates, Fate.ANSWER, Fate.ANSWER_VOTES):
        at, found = _locate(questions, links[answers])
        chosen = found & (accepted[at] == ids[answers]) if only_accepted and len(accepted) else found
        well_voted = fates[answers] == Fate.ANSWER
        _, is_closed = _locate(closed, links[answers])
        fates[answers] = np.select(
            [chosen & well_voted, chosen, found, is_closed],
            [Fate.KEPT_ANSWER, Fate.ANSWER_VOTES, Fate.ANSWER_UNACCEPTED, Fate.PARENT_DROPPED],
            Fate.PARENT_MISSING,
        )
        badly = at[chosen & ~well_voted]
        settled[badly[settled[badly] != Fate.KEPT_QUESTION]] = Fate.ANSWERS_DROPPED
        settled[at[chosen & well_voted]] = Fate.KEPT_QUESTION
    lost = settled == Fate.ACCEPTED_MISSING
    if lost.any():
        wanted = np.unique(accepted[lost])
        there = np.zeros(len(wanted), bool)
        for answers in _blocks(
            fates, Fate.ANSWER_VOTES, Fate.ANSWER_UNACCEPTED, Fate.PARENT_DROPPED, Fate.PARENT_MISSING, Fate.KEPT_ANSWER
        ):
            at, found = _locate(wanted, ids[answers])
            there[at[found]] = True
        settled[np.flatnonzero(lost)[there[_locate(wanted, accepted[lost])[0]]]] = Fate.ACCEPTED_ELSEWHERE
    fates[rows] = settled
    return census.fates, questions[settled == Fate.KEPT_QUESTION]


def tally(fates: bytearray, config: SourceConfig) -> dict[str, int]:
    """How many posts are dropped for each reason."""
    counts = np.zeros(len(Fate), np.int64)
    view = np.frombuffer(fates, np.uint8)
    for start in range(0, len(view), _BLOCK_ROWS):
        counts += np.bincount(view[start : start + _BLOCK_ROWS], minlength=len(Fate))
    least = {"question": config.min_question_votes, "answer": config.min_answer_votes}
    return {reason.format(**least): int(counts[fate]) for fate, reason in _REASONS.items() if counts[fate]}


def _mark_twice(ids: Ids, fates: NDArray[np.uint8]) -> None:
    """The first row of an id counts; a later one is a duplicate."""
    order = np.argsort(ids, kind="stable").astype(np.uint32)
    for start in range(1, len(order), _BLOCK_ROWS):
        here = order[start : start + _BLOCK_ROWS]
        before = order[start - 1 : start - 1 + len(here)]
        fates[here[(ids[here] == ids[before]) & (ids[here] != 0)]] = Fate.TWICE


def _rows_of(fates: NDArray[np.uint8], *wanted: Fate) -> NDArray[np.uint32]:
    found = [rows.astype(np.uint32) for rows in _blocks(fates, *wanted)]
    return np.concatenate(found) if found else np.zeros(0, np.uint32)


def _blocks(fates: NDArray[np.uint8], *wanted: Fate) -> Iterator[Rows]:
    """The rows of these states, some at a time."""
    is_wanted = np.zeros(256, bool)
    is_wanted[list(wanted)] = True
    for start in range(0, len(fates), _BLOCK_ROWS):
        rows = np.flatnonzero(is_wanted[fates[start : start + _BLOCK_ROWS]])
        if len(rows):
            yield rows + start


def _locate(table: Ids, values: Ids) -> tuple[Rows, NDArray[np.bool_]]:
    """Where each value stands in an ascending table (0 where it does not), and whether it is there."""
    if not len(table):
        return np.zeros(len(values), np.intp), np.zeros(len(values), bool)
    at = np.searchsorted(table, values)
    at[at == len(table)] = 0
    found = table[at] == values
    return at, found
