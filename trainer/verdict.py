"""The health check's verdict as a file, for whoever launched the job. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import TrainerError

VERDICT = "health.json"  # in the run's folder where the check failed: a list of `Fault`


@dataclass(frozen=True)
class Fault:
    """What is wrong on a rank's device.

    Attributes:
        gpu: the GPU as CUDA_VISIBLE_DEVICES or its number on the host names it; None on a CPU.
        own: whether the device itself is at fault; else the job may ask too much, or another rank may have been at fault.
    """

    host: str
    device: str
    gpu: str | None
    rank: int
    fault: str
    own: bool

    def __str__(self) -> str:
        return f"host {self.host}, device {self.device} (rank {self.rank}): {self.fault}"


class DeviceError(TrainerError):
    """A rank's device that cannot even be taken, before there are other ranks to tell."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault}; take the host out and start again.")
        self.fault = fault


def gpu_name(index: int) -> str:
    """How CUDA_VISIBLE_DEVICES, or else its number on the host, names the GPU that a rank sees at an index."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return seen[index] if index < len(seen) else str(index)


def write(faults: Sequence[Fault], folder: Path) -> None:
    """Leave the verdict in a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{VERDICT}.partial"
    partial.write_text(json.dumps([asdict(each) for each in faults], indent=1))
    partial.replace(folder / VERDICT)
