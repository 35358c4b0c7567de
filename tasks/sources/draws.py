"""Random choices that are the same on every machine and under every Python."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Draws that follow from `seed` and what they are for.

    Of Python's generator only `random()` is promised to stay the same from version to version: all is made from that. A range may be at
    most 1e12 wide, since `random()` has 53 bits.
    """

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self._random = Random("\0".join(map(str, (seed, *purpose)))).random

    def whole(self, lowest: int, highest: int) -> int:
        """A whole number from `lowest` to `highest`, both included."""
        return lowest + int(self._random() * (highest - lowest + 1))

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.whole(0, len(choices) - 1)]
