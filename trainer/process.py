"""What a rank owes to the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_torchrun() -> None:
    """Ask the kernel to kill this rank when its torchrun dies, which otherwise leaves ranks that hold GPUs. Linux only; else nothing.

    A run without torchrun may outlive its parent, a shell.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
