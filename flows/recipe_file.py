"""The YAML file of a recipe and those that it `extends`, with `--set a.b=c` and environment variables put in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import httpx
import yaml

from tasks.errors import RecipeError
from tasks.secrets import BLOCK, VARIABLE, remember_block


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is an error, where the standard keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: Path, overrides: list[str], fill: bool = True) -> dict[str, Any]:
    """The keys of a recipe's file, laid over those of the file that its `extends` names (relative to it), and so on.

    Mappings are merged key by key; anything else (a list, a number, null) takes the place of what the other file has. Then each override
    `a.b=c` is applied, and ${VAR}, ${VAR:-default} or ${block:NAME} filled in unless `fill` is false.

    Raises:
        RecipeError: a file is not there, cannot be read, is no mapping, or extends itself; an override fits nothing; a variable is not set.
    """
    raw = _read(path, [])
    for override in overrides:
        _override(raw, override)
    return filled(raw, str(path)) if fill else raw


def _read(path: Path, extended_by: list[Path]) -> dict[str, Any]:
    here = path.resolve()
    if here in extended_by:
        raise RecipeError(f"{extended_by[-1]}: `extends` goes round in a circle by way of {path}; leave it out of one of them")
    if extended_by and not path.exists():
        raise RecipeError(f"{extended_by[-1]}: there is no {path} for it to extend; `extends` is read relative to the file it stands in")
    raw = _yaml_of(path)
    if "extends" not in raw:
        return raw
    base = raw.pop("extends")
    if not isinstance(base, str):
        raise RecipeError(f"{path}: `extends` should be the path of one other recipe, not {base!r}")
    return _merged(_read(path.parent / base, [*extended_by, here]), raw)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _yaml_of(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(), UniqueKeys)
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is no recipe: it should be a mapping with name, sources, ...")
    return raw


def _override(raw: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {text}: write it as a.b=value")
    *path, last = key.split(".")
    place: Any = raw
    for part in path:
        place = _step_into(place, part, text)
    if isinstance(place, list):
        if not last.isdigit() or int(last) >= len(place):
            raise RecipeError(f"--set {text}: {key} counts into a list of {len(place)}; use a number from 0 to {len(place) - 1}")
        place[int(last)] = _parsed(value, text)
    else:
        place[last] = _parsed(value, text)


def _parsed(value: str, text: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: {value!r} is not valid YAML") from error


def _step_into(place: Any, part: str, text: str) -> Any:
    if isinstance(place, list):
        if part.isdigit() and int(part) < len(place):
            return place[int(part)]
    elif isinstance(place, dict):
        found = place.setdefault(part, {})
        if isinstance(found, dict | list):
            return found
    raise RecipeError(f"--set {text}: the recipe has nothing under {part} to set a key in")


def filled(value: Any, path: str) -> Any:
    """Environment variables and Secret blocks filled in, in every string of a recipe. path: whose they are, for the error where one is not set."""
    if isinstance(value, dict):
        return {key: filled(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found and match[2] is not None:  # as in a shell, `:-` also stands for an empty variable
            found = match[2]
        if found is None:
            raise RecipeError(
                f"{path}: the environment variable {match[1]} is not set; set it, or write ${{{match[1]}:-default}} in the recipe"
            )
        return found

    def fill_block(match: re.Match[str]) -> str:
        found = _block(match[1], path)
        remember_block(match[1], found)
        return found

    return BLOCK.sub(fill_block, VARIABLE.sub(fill, value))


def _block(name: str, path: str) -> str:
    """The text of a block of Prefect's type Secret. Raises RecipeError where the server has none, or there is no server to ask."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value() is None:
        raise RecipeError(f"{path}: the block {name} lies on Prefect's server: set PREFECT_API_URL, or take an environment variable for it")
    with get_client(sync_client=True) as client:
        try:
            found = client.read_block_document_by_name(name, "secret", include_secrets=True).data.get("value")
        except ObjectNotFound as error:
            raise RecipeError(
                f"{path}: the server at {PREFECT_API_URL.value()} has no Secret block {name}: make it in the UI under Blocks"
            ) from error
        except httpx.HTTPError as error:
            raise RecipeError(f"{path}: the server at {PREFECT_API_URL.value()} does not give the block {name}: {error}") from error
    if not isinstance(found, str):
        raise RecipeError(f"{path}: the Secret block {name} holds no text: give it one in the UI under Blocks")
    return found
