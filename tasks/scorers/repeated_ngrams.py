"""How many characters of a text its repeated word n-grams can make up at most, for many texts at once.

Gopher's repetition rules ask for a dozen n-gram lengths, and nearly every text is far below every threshold. So all n-grams are hashed and
equal hashes counted, which can only find too much. What these bounds do not clear has to be counted string by string.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from tasks.scorers.english_words import Vocabulary, Words

_MIX = 0xD6E8FEB86659FD93  # odd
_TEXT = np.uint64(0xA0761D6478BD642F)  # odd
_LARGEST_TABLE_BITS = 22


class RepeatedNgrams:
    """One n-gram length in words; hashes ignore where its words are cut, as datatrove's duplicate n-grams do."""

    def __init__(self, length: int, words: Words, keys: np.ndarray, table: np.ndarray, text: np.ndarray, begins: np.ndarray) -> None:
        self._length, self._words, self._text, self._begins = length, words, text, begins
        again, first = _repeated(keys, table)
        inside = text[again] == text[again + length - 1] if len(again) else np.empty(0, bool)
        self._again, self._first = again[inside], first[inside]

    def _characters(self, at: np.ndarray) -> np.ndarray:
        return np.asarray(self._begins[at + self._length] - self._begins[at])

    def top(self) -> np.ndarray:
        """At least `find_top_duplicate` of each text's n-grams joined by blanks, in characters: int64[texts]; 0 where a text has none."""
        bounds, length = self._words.bounds, self._length
        most = np.zeros(len(bounds) - 1, np.int64)
        some = np.flatnonzero(np.diff(bounds) >= length)
        most[some] = self._characters(bounds[some]) + length - 1  # of n-grams that all stand once, the first is the top one
        if len(self._again):
            times = np.bincount(self._first)[self._first] + 1
            for at in (self._again, self._first):
                np.maximum.at(most, self._text[at], times * (self._characters(at) + length - 1))
        return most

    def duplicates(self) -> np.ndarray:
        """At least `find_all_duplicate` of each text's words, in characters: int64[texts].

        datatrove skips an n-gram that it has seen, and adds only what it did not skip: n-grams that do not overlap, each of which stood
        somewhere before. All words of such n-grams are at least as many characters.
        """
        total = np.zeros(len(self._words.bounds) - 1, np.int64)
        if len(self._again):
            ends = self._again + self._length
            begins = self._again.copy()
            np.maximum(begins[1:], ends[:-1], out=begins[1:])
            np.add.at(total, self._text[self._again], self._begins[ends] - self._begins[begins])
        return total


def repeated_ngrams(vocabulary: Vocabulary, words: Words, lengths: Collection[int]) -> Iterator[tuple[int, RepeatedNgrams]]:
    """(length in words, its n-grams) for each of `lengths`, shortest first."""
    count = len(words.numbers)
    text = np.repeat(np.arange(len(words.bounds) - 1, dtype=np.int32), np.diff(words.bounds))
    begins = np.concatenate([[0], np.cumsum(vocabulary.lengths[words.numbers])])
    word_hashes, powers = vocabulary.hashes[words.numbers], vocabulary.powers[words.numbers]
    hashes = np.zeros(count, np.uint64)
    of_text = text.astype(np.uint64) * _TEXT
    table = np.empty(1 << min(_LARGEST_TABLE_BITS, max(4, (4 * count).bit_length())), np.int32)
    for length in range(1, max(lengths, default=0) + 1):
        hashes = hashes[: max(0, count - length + 1)]
        hashes *= powers[length - 1 :]
        hashes += word_hashes[length - 1 :]
        if length in lengths:
            yield length, RepeatedNgrams(length, words, hashes + of_text[: len(hashes)], table, text, begins)


def _repeated(keys: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places in order at which a key stands that stood before, the place where each stood first), without sorting the keys.

    Places are written into `table` (of 2^n slots) at a slot that the key names, first ones last. Whoever does not find itself there stood before, or met a
    stranger; a key that met a stranger did so at all its places, which then try again among themselves.
    """
    bits = (len(table) - 1).bit_length()
    places = np.arange(len(keys), dtype=np.int32)
    mix = _MIX
    again, first = [], []
    while len(places):
        slots = (keys * np.uint64(mix)) >> np.uint64(64 - bits)
        own = np.arange(len(places), dtype=np.int32)
        table[slots[::-1]] = own[::-1]
        found = table[slots]
        is_same = keys[found] == keys
        repeated = np.flatnonzero(is_same & (found != own))
        again.append(places[repeated])
        first.append(places[found[repeated]])
        strangers = np.flatnonzero(~is_same)
        places, keys = places[strangers], keys[strangers]
        mix = mix * _MIX % 2**64
    if not again:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    every, whence = np.concatenate(again).astype(np.int64), np.concatenate(first).astype(np.int64)
    order = np.argsort(every)
    return every[order], whence[order]
