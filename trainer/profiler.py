"""A profiler trace of a few steps, on request: for Perfetto or chrome://tracing."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

import torch

from trainer.config import ProfileConfig
from trainer.parallel import World

log = logging.getLogger(__name__)


class Profiler:
    """Traces the steps that the config asks for, on rank 0, into `profile/steps-A-B.json.gz` in the run folder; a context manager."""

    def __init__(self, config: ProfileConfig | None, folder: Path, world: World) -> None:
        self._config = config if world.rank == 0 else None
        self._folder, self._cuda = folder / "profile", world.device.type == "cuda"
        self._profile: torch.profiler.profile | None = None
        self._first = self._last = 0

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what there is, where the run ends before the last step that was asked for."""
        self._close()

    def before(self, step: int) -> None:
        """Called before step `step` (counted from 1)."""
        if self._config and self._profile is None and 0 <= step - self._config.first_step < self._config.steps:
            activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if self._cuda else [])
            self._profile, self._first = torch.profiler.profile(activities=activities), step
            self._profile.start()

    def after(self, step: int) -> None:
        """Called after step `step`."""
        self._last = step
        if self._config and step >= self._config.first_step + self._config.steps - 1:
            self._close()

    def _close(self) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"steps-{self._first}-{self._last}.json.gz"
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        log.info("profile of steps %d to %d: %s", self._first, self._last, path)
