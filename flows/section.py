"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


def at(position: int) -> dict[str, Any]:
    """A field's place in Prefect's form, which would sort by name."""
    return {"position": position}


class Section(BaseModel):
    """A part of a recipe: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
