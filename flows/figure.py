"""`olmoflow figure`: one of the report's figures again, from its YAML file to its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.recipe import explain
from flows.recipe_file import read
from tasks.errors import RecipeError
from tasks.figure import Figure, Tell, replay
from tasks.figure_mix import find
from tasks.figure_page import render
from tasks.progress import Watch


def load(path: Path, overrides: list[str] | None = None) -> Figure:
    """A figure from its YAML file, read as a recipe is. Raises RecipeError with one sentence."""
    try:
        return Figure.model_validate(read(path, overrides or []))
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error, Figure)}") from error


def make(path: Path, overrides: list[str] | None, mix: str, store: str, into: Path, tell: Tell, watch: Watch) -> dict[str, Any]:
    """Replay the figure of `path` on a mix. Writes `into/NAME.json` and `into/NAME.html`, NAME the file's own, beside the runs; returns the former."""
    figure = load(path, overrides)
    folder = into.resolve()
    result = replay(figure, find(mix, store, folder / "mixes"), folder, str(path), tell, watch)
    result["page"] = str(folder / f"{path.stem}.html")
    Path(result["page"]).write_text(render(result, folder), "utf-8")
    (folder / f"{path.stem}.json").write_text(json.dumps(result, indent=1), "utf-8")
    return result
