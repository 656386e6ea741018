"""Types of options that tyro would show as "{None}|INT" or as subcommands: optional values and JSON objects."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union

import tyro

from ivideogpt.core.config import from_dict, to_dict

_UNIONS = (Union, types.UnionType)


def option_type_rules() -> tyro.constructors.ConstructorRegistry:
    """Return the rules for types that tyro would show as "{None}|INT" or as subcommands."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_optional_rule)
    registry.primitive_rule(_json_rule)
    return registry


def _optional_rule(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Read ``X | None`` as an X, or as null."""
    inner = _optional(info.type)
    if inner is None:
        return None
    choices: tuple[Any, ...] = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    if not choices and inner not in (int, float, str, Path):
        return None
    convert = inner if not choices else {str(choice): choice for choice in choices}.__getitem__

    def read(words: list[str]) -> Any:
        return None if words[0] == "null" else convert(words[0])

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(map(str, choices)) + "}" if choices else inner.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, inner if not choices else object),
        str_from_instance=lambda value: ["null" if value is None else str(value)],
        choices=(*map(str, choices), "null") if choices else None,
    )


def _json_rule(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Read dictionaries and optional dataclasses as JSON."""
    inner: Any = _optional(info.type)
    is_optional_dataclass = isinstance(inner, type) and is_dataclass(inner)
    if typing.get_origin(info.type) is not dict and not is_optional_dataclass:
        return None

    def read(words: list[str]) -> Any:
        if is_optional_dataclass and words[0] == "null":
            return None
        try:
            value = json.loads(words[0])
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{words[0]!r} is no JSON object; expected one such as '{{\"name\": 1}}'")
        return from_dict(inner, value, where="the value") if is_optional_dataclass else value

    def write(value: Any) -> list[str]:
        return [json.dumps(to_dict(value) if is_dataclass(value) else value)]

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="JSON", instance_from_str=read, is_instance=lambda value: True, str_from_instance=write
    )


def _optional(hint: Any) -> Any:
    """Return X for ``X | None``, and None for every other type."""
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    is_optional = typing.get_origin(hint) in _UNIONS and len(members) == len(typing.get_args(hint)) - 1 == 1
    return members[0] if is_optional else None
