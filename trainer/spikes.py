"""The spike score, the report's measure of how steady a run is (OLMo 2 report, section 3.2). numpy only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

WINDOW = 1000
SIGMAS = 7.0
# The report says nothing of a series' beginning; the spread of a few values says nothing either.
_LEAST = 100


class SpikeScore:
    """Percentage of a series' values that lie at least 7 standard deviations from the mean of the (up to) 1000 values before them.

    The first 100 values count as no spikes.
    """

    def __init__(self) -> None:
        self._last = np.empty(WINDOW)
        self.values = 0
        self.spikes = 0

    def add(self, value: float) -> None:
        """Take the next value of the series."""
        if self.values >= _LEAST:
            last = self._last[: self.values]
            self.spikes += bool(abs(value - last.mean()) >= SIGMAS * last.std() > 0)
        self._last[self.values % WINDOW] = value
        self.values += 1

    @property
    def percent(self) -> float:
        """The score so far, 0 to 100; 0 for an empty series."""
        return 100 * self.spikes / self.values if self.values else 0.0


def spike_score(values: Iterable[float]) -> float:
    """The spike score of a whole series, in percent."""
    score = SpikeScore()
    for value in values:
        score.add(value)
    return score.percent
