"""StarCoder's Parquet: the source file in `content`, its repository, path and stars in `max_stars_*`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tasks.sources.base import Item, RawFile
from tasks.sources.config import Column, Fields, SourceConfig
from tasks.sources.fields import Rules
from tasks.sources.parquet import read_rows

REPO, PATH, STARS = "max_stars_repo_name", "max_stars_repo_path", "max_stars_count"
COLUMNS = {
    "stars": Column(field=STARS, type="int"),  # null where unknown; Dolma's conversion writes "12" and "None"
    "path": Column(field=PATH, type="string"),
    "repo": Column(field=REPO, type="string"),
}


def read(file: RawFile, config: SourceConfig) -> Iterator[Item]:
    """One item a source file, with the columns `stars`, `path` and `repo`. Raises UserError where the Parquet file lacks one of them."""
    return read_rows(file, Rules(Fields(text="content", columns=COLUMNS), _file_id), ["content", REPO, PATH, STARS])


def _file_id(raw: Mapping[str, Any]) -> str | None:
    if raw.get("id") not in (None, ""):
        return str(raw["id"])
    return f"{raw[REPO]}/{raw[PATH]}" if raw[REPO] and raw[PATH] else None
