"""Dataclasses out of YAML and JSON, strictly: whatever is unknown, missing or mistyped is named. No torch here."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from trainer.errors import TrainerError

T = TypeVar("T")


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML or JSON file; TrainerError where it is missing or does not parse."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainerError(f"{path} cannot be read ({error.strerror}); give the path of a config file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainerError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None


def parse(cls: type[T], data: Any, source: str, key: str = "") -> T:
    """Make a dataclass of a mapping, strictly: unknown, missing and mistyped keys are TrainerErrors naming `source` and the dotted key."""
    if not isinstance(data, dict):
        raise TrainerError(f"{source}: {key or 'the file'} must be a mapping of keys to values, not {_show(data)}.")
    fields = {each.name: each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    types_of = typing.get_type_hints(cls)
    for name in data:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=3) or list(fields)
            raise TrainerError(f"{source}: unknown key {dotted(key, name)}; did you mean {' or '.join(near)}?")
    values = {}
    for name, each in fields.items():
        if name in data:
            values[name] = _value(types_of[name], data[name], source, dotted(key, name))
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise TrainerError(f"{source}: key {dotted(key, name)} is missing; add it.")
    try:
        return cls(**values)
    except ValueError as error:
        raise TrainerError(f"{source}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-ready nested dicts; `parse` makes the same config of it."""
    return dataclasses.asdict(config)


def _value(kind: Any, value: Any, source: str, key: str) -> Any:
    """`value` as the type `kind`, or a TrainerError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return parse(typing.cast(type, kind), value, source, key)
    if origin in (typing.Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _value(inner, value, source, key)
    if origin is Literal:
        if value in arguments:
            return value
        raise TrainerError(f"{source}: {key} is {_show(value)}; give one of {', '.join(map(str, arguments))}.")
    if origin is list and isinstance(value, list):
        return [_value(arguments[0], each, source, f"{key}[{number}]") for number, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {_value(arguments[0], k, source, key): _value(arguments[1], v, source, dotted(key, k)) for k, v in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(arguments):
        pairs = enumerate(zip(arguments, value, strict=True))
        return tuple(_value(each, item, source, f"{key}[{number}]") for number, (each, item) in pairs)
    if kind is float:
        return _number(value, source, key)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TrainerError(f"{source}: {key} is {_show(value)}; give {_describe(kind)}.")


def _number(value: Any, source: str, key: str) -> float:
    # YAML 1.1 reads 3e-4 as a string, since it has no point.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise TrainerError(f"{source}: {key} is {_show(value)}; give a number.")


def dotted(prefix: str, name: Any) -> str:
    """The key `name` of the mapping behind the key `prefix`."""
    return f"{prefix}.{name}" if prefix else str(name)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(kind: Any) -> str:
    names = {
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        list: "a list",
        dict: "a mapping",
        tuple: "a list of as many values as the default has",
    }
    return names[typing.get_origin(kind) or kind]
