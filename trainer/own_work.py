"""How long a rank works before it waits for others: what tells a slow host or GPU from the ranks that wait for it (report, section 6.3).

All ranks of a step end it together, so the step's time is the same everywhere. What differs is the time in between: a layer's forward pass has
no collective in it (its weights have been gathered before, and are let go after), so it takes as long as this rank's device needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from olmo_model.model import Olmo2
from trainer.moment import Moment


class OwnWork:
    """Times the layers' forward passes of those micro-batches that it is told to; on a GPU by events, and nothing waits for them."""

    def __init__(self, model: Olmo2, device: torch.device) -> None:
        """Replaces each layer's forward, as `TrainedOlmo2.compile_parts` does, so that FSDP's hooks, which wait, stay outside."""
        self._device, self._on = device, False
        self._spans: list[tuple[Moment, Moment]] = []
        for layer in model.model.layers:
            layer.forward = self._timed(layer.forward)

    def measure(self, on: bool) -> None:
        """Whether the coming micro-batch is one whose time is taken."""
        self._on = on

    def take(self) -> list[tuple[Moment, Moment]]:
        """Beginning and end of what was timed since the last call."""
        spans, self._spans = self._spans, []
        return spans

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._on:
                return forward(*args, **kwargs)
            began = Moment(self._device)
            result = forward(*args, **kwargs)
            self._spans.append((began, Moment(self._device)))
            return result

        return timed


def over_peers(seconds: list[float]) -> list[float]:
    """Each rank's seconds over the median of the others'; 1 where the others took no time, or there are none."""
    if len(seconds) < 2:
        return [1.0] * len(seconds)
    all_of_them = np.array(seconds)
    medians = [float(np.median(np.delete(all_of_them, rank))) for rank in range(len(seconds))]
    return [mine / median if median > 0 else 1.0 for mine, median in zip(seconds, medians, strict=True)]
