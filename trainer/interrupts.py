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
    thus heeded after the next. Where a rank has no data yet for the step after, the ranks agree once more before that one: no rank may begin
    a step that another cannot.

    Attributes:
        short: whether the ranks must agree before the coming step; the same on all.
    """

    def __init__(self) -> None:
        self._asked = False
        self.short = True

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._asked

    def agree(self, unable: bool) -> bool:
        """Whether any rank is unable to take the coming step; the same on all; collective."""
        told = torch.tensor(float(unable))
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told)

    def tell(self, other_reason: bool, short: bool) -> None:
        """Tell the other ranks whether this one was asked to stop, or has another reason to, and whether it is short of data for the step
        after the coming one; collective."""
        self._told = torch.tensor([float(self._asked or other_reason), float(short)])
        # A tensor of the host: gloo carries it while the devices work.
        self._work = dist.all_reduce(self._told, op=dist.ReduceOp.MAX, async_op=True)

    def heard(self) -> bool:
        """Whether any rank had a reason to stop in the last `tell`; the same on all."""
        self._work.wait()
        stop, short = self._told.tolist()
        self.short = short > 0
        return stop > 0


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
