import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.errors import UserError
from tasks.mix_plan import MixSource, MixSpec, composition, extents, held_out, join_extents, order, plan_copies, resolve

# Tokens of the sources of the report's Tables 2 and 13.
DOLMINO = {
    "dclm": 752_000_000_000,
    "flan": 17_000_000_000,
    "stackexchange": 1_260_000_000,
    "pes2o": 58_600_000_000,
    "wiki": 3_700_000_000,
    "math": 10_700_000_000,
}


def splitmix(x: int) -> int:
    """One output of the SplitMix64 generator whose state is x, in plain integers (Steele et al., 2014)."""
    mask = 2**64 - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def spec(sources: dict[str, dict], **kwargs: object) -> MixSpec:
    return MixSpec.model_validate({"seed": 1, "sequence_length": 4096, "sources": sources, **kwargs})


def documents(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**64, n, dtype=np.uint64), rng.integers(1, 500, n)


def test_the_order_is_splitmix_of_the_key_and_the_mixed_seed() -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF  # first output of the published generator from state 0
    keys, _ = documents(50)
    for seed in (0, 1, 7201, 2**64 - 1):
        assert order(keys, seed).tolist() == [splitmix(int(key) ^ splitmix(seed)) for key in keys]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 40), repeat=st.floats(0, 4), seed=st.integers(0, 2**32), data=st.integers(0, 99))
def test_copies_are_those_of_a_loop_over_the_sorted_documents(n: int, repeat: float, seed: int, data: int) -> None:
    keys, lengths = documents(n, data)
    target = (repeat - math.floor(repeat)) * int(lengths.sum())
    line = sorted(range(n), key=lambda i: splitmix(int(keys[i]) ^ splitmix(seed)))
    # every prefix is tried; min takes the shortest of equally near ones
    taken = min(range(n + 1), key=lambda k: abs(sum(int(lengths[i]) for i in line[:k]) - target))
    expected = [math.floor(repeat)] * n
    for i in line[:taken]:
        expected[i] += 1
    copies = plan_copies(keys, lengths, repeat, seed)
    assert copies.dtype == np.uint16 and copies.tolist() == expected


def test_of_two_equally_near_prefixes_the_shorter_is_taken() -> None:
    assert plan_copies(np.arange(2, dtype=np.uint64), np.array([10, 10]), 0.25, 1).sum() == 0


def test_a_share_is_met_to_half_a_document_and_nests_in_larger_ones() -> None:
    keys, lengths = documents(3000)
    before = np.zeros(3000, np.uint16)
    for repeat in (0.01, 0.0323, 0.5, 0.999, 1.0, 1.2, 2.0, 3.7):
        copies = plan_copies(keys, lengths, repeat, seed=3)
        assert abs((copies * lengths).sum() - repeat * lengths.sum()) <= lengths.max() / 2
        assert (copies >= before).all()
        before = copies


def test_another_seed_takes_other_documents_and_the_place_in_the_index_does_not_matter() -> None:
    keys, lengths = documents(1000)
    one, other = plan_copies(keys, lengths, 0.5, 1), plan_copies(keys, lengths, 0.5, 2)
    assert 300 < (one != other).sum() < 700
    shuffled = np.random.default_rng(1).permutation(1000)
    assert (plan_copies(keys[shuffled], lengths[shuffled], 0.5, 1) == one[shuffled]).all()


def test_a_document_is_held_out_by_its_own_key_alone() -> None:
    keys, _ = documents(20_000)
    held = held_out(keys, 0.05)
    assert 0.04 < held.mean() < 0.06
    assert (held_out(keys[::7], 0.05) == held[::7]).all()
    assert (held_out(keys, 0.1) >= held).all() and not held_out(keys, 0).any()
    # independent of the seed of a mix: a half by another seed holds out half of the held out
    half = plan_copies(keys, np.ones(len(keys), np.int64), 0.5, seed=1) == 1
    assert 0.4 < half[held].mean() < 0.6
    with pytest.raises(UserError, match="held out"):
        held_out(keys, 1.5)


def test_shares_of_a_given_total() -> None:
    mix = spec({"web": {"share": 0.6}, "math": {"share": 0.4, "max_repeat": 4}}, tokens=1000)
    assert resolve(mix, {"web": 6000, "math": 100, "unused": 5}) == pytest.approx({"web": 0.1, "math": 4.0})


def test_shares_of_the_total_that_the_repeated_sources_imply() -> None:
    repeats = resolve(
        spec({"math": {"repeat": 2}, "web": {"share": 0.5}, "wiki": {"share": 0.1}}), {"math": 200, "web": 10_000, "wiki": 100}
    )
    # 400 tokens of math are the 40 % that the shares leave, so the mix has 1000
    assert repeats == pytest.approx({"math": 2, "web": 0.05, "wiki": 1.0})


def test_a_share_over_max_repeat_names_the_source_and_the_max_repeat_that_would_do() -> None:
    sources = {"web": {"share": 0.6}, "math": {"share": 0.4}}
    available = {"web": 6000, "math": 131}
    with pytest.raises(UserError, match=r"copies of math \(max_repeat 1; 3\.054 would do\)"):
        resolve(spec(sources, tokens=1000), available)
    sources["math"]["max_repeat"] = 3.054
    assert resolve(spec(sources, tokens=1000), available)["math"] == pytest.approx(400 / 131)


def test_a_source_that_is_unknown_or_empty_is_named() -> None:
    mix = spec({"web": {"repeat": 1}})
    with pytest.raises(UserError, match="wants the source web, but there are only wiki"):
        resolve(mix, {"wiki": 5})
    with pytest.raises(UserError, match="web of the mix has no tokens left"):
        resolve(mix, {"web": 0})


@pytest.mark.parametrize("source", [{}, {"repeat": 1, "share": 0.5}, {"repeat": 0}, {"share": 1.1}, {"share": 0.5, "weight": 1}])
def test_a_source_needs_exactly_one_of_repeat_and_share(source: dict) -> None:
    with pytest.raises(ValidationError):
        MixSource(**source)


@pytest.mark.parametrize(
    ("sources", "tokens", "message"),
    [
        ({"a": {"share": 0.5}, "b": {"share": 0.5}}, None, "set tokens"),
        ({"a": {"share": 0.5}, "b": {"share": 0.49}}, 100, "sum to 0.99, not to 1"),
        ({"a": {"share": 0.7}, "b": {"share": 0.6}}, 100, "sum to 1.3, not to 1"),
        ({"a": {"share": 0.7}, "b": {"share": 0.6}, "c": {"repeat": 2}}, None, "sum to 1.3 and leave no room for c"),
        ({"a": {"share": 0.5}, "b": {"repeat": 2}}, 100, "leave out tokens"),
        ({"a": {"share": 1.0}, "b": {"repeat": 2}}, None, "leave no room for b"),
        ({}, 100, "at least 1 item"),
    ],
)
def test_a_mix_that_does_not_add_up_is_refused(sources: dict, tokens: int | None, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(sources, tokens=tokens)


@pytest.mark.parametrize(
    ("repeats", "mix_percent"),
    [
        # The report's own source percentages. Its 100B column prints 17.5 % of maths, which its source percentages do not give.
        ({"dclm": 3.23, "flan": 50, "stackexchange": 100, "pes2o": 5.15, "wiki": 100, "math": 100}, [47.2, 16.5, 2.45, 5.86, 7.19, 20.8]),
        ({"dclm": 6.85, "flan": 100, "stackexchange": 200, "pes2o": 16.7, "wiki": 100, "math": 200}, [48.6, 16.1, 2.38, 9.24, 3.49, 20.2]),
    ],
)
def test_composition_computes_table_13(repeats: dict[str, float], mix_percent: list[float]) -> None:
    resolved = resolve(spec({name: {"repeat": percent / 100} for name, percent in repeats.items()}), DOLMINO)
    taken = {
        name: {"available": DOLMINO[name], "tokens": round(repeat * DOLMINO[name]), "documents": 9, "repeat": repeat}
        for name, repeat in resolved.items()
    }
    rows = composition(taken)
    assert [row["source"] for row in rows] == list(DOLMINO)
    assert [float(f"{row['mix_percent']:.3g}") for row in rows] == mix_percent
    assert [row["source_percent"] for row in rows] == pytest.approx(list(repeats.values()))
    assert sum(row["mix_percent"] for row in rows) == pytest.approx(100)


def test_extents_are_the_copies_one_after_the_other_merged_where_documents_touch() -> None:
    file = np.array([0, 0, 0, 1, 1], np.int32)
    start = np.array([0, 10, 15, 0, 7])
    length = np.array([10, 5, 5, 7, 3], np.int32)
    copies = np.array([2, 2, 0, 1, 3], np.uint16)
    assert extents(file, start, length, copies).tolist() == [
        [0, 0, 15, 15],  # copy 1: two documents that touch
        [1, 0, 10, 25],
        [0, 0, 15, 40],  # copy 2
        [1, 7, 3, 43],
        [1, 7, 3, 46],  # copy 3 does not merge with copy 2
    ]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 30), data=st.integers(0, 999))
def test_extents_read_the_tokens_that_a_loop_reads(n: int, data: int) -> None:
    rng = np.random.default_rng(data)
    file = np.sort(rng.integers(0, 3, n)).astype(np.int32)
    length = rng.integers(1, 6, n)
    start = np.array([length[:i][file[:i] == file[i]].sum() for i in range(n)], np.int64)
    copies = rng.integers(0, 4, n).astype(np.uint16)
    stream = [(int(file[i]), int(t)) for c in range(3) for i in range(n) if copies[i] > c for t in range(start[i], start[i] + length[i])]
    found = extents(file, start, length, copies)
    assert found.dtype == np.int64 and found.shape[1] == 4
    assert [(f, t) for f, s, size, _ in found.tolist() for t in range(s, s + size)] == stream
    assert found[:, 3].tolist() == np.cumsum(found[:, 2]).tolist()
    for one, two in itertools.pairwise(found):
        assert (one[0], one[1] + one[2]) != (two[0], two[1])  # nothing left to merge


def test_joined_extents_go_on_counting() -> None:
    one = np.array([[0, 0, 5, 5], [0, 9, 2, 7]])
    assert join_extents([one, np.empty((0, 4), np.int64), one + np.array([1, 0, 0, 0])]).tolist() == [
        [0, 0, 5, 5],
        [0, 9, 2, 7],
        [1, 0, 5, 12],
        [1, 9, 2, 14],
    ]
