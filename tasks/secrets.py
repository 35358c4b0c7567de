"""Secrets come from the environment and stay there: what is written down or told has a variable's name in place of its value."""

from __future__ import annotations

import os
import re
from typing import Any

NAMES = re.compile(r"key|secret|token|password|passwd|credential", re.IGNORECASE)  # of variables that hold secrets
SHORTEST = 8  # characters of a secret; a shorter value, such as `false`, stands in too many words


def hidden(value: Any) -> Any:
    """A JSON value with `${NAME}` for the value of each environment variable that holds a secret by its name."""
    secrets = {its: name for name, its in os.environ.items() if NAMES.search(name) and len(its) >= SHORTEST}
    if not secrets:
        return value
    longest_first = sorted(secrets, key=len, reverse=True)
    return _replaced(value, re.compile("|".join(map(re.escape, longest_first))), secrets)


def _replaced(value: Any, pattern: re.Pattern[str], secrets: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, pattern, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, pattern, secrets) for item in value]
    return pattern.sub(lambda match: f"${{{secrets[match[0]]}}}", value) if isinstance(value, str) else value
