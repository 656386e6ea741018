"""Strict conversion between configurations (frozen keyword-only dataclasses) and JSON.

    save_json(path, to_dict(config))
    config = from_dict(TokenizerConfig, load_json(path), where="config.json")

Fields may be bool, int, float, str, None, ``Literal``, ``X | None``, unions of these, tuples, lists, dicts with str
keys, ``Any`` and nested dataclasses. An unknown key, a missing one or a value of another type is a ``UserError``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.core.reading import check_is_file, local_path, reading

ConfigT = TypeVar("ConfigT")


def closest(name: str, options: Iterable[str]) -> str | None:
    """Return the option most like ``name`` ("-" and "_" are the same), or None if none is similar."""
    by_spelling = {option.lower().replace("-", "_"): option for option in options}
    matches = difflib.get_close_matches(name.lower().replace("-", "_"), by_spelling, n=1, cutoff=0.6)
    return by_spelling[matches[0]] if matches else None


def suggestion(name: str, options: Iterable[str]) -> str:
    """Return the end of an error about ``name``: "did you mean 'x'?", or the list of options."""
    options = list(options)
    option = closest(name, options)
    return f"did you mean {option!r}?" if option else f"expected one of: {', '.join(sorted(options)) or '(nothing)'}"


def to_dict(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values, nested dataclasses included; tuples become lists."""
    return {field.name: _to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    assert value is None or isinstance(value, (bool, int, float, str)), f"{value!r} has no JSON form"
    return value


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], *, where: str = "") -> ConfigT:
    """Return the dataclass ``cls`` with fields from JSON values, as ``to_dict`` gives them.

    Args:
        cls: the dataclass.
        values: its fields; those with a default may be left out.
        where: the file or key that the values come from, for errors.

    Raises:
        UserError: an unknown key (with the closest name), a missing one, or a value of another type.
    """
    where = where or cls.__name__
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {_shortened(values)}; expected an object with the keys of {cls.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in fields:
            raise UserError(f"{where} has an unknown key {name!r}; {suggestion(name, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{where} has no {name!r}, which {cls.__name__} needs; add it")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _from_json(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _from_json(hint: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the type ``hint``; ``where`` names it in errors."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = UserError(f"{where} is {_shortened(value)}; expected {_describe(hint)}")
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _from_union(arguments, value, where, wrong)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            raise wrong
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)
    if (origin or hint) in (tuple, list):
        return _from_sequence(origin or hint, arguments, value, where, wrong)
    if (origin or hint) in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise wrong
        item = arguments[1] if arguments else Any
        return {str(key): _from_json(item, entry, f"{where}[{key!r}]") for key, entry in value.items()}
    return _from_scalar(hint, value, wrong)


def _from_union(options: tuple[Any, ...], value: Any, where: str, wrong: UserError) -> Any:
    if value is None:
        if type(None) in options:
            return None
        raise wrong
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _from_json(options[0], value, where)
    # An exact type first: 3 stays an int where ``float | int`` is wanted.
    for option in sorted(options, key=lambda option: option is not type(value)):
        try:
            return _from_json(option, value, where)
        except UserError:
            continue
    raise wrong


def _from_sequence(kind: type, arguments: tuple[Any, ...], value: Any, where: str, wrong: UserError) -> Any:
    if not isinstance(value, (list, tuple)):
        raise wrong
    if kind is list or not arguments or arguments[-1] is Ellipsis:
        hints = (arguments[0] if arguments else Any,) * len(value)
    else:
        hints = arguments
    if len(hints) != len(value):
        raise wrong
    return kind(
        _from_json(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _from_scalar(hint: Any, value: Any, wrong: UserError) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise wrong from None
    if hint in (bool, int, float, str) and type(value) is hint:
        return value
    raise wrong


def _describe(hint: Any) -> str:
    """Return a type in plain English."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if (origin or hint) in (tuple, list):
        if origin is tuple and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)}: " + ", ".join(_describe(argument) for argument in arguments)
        return f"a list of {_describe(arguments[0])}" if arguments else "a list"
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)


def _shortened(value: Any) -> str:
    """Return the text of a value for an error, at most 100 characters of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def load_json(path: Path | str) -> dict[str, Any]:
    """Load a JSON object from a file.

    Raises:
        UserError: the file is missing, is not JSON, or holds another value than an object.
    """
    path = local_path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a JSON file there")
    check_is_file(path, "JSON file")
    with reading(path, "restore it from its source", fault="cannot be read as JSON"):
        values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a JSON {type(values).__name__}; expected an object")
    return values


def check_at_least(config: Any, **least: float) -> None:
    """Check numbers of a configuration against a lower bound each.

    Raises:
        UserError: a number is below its bound, or NaN; the message names it.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not value >= bound:
            raise UserError(f"{name} is {value}; expected at least {bound}")


def save_json(path: Path | str, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically.

    Raises:
        UserError: a value is NaN or infinite, which JSON cannot hold.
    """
    try:
        text = json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise UserError(f"{path} was not written: {error}; every number must be finite") from error
    write_text_atomic(path, text + "\n")
