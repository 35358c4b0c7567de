"""Normalisations worked out by hand; means against lm-eval's own."""

import math

import pytest

from tasks.olmes import scoring

CHOICES = ["a long and likely answer", "short", "other"]
LIKELIHOODS = [-12.0, -5.0, -4.0]


@pytest.mark.parametrize(
    ("normalization", "choice"),
    [
        ("none", 2),  # -4 is the most
        ("character", 0),  # -12/24 = -0.5 against -1 and -0.8
        ("pmi", 1),  # -5 + 9 = 4 against -12 + 13 = 1 and -4 + 4.5 = 0.5
    ],
)
def test_each_normalization_takes_its_own_choice(normalization, choice):
    assert scoring.chosen(LIKELIHOODS, CHOICES, normalization, [-13.0, -9.0, -4.5]) == choice


def test_bits_per_byte_count_bytes_and_not_characters():
    assert scoring.bits_per_byte(-4 * math.log(2), "é€") == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("The Eiffel Tower", ["eiffel tower."], 1.0),
        ("in Paris, France", ["Paris"], 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("Paris Paris", ["Paris"], 2 * 0.5 * 1 / 1.5),  # a word counts as often as it is there
        ("Rome", ["Paris", "Rome or Milan"], 2 * 1 * (1 / 3) / (1 + 1 / 3)),  # the nearest answer
        ("", ["Paris"], 0.0),
    ],
)
def test_f1_is_squad_s(text, answers, expected):
    assert scoring.f1(text, answers) == pytest.approx(expected)


def test_an_exact_match_forgives_case_articles_and_punctuation_only():
    assert scoring.exact_match(" The  Beatles!", ["a beatles"]) == 1
    assert scoring.exact_match("Beatles", ["The Rolling Stones", "beatle"]) == 0


def test_the_standard_error_is_lm_eval_s():
    metrics = pytest.importorskip("lm_eval.api.metrics")
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.25]
    assert scoring.mean(values) == {"score": metrics.mean(values), "standard_error": pytest.approx(metrics.mean_stderr(values), rel=1e-15)}
    assert scoring.mean([1.0])["standard_error"] is None


def test_groups_count_alike_in_a_mean_however_many_values_they_have():
    values, groups = [1.0, 0.0, 1.0, 0.0, 0.0], ["law", "law", "art", "law", "art"]
    of_law, of_art = scoring.mean([1.0, 0.0, 0.0]), scoring.mean([1.0, 0.0])
    told = scoring.mean(values, groups)
    assert told["score"] == pytest.approx((of_law["score"] + of_art["score"]) / 2)
    assert told["standard_error"] == pytest.approx(math.hypot(of_law["standard_error"], of_art["standard_error"]) / 2)
    assert math.fsum(w * v for w, v in zip(scoring.weights(groups), values, strict=True)) == pytest.approx(told["score"], rel=1e-15)


def test_f1_of_drop_takes_pieces_in_any_order_and_no_wrong_number():
    pytest.importorskip("lm_eval.tasks.drop.utils")
    assert scoring.drop_f1("18", [["17"], ["18"]]) == 1
    assert scoring.drop_f1("18 yards", [["19 yards"]]) == 0
    assert scoring.drop_f1("Males", [["Males", "females"]]) == 0.5
