import random
from pathlib import Path

import fasttext
import numpy as np
import pytest

from tasks.errors import UserError
from tasks.scorers import FastTextQualityConfig, make_scorer
from tasks.scorers.fasttext_quality import train_fasttext

GOOD, BAD = ["theorem", "proof", "lemma", "integral", "cell"], ["buy", "cheap", "click", "sale", "win"]
TINY = {"dim": 8, "epochs": 4, "bucket": 500}


def examples(high: str = "__label__hq", low: str = "__label__cc") -> list[tuple[str, str]]:
    rng = random.Random(1)
    return [(" ".join(rng.choices(words, k=12)), label) for _ in range(100) for words, label in ((GOOD, high), (BAD, low))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fasttext") / "model.bin"
    assert train_fasttext(examples(), path, **TINY) == {"__label__hq": 100, "__label__cc": 100}
    return path


def score(model: Path, texts: list[str], **config: str) -> list[float]:
    return make_scorer(FastTextQualityConfig(**config), model).score(texts)[config.get("column", "quality")].tolist()


def predicted(model: Path, line: str) -> float:
    """Probability of hq, asked of fastText for all labels at once and of a list, as ours does not."""
    labels, probabilities = fasttext.load_model(str(model)).predict([line], k=2)
    return float(dict(zip(labels[0], probabilities[0], strict=True))["__label__hq"])


def test_a_trained_model_scores_as_fasttext_predicts(model: Path) -> None:
    texts = [" ".join(GOOD), " ".join(BAD), "proof win", "words never seen", ""]
    scores = score(model, texts)
    assert scores == pytest.approx([predicted(model, text) for text in texts], abs=1e-4)
    assert scores[0] > 0.9 and scores[1] < 0.1


def test_a_low_best_label_gives_one_minus_its_probability(model: Path) -> None:
    text = " ".join(BAD)
    labels, probabilities = fasttext.load_model(str(model)).predict([text])
    assert labels[0] == ["__label__cc"]
    assert score(model, [text]) == [pytest.approx(1 - float(probabilities[0][0]), abs=1e-7)]


def test_lines_are_joined_by_one_space_as_dclm_does(model: Path) -> None:
    # With word bigrams the order matters, and a second line would not be read at all.
    text = "\n theorem buy\r\n\nsale lemma\u2028proof win\n"
    assert score(model, [text]) == [pytest.approx(predicted(model, "theorem buy sale lemma proof win"), abs=1e-6)]
    assert score(model, [text]) != score(model, ["theorem buy"])
    # Only the text's ends are stripped: to fastText a no-break space at the end of a line is part of the word.
    assert score(model, ["theorem\u00a0\nproof"]) == [pytest.approx(predicted(model, "theorem\u00a0 proof"), abs=1e-6)]
    assert score(model, ["theorem\u00a0\nproof"]) != score(model, ["theorem\nproof"])


def test_word_ngrams_tell_the_order_of_words(model: Path, tmp_path: Path) -> None:
    texts = ["theorem proof lemma", "lemma proof theorem"]
    assert np.diff(score(model, texts)) != 0
    train_fasttext(examples(), tmp_path / "words.bin", word_ngrams=1, **TINY)
    assert np.diff(score(tmp_path / "words.bin", texts)) == pytest.approx(0, abs=1e-7)


def test_scores_stay_in_the_unit_interval(tmp_path: Path) -> None:
    model = tmp_path / "sure.bin"
    train_fasttext(examples(), model, **{**TINY, "epochs": 300, "lr": 1.0})
    extreme = [" ".join(words * 300) for words in (GOOD, BAD)]
    found = [p for text in extreme for p in fasttext.load_model(str(model)).predict([text], k=1)[1][0].tolist()]
    scores = score(model, extreme)
    assert all(0 <= s <= 1 for s in scores)
    assert max(found) > 1  # without clipping this would be over 1, so the line above shows something


def test_labels_and_the_column_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "math.bin"
    train_fasttext(examples("__label__math", "__label__other"), path, **TINY)
    config = {"column": "maths", "high_label": "__label__math", "low_label": "__label__other"}
    assert np.diff(score(path, [" ".join(BAD), " ".join(GOOD)], **config)) > 0.5
    with pytest.raises(UserError, match="has the labels __label__math, __label__other, not __label__hq and __label__cc"):
        score(path, [])


def test_training_twice_gives_the_same_bytes_and_another_seed_others(model: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        train_fasttext(examples(), tmp_path / name, seed=seed, **TINY)
    assert (tmp_path / "again").read_bytes() == model.read_bytes() != (tmp_path / "other").read_bytes()


def test_a_word_that_looks_like_a_label_does_not_become_one(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    train_fasttext([(f"see __label__spam\t__label__cc, a__label__b {text}", label) for text, label in examples()], path, **TINY)
    model = fasttext.load_model(str(path))
    assert sorted(model.get_labels()) == ["__label__cc", "__label__hq"] and {"see", "a__label__b", "proof"} <= set(model.get_words())


def test_every_line_of_a_training_text_counts(tmp_path: Path) -> None:
    train_fasttext([(text.replace(" ", "\n"), label) for text, label in examples()], tmp_path / "lines.bin", **TINY)
    train_fasttext(examples(), tmp_path / "one.bin", **TINY)
    assert (tmp_path / "lines.bin").read_bytes() == (tmp_path / "one.bin").read_bytes()


def test_bad_examples_and_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label 'hq' is none to fastText"):
        train_fasttext([("a", "hq")], tmp_path / "m.bin", **TINY)
    with pytest.raises(UserError, match="needs examples of two labels, but there is __label__hq"):
        train_fasttext([("a", "__label__hq")], tmp_path / "m.bin", **TINY)
    assert not (tmp_path / "m.bin").exists()
    with pytest.raises(UserError, match=r"m\.bin does not exist"):
        score(tmp_path / "m.bin", [])
    (tmp_path / "m.bin").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"m\.bin is not a fastText model"):
        score(tmp_path / "m.bin", [])
