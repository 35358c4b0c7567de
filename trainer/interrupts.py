"""What may interrupt the steps, at the same step on every rank: a request to stop, and Python's garbage collector."""

from __future__ import annotations

import gc
import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

_COLLECT_EVERY_STEPS = 500


class StopRequest:
    """SIGTERM from here on asks for a checkpoint instead of ending the process; ranks agree on the step without waiting for their devices.

    A rank says before it works on a step whether it was asked, and hears from the others after it. A request that comes during a step is
    thus heeded after the next.
    """

    def __init__(self) -> None:
        self._asked = False
        self._flag = torch.zeros(())

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def tell(self, other_reason: bool) -> None:
        """Tell the other ranks whether this one was asked to stop, or has another reason to; collective."""
        self._flag.fill_(float(self._asked or other_reason))
        # A tensor of the host: gloo carries it while the devices work.
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)

    def heard(self) -> bool:
        """Whether any rank said so in the last `tell`; the same on all."""
        self._work.wait()
        return bool(self._flag)


class CollectedRarely:
    """Python's garbage collector runs when `after_step` says, not when each rank's own allocations happen to: ranks wait for the slowest."""

    def __enter__(self) -> CollectedRarely:
        gc.collect()
        gc.freeze()  # modules and the model stay anyway, and need no looking through
        gc.disable()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        gc.enable()
        gc.unfreeze()

    def after_step(self, step: int) -> None:
        """Collect after every so many steps."""
        if step % _COLLECT_EVERY_STEPS == 0:
            gc.collect()
