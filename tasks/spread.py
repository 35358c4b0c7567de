"""What a few repeats of a measurement say: their mean, and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Student's t, two-sided 95 %, for 1 to 10 degrees of freedom; for more, its expansion about the normal quantile is right to a thousandth.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_Z = 1.959964


@dataclass(frozen=True)
class Spread:
    """The mean of some values, their standard deviation (n - 1), and half the width of the mean's 95 % interval; None of one value."""

    mean: float
    deviation: float | None
    half_width: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value, taken as independent draws of a normal distribution (Student's t)."""
    mean = fmean(values)
    if len(values) == 1:
        return Spread(mean, None, None)
    deviation = stdev(values)
    return Spread(mean, deviation, student_t(len(values) - 1) * deviation / math.sqrt(len(values)))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = _Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
