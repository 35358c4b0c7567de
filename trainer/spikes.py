"""The spike score, the report's measure of how steady a run is (OLMo 2 report, section 3.2). numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

WINDOW = 1000
SIGMAS = 7.0
_LEAST = 20  # values before one that may be a spike; the spread of fewer says nothing


class SpikeScore:
    """Percentage of a series' values that lie at least 7 standard deviations from the mean of the 1000 values before them.

    The report leaves three things open, settled here: a value is no part of its own mean; with fewer than 20 values before it a value is
    no spike; a value that is None or not finite is a spike, and no part of any mean.
    """

    def __init__(self) -> None:
        self._last = np.empty(WINDOW)
        self._finite = 0
        self.values = 0
        self.spikes = 0

    def add(self, value: float | None) -> bool:
        """Take the next value of the series; whether it is a spike."""
        self.values += 1
        if value is None or not math.isfinite(value):
            self.spikes += 1
            return True
        spike = False
        if self._finite >= _LEAST:
            last = self._last[: self._finite]
            distance = abs(value - last.mean())
            spike = bool(distance >= SIGMAS * last.std() and distance > 0)
            self.spikes += spike
        self._last[self._finite % WINDOW] = value
        self._finite += 1
        return spike

    @property
    def percent(self) -> float:
        """The score so far, 0 to 100; 0 for an empty series."""
        return 100 * self.spikes / self.values if self.values else 0.0


def spike_score(values: Iterable[float | None]) -> float:
    """The spike score of a whole series, in percent."""
    score = SpikeScore()
    for value in values:
        score.add(value)
    return score.percent
