"""Secrets come from the environment and from Prefect's blocks and stay there: what is written down or told has their name in its place.

A recipe names them as `${VAR}` and `${block:NAME}`, and has their values only where it runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")  # ${VAR} and ${VAR:-default}
BLOCK = re.compile(r"\$\{block:([a-z0-9][a-z0-9-]*)\}")  # as Prefect names blocks
NAMES = re.compile(r"key|secret|token|password|passwd|credential|auth_string|webhook", re.IGNORECASE)  # of variables that hold secrets
SHORTEST = 8  # characters of a secret that is known by its variable's name; a shorter value, such as `false`, stands in too many words
SHORTEST_NAMED = 4  # of one that a recipe names

_blocks: dict[str, str] = {}  # name in a recipe by value: what this process has filled in


def remember_block(name: str, value: str) -> None:
    """Hide a block's value from now on."""
    if len(value) >= SHORTEST_NAMED:
        _blocks[value] = f"${{block:{name}}}"


def variables_of(value: Any) -> dict[str, str]:
    """The environment variables that a recipe, as a JSON value, names: `${NAME}` by value."""
    names = sorted({name for text in _strings(value) for name, _ in VARIABLE.findall(text)}, reverse=True)
    return {its: f"${{{name}}}" for name in names if len(its := os.environ.get(name, "")) >= SHORTEST_NAMED}


def hidden(value: Any, variables: Mapping[str, str] | None = None) -> Any:
    """A JSON value without secrets: in their place stands what a recipe names them by.

    Secrets are the values of the environment variables that hold one by their name, and of the blocks that were filled in here.
    variables: what else goes by its name (`variables_of`), where the value is for another machine with an environment of its own.
    """
    return hider(variables)(value)


def hider(variables: Mapping[str, str] | None = None) -> Callable[[Any], Any]:
    """`hidden` for many values: what is secret is looked up once."""
    by_name = {its: f"${{{name}}}" for name, its in os.environ.items() if NAMES.search(name) and len(its) >= SHORTEST}
    secrets = by_name | dict(variables or {}) | _blocks
    if not secrets:
        return lambda value: value
    pattern = re.compile("|".join(map(re.escape, sorted(secrets, key=len, reverse=True))))
    return lambda value: _replaced(value, pattern, secrets)


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def _replaced(value: Any, pattern: re.Pattern[str], secrets: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, pattern, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, pattern, secrets) for item in value]
    return pattern.sub(lambda match: secrets[match[0]], value) if isinstance(value, str) else value
