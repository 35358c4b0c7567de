"""The repetition rule against a loop that counts runs one position at a time."""

import numpy as np
import pytest

from trainer.repetition import has_repetition, repeated_documents


def _brute_force(ids: np.ndarray, max_period: int = 13, repeats: int = 32) -> bool:
    tokens = ids.tolist()
    for period in range(1, max_period + 1):
        run = 0
        for position in range(period, len(tokens)):
            run = run + 1 if tokens[position] == tokens[position - period] else 0
            if run >= (repeats - 1) * period:
                return True
    return False


def _primitive(period: int, random: np.random.Generator) -> np.ndarray:
    """An n-gram that is no shorter one repeated."""
    return random.permutation(np.arange(100, 100 + period)).astype(np.uint32)


@pytest.mark.parametrize("period", range(1, 14))
def test_the_32nd_repeat_counts_and_the_31st_does_not(period: int) -> None:
    random = np.random.default_rng(period)
    gram = _primitive(period, random)
    for offset in (0, 1, period, 17, 30, 31, 97):
        before = np.arange(1000, 1000 + offset, dtype=np.uint32)
        after = np.arange(5000, 5000 + random.integers(0, 50), dtype=np.uint32)
        whole = np.concatenate([before, np.tile(gram, 32), after])
        assert has_repetition(whole)
        for changed in (offset, offset + 16 * period, offset + 32 * period - 1):
            broken = whole.copy()
            broken[changed] = 9
            assert not has_repetition(broken)
        assert not has_repetition(np.concatenate([before, np.tile(gram, 31), gram[:-1], after]))


@pytest.mark.parametrize("period", range(1, 14))
def test_32_repeats_are_found_wherever_they_begin(period: int) -> None:
    before, run = np.arange(1000, 2000, dtype=np.uint32), np.tile(_primitive(period, np.random.default_rng(period)), 32)
    for offset in range(1, 32 * period):
        ids = np.concatenate([before[:offset], run, before[:1]])
        assert has_repetition(ids) and has_repetition(ids[1:])  # the second one's memory begins at no multiple of 8 bytes


def test_a_period_of_14_is_no_repetition() -> None:
    assert not has_repetition(np.tile(_primitive(14, np.random.default_rng(0)), 100))


def test_random_documents_agree_with_the_loop() -> None:
    random = np.random.default_rng(0)
    seen = set()
    for trial in range(300):
        vocabulary = int(random.choice([2, 3, 50]))
        documents = []
        for _ in range(random.integers(1, 12)):
            parts = [random.integers(0, vocabulary, random.integers(0, 40))]
            if random.random() < 0.7:  # a run whose length lies around the threshold, with an odd tail
                gram = random.integers(0, vocabulary, random.integers(1, 6))
                parts.append(np.resize(gram, max(0, 8 * len(gram) + random.integers(-6, 7))))
            parts.append(random.integers(0, vocabulary, random.integers(0, 40)))
            documents.append(np.concatenate(parts).astype(np.uint32))
        # Gaps between documents, which must not be looked at.
        gaps = [np.full(random.integers(0, 3) * 20, 1, np.uint32) for _ in documents]
        pieces = [piece for pair in zip(gaps, documents, strict=True) for piece in pair]
        ends = np.cumsum([len(piece) for piece in pieces])[1::2]
        lengths = np.array([len(document) for document in documents])
        expected = [_brute_force(document, 5, 8) for document in documents]
        for shift in (0, 1):  # the second array begins at no multiple of 8 bytes
            tokens = np.concatenate([np.zeros(shift, np.uint32), *pieces])[shift:]
            assert repeated_documents(tokens, ends - lengths, lengths, max_period=5, repeats=8).tolist() == expected, trial
        seen.update(expected)
    assert seen == {True, False}


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_few_repeats_agree_with_the_loop(repeats: int) -> None:
    random = np.random.default_rng(repeats)
    for _ in range(300):
        ids = random.integers(0, 6, random.integers(0, 14)).astype(np.uint32)
        assert has_repetition(ids, 4, repeats) == _brute_force(ids, 4, repeats), ids


def test_a_run_across_a_border_belongs_to_no_document() -> None:
    tokens = np.full(60, 9, np.uint32)
    assert repeated_documents(tokens, np.array([0, 30]), np.array([30, 30])).tolist() == [False, False]
    assert repeated_documents(np.full(62, 9, np.uint32), np.array([0, 31]), np.array([31, 31])).tolist() == [False, False]
    assert repeated_documents(tokens, np.array([0, 28]), np.array([28, 32])).tolist() == [False, True]


def test_a_run_that_crosses_the_finders_own_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.repetition._BLOCK_BYTES", 400)
    monkeypatch.setattr("trainer.repetition._BLOCKS", 2)
    random = np.random.default_rng(1)
    for period in (1, 5, 13):
        for start in range(0, 120, 7):
            ids = np.arange(1000, 1900, dtype=np.uint32)
            ids[start : start + 32 * period] = np.tile(_primitive(period, random), 32)
            assert has_repetition(ids)


def test_empty_input() -> None:
    assert not has_repetition(np.empty(0, np.uint32))
    assert len(repeated_documents(np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, np.int64))) == 0
