"""MinHash signatures: datatrove's values, and buckets that are shared as often as the formula says."""

import random

import datatrove.pipeline.dedup.minhash as theirs
import numpy as np
import pytest

from tasks.minhash import MinHash, Signer, shingles, words

PROSE = "The quick brown fox, aged 3.5 years, jumped over 1,234 lazy dogs — and then the naïve café’s Ångström door shut! "
TEXTS = {
    "prose": PROSE * 3,
    "lines, tabs and controls": PROSE.replace(" ", "\n\t") + "\x00\x1f\x85 tail\u2003of the text",
    "many n-grams": " ".join(f"word{chr(97 + i % 7)}{chr(97 + i // 7 % 26)} x{i % 11}" for i in range(900)),
    "accents and other scripts": "ÉCOLE İstanbul ΑΒΓ δέλτα Привет, мир ё й 你好。世界 हिन्दी में लिखा ٣٫١٤ numbers १२३ end of it",
    "code": "def f(x: int) -> int:\n    return x**2 + 3.14e-5  # see https://a.test/?q=1&b=2\n",
    "five words": "just these five words here",
}


class WhiteSpace:
    def word_tokenize(self, text):
        return text.split()


@pytest.fixture
def datatrove(tmp_path, monkeypatch):
    """datatrove's signatures over words split at white space: its word tokenizers are packages of their own."""
    monkeypatch.setattr(theirs, "load_word_tokenizer", lambda language: WhiteSpace())

    def signatures(config: MinHash):
        settings = theirs.MinhashConfig(n_grams=config.ngram, num_buckets=config.buckets, hashes_per_bucket=config.hashes_per_bucket)
        return theirs.MinhashDedupSignature(str(tmp_path), settings)

    return signatures


@pytest.mark.parametrize("config", [MinHash(), MinHash(ngram=3, buckets=4, hashes_per_bucket=2), MinHash(ngram=1, buckets=1)], ids=str)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_signatures_have_datatroves_values(datatrove, text, config):
    oracle = datatrove(config)
    expected = oracle.get_shingles(text)
    assert np.array_equal(shingles(text, config.ngram), expected[:, 0])
    signature = Signer(config).signature(text).reshape(config.buckets, -1)
    assert signature.tolist() == oracle.get_signature(expected)


@pytest.mark.parametrize("text", ["", " \n", "?!", "four words are few"])
def test_a_text_with_fewer_words_than_an_n_gram_has_no_signature(text):
    assert Signer(MinHash()).buckets(text) is None
    assert len(shingles(text, 5)) == 0


def test_case_numbers_punctuation_and_accents_make_no_difference():
    assert words("Le 3 MAI, à  l’école: 12.5 %") == words("le 4 mai a l école 7 ") == [b"le", b"0", b"mai", b"a", b"l", b"ecole", b"0"]


def related(rng: random.Random, jaccard: float, size: int = 300) -> tuple[str, str]:
    """Two texts of distinct one-word shingles whose sets have about this similarity."""
    shared = round(2 * size * jaccard / (1 + jaccard))
    pool = [f"w{number:x}".translate(str.maketrans("0123456789", "ghijklmnop")) for number in rng.sample(range(10**9), 2 * size - shared)]
    left, right = pool[:size], pool[:shared] + pool[size:]
    return " ".join(left), " ".join(right)


def similarity(left: str, right: str) -> float:
    a, b = set(left.split()), set(right.split())
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("jaccard", [0.4, 0.6, 0.72, 0.8, 0.9])
def test_pairs_share_a_bucket_as_often_as_the_formula_says(jaccard):
    rng, signer, pairs = random.Random(round(jaccard * 100)), Signer(MinHash(ngram=1)), 150
    found = expected = 0.0
    for _ in range(pairs):
        left, right = related(rng, jaccard)
        found += any(a == b for a, b in zip(signer.buckets(left), signer.buckets(right), strict=True)) / pairs
        expected += (1 - (1 - similarity(left, right) ** 8) ** 14) / pairs
    assert found == pytest.approx(expected, abs=3.5 * (expected * (1 - expected) / pairs) ** 0.5 + 0.01)


def test_near_pairs_are_found_and_far_ones_are_not():
    rng, signer = random.Random(1), Signer(MinHash(ngram=1))
    for jaccard in [0.95] * 30 + [0.3] * 30:
        left, right = related(rng, jaccard)
        assert any(a == b for a, b in zip(signer.buckets(left), signer.buckets(right), strict=True)) == (jaccard > 0.9)
