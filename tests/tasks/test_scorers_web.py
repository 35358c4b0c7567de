"""Language and the rules for web pages, against datatrove's own filters and spaCy's own tokenizer."""

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import SpaCyTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.errors import UserError
from tasks.scorers import LanguageConfig, WebRulesConfig, column_names, make_scorer
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


@settings(max_examples=150, deadline=None)
@example(["Comments", ":", " ", "(=", "foo", ")"])  # what stands before has a say
@example(["(25-", "°C.", " ", ")"])
@given(LINES)
def test_words_and_sentences_are_spacys(fragments: list[str]) -> None:
    text = "".join(fragments)
    assert OURS.word_tokenize(text) == THEIRS.word_tokenize(text)
    assert OURS.span_tokenize(text) == THEIRS.span_tokenize(text)


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None)
@given(LINES)
def test_words_and_sentences_are_spacys_at_length(fragments: list[str]) -> None:
    text = "".join(fragments)
    assert OURS.word_tokenize(text) == THEIRS.word_tokenize(text)
    assert OURS.span_tokenize(text) == THEIRS.span_tokenize(text)


def test_words_and_sentences_of_real_pages_are_spacys() -> None:
    texts = sample_texts(20)
    for text in texts:
        assert OURS.word_tokenize(text) == THEIRS.word_tokenize(text)
        for line in text.splitlines()[:20]:
            assert OURS.span_tokenize(line) == THEIRS.span_tokenize(line)


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
        results = [rules.filter(Document(text=text, id="")) for text in texts]
        columns[name] = [result[1] if isinstance(result, tuple) else "passed" for result in results]
    return columns


def test_each_rule_set_names_the_rule_that_datatroves_filter_names() -> None:
    texts = made_up_pages(100)
    found = make_scorer(WebRulesConfig(), None).score(texts)
    want = verdicts_of_datatrove(texts)
    assert {name: column.tolist() for name, column in found.items()} == want
    # The pages are worth the test only as long as they break many rules and pass all of them.
    assert sum(len(set(column)) for column in want.values()) >= 18 and all("passed" in column for column in want.values())


def test_the_rules_of_real_pages_are_datatroves() -> None:
    texts = sample_texts(12)
    found = make_scorer(WebRulesConfig(), None).score(texts)
    assert {name: column.tolist() for name, column in found.items()} == verdicts_of_datatrove(texts)


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
