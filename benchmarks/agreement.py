"""How well short runs rank sources as long ones do, from a few seeds of each: pure arithmetic.

`Values` are a metric by source, one number a seed. Lower is better (bits per byte).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from statistics import fmean, variance

import numpy as np

Values = Mapping[str, Sequence[float]]
RESOLVED_AT = 2.0  # standard errors


def kendall_tau(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Kendall's tau of two rankings, in [-1, 1]: of all pairs, those in the same order less those in the other; a tie is neither (tau-a).

    `left` and `right`: float[..., n], of which leading dimensions are rankings of their own; returns float[...].
    """
    one, other = np.triu_indices(left.shape[-1], 1)
    signs = np.sign(left[..., one] - left[..., other]) * np.sign(right[..., one] - right[..., other])
    return np.asarray(signs.mean(-1))


def means(values: Values) -> np.ndarray:
    return np.array([fmean(each) for each in values.values()])


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of at least two values."""
    return math.sqrt(variance(values) / len(values))


@dataclass(frozen=True)
class Gap:
    """Two sources, how much better the first is than the second, and the standard error of that."""

    better: str
    worse: str
    difference: float
    error: float

    @property
    def resolved(self) -> bool:
        return self.difference > 0 and self.difference >= RESOLVED_AT * self.error

    def __str__(self) -> str:
        verdict = "resolved" if self.resolved else "not resolved"
        return f"{verdict}: {self.better} before {self.worse} by {self.difference:.4f}, standard error {self.error:.4f}"


def gap(values: Values, one: str, other: str) -> Gap:
    better, worse = sorted((one, other), key=lambda name: fmean(values[name]))
    error = math.hypot(standard_error(values[one]), standard_error(values[other]))
    return Gap(better, worse, fmean(values[worse]) - fmean(values[better]), error)


def best_to_worst(values: Values) -> Gap:
    """The widest gap there is. Where even that is not resolved, the ranking says nothing."""
    ranked = sorted(values, key=lambda name: fmean(values[name]))
    return gap(values, ranked[0], ranked[-1])


def resolved_pairs(short: Values, long: Values) -> tuple[int, int]:
    """(pairs of sources that are resolved in both, how many of these are in the same order in both)."""
    gaps = [(gap(short, *pair), gap(long, *pair)) for pair in combinations(short, 2)]
    both = [(left, right) for left, right in gaps if left.resolved and right.resolved]
    return len(both), sum(left.better == right.better for left, right in both)


def resample(values: Values, draws: int, random: np.random.Generator) -> np.ndarray:
    """Means of each source over seeds drawn again with replacement, float[draws, sources].

    The mean of n values drawn again varies by (n - 1)/n of what the mean itself does, two thirds for three seeds. Deviations are widened by
    the root of n/(n - 1), so that it varies by as much (Rao and Wu, 1988).
    """
    columns = []
    for each in values.values():
        seeds = np.array(each)
        drawn = random.choice(seeds, (draws, len(seeds))).mean(-1)
        columns.append(seeds.mean() + (drawn - seeds.mean()) * math.sqrt(len(seeds) / (len(seeds) - 1)))
    return np.stack(columns, -1)


def tau_interval(short: Values, long: Values, sources_too: bool, draws: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of tau over seeds of both drawn again, the sources being as they are, or with `sources_too` drawn again as well.

    A source that is drawn twice makes a pair with itself, which has no order and is not counted.
    """
    random = np.random.default_rng(seed)
    left, right = resample(short, draws, random), resample(long, draws, random)
    if not sources_too:
        taus = kendall_tau(left, right)
    else:
        chosen = random.integers(len(short), size=left.shape)
        one, other = np.triu_indices(len(short), 1)
        counted = (chosen[:, one] != chosen[:, other]).mean(-1)
        taus = kendall_tau(np.take_along_axis(left, chosen, -1), np.take_along_axis(right, chosen, -1))
        taus = taus[counted > 0] / counted[counted > 0]
    low, high = np.quantile(taus, (0.025, 0.975), method="closest_observation")
    return float(low), float(high)


def tau_by_chance(short: Values, long: Values) -> float:
    """The share of all orders of the sources whose tau is at least as large: what a ranking without any meaning has as its chance."""
    ranked, found = means(long), float(kendall_tau(means(short), means(long)))
    orders = np.array(list(permutations(means(short))))
    return float((kendall_tau(orders, np.broadcast_to(ranked, orders.shape)) >= found - 1e-9).mean())


def tau_without_one(short: Values, long: Values) -> tuple[float, float]:
    """Lowest and highest tau where one source is left out: what hangs on the choice of the sources."""
    left, right = means(short), means(long)
    taus = [float(kendall_tau(np.delete(left, each), np.delete(right, each))) for each in range(len(left))]
    return min(taus), max(taus)
