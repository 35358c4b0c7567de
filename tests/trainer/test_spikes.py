"""The spike score: what counts as a spike, and what does not."""

from __future__ import annotations

import math
import random

import pytest

from trainer.spikes import spike_score


def _by_definition(values: list[float | None]) -> float:
    spikes, seen = 0, list[float]()
    for value in values:
        if value is None or not math.isfinite(value):
            spikes += 1
            continue
        window = seen[-1000:]
        seen.append(value)
        if len(window) < 20:
            continue
        mean = sum(window) / len(window)
        deviation = math.sqrt(sum((item - mean) ** 2 for item in window) / len(window))
        spikes += abs(value - mean) >= 7 * deviation and value != mean
    return 100 * spikes / len(values)


def test_spike_score_equals_a_loop_over_the_definition() -> None:
    rng = random.Random(7)
    values: list[float | None] = [rng.gauss(2, 0.1) for _ in range(2300)]
    for place in (40, 700, 999, 1000, 1001, 1700, 2299):
        values[place] += rng.choice((-1, 1)) * 3
    for place in range(1040, 2300, 30):  # on both sides of the border
        values[place] = 2 + rng.choice((-1, 1)) * rng.uniform(0.8, 2.4)
    values[1200] = math.nan
    values[1500] = None
    score = spike_score(values)
    assert score == pytest.approx(_by_definition(values))
    assert 10 < score * 2300 / 100 < 40, "some of the forty at the border should be spikes and some not"


@pytest.mark.parametrize(
    ("values", "score"), [([], 0.0), ([1.0] * 50, 0.0), ([1.0] * 99 + [1.5], 1.0), ([math.inf, 1.0], 50.0), ([0.0, 9.0], 0.0)]
)
def test_spike_score_of_short_and_flat_series(values: list[float | None], score: float) -> None:
    assert spike_score(values) == score


def test_a_spike_of_a_million_does_not_hide_a_later_small_one() -> None:
    rng = random.Random(1)
    values = [rng.gauss(1, 1e-6) for _ in range(3000)]
    values[1100] = 1e6
    values[2900] += 1e-4
    assert spike_score(values) == pytest.approx(100 * 2 / 3000)


def test_a_level_that_drifts_has_no_spikes() -> None:
    assert spike_score(10 - 0.004 * step for step in range(2000)) == 0
