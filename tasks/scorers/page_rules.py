"""The rules of datatrove's filters for web pages, decided for many pages at once: the same verdicts, in a fraction of the time.

Each rule set is handed datatrove's filter for its settings and gives one verdict a page: `passed`, or datatrove's name for the first rule that
the page breaks. What counts words or n-grams is counted in arrays over all pages; what looks at lines does only what the rules need to know.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, ELLIPSIS, END_PUNCTUATION, POLICY_SUBSTRINGS
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates, find_top_duplicate, get_n_grams

from tasks.filters import PASSED
from tasks.scorers.english_words import HAS_LETTER, HAS_MORE_THAN_MARKS, EnglishWords
from tasks.scorers.repeated_ngrams import repeated_ngrams

EMPTY = "empty"  # a share of no words or of no lines: there is nothing to judge
UNDECIDED = ""


class Pages:
    """Texts, and their words once a rule asks for them."""

    def __init__(self, texts: list[str], words: EnglishWords) -> None:
        self.texts, self.english = texts, words

    @cached_property
    def words(self) -> Any:
        return self.english.cut(self.texts)

    @cached_property
    def word_counts(self) -> list[int]:
        return list(np.diff(self.words.bounds).tolist())

    def words_of(self, row: int) -> list[str]:
        first, end = self.words.bounds[row : row + 2]
        strings = self.english.vocabulary.strings
        return [strings[number] for number in self.words.numbers[first:end].tolist()]

    def sums(self, values: np.ndarray) -> list[int]:
        """Sums over each page of a number a word."""
        before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return list(np.diff(before[self.words.bounds]).tolist())


Verdicts = Callable[[Pages], list[str]]


def _each(verdict: Callable[[int], str], rows: int) -> list[str]:
    verdicts = []
    for row in range(rows):
        try:
            verdicts.append(verdict(row))
        except ZeroDivisionError:
            verdicts.append(EMPTY)
    return verdicts


def gopher_quality(rules: Any) -> Verdicts:
    """Rae et al. 2021, section A.1.1."""

    def verdicts(pages: Pages) -> list[str]:
        vocabulary, numbers = pages.english.vocabulary, pages.words.numbers
        marks = vocabulary.marks[numbers]
        is_word = (marks & HAS_MORE_THAN_MARKS) != 0
        counts, characters = pages.sums(is_word), pages.sums(vocabulary.lengths[numbers] * is_word)
        with_letters = pages.sums(marks & HAS_LETTER)
        stop_words = _different(pages, rules.stop_words)

        def verdict(row: int) -> str:
            text, words, count = pages.texts[row], pages.word_counts[row], counts[row]
            if rules.min_doc_words and count < rules.min_doc_words:
                return "gopher_short_doc"
            if rules.max_doc_words and count > rules.max_doc_words:
                return "gopher_long_doc"
            length = characters[row] / count if count else float("nan")
            if rules.min_avg_word_length and length < rules.min_avg_word_length:
                return "gopher_below_avg_threshold"
            if rules.max_avg_word_length and length > rules.max_avg_word_length:
                return "gopher_above_avg_threshold"
            if rules.max_symbol_word_ratio and text.count("#") / words > rules.max_symbol_word_ratio:
                return "gopher_too_many_hashes"
            if rules.max_symbol_word_ratio and (text.count("...") + text.count("…")) / words > rules.max_symbol_word_ratio:
                return "gopher_too_many_ellipsis"
            lines = text.splitlines()
            if rules.max_bullet_lines_ratio:
                bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) if "•" in text or "-" in text else 0
                if bullets / len(lines) > rules.max_bullet_lines_ratio:
                    return "gopher_too_many_bullets"
            if rules.max_ellipsis_lines_ratio:
                open_ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) if "..." in text or "…" in text else 0
                if open_ends / len(lines) > rules.max_ellipsis_lines_ratio:
                    return "gopher_too_many_end_ellipsis"
            if rules.max_non_alpha_words_ratio and with_letters[row] / words < rules.max_non_alpha_words_ratio:
                return "gopher_below_alpha_threshold"
            if rules.min_stop_words and stop_words[row] < rules.min_stop_words:
                return "gopher_enough_stop_words"
            return PASSED

        return _each(verdict, len(pages.texts))

    return verdicts


def _different(pages: Pages, words: set[str]) -> list[int]:
    """How many of `words` each page has."""
    known = [number for number in map(pages.english.number, words) if number is not None]
    column = np.full(len(pages.english.vocabulary.lengths), -1, np.int32)
    column[known] = np.arange(len(known))
    columns = column[pages.words.numbers]
    at = np.flatnonzero(columns >= 0)
    found = np.zeros((len(pages.texts), len(known)), bool)
    found[np.searchsorted(pages.words.bounds, at, "right") - 1, columns[at]] = True
    return list(found.sum(1).tolist())


def gopher_repetition(rules: Any) -> Verdicts:
    """Rae et al. 2021, table A1."""

    def verdicts(pages: Pages) -> list[str]:
        by_lines = [_repeated_lines(rules, text) for text in pages.texts]
        may_break = _ngram_rules_that_may_break(rules, pages)
        return [verdict or _repeated_ngrams(rules, pages, row, may_break.get(row, [])) for row, verdict in enumerate(by_lines)]

    return verdicts


def _repeated_lines(rules: Any, text: str) -> str:
    if not text:
        return EMPTY
    has_gaps = "\n\n" in text
    paragraphs = rules.paragraph_exp.split(text.strip()) if has_gaps else [text]
    count, characters = _duplicates(paragraphs)
    if rules.dup_para_frac and count / len(paragraphs) > rules.dup_para_frac:
        return "dup_para_frac"
    if rules.dup_para_char_frac and characters / len(text) > rules.dup_para_char_frac:
        return "dup_para_char_frac"
    lines = rules._line_splitter.split(text) if has_gaps else text.split("\n")
    count, characters = _duplicates(lines)
    if rules.dup_line_frac and count / len(lines) > rules.dup_line_frac:
        return "dup_line_frac"
    if rules.dup_line_char_frac and characters / len(text) > rules.dup_line_char_frac:
        return "dup_line_char_frac"
    return UNDECIDED


def _duplicates(elements: list[str]) -> tuple[int, int]:
    return find_duplicates(elements) if len(set(elements)) < len(elements) else (0, 0)


def _ngram_rules_that_may_break(rules: Any, pages: Pages) -> dict[int, list[tuple[str, int]]]:
    """By page: (kind, words of the n-grams) of every rule that is not certainly kept."""
    tops, duplicates = [n for n, _ in rules.top_n_grams], [n for n, _ in rules.dup_n_grams]
    lengths = np.array([max(1, len(text)) for text in pages.texts])
    shares = {}
    for n, ngrams in repeated_ngrams(pages.english.vocabulary, pages.words, {*tops, *duplicates}):
        if n in tops:
            shares["top", n] = ngrams.top() / lengths
        if n in duplicates:
            shares["duplicates", n] = ngrams.duplicates() / lengths
    may_break: dict[int, list[tuple[str, int]]] = {}
    for kind, limits in (("top", rules.top_n_grams), ("duplicates", rules.dup_n_grams)):
        for n, limit in limits:
            for row in np.flatnonzero(shares[kind, n] > limit).tolist() if (kind, n) in shares else []:
                may_break.setdefault(row, []).append((kind, n))
    return may_break


def _repeated_ngrams(rules: Any, pages: Pages, row: int, may_break: list[tuple[str, int]]) -> str:
    if not may_break:
        return PASSED
    words, characters = pages.words_of(row), len(pages.texts[row])
    for n, limit in rules.top_n_grams:
        if ("top", n) in may_break and len(words) >= n and find_top_duplicate(get_n_grams(words, n)) / characters > limit:
            return f"top_{n}_gram"
    for n, limit in rules.dup_n_grams:
        if ("duplicates", n) in may_break and find_all_duplicate(words, n) / characters > limit:
            return f"duplicated_{n}_n_grams"
    return PASSED


def fineweb_quality(rules: Any) -> Verdicts:
    """Penedo et al. 2024, section 3.6."""
    stops = rules.stop_chars
    last = frozenset(stops) if isinstance(stops, tuple) and all(isinstance(stop, str) and len(stop) == 1 for stop in stops) else None

    def verdicts(pages: Pages) -> list[str]:
        def verdict(row: int) -> str:
            text = pages.texts[row]
            lines = [line for line in text.split("\n") if line.strip()]
            if not lines:
                return EMPTY
            ends = sum(line.endswith(stops) for line in lines) if last is None else sum(line[-1] in last for line in lines)
            ratio = ends / len(lines)
            if ratio < rules.line_punct_thr and not (ratio == 0 and rules.line_punct_exclude_zero):
                return "line_punct_ratio"
            if sum(len(line) <= rules.short_line_length for line in lines) / len(lines) > rules.short_line_threshold:
                return "short_line_ratio"
            new_lines = text.count("\n")
            if _duplicates(lines)[1] / (len(text) - new_lines) > rules.char_duplicates_ratio:
                return "char_dup_ratio"
            return "list_ratio" if new_lines / pages.word_counts[row] > rules.new_line_ratio else PASSED

        return _each(verdict, len(pages.texts))

    return verdicts


def c4_quality(rules: Any) -> Verdicts:
    """Raffel et al. 2020, section 2.2."""

    def verdicts(pages: Pages) -> list[str]:
        if not rules.split_paragraph:  # sentences instead of lines
            return [_verdict_of(rules, text) for text in pages.texts]
        enough = rules.min_num_sentences
        columns: list[str] = []
        few: dict[int, list[str]] = {}  # pages whose lines may have too few sentences
        for row, text in enumerate(pages.texts):
            verdict, lines = _c4_lines(rules, text)
            columns.append(verdict or PASSED)
            if not verdict and enough != -1 and len(lines) < enough:  # a line is a sentence at least
                few[row] = lines
        if few:
            counts = pages.english.sentences([line for lines in few.values() for line in lines])
            ends = np.cumsum([len(lines) for lines in few.values()])
            before = np.concatenate([[0], np.cumsum(counts)])
            for row, lines, end in zip(few, few.values(), ends, strict=True):
                if before[end] - before[end - len(lines)] < enough:
                    columns[row] = "too_few_sentences"
        return columns

    return verdicts


def _c4_lines(rules: Any, text: str) -> tuple[str, list[str]]:
    """(the rule broken or nothing, the lines that stay)."""
    kept: list[str] = []
    low = text.lower()
    # Taking out citations can put a phrase together.
    is_clean = "[" not in text and "{" not in text and not any(phrase in low for phrase in _PHRASES)
    longest, fewest = rules.max_word_length, rules.min_words_per_line
    for line in text.splitlines():
        line = line.strip()
        if longest != -1 and len(line) > longest and any(len(word) > longest for word in line.split()):
            continue
        bare = CITATION_REGEX.sub("", line) if rules.remove_citations and "[" in line else line
        if rules.filter_no_terminal_punct and (not bare.endswith(END_PUNCTUATION) or bare.endswith(ELLIPSIS)):
            continue
        if len(line.split(None, max(0, fewest))) < fewest:
            continue
        if not is_clean:
            lower = bare.lower()
            if rules.filter_lorem_ipsum and "lorem ipsum" in lower:
                return "lorem_ipsum", kept
            if rules.filter_javascript and "javascript" in lower:
                continue
            if rules.filter_curly_bracket and "{" in bare:
                return "curly_bracket", kept
            if rules.filter_policy and any(phrase in lower for phrase in POLICY_SUBSTRINGS):
                continue
        kept.append(bare)
    return UNDECIDED, kept


_PHRASES = ("lorem ipsum", "javascript", *POLICY_SUBSTRINGS)


def _verdict_of(rules: Any, text: str) -> str:
    """What datatrove's filter says itself."""
    verdict = rules.filter(Document(text=text, id=""))
    return str(verdict[1]) if isinstance(verdict, tuple) else PASSED


VERDICTS = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "fineweb_quality": fineweb_quality,
    "c4_quality": c4_quality,
}
