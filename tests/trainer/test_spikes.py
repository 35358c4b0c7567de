"""The spike score: what counts as a spike, and what does not."""

from __future__ import annotations

import random
import statistics

import pytest

from trainer.spikes import spike_score


def _by_definition(values: list[float]) -> float:
    spikes = 0
    for number in range(100, len(values)):
        before = values[max(0, number - 1000) : number]
        spikes += abs(values[number] - statistics.fmean(before)) >= 7 * statistics.pstdev(before)
    return 100 * spikes / len(values)


def test_the_score_is_the_share_of_values_seven_deviations_from_the_last_thousand() -> None:
    draw = random.Random(1)
    values = [draw.gauss(3.0, 0.1) for _ in range(2500)]
    for number in (50, 700, 701, 1900, 2400):
        values[number] += draw.choice((-1, 1)) * 9 * 0.1
    score = spike_score(values)
    # Two in a row and one in the first hundred: the window's spread after each decides, as the definition says.
    assert score == pytest.approx(_by_definition(values))
    assert score >= 100 * 3 / 2500


def test_a_level_that_drifts_or_stands_still_has_no_spikes() -> None:
    assert spike_score([2.0] * 1500) == 0
    assert spike_score([10 - 0.004 * step for step in range(2000)]) == 0
    assert spike_score([]) == 0
