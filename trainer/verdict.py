"""The health check's verdict as a file, for whoever launched the job. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

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
