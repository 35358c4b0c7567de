"""A moment in a rank's work, and the seconds between two."""

from __future__ import annotations

import time

import torch


class Moment:
    """A moment in a rank's work: of the device where it is a GPU, else of the clock. Taking one waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event:
            self._event.record()
        self._time = time.perf_counter()

    def seconds_since(self, before: Moment) -> float:
        """Call it when both moments have passed."""
        if self._event and before._event:
            return before._event.elapsed_time(self._event) / 1000
        return self._time - before._time
