"""What a machine runs beside the versions of libraries: the lock file that it was installed from, and the container."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from tasks.store import sha256_of

LOCK = Path(__file__).parents[1] / "constraints.txt"
CONTAINER = "OLMOFLOW_CONTAINER_DIGEST"  # set by the files of deployments/containers


@functools.cache
def lock() -> str | None:
    """SHA-256 of constraints.txt; None where olmoflow was installed without it."""
    return sha256_of(LOCK) if LOCK.is_file() else None


def container() -> str | None:
    """The digest of the container's image, None outside of one."""
    return os.environ.get(CONTAINER) or None
