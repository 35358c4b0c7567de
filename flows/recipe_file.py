"""The YAML file of a recipe, and those that it `extends`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tasks.errors import RecipeError


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


def read(path: Path) -> dict[str, Any]:
    """The keys of a recipe's file, laid over those of the file that its `extends` names (relative to it), and so on.

    Mappings are merged key by key; anything else (a list, a number, null) takes the place of what the other file has.

    Raises:
        RecipeError: a file is not there, cannot be read, is no mapping, or extends itself.
    """
    return _read(path, [])


def _read(path: Path, extended_by: list[Path]) -> dict[str, Any]:
    here = path.resolve()
    if here in extended_by:
        raise RecipeError(f"{extended_by[-1]}: `extends` goes round in a circle by way of {path}; leave it out of one of them")
    if extended_by and not path.exists():
        raise RecipeError(f"{extended_by[-1]}: there is no {path} for it to extend; `extends` is read relative to the file it stands in")
    raw = _parsed(path)
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


def _parsed(path: Path) -> dict[str, Any]:
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
