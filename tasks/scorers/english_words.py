"""English words and sentences exactly as datatrove's rules see them (spaCy's blank English tokenizer), many times faster.

spaCy looks at one stretch between white space at a time, and most stretches of a page were met before, so what it made of each is
remembered. Only its special cases (`(=`, `a.m.`) look further: they are matched against the tokens of several stretches. A stretch in
which one of them was found goes to spaCy again, with its neighbours up to the next words that no special case has a part in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from datatrove.utils.word_tokenizers import SpaCyTokenizer

REMEMBERED = 500_000  # stretches; about 150 MB
LONGEST = 64  # characters of a stretch that is remembered; longer ones are mostly met once

# All white space but a single blank is a token of its own, over which no special case reaches.
_WHITE = re.compile(r"\s{2,}|[^\S ]")

Tokens = tuple[str, ...]


class EnglishWords(SpaCyTokenizer):
    """datatrove's word tokenizer for English. Hand it to a datatrove filter as its `language`."""

    def __init__(self) -> None:
        super().__init__("en")
        self._known: dict[str, tuple[Tokens, bool]] = {}
        self._known_marks: dict[str, tuple[bool, bool]] = {}

    def word_tokenize(self, text: str) -> list[str]:
        """What `SpaCyTokenizer.word_tokenize` gives: the tokens that are not white space."""
        words: list[str] = []
        for cell in _WHITE.split(text):
            stretches = cell.split()
            found = [self._known.get(stretch) or self._look(stretch) for stretch in stretches]
            if any(is_special for _, is_special in found):
                words += self._with_special_cases(stretches, found)
            else:
                for tokens, _ in found:
                    words += tokens
        return words

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """What `SpaCyTokenizer.span_tokenize` gives: begin and end of each sentence in `text`."""
        if not text or _WHITE.search(text) or text != text.strip():
            return super().span_tokenize(text)
        spans: list[tuple[int, int]] = []
        begin = end = 0
        is_over = False  # a mark that ends a sentence was seen; closing quotes and brackets behind it belong to it still
        for token in self.word_tokenize(text):
            at = end + (text[end] == " ")
            ends, may_follow = self._known_marks.get(token) or self._look_at_marks(token)
            if is_over and not may_follow:
                spans.append((begin, end))
                begin, is_over = at, False
            is_over = is_over or ends
            end = at + len(token)
        return [*spans, (begin, end)]

    def _look(self, stretch: str) -> tuple[Tokens, bool]:
        """The tokens of what lies between white space, and whether its neighbours could have a say in them."""
        tokens: Tokens = tuple(super().word_tokenize(stretch))
        is_special = len(tokens) > 1 and (not self._special.isdisjoint(tokens) or any(case in stretch for case in self._dissolved))
        if len(stretch) <= LONGEST:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[stretch] = tokens, is_special
        return tokens, is_special

    def _with_special_cases(self, stretches: list[str], found: list[tuple[Tokens, bool]]) -> Iterator[str]:
        begin = 0
        for end in range(len(stretches) + 1):
            if end < len(stretches) and (len(found[end][0]) != 1 or found[end][0][0] in self._parts):
                continue
            if any(is_special for _, is_special in found[begin:end]):
                yield from super().word_tokenize(" ".join(stretches[begin:end]))
            else:
                for tokens, _ in found[begin:end]:
                    yield from tokens
            if end < len(stretches):
                yield from found[end][0]
            begin = end + 1

    @cached_property
    def _cases(self) -> dict[str, Tokens]:
        """The special cases that spaCy looks for among tokens, each with the tokens that it is cut into without them."""
        from spacy.tokenizer import Tokenizer

        given = self.tokenizer.tokenizer
        rules = ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
        bare = Tokenizer(self.tokenizer.vocab, rules={}, **{rule: getattr(given, rule) for rule in rules})
        cut = {case: tuple(token.text for token in bare(case)) for case in given.rules}
        return {case: tokens for case, tokens in cut.items() if len(tokens) > 1}

    @cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(self._cases)

    @cached_property
    def _dissolved(self) -> list[str]:
        """Special cases of which no token tells that they were found."""
        made = {case: tuple(token.text for token in self.tokenizer.tokenizer(case)) for case in self._cases}
        return [case for case, tokens in made.items() if tokens != self._cases[case] and self._special.isdisjoint(tokens)]

    @cached_property
    def _parts(self) -> frozenset[str]:
        """The tokens that special cases are matched against."""
        return frozenset(token for tokens in self._cases.values() for token in tokens)

    def _look_at_marks(self, token: str) -> tuple[bool, bool]:
        """(whether a token ends a sentence, whether it may stand behind the end of one)."""
        ends = token in self._ends
        marks = ends, ends or bool(self.tokenizer.vocab[token].is_punct)
        if len(token) <= LONGEST:
            if len(self._known_marks) >= REMEMBERED:
                self._known_marks.clear()
            self._known_marks[token] = marks
        return marks

    @cached_property
    def _ends(self) -> frozenset[str]:
        sentencizer: Any = self.tokenizer.get_pipe("sentencizer")
        return frozenset(sentencizer.punct_chars)
