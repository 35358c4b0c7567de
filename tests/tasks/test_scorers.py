from collections import Counter

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.errors import UserError
from tasks.scorers import EduClassifierConfig, LengthConfig, ScorerConfig, WordFrequencyConfig, make_scorer

CONFIGS = TypeAdapter(ScorerConfig)


@pytest.mark.parametrize("kind", ["fasttext", "edu", "word_frequency", "length", "language", "rules"])
def test_a_config_is_chosen_by_its_type_and_knows_no_other_keys(kind: str) -> None:
    assert CONFIGS.validate_python({"type": kind}).type == kind
    with pytest.raises(ValidationError, match="thresold"):
        CONFIGS.validate_python({"type": kind, "thresold": 1})


@pytest.mark.parametrize("kind", ["fasttext", "edu"])
def test_a_scorer_without_its_model_says_which_key_is_missing(kind: str) -> None:
    with pytest.raises(UserError, match=r"column \w+ has no model: set its key model"):
        make_scorer(CONFIGS.validate_python({"type": kind}), None)


@pytest.mark.parametrize("config", [WordFrequencyConfig(), LengthConfig()])
def test_scores_have_the_promised_columns_types_and_rows(config: WordFrequencyConfig | LengthConfig) -> None:
    scorer = make_scorer(config, None)
    for texts in (["a b", "", "c"], []):
        scores = scorer.score(texts)
        assert list(scores) == list(scorer.columns)
        for name, kind in scorer.columns.items():
            assert scores[name].dtype == kind.to_pandas_dtype() and scores[name].shape == (len(texts),)


def test_shares_of_the_most_frequent_words_are_those_of_a_counter() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ab }\n\t\u3000"), 60)) for _ in range(50)] + ["x x X x:\ny  y", "alone", "one two"]
    scores = make_scorer(WordFrequencyConfig(), None).score(texts)
    for row, text in enumerate(texts):
        counts = [count for _, count in Counter(text.split()).most_common()]
        assert scores["top_word_share"][row] == counts[0] / sum(counts)
        assert scores["top_two_words_share"][row] == sum(counts[:2]) / sum(counts)
    assert scores["top_word_share"][-3:].tolist() == [2 / 6, 1.0, 0.5]  # case and punctuation make another word


def test_a_text_without_words_has_no_share() -> None:
    scores = make_scorer(WordFrequencyConfig(), None).score(["", " \n\t"])
    assert np.isnan(scores["top_word_share"]).all() and np.isnan(scores["top_two_words_share"]).all()


def test_length_counts_characters_not_bytes() -> None:
    scores = make_scorer(LengthConfig(), None).score(["Füße und 💡\n", "", "  "])
    assert scores["characters"].tolist() == [11, 0, 2] and scores["words"].tolist() == [3, 0, 0]


def test_configs_open_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, tasks.scorers, tasks.scorers.train_edu; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_scorers_of_one_type_can_have_columns_of_their_own() -> None:
    assert EduClassifierConfig(column="maths").column == "maths"
    with pytest.raises(ValidationError):
        EduClassifierConfig(column="")
