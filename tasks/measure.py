"""How well a scorer tells what is wanted from the rest: hits and misses at thresholds, on texts that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass
class Hits:
    """Of texts scored, how many reach the threshold (positive) and how many of these rightly (true), and the same of those below it."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def counts(self) -> dict[str, int]:
        """The four numbers by name."""
        return {name: number for name, number in asdict(self).items() if name != "threshold"}

    @property
    def texts(self) -> int:
        """How many were scored."""
        return sum(self.counts.values())

    @property
    def precision(self) -> float | None:
        """Share of the texts that reach the threshold which are wanted; None where none does."""
        found = self.true_positives + self.false_positives
        return self.true_positives / found if found else None

    @property
    def recall(self) -> float | None:
        """Share of the wanted texts that reach the threshold; None where none is wanted."""
        wanted = self.true_positives + self.false_negatives
        return self.true_positives / wanted if wanted else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; None where nothing is wanted and nothing found."""
        both = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / both if both else None


@dataclass
class Measured:
    """Hits at each threshold, the one to look at first, and for a scale the mean absolute error."""

    main_threshold: float
    hits: list[Hits] = field(default_factory=list)
    mean_absolute_error: float | None = None

    def at_main_threshold(self) -> Hits:
        return next(hits for hits in self.hits if hits.threshold == self.main_threshold)


def measure(scores: np.ndarray, wanted: Sequence[bool], thresholds: Sequence[float], main: float) -> Measured:
    """Of scores, float[n]: who reaches each threshold, which is in the range as a filter's `min` is. No score (NaN) reaches none."""
    return Measured(main, [_hits(scores, np.array(wanted, bool), threshold) for threshold in thresholds])


def measure_scale(scores: np.ndarray, labels: Sequence[float], thresholds: Sequence[float], main: float) -> Measured:
    """The same where labels are numbers on the scores' own scale: a text is wanted whose label reaches the threshold."""
    truth = np.array(labels, float)
    error = float(np.mean(np.abs(np.asarray(scores, float) - truth))) if len(truth) else None
    return Measured(main, [_hits(scores, truth >= threshold, threshold) for threshold in thresholds], error)


def _hits(scores: np.ndarray, wanted: np.ndarray, threshold: float) -> Hits:
    reached = np.asarray(scores) >= threshold
    counts = [int(part.sum()) for part in (reached & wanted, reached & ~wanted, ~reached & wanted, ~reached & ~wanted)]
    return Hits(float(threshold), *counts)
