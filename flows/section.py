"""What every part of a recipe is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict


def at(position: int) -> dict[str, Any]:
    """A field's place in Prefect's form, which would sort by name."""
    return {"position": position}


class Section(BaseModel):
    """A part of a recipe: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def choice(position: int) -> Callable[[dict[str, Any]], None]:
    """`at` for a field of which there are several kinds: Prefect's form has buttons for `anyOf`, and shows `oneOf` as JSON.

    Its server asks no key to be there when it checks a form, and what does not say its `kind` would then fit more than one.
    """

    def mend(schema: dict[str, Any]) -> None:
        schema["position"] = position
        if "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
            schema.pop("discriminator", None)

    return mend
