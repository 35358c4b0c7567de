"""The sample corpus in a folder, written once: `corpus.json` is its mark and comes last."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import corpus

MARK = "corpus.json"
VERSION = 1


def _settings(size: int, seed: int) -> dict[str, Any]:
    return {"version": VERSION, "python": platform.python_version(), "bytes": size, "seed": seed}


def is_there(folder: Path, size: int, seed: int) -> bool:
    """Whether the folder holds the corpus of these settings, every file of it; files that a user added do not matter."""
    try:
        mark = json.loads((folder / MARK).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return mark["settings"] == _settings(size, seed) and all((folder / file["path"]).exists() for file in mark["files"])


def ensure(folder: Path, size: int, seed: int, tell: Callable[[str], None]) -> None:
    """Write the corpus if it is not there. An interrupted build is done again from the start: it gives the same files."""
    if is_there(folder, size, seed):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).unlink(missing_ok=True)
    summary = corpus.build(folder, size, seed)
    (folder / MARK).write_text(json.dumps({"settings": _settings(size, seed), **summary}, indent=1))
    tell(f"sample corpus  {len(summary['files'])} files in {folder}, made from this Python installation")
