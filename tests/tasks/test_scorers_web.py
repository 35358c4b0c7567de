"""Language and the rules for web pages, against datatrove's own filters and spaCy's own tokenizer."""

import gzip
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.word_tokenizers import SpaCyTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.errors import UserError
from tasks.scorers import LanguageConfig, WebRulesConfig, column_names, english_words, make_scorer, web_rules
from tasks.scorers.english_words import EnglishWords
from tasks.scorers.fasttext_quality import train_fasttext

DATATROVE = {
    "gopher_quality": GopherQualityFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "fineweb_quality": FineWebQualityFilter,
    "c4_quality": C4QualityFilter,
}

# -- words ---------------------------------------------------------------------------------------------------------------------------

# What spaCy's special cases and affixes are made of, so that they meet over and within the stretches between white space.
_PARTS = (
    "( = ) : ; [ ] / | - _ . , ! ? … ... ' ’ \" “ < > 3 8 D o O 0 x @ # $ a a. a.m. 10 10a.m. °C °C. U.S. Mr. vs. w/o and/or it's don't"
)
FRAGMENTS = _PARTS.split()
FRAGMENTS += [
    "can't",
    "'s",
    "’s",
    "n't",
    "it",
    "s",
    "foo",
    "Bär",
    "水",
    "。",
    "http://a.com/b?c=(d)",
    "\u200b",
    "e-mail",
    "IS",
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\t",
]
FRAGMENTS += ["\u00a0", "\u3000", "\r\n", "\n\n", " :", ": ", "(=", "=)"]

OURS, THEIRS = EnglishWords(), SpaCyTokenizer("en")

LINES = st.lists(st.sampled_from(FRAGMENTS), max_size=14)

# Plain words between marks, which are cut without spaCy, and what makes special cases or units of them.
PLAIN = [
    "word",
    "Words",
    "WORD",
    "a",
    "A",
    "o",
    "O",
    "x",
    "D",
    "s",
    "S",
    "C",
    "m",
    "km",
    "am",
    "US",
    "Mr",
    "cannot",
    "Cannot",
    "gonna",
    "Im",
    "lets",
    "dont",
    "e-mail",
    "o-o",
    "well-known",
    "1",
    "8",
    "2009",
    "10",
    "not",
    "can",
]
BETWEEN = [*".,;:!?()[]\"”’'“‘-", "'s", "’s", "...", " ", " ", " ", "\n", "  "]
PLAIN_LINES = st.lists(st.tuples(st.sampled_from(PLAIN), st.lists(st.sampled_from(BETWEEN), max_size=4)), max_size=4)


def words(texts: list[str]) -> list[list[str]]:
    OURS.make_room()
    found = OURS.cut(texts)
    every = [OURS.vocabulary.strings[number] for number in found.numbers]
    return [every[begin:end] for begin, end in itertools.pairwise(found.bounds)]


def assert_as_spacy(texts: list[str]) -> None:
    assert words(texts) == [THEIRS.word_tokenize(text) for text in texts]
    assert OURS.sentences(texts).tolist() == [max(1, len(THEIRS.span_tokenize(text))) for text in texts]


@settings(max_examples=80, deadline=None)
@example([["Comments", ":", " ", "(=", "foo", ")"]])  # what stands before has a say
@example([["(25-", "°C.", " ", ")"]])
@given(st.lists(LINES, max_size=3))
def test_words_and_sentences_are_spacys(texts: list[list[str]]) -> None:
    assert_as_spacy(["".join(fragments) for fragments in texts])


@settings(max_examples=150, deadline=None)
@example([("A", ["."]), ("US", [" "]), ("D", [".", " "]), ("km", ["."])])
@example([("10", ["."]), ("8", [")", " "]), ("word", [":", ")", " "]), ("cannot", [",", " "]), ("e-mail", ["’s", "."])])
@given(PLAIN_LINES)
def test_plain_words_between_marks_are_spacys(pieces: list[tuple[str, list[str]]]) -> None:
    assert_as_spacy(["".join(word + "".join(marks) for word, marks in pieces)])


def test_the_special_cases_of_spacy_are_spacys_between_marks_too() -> None:
    cases = sorted(THEIRS.tokenizer.tokenizer.rules)
    lines = [" ".join(form.format(case) for case in cases) for form in ("{}", "({},", "“{}”", "x-{}:", "{}’s")]
    assert words(lines) == [THEIRS.word_tokenize(line) for line in lines]


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None)
@given(LINES, PLAIN_LINES)
def test_words_and_sentences_are_spacys_at_length(fragments: list[str], pieces: list[tuple[str, list[str]]]) -> None:
    assert_as_spacy(["".join(fragments), "".join(word + "".join(marks) for word, marks in pieces)])


def test_words_and_sentences_of_real_pages_are_spacys() -> None:
    texts = sample_texts(20)
    assert_as_spacy(texts + [line for text in texts for line in text.splitlines()[:20]])


def sample_texts(count: int) -> list[str]:
    folder = Path(os.environ.get("OLMOFLOW_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no folder of real samples: set OLMOFLOW_DATA")
    with gzip.open(folder / "web" / "dclm_human_quality_majority.jsonl.gz") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]


# -- rules ---------------------------------------------------------------------------------------------------------------------------

_TEXT = "the mill and river that with have water stone evening light slowly turning wheel village people summer long quiet green"
WORDS = _TEXT.split()


def made_up_pages(count: int) -> list[str]:
    """Pages that break this or that rule, and some that break none."""
    chance = random.Random(3)

    def sentence(end: str = ".") -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randrange(4, 16))).capitalize() + end

    def page() -> str:
        lines = [" ".join(sentence() for _ in range(chance.randrange(1, 5))) for _ in range(chance.randrange(1, 14))]
        flaw = chance.randrange(16)
        if flaw == 0:
            lines = [f"- {line}" for line in lines]
        elif flaw == 1:
            lines = [line[:-1] + "..." for line in lines]
        elif flaw == 2:
            lines += [lines[0]] * len(lines) * 2
        elif flaw == 3:
            lines = [line.replace(" ", " # ") for line in lines]
        elif flaw == 4:
            lines = [line.replace(" ", "\n") for line in lines]
        elif flaw == 5:
            lines = [f"{line} {{ x }}" for line in lines]
        elif flaw == 6:
            lines.append("Lorem ipsum dolor sit amet.")
        elif flaw == 7:
            lines = [line.replace("the", "12 34 5").replace("e", "7") for line in lines]
        elif flaw == 8:
            lines = [line.replace(" ", "internationalisation") for line in lines]
        elif flaw == 9:
            lines = [" ".join(["again and again"] * chance.randrange(10, 60)) + "."]
        elif flaw == 10:
            lines = [line.rstrip(".") for line in lines]
        elif flaw == 11:
            lines = [word for line in lines for word in line.split(" ")[:2]]
        elif flaw == 12:
            lines = ["\n\n".join(lines[:2]) for _ in range(4)]
        elif flaw == 13:
            lines = [lines[0] * 3 + f" {number}" for number in range(5)]
        return "\n".join(lines)

    return [page() for _ in range(count)]


def verdicts_of_datatrove(texts: list[str], **given: dict) -> dict[str, list[str]]:
    columns = {}
    for name, kind in DATATROVE.items():
        rules = kind(**given.get(name, {}))
        columns[name] = [verdict_of_datatrove(rules, text) for text in texts]
    return columns


def verdict_of_datatrove(rules: BaseFilter, text: str) -> str:
    try:
        result = rules.filter(Document(text=text, id=""))
    except ZeroDivisionError:
        return "empty"
    return result[1] if isinstance(result, tuple) else "passed"


def test_each_rule_set_names_the_rule_that_datatroves_filter_names() -> None:
    texts = made_up_pages(100)
    found = make_scorer(WebRulesConfig(), None).score(texts)
    want = verdicts_of_datatrove(texts)
    assert {name: column.tolist() for name, column in found.items()} == want
    # The pages are worth the test only as long as they break many rules and pass all of them.
    assert sum(len(set(column)) for column in want.values()) >= 18 and all("passed" in column for column in want.values())


def test_the_rules_of_real_pages_are_datatroves() -> None:
    texts = sample_texts(12)
    texts += [text[:-1] + text[:-1] for text in texts[:4]] + [text.upper() for text in texts[4:6]]
    found = make_scorer(WebRulesConfig(), None).score(texts)
    assert {name: column.tolist() for name, column in found.items()} == verdicts_of_datatrove(texts)


# Words that give the same letters cut in different places, and lines that are nearly nothing, or break the rules for lines.
_WORDS = st.sampled_from(["a", "ab", "b", "aab", "mill", "the", "and", "…", "#", "...", "•", "７"])
_BITS = ["\n", "\n\n", " \n", ". ", "\u2028", "\u00a0", "\r\n", "?! ", "- ", "• ", "１", "\x00", "{", "y" * 1001, "a b c.\n", "a b c...\n"]
_BITS += ["[1]", "[edit]", "java[2]script is on.", "Lorem Ipsum it is.", "the privacy policy of it.\n", "İstanbul ΑΣ. ", "ab a b ab.\n" * 3]
_PAGE = st.lists(st.one_of(st.lists(_WORDS, max_size=12).map(" ".join), st.sampled_from(_BITS)), max_size=12).map(" ".join)
LENIENT = {
    "gopher_quality": {"min_doc_words": 3, "min_avg_word_length": None, "min_stop_words": 1, "max_non_alpha_words_ratio": 0.5},
    "gopher_repetition": {
        "top_n_grams": [[1, 0.6], [2, 0.5]],
        "dup_n_grams": [[2, 0.4], [3, 0.3], [5, 0.2], [12, 0.1]],
        "dup_line_frac": None,
    },
    "fineweb_quality": {"line_punct_exclude_zero": True, "char_duplicates_ratio": 0.3, "short_line_thr": 0.9, "stop_chars": (".", "...")},
    "c4_quality": {"min_num_sentences": 2, "min_words_per_line": 2},
}
SCORERS = [make_scorer(WebRulesConfig(), None), make_scorer(WebRulesConfig.model_validate({"sets": LENIENT}), None)]


_LINE = "the mill of the quiet village has water and stone "
EDGES = [
    "It has java[2]script on.\n" * 6,  # the word is there once the citation is gone
    "Yes [edit] indeed.\n" * 6,  # and three words are there only before
    "\n".join(f"{_LINE} {number}…" for number in range(9)),
    "\n".join(f"• {_LINE} {number}." for number in range(9)),
    "\n".join(f"{_LINE}? {number} " + "x" * 1001 for number in range(9)),
    f"\n{_LINE}{{\n" * 9,
    f"{_LINE}{{.\n" * 9,
    "Use cookies of it.\nA b c d. E. F? G! H.\nSo be it...\n",
    "ΑΣ ΑΣ LOREM IPSUM.",
]


def test_verdicts_of_pages_on_the_edge_are_datatroves() -> None:
    for scorer, given_settings in zip(SCORERS, ({}, LENIENT), strict=True):
        found = scorer.score(EDGES)
        assert {name: column.tolist() for name, column in found.items()} == verdicts_of_datatrove(EDGES, **given_settings)


@settings(max_examples=60, deadline=None)
@given(st.lists(_PAGE, max_size=4))
def test_verdicts_of_odd_pages_are_datatroves(texts: list[str]) -> None:
    for scorer, given_settings in zip(SCORERS, ({}, LENIENT), strict=True):
        found = scorer.score(texts)
        assert {name: column.tolist() for name, column in found.items()} == verdicts_of_datatrove(texts, **given_settings)


@pytest.mark.soak
@settings(max_examples=5000, deadline=None)
@given(st.lists(_PAGE, max_size=4))
def test_verdicts_of_odd_pages_are_datatroves_at_length(texts: list[str]) -> None:
    for scorer, given_settings in zip(SCORERS, ({}, LENIENT), strict=True):
        found = scorer.score(texts)
        assert {name: column.tolist() for name, column in found.items()} == verdicts_of_datatrove(texts, **given_settings)


def test_verdicts_do_not_depend_on_hashes_on_parts_or_on_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made_up_pages(40)
    want = verdicts_of_datatrove(texts)
    monkeypatch.setattr(english_words, "REMEMBERED_STRETCHES", 50)
    monkeypatch.setattr(web_rules, "AT_ONCE", 1000)
    found = make_scorer(WebRulesConfig(), None).score(texts)
    assert {name: column.tolist() for name, column in found.items()} == want
    monkeypatch.setattr(english_words, "_hash", lambda words, lengths: (np.zeros(len(words), np.uint64),) * 2)  # all n-grams look alike
    found = make_scorer(WebRulesConfig(), None).score(texts)
    assert {name: column.tolist() for name, column in found.items()} == want


def test_settings_of_a_rule_set_go_to_its_filter_and_unknown_ones_are_refused() -> None:
    texts = made_up_pages(40)
    config = WebRulesConfig.model_validate({"sets": {"gopher_quality": {"min_doc_words": 5, "min_stop_words": 4}}})
    assert column_names(config) == {"gopher_quality"}
    found = make_scorer(config, None).score(texts)
    want = verdicts_of_datatrove(texts, gopher_quality={"min_doc_words": 5, "min_stop_words": 4})
    assert found["gopher_quality"].tolist() == want["gopher_quality"] != verdicts_of_datatrove(texts)["gopher_quality"]
    with pytest.raises(ValidationError, match=r"gopher_quality has no setting min_words; it has .*min_doc_words"):
        WebRulesConfig.model_validate({"sets": {"gopher_quality": {"min_words": 5}}})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of datatrove's mean of no words
def test_a_text_without_words_breaks_a_rule_rather_than_the_step() -> None:
    config = WebRulesConfig.model_validate({"sets": {"gopher_quality": {"min_doc_words": 0}, "fineweb_quality": {}}})
    columns = make_scorer(config, None).score(["\n"])
    assert {name: column.tolist() for name, column in columns.items()} == {"gopher_quality": ["empty"], "fineweb_quality": ["empty"]}


# -- language ------------------------------------------------------------------------------------------------------------------------

ENGLISH = "The committee said on Monday that it would look into the matter and give its answer before the end of the month."
GERMAN = "Der Ausschuss teilte am Montag mit, dass er die Sache prüfen und noch vor Ende des Monats eine Antwort geben werde."
FRENCH = "Le comité a déclaré lundi qu'il examinerait la question et donnerait sa réponse avant la fin du mois prochain."


def test_the_language_is_told_without_a_model() -> None:
    scores = make_scorer(LanguageConfig(), None).score([ENGLISH, GERMAN, FRENCH, "\u200b"])
    assert scores["language"].tolist()[:3] == ["en", "de", "fr"]
    assert np.all(scores["language_score"][:3] > 0.4) and np.all(scores["language_score"][:3] <= 1)


def test_a_fasttext_model_tells_the_languages_it_was_trained_on(tmp_path: Path) -> None:
    chance = random.Random(0)
    examples = []
    for _ in range(300):
        text, label = chance.choice([(ENGLISH, "__label__en"), (GERMAN, "__label__de")])
        examples.append((" ".join(chance.sample(text.split(), 8)), label))
    train_fasttext(examples, tmp_path / "lid.bin", dim=8, bucket=1000, word_ngrams=1)
    scores = make_scorer(LanguageConfig(model=str(tmp_path / "lid.bin")), None).score(
        ["the answer\nbefore the end", "noch vor Ende des Monats", ""]
    )
    assert scores["language"].tolist()[:2] == ["en", "de"]
    assert np.all(scores["language_score"][:2] > 0.5) and np.all(scores["language_score"][:2] <= 1)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "lid.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"lid.bin is not a fastText model"):
        make_scorer(LanguageConfig(model=str(tmp_path / "lid.bin")), None)
