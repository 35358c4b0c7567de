"""The statistics of the benchmark of micro-anneals, against scipy, by hand, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy.stats import kendalltau

from benchmarks import agreement

CLOSE = {"a": [1.00, 1.01, 1.02], "b": [1.00, 1.03, 1.01], "c": [1.02, 1.00, 1.04]}
APART = {"a": [1.00, 1.01, 1.02], "b": [2.00, 2.01, 2.02], "c": [3.00, 3.01, 3.02], "d": [4.0, 4.1, 4.2]}


def _values(means: list[float], noise: float = 0.0, seed: int = 0) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    return {f"s{number}": list(mean + noise * random.standard_normal(3)) for number, mean in enumerate(means)}


def test_tau_is_scipys_where_there_are_no_ties() -> None:
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, 50, 6))
    expected = [kendalltau(*pair).statistic for pair in zip(left, right, strict=True)]
    assert agreement.kendall_tau(left, right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "tau"), [([1, 2, 3, 4, 5], 1.0), ([5, 4, 3, 2, 1], -1.0), ([2, 1, 3, 4, 5], 0.8), ([1, 1, 3, 4, 5], 0.9), ([7] * 5, 0.0)]
)
def test_tau_counts_pairs_in_the_same_order_less_the_others(right: list[float], tau: float) -> None:
    assert float(agreement.kendall_tau(np.arange(5.0), np.array(right, float))) == pytest.approx(tau)


def test_a_gap_under_two_standard_errors_is_not_resolved() -> None:
    found = agreement.best_to_worst(CLOSE)
    # by hand: means 1.01 and 1.02; standard deviations 0.01 and 0.02, each over the root of 3
    assert (found.better, found.worse) == ("a", "c")
    assert found.difference == pytest.approx(0.01) and found.error == pytest.approx((0.0001 / 3 + 0.0004 / 3) ** 0.5)
    assert not found.resolved and str(found).startswith("not resolved: a before c by 0.0100")


@pytest.mark.parametrize(("shift", "resolved"), [(0.0162, False), (0.0165, True)])  # two standard errors are 0.01633
def test_it_is_resolved_from_two_standard_errors_on(shift: float, resolved: bool) -> None:
    first = [1.00, 1.01, 1.02]
    found = agreement.best_to_worst({"low": first, "high": [each + shift for each in first]})
    assert found.resolved is resolved and str(found).startswith("resolved" if resolved else "not resolved")


def test_equal_sources_without_any_spread_are_not_resolved() -> None:
    assert not agreement.best_to_worst({"a": [1.0, 1.0], "b": [1.0, 1.0]}).resolved


def test_only_pairs_that_both_resolve_are_compared() -> None:
    other = {**APART, "a": [2.5, 2.51, 2.52], "d": [3.0, 3.01, 3.02]}  # c and d are one to it, and a is after b
    assert agreement.resolved_pairs(APART, APART) == (6, 6)
    assert agreement.resolved_pairs(APART, other) == (5, 4)


def test_means_of_seeds_drawn_again_vary_as_the_mean_does() -> None:
    values = {"a": [1.0, 2.0, 6.0], "b": [0.0, 0.1]}
    drawn = agreement.resample(values, 200_000, np.random.default_rng(0))
    for column, seeds in zip(drawn.T, values.values(), strict=True):
        assert column.mean() == pytest.approx(np.mean(seeds), abs=0.01)
        assert column.std() == pytest.approx(agreement.standard_error(seeds), rel=0.01)


def test_the_interval_over_seeds_is_a_point_where_seeds_agree_and_wide_where_they_do_not() -> None:
    means = [1.0, 2.0, 3.0, 4.0, 5.0]
    for sources_too in (False, True):
        assert agreement.tau_interval(_values(means), _values(means), sources_too) == (1.0, 1.0)
    low, high = agreement.tau_interval(_values(means, 5, 1), _values(means, 5, 2), sources_too=False)
    assert high - low > 0.5
    assert (low, high) == agreement.tau_interval(_values(means, 5, 1), _values(means, 5, 2), sources_too=False)


def test_sources_drawn_again_count_as_all_pairs_of_different_ones_do() -> None:
    means, other = [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]
    assert agreement.tau_interval(_values(means), _values(other), sources_too=False) == pytest.approx((1 / 3, 1 / 3))
    taus = []
    for chosen in itertools.product(range(3), repeat=3):  # by brute force: every way to draw three of three
        pairs = [(i, j) for i, j in itertools.combinations(chosen, 2) if i != j]
        if pairs:
            taus.append(sum(np.sign(means[i] - means[j]) * np.sign(other[i] - other[j]) for i, j in pairs) / len(pairs))
    expected = np.quantile(taus, (0.025, 0.975), method="closest_observation")
    assert agreement.tau_interval(_values(means), _values(other), sources_too=True) == pytest.approx(tuple(expected))


def test_the_chance_of_a_tau_is_its_share_of_all_orders() -> None:
    means = [1.0, 2.0, 3.0, 4.0, 5.0]
    swapped = [2.0, 1.0, 3.0, 4.0, 5.0]
    assert agreement.tau_by_chance(_values(means), _values(means)) == pytest.approx(1 / 120)
    # scipy's exact two-sided test counts as many orders on the other side
    assert agreement.tau_by_chance(_values(means), _values(swapped)) == pytest.approx(kendalltau(means, swapped).pvalue / 2)


def test_a_source_that_alone_makes_the_order_shows_when_it_is_left_out() -> None:
    means, other = [1.0, 2.0, 3.0, 9.0], [3.0, 2.0, 1.0, 9.0]
    taus = [kendalltau(*zip(*pairs, strict=True)).statistic for pairs in itertools.combinations(zip(means, other, strict=True), 3)]
    assert agreement.tau_without_one(_values(means), _values(other)) == pytest.approx((min(taus), max(taus)))
