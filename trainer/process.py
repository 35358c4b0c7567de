"""What a rank asks of the system: to end with the process that started it, and to keep its memory."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def die_with_torchrun() -> None:
    """Ask the kernel to kill this rank when its torchrun dies, which otherwise leaves ranks that hold GPUs. Linux only; else nothing.

    A run without torchrun may outlive its parent, a shell.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_freed_memory() -> None:
    """Ask the C library to use freed memory again instead of giving it back, as an allocator for GPUs does. glibc only; else nothing.

    A training step frees and takes the same large tensors again and again. On a CPU their pages would be cleared anew each time, which
    took a tenth of a small model's step.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
