"""English words and sentences exactly as datatrove's rules see them (spaCy's blank English tokenizer), many texts at once and much faster.

spaCy looks at one stretch between white space at a time, and most stretches of a page were met before, so what it made of each is
remembered; words are numbers, their properties arrays. Only its special cases (`(=`, `a.m.`) look further: they are matched against the
tokens of several stretches. A stretch in which one of them was found goes to spaCy again, with its neighbours up to the next words that
no special case has a part in. A new stretch that is a plain word between plain marks is cut here, by the rules that spaCy would apply.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from datatrove.utils.text import PUNCTUATION_SET

from tasks.scorers.parts import parts

REMEMBERED_STRETCHES = 500_000  # with their words about 150 MB
REMEMBERED_CHARACTERS = 8_000_000
AT_ONCE = 250_000  # characters that spaCy is handed at once

HAS_LETTER, HAS_MORE_THAN_MARKS, ENDS_SENTENCE, MAY_FOLLOW_END = 1, 2, 4, 8  # bits of `Vocabulary.marks`

_BASE = 0x9E3779B97F4A7C15  # odd
_WHITE = re.compile(r"\s{2,}|[^\S ]|\A\s|\s\Z")  # what spaCy makes a token of its own

# In front of and behind plain words stand marks that spaCy takes off one by one; a full stop only behind a small letter or a digit.
_PLAIN = re.compile(r"([(\[\"“‘']*)([A-Za-z]+(?:-[A-Za-z]+)*|[0-9]+)((?:(?<=[a-z0-9])\.)?[,;:!?)\]\"”’']*|['’]s)")
_HYPHEN = re.compile("(-)")

Tokens = Sequence[str]


class _Numbers(dict[str, int]):
    """Strings, numbered in the order in which they were first asked for; `fresh` are those asked for since it was last emptied."""

    def __init__(self) -> None:
        self.fresh: list[str] = []

    def __missing__(self, string: str) -> int:
        number = self[string] = len(self)
        self.fresh.append(string)
        return number


@dataclass
class Vocabulary:
    """Of every word met, at its number: `lengths` int64 characters; `marks` uint8 bits; `hashes`, `powers` uint64; the arrays have room to spare.

    The hash of two strings put together is `hash(a) * power(b) + hash(b)` modulo 2^64, however the whole is cut into words.
    """

    strings: list[str]
    lengths: np.ndarray
    marks: np.ndarray
    hashes: np.ndarray
    powers: np.ndarray


@dataclass
class Words:
    """The words of several texts in a row: `numbers` int32[words] in the vocabulary; text i has those from `bounds[i]` to `bounds[i + 1]`."""

    numbers: np.ndarray
    bounds: np.ndarray


@dataclass
class _Cuts:
    """Of every stretch met: where its words begin among the `count` in `words`, how many it has, and what special cases have to do with it."""

    count: int
    words: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    is_special: np.ndarray
    is_barrier: np.ndarray  # no special case reaches over it


class EnglishWords:
    """Cuts texts into words; `vocabulary` holds what is known of each. Numbers of words are good until `make_room` is called."""

    def __init__(self) -> None:
        self._spacy = _Spacy()
        self._forget()

    def _forget(self) -> None:
        self._characters = 0
        self._words, self._stretches = _Numbers(), _Numbers()
        number, bits = np.empty(0, np.int64), np.empty(0, np.uint64)
        self.vocabulary = Vocabulary([], number, np.empty(0, np.uint8), bits, bits)
        self._cuts = _Cuts(0, np.empty(0, np.int32), number, number, np.empty(0, bool), np.empty(0, bool))
        self._number(["", "\n"])

    def make_room(self) -> None:
        """Forget everything where too much is remembered."""
        if len(self._stretches) > REMEMBERED_STRETCHES or self._characters > REMEMBERED_CHARACTERS:
            self._forget()

    def number(self, word: str) -> int | None:
        """The number of a word; None if no text had it."""
        return self._words.get(word)

    def cut(self, texts: Iterable[str]) -> Words:
        """The words of texts: of each what `SpaCyTokenizer.word_tokenize` gives, the tokens that are not white space."""
        stretches: list[str] = []
        ends = [0]
        for text in texts:
            stretches += text.replace("\n", " \n ").split(" ")
            stretches.append("\n")
            ends.append(len(stretches))
        numbers = self._number(stretches)
        self._join_specials(stretches, numbers)
        sizes = self._cuts.sizes[numbers]
        before = np.concatenate([[0], np.cumsum(sizes)])
        places = np.repeat(self._cuts.starts[numbers] - before[:-1], sizes)
        places += np.arange(len(places))
        return Words(self._cuts.words[places], before[ends])

    def sentences(self, lines: Sequence[str]) -> np.ndarray:
        """How many sentences each line has: int64[lines], at least 1."""
        counts = self._count_sentences(self.cut(lines))
        for row, line in enumerate(lines):
            if _WHITE.search(line):  # tokens of white space begin sentences, too
                numbers = self._number_words(self._spacy.tokens(line))
                counts[row] = self._count_sentences(Words(numbers, np.array([0, len(numbers)])))[0]
        return counts

    def _count_sentences(self, words: Words) -> np.ndarray:
        """A sentence begins at the first word that is no mark behind one that ends a sentence."""
        marks = self.vocabulary.marks[words.numbers]
        begins = np.flatnonzero((marks & MAY_FOLLOW_END) == 0)
        ended = np.cumsum((marks & ENDS_SENTENCE) != 0)
        ended_before = np.concatenate([[0], ended])
        line = np.searchsorted(words.bounds, begins, "right") - 1
        last = np.concatenate([[0], begins[:-1]])
        since = ended_before[begins] - ended_before[np.maximum(last, words.bounds[line])]
        return 1 + np.bincount(line[since > 0], minlength=len(words.bounds) - 1)

    def _number(self, stretches: Sequence[str]) -> np.ndarray:
        """The numbers of stretches, new ones cut: int32[stretches]."""
        numbers = np.fromiter(map(self._stretches.__getitem__, stretches), np.int32, len(stretches))
        if self._stretches.fresh:
            fresh, self._stretches.fresh = self._stretches.fresh, []
            try:
                self._learn(fresh)
            except BaseException:
                self._forget()  # they are numbered but not known
                raise
        return numbers

    def _learn(self, stretches: list[str]) -> None:
        self._characters += sum(map(len, stretches))
        cuts = self._spacy.cut(stretches)
        words = self._number_words(list(itertools.chain.from_iterable(cuts)))
        sizes = np.fromiter(map(len, cuts), np.int64, len(cuts))
        special, parts, dissolved = self._spacy.special, self._spacy.parts, self._spacy.dissolved
        is_special = [
            len(tokens) > 1 and (not special.isdisjoint(tokens) or any(case in stretch for case in dissolved))
            for stretch, tokens in zip(stretches, cuts, strict=True)
        ]
        is_barrier = [not tokens or (len(tokens) == 1 and tokens[0] not in parts) for tokens in cuts]
        cut, at = self._cuts, len(self._stretches) - len(stretches)
        cut.starts = _put(cut.starts, at, cut.count + np.cumsum(sizes) - sizes)
        cut.sizes = _put(cut.sizes, at, sizes)
        cut.is_special = _put(cut.is_special, at, is_special)
        cut.is_barrier = _put(cut.is_barrier, at, is_barrier)
        cut.words = _put(cut.words, cut.count, words)
        cut.count += len(words)

    def _number_words(self, words: Sequence[str]) -> np.ndarray:
        numbers = np.fromiter(map(self._words.__getitem__, words), np.int32, len(words))
        if self._words.fresh:
            fresh, self._words.fresh = self._words.fresh, []
            lengths = np.fromiter(map(len, fresh), np.int64, len(fresh))
            marks = np.fromiter(map(self._marks, fresh), np.uint8, len(fresh))
            hashes, powers = _hash(fresh, lengths)
            known, at = self.vocabulary, len(self._words) - len(fresh)
            known.strings += fresh
            known.lengths = _put(known.lengths, at, lengths)
            known.marks = _put(known.marks, at, marks)
            known.hashes = _put(known.hashes, at, hashes)
            known.powers = _put(known.powers, at, powers)
        return numbers

    def _marks(self, word: str) -> int:
        if word.isascii() and word.isalpha():
            return HAS_LETTER | HAS_MORE_THAN_MARKS
        ends = word in self._spacy.ends
        marks = HAS_LETTER if any(map(str.isalpha, word)) else 0
        marks |= 0 if PUNCTUATION_SET.issuperset(word) else HAS_MORE_THAN_MARKS
        marks |= ENDS_SENTENCE if ends else 0
        return marks | (MAY_FOLLOW_END if ends or self._spacy.is_punctuation(word) else 0)

    def _join_specials(self, stretches: list[str], numbers: np.ndarray) -> None:
        """Cut again, together, special cases and the neighbours that have a say in them."""
        specials = np.flatnonzero(self._cuts.is_special[numbers])
        if not len(specials):
            return
        barriers = np.flatnonzero(np.concatenate([[True], self._cuts.is_barrier[numbers]]))  # the last stretch is one
        at = np.searchsorted(barriers, specials, "right")
        spans = sorted(
            {(begin, end) for begin, end in zip(barriers[at - 1].tolist(), (barriers[at] - 1).tolist(), strict=True) if end - begin > 1}
        )
        joined = self._number([" ".join(stretches[begin:end]) for begin, end in spans])
        for (begin, end), number in zip(spans, joined, strict=True):
            numbers[begin:end] = 0
            numbers[begin] = number


def _put(column: np.ndarray, at: int, values: Any) -> np.ndarray:
    """The column with `values` from `at` on: itself, or one of twice the room."""
    end = at + len(values)
    if end > len(column):
        column = np.concatenate([column[:at], np.empty(max(end, 2 * len(column)) - at, column.dtype)])
    column[at:end] = values
    return column


def _hash(words: list[str], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, powers) uint64[words]."""
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    powers = np.full(int(lengths.max()) + 1, _BASE, np.uint64)
    powers[0] = 1
    np.cumprod(powers, out=powers)
    ends = np.cumsum(lengths)
    codes *= powers[np.repeat(ends, lengths) - 1 - np.arange(len(codes))]
    return np.add.reduceat(codes, ends - lengths), powers[lengths]


class _Spacy:
    """spaCy's blank English tokenizer, and what is to be known of it."""

    def __init__(self) -> None:
        with _without("torch"):  # spaCy would load it for models, of which there is none here: three quarters of its time and memory
            import spacy
            from spacy.attrs import IS_PUNCT
            from spacy.pipeline import Sentencizer
            from spacy.tokenizer import Tokenizer

        blank: Any = spacy.blank("en")
        self._tokenizer, self._vocab = blank.tokenizer, blank.vocab
        self._zone = blank.memory_zone
        self.is_punctuation = blank.vocab.lex_attr_getters[IS_PUNCT]
        self.ends = frozenset(Sentencizer.default_punct_chars)
        self._cases = frozenset(blank.tokenizer.rules)
        # The special cases that spaCy looks for among tokens, each with the tokens that it is cut into without them.
        rules = ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
        bare = Tokenizer(blank.vocab, rules={}, **{rule: getattr(blank.tokenizer, rule) for rule in rules})
        cut = {case: tuple(token.text for token in bare(case)) for case in blank.tokenizer.rules}
        cut = {case: tokens for case, tokens in cut.items() if len(tokens) > 1}
        self.special = frozenset(cut)
        self.parts = frozenset(itertools.chain.from_iterable(cut.values()))
        # Special cases of which no token tells that they were found.
        made = {case: tuple(token.text for token in blank.tokenizer(case)) for case in cut}
        self.dissolved = [case for case, tokens in made.items() if tokens != cut[case] and self.special.isdisjoint(tokens)]

    def cut(self, stretches: list[str]) -> list[Tokens]:
        """The tokens of each stretch that are not white space. Only a single one may have a line break in it, and then nothing else."""
        cuts: list[Tokens] = [self._plainly(stretch) for stretch in stretches]
        rest = [number for number, tokens in enumerate(cuts) if not tokens and stretches[number].strip()]
        lines = parts([stretches[number] for number in rest], AT_ONCE)
        for number, tokens in zip(rest, itertools.chain.from_iterable(map(self._cut_lines, lines)), strict=True):
            cuts[number] = tokens
        return cuts

    def tokens(self, text: str) -> list[str]:
        """All tokens, white space too."""
        with self._zone():
            return [token.text for token in self._tokenizer(text)]

    def _cut_lines(self, lines: list[str]) -> list[Tokens]:
        """As if each line came alone: no rule looks over a line break."""
        found: list[list[str]] = [[] for _ in lines]
        line = 0
        for token in self.tokens("\n".join(lines)):
            if token.isspace():
                line += token.count("\n")
            else:
                found[line].append(token)
        return found  # type: ignore[return-value]

    def _plainly(self, stretch: str) -> Tokens:
        """The tokens of a plain word between marks; none if spaCy is to be asked.

        spaCy first takes off marks in front and behind, in turns, until a special case is left or nothing more can be taken off; then it cuts
        at hyphens between letters; then it looks for special cases in what lies there. Where no part of the stretch is a special case, nothing
        but the marks and the hyphens is left to decide.
        """
        plain = _PLAIN.fullmatch(stretch)
        if plain is None:
            return ()
        before, word, behind = plain.groups()
        tokens = [*before, *(_HYPHEN.split(word) if "-" in word else [word])]
        tokens += [behind] if behind[-1:] == "s" else behind
        if len(tokens) == 1:
            return tokens if word not in self._cases else ()
        if len(tokens) > 12:
            return ()
        text = "".join(tokens)
        at = list(itertools.accumulate(map(len, tokens), initial=0))
        for begin, end in itertools.combinations(at, 2):
            if text[begin:end] in self._cases and end - begin > 1:
                return ()
        return tokens


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Imports of a module that was not loaded before fail in here."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
