"""Words of texts and hashes of their word n-grams, as arrays: what two texts have in common, whatever their case and punctuation.

A word is a run of letters and digits, in lower case and without accents: `Don’t`, `don't` and `DON T` are the same two words. Scripts that put
no space between words are not cut. Two n-grams have one hash by accident with a probability of 2^-64: among a billion n-grams of documents
and ten million of evaluations that is once in two thousand corpora.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tasks.mix_plan import splitmix64

_BLOCK = 1 << 18  # characters hashed at once: what stays in a core's cache
_SEPARATOR, _SKIP = 0, 1  # characters between words; marks that count for nothing
_CHARACTERS = np.uint64(0xD6E8FEB86659FD93)  # odd, as an inverse modulo 2^64 asks for
_INVERSE = np.uint64(pow(int(_CHARACTERS), -1, 1 << 64))
_WORDS = np.uint64(0xA0761D6478BD642F)


@dataclass
class Words:
    """The words of several texts in a row: `hashes` uint64[words], `text` int64[words] the number of the text of each."""

    hashes: np.ndarray
    text: np.ndarray


def hash_words(texts: list[str]) -> Words:
    """The words of texts, hashed."""
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for numbers, pieces in _blocks(texts):
        found, piece = _hash_block(pieces)
        hashes.append(found)
        owners.append(np.array(numbers, np.int64)[piece])
    return Words(np.concatenate(hashes), np.concatenate(owners))


def ngrams(words: Words, lengths: Collection[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(length in words, first words int64[n], hashes uint64[n]) of all n-grams of these lengths, shortest first; none spans two texts."""
    state = np.zeros(len(words.hashes), np.uint64)
    for length in range(1, min(max(lengths), len(state)) + 1):
        state = state[: len(words.hashes) - length + 1]
        state *= _WORDS
        state += words.hashes[length - 1 :]
        if length in lengths:
            first = np.flatnonzero(words.text[: len(state)] == words.text[length - 1 :])
            yield length, first, splitmix64(state[first] + np.uint64(length))


def _blocks(texts: Iterable[str]) -> Iterator[tuple[list[int], list[str]]]:
    """(number of its text, piece) of every piece, in blocks of at most twice _BLOCK characters."""
    numbers: list[int] = []
    pieces: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _pieces(text if text.isascii() else unicodedata.normalize("NFKC", text)):
            numbers.append(number)
            pieces.append(piece)
            size += len(piece) + 1
            if size >= _BLOCK:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
    if pieces:
        yield numbers, pieces


def _pieces(text: str) -> Iterator[str]:
    """A long text cut at spaces, so that memory stays bounded; only a word of more than _BLOCK characters is cut in two."""
    start = 0
    while len(text) - start >= _BLOCK:
        space = text.rfind(" ", start, start + _BLOCK - 1)
        stop = space + 1 if space > start else start + _BLOCK - 1
        yield text[start:stop]
        start = stop
    yield text[start:]


def _hash_block(pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hash, number of its piece) of each word: a polynomial over its characters, from running sums, so that no word is a Python object."""
    joined = "\n".join(pieces)
    values = _values()[np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")]
    stops = np.cumsum([len(piece) + 1 for piece in pieces])  # where each piece ends, its line feed included
    if not joined.isascii():
        kept = np.flatnonzero(values != _SKIP)
        values, stops = values[kept], np.searchsorted(kept, stops)
    edges = np.flatnonzero(np.diff(values != _SEPARATOR, prepend=False, append=False))
    start, stop = edges[::2], edges[1::2]
    powers, inverses = _powers()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return splitmix64((sums[stop] - sums[start]) * inverses[start]), np.searchsorted(stops, start, side="right")


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Powers of _CHARACTERS and of its inverse modulo 2^64, for a block's places."""
    size = 2 * _BLOCK + 1
    return tuple(np.cumprod(np.append(np.uint64(1), np.full(size, base))) for base in (_CHARACTERS, _INVERSE))  # type: ignore[return-value]


@functools.cache
def _values() -> np.ndarray:
    """What each code point counts for, uint64[0x110000]: a random number for a letter or digit, the same for `E`, `e` and `É`."""
    categories = np.frombuffer("".join(map(unicodedata.category, map(chr, range(0x110000)))).encode(), "S2")
    major = categories.astype("S1")
    counts = (major == b"L") | (major == b"N") | (categories == b"Mc")  # a spacing mark is a vowel in Indian scripts
    plain = np.arange(len(counts), dtype=np.uint64)
    for code in np.flatnonzero((major == b"L") | (major == b"N")).tolist():
        character = chr(code)
        if character.lower() != character or unicodedata.decomposition(character):
            plain[code] = ord(unicodedata.normalize("NFKD", character.lower())[0])
    return np.where(counts, splitmix64(plain), np.where(categories == b"Mn", np.uint64(_SKIP), np.uint64(_SEPARATOR)))
