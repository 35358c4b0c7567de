"""What keeps a run steady, and what tells that it is not: skipped steps, norms, and the batch behind a number that is none.

Everything here stays on the device; nothing waits for it but `SkipStep.state` and `write_batch`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from olmo_model.model import Olmo2
from trainer.config import SkipStepConfig
from trainer.data import Batch
from trainer.parallel import World


class SkipStep:
    """Says on the device whether a step's update is to be left out; give the answer to the fused AdamW as its `found_inf`.

    AdamW then neither moves weights and moments nor counts the step, so that bias correction goes by the updates that were made. A step
    that is left out still enters the window: a level that has changed for good is skipped a few times, not for ever.
    """

    def __init__(self, config: SkipStepConfig, device: torch.device) -> None:
        self._config = config
        self._window = torch.zeros(2, config.window, device=device)
        self._count = 0

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1.0 where this step's loss or gradient norm (both of the whole batch, equal on all ranks) is too high or no number, else 0.0."""
        now = torch.stack([loss, grad_norm])
        skip = torch.zeros((), device=now.device)
        if self._count >= self._config.window:
            deviation, mean = torch.std_mean(self._window, dim=1)
            # Turned round, so that a loss that is no number is skipped too.
            skip = (now <= mean + self._config.sigmas * deviation).all().logical_not().float()
        self._window[:, self._count % self._config.window] = now
        self._count += 1
        return skip

    def state(self) -> dict[str, Any]:
        """For a checkpoint's JSON."""
        return {"steps": self._count, "window": self._window.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._count = state["steps"]
        self._window.copy_(torch.tensor(state["window"]))


def embedding_norm(model: Olmo2) -> Tensor:
    """Mean L2 norm of the input embeddings' vectors (report, section 3.4.2 and Figure 10); collective where the model is sharded."""
    weight = model.model.embed_tokens.weight.detach()
    total = torch.linalg.vector_norm(weight, dim=1).sum()
    return (total.full_tensor() if hasattr(total, "full_tensor") else total) / weight.shape[0]


def write_batch(folder: Path, step: int, batch: Batch, told: dict[str, Any], world: World) -> Path:
    """Write the ids of a rank's part of a batch as `.npy`, int64 of shape (instances, L), and beside it `told` as JSON; the `.npy`'s path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step{step:07d}-rank{world.rank}.npy"
    np.save(path, batch.ids)
    where = {"step": step, "rank": world.rank, "host": world.host, "device": str(world.device)}
    path.with_suffix(".json").write_text(json.dumps({**where, **told, "kept": batch.kept.tolist()}, indent=1))
    return path
