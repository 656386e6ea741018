"""The words of a command line as a call of the function that runs the command.

    call = parse_command(train_tokenizer, ["debug", "run=runs/a", "--tokenizer.batch-size", "16"], "train-tokenizer")
    call()

tyro turns the signature into options. A command with settings has a parameter ``settings``, a dataclass such as a
training recipe: its fields are options too (``--transformer.learning-rate 3e-4``), and the preset gives the defaults.
``name=value`` is accepted for every option, and "_" and "-" are the same in names.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union

import tyro

from ivideogpt.commands.option_types import option_type_rules
from ivideogpt.core.config import from_dict, suggestion, to_dict
from ivideogpt.core.errors import UserError

#: Parameter of a command function that holds its settings.
SETTINGS = "settings"
#: Loads the settings of a command from the options that were typed: their defaults.
SettingsLoader = Callable[[Mapping[str, str]], Any]
SettingsT = TypeVar("SettingsT")

#: Values of options that may be typed without one.
_LONE_VALUES = {"ray": "auto"}
_NAME = r"[A-Za-z][\w.-]*"
_NUMBER = re.compile(r"-?\.?\d[\d_.eE+-]*")
_UNIONS = (Union, types.UnionType)


def parse_command(
    function: Callable[..., object],
    arguments: Sequence[str],
    program: str,
    load_settings: SettingsLoader | None = None,
) -> Callable[[], object]:
    """Return the call of ``function`` that a command line asks for.

    Args:
        function: the command, with typed parameters and a Google-style docstring.
        arguments: the words after the command's name.
        program: name of the command in messages.
        load_settings: default settings, for a function with a parameter ``settings``. They are not loaded for
            ``--help`` without a preset, which therefore stays fast.

    Raises:
        UserError: an unknown option, a missing or a wrong value.
        SystemExit: after ``--help``.
    """
    hints = resolved_hints(function)
    settings, words = None, list(arguments)
    if load_settings is not None:
        typed = _typed_options(arguments, hints)
        positional = next(name for name, hint in hints.items() if is_positional(hint))
        if positional in typed or not {"-h", "--help"} & set(arguments):
            settings = load_settings(typed)
            settings, words = _assign_groups(words, settings, hints)
    words = _tyro_words(words, option_types(hints, settings), program, is_strict=settings is not None)
    with _one_sentence_errors(program, hints):
        return tyro.cli(_bind(function, hints, settings), prog=program, args=words, registry=option_type_rules())


def resolved_hints(function: Callable[..., object]) -> dict[str, Any]:
    """Return the resolved type of each parameter but ``settings``, whose type may be expensive to import."""
    names = {name: hint for name, hint in function.__annotations__.items() if name not in ("return", SETTINGS)}
    typed = types.SimpleNamespace(__annotations__=names)
    hints = typing.get_type_hints(typed, vars(sys.modules[function.__module__]), include_extras=True)
    return {name: _as_typing_union(hint) for name, hint in hints.items()}


def _as_typing_union(hint: Any) -> Any:
    """Return ``X | None`` as ``Optional[X]``: for the former tyro imports typeguard, half the time of a help text."""
    if typing.get_origin(hint) is Annotated:
        return Annotated[(_as_typing_union(hint.__origin__), *hint.__metadata__)]
    return Union[typing.get_args(hint)] if typing.get_origin(hint) is types.UnionType else hint  # noqa: UP007


def _bind(function: Callable[..., object], hints: Mapping[str, Any], settings: Any) -> Callable[..., Any]:
    """Return a function for tyro that returns the call instead of running it."""

    def bound(**values: Any) -> Callable[[], object]:
        if SETTINGS in values:
            values[SETTINGS] = _copied(type(settings), values[SETTINGS])
        return functools.partial(function, **values)

    parameters, annotations = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == SETTINGS:
            if settings is None:
                continue
            cls = _without_fields(type(settings), hints)
            parameter = parameter.replace(default=_copied(cls, settings))
            annotations[name] = Annotated[cls, tyro.conf.arg(name="")]
        else:
            # The description says what is done without the option; "(default: None)" would add nothing.
            is_silent = parameter.default in ((), "") or (parameter.default is None and not is_positional(hints[name]))
            hint = hints[name]
            annotations[name] = Annotated[hint, tyro.conf.arg(help_behavior_hint="")] if is_silent else hint
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    bound.__name__, bound.__doc__, bound.__module__ = function.__name__, function.__doc__, function.__module__
    bound.__annotations__ = annotations
    bound.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return bound


def _without_fields(cls: type, hidden: Mapping[str, Any]) -> type:
    """Return a dataclass whose fields of certain names are no options: the command has its own of these names."""
    types_of_fields = typing.get_type_hints(cls, include_extras=True)
    fixed = {
        field.name: Annotated[types_of_fields[field.name], tyro.conf.Fixed, tyro.conf.SuppressFixed]
        for field in fields(cls)
        if field.name in hidden and not is_dataclass(types_of_fields[field.name])
    }
    return type(cls.__name__, (cls,), {"__annotations__": fixed, "__doc__": cls.__doc__, "__module__": cls.__module__})


def _copied(cls: type, settings: Any) -> Any:
    """Return settings as an instance of another dataclass with the same fields."""
    return cls(**{field.name: getattr(settings, field.name) for field in fields(settings)})


# Words


def option_types(hints: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """Return the type of each option by name, such as "transformer.learning-rate"."""
    options: dict[str, Any] = {}

    def add(hint: Any, value: Any, name: str) -> None:
        if isinstance(hint, type) and is_dataclass(hint):
            types_of_fields = typing.get_type_hints(hint, include_extras=True)
            for field in fields(hint):
                add(types_of_fields[field.name], getattr(value, field.name, None), f"{name}.{field.name}")
        elif typing.get_origin(hint) is tuple and is_dataclass(typing.get_args(hint)[0]):
            for index, item in enumerate(value):
                add(type(item), item, f"{name}.{index}")
        else:
            options.setdefault(name.removeprefix(".").replace("_", "-"), hint)

    for name, hint in hints.items():
        add(hint, None, name)
    if settings is not None:
        add(type(settings), settings, "")
    return options


def _typed_options(arguments: Sequence[str], hints: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of the command's own options, read without knowing its settings."""
    own = {name.replace("_", "-"): name for name in hints}
    positional = [name for name, hint in hints.items() if is_positional(hint)]
    typed: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        match = re.fullmatch(rf"(--)?({_NAME})(?:=(.*))?", word, flags=re.DOTALL)
        name = match[2].replace("_", "-") if match else ""
        value = match[3] if match else None
        if match and match[1] and value is None and name != "help":
            is_flag = hints.get(own.get(name.removeprefix("no-"), "")) is bool
            if not is_flag and words and not words[0].startswith("--"):
                value = words.pop(0)
                while name not in own and _NUMBER.fullmatch(value) and words and _NUMBER.fullmatch(words[0]):
                    words.pop(0)  # an option of several numbers
        if name in own and value is not None:
            typed[own[name]] = value
        elif positional and not word.startswith("-") and value is None:
            typed.setdefault(positional[0], word)
    return typed


def is_positional(hint: Any) -> bool:
    """Return True for a positional parameter."""
    return tyro.conf.Positional in getattr(hint, "__metadata__", ())


def _assign_groups(arguments: Sequence[str], settings: Any, hints: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Assign whole groups of settings, such as ``forecasts=[]`` or ``augmentation={"hue": 0.1}``.

    Returns:
        The settings, and the other words.
    """
    options = option_types(hints, settings)
    words: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        match = re.fullmatch(rf"(--)?({_NAME})(?:=(.*))?", word, flags=re.DOTALL)
        name = match[2].replace("-", "_") if match else ""
        is_group = name.replace("_", "-") not in options and _has_path(to_dict(settings), name)
        has_value = match is not None and (match[3] is not None or (match[1] is not None and bool(rest)))
        if match is None or not is_group or not has_value:
            words.append(word)
            continue
        settings = assign(settings, {name: match[3] if match[3] is not None else rest.pop(0)})
    return settings, words


def assign(settings: SettingsT, values: Mapping[str, str]) -> SettingsT:
    """Return settings with some values changed.

    Args:
        settings: a dataclass, a recipe for example.
        values: by path, such as "transformer.learning_rate"; a value is JSON, or text where it is none.

    Raises:
        UserError: there is no such setting (the message names the closest one), or the value does not fit it.
    """
    tree = to_dict(settings)
    for path, text in values.items():
        *parents, last = path.split(".")
        node: Any = tree
        for key in parents:
            node = node[_key(node, key, path)]
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        node[_key(node, last, path)] = value
    return from_dict(type(settings), tree, where="the settings")


def _key(node: Any, key: str, path: str) -> str | int:
    """Return the key or index of ``node`` that a part of ``path`` means."""
    if isinstance(node, list):
        if key.isdigit() and int(key) < len(node):
            return int(key)
        raise UserError(f"there is no setting {path!r}; {key!r} is none of 0 to {len(node) - 1}")
    if not isinstance(node, dict) or key not in node:
        raise UserError(f"there is no setting {path!r}; {suggestion(key, node if isinstance(node, dict) else ())}")
    return key


def _has_path(tree: Any, path: str) -> bool:
    for key in path.split("."):
        if isinstance(tree, list) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, dict) and key in tree:
            tree = tree[key]
        else:
            return False
    return True


def _tyro_words(
    arguments: Sequence[str], options: Mapping[str, Any], program: str, *, is_strict: bool = False
) -> list[str]:
    """Spell ``name=value`` and ``--flag true`` as tyro reads them.

    Args:
        arguments: the words of the command line.
        options: the type of each option by name.
        program: name of the command in messages.
        is_strict: refuse every ``name=value`` without an option of that name; else it may be a path with "=".

    Raises:
        UserError: there is no such option.
    """
    flags = {name for name, hint in options.items() if not is_positional(hint)}
    flags |= {_negated(name) for name in flags if options[name] is bool}
    words: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":  # a command of another program follows: one value, whatever its options are
            words.append(shlex.join(rest))
            break
        dashed = re.fullmatch(rf"--({_NAME})(?:=(.*))?", word, flags=re.DOTALL)
        match = dashed or re.fullmatch(rf"({_NAME})=(.*)", word, flags=re.DOTALL)
        name = match[1].replace("_", "-") if match else ""
        if match and name not in flags | options.keys() and name != "help" and (dashed or is_strict):
            raise _unknown_option(f"--{name}" if dashed else match[1], flags, program)
        if not match or name not in options.keys() | flags:
            words.append(word)  # a value, or a path that holds "="
            continue
        value = match[2]
        if options.get(name) is bool and value is None and rest and rest[0].lower() in ("true", "false"):
            value = rest.pop(0)
        if name in _LONE_VALUES and value is None and (not rest or rest[0].startswith("--") or "=" in rest[0]):
            value = _LONE_VALUES[name]
        words += _spelled(name, value, options.get(name), program)
    return words


def _unknown_option(typed: str, flags: set[str], program: str) -> UserError:
    name = typed.removeprefix("--")
    if name == "set":
        return UserError("--set is gone; write each setting as an option, such as transformer.learning_rate=3e-4")
    parent = name.rpartition(".")[0]
    siblings = {flag for flag in flags if flag.rpartition(".")[0] == parent}
    return UserError(f"unknown option {typed}; {suggestion(name, siblings or flags)} (see {program} --help)")


def _negated(name: str) -> str:
    parent, dot, last = name.rpartition(".")
    return f"{parent}{dot}no-{last}"


def _spelled(name: str, value: str | None, hint: Any, program: str) -> list[str]:
    if value is None:
        return [f"--{name}"]
    if is_positional(hint):
        return [value]
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"--{name} is {value!r}; expected true or false (see {program} --help)")
        return [f"--{name}" if value.lower() == "true" else f"--{_negated(name)}"]
    if typing.get_origin(hint) in (tuple, list):
        return [f"--{name}", *_items(value)]
    return [f"--{name}", value]


def _items(text: str) -> list[str]:
    """Split "[0.9, 0.95]" or "0.9,0.95"."""
    if text.startswith("["):
        with contextlib.suppress(ValueError):
            return [item if isinstance(item, str) else json.dumps(item) for item in json.loads(text)]
    return [item.strip() for item in text.split(",")] if text else []


# Errors


def _one_sentence_errors(program: str, hints: Mapping[str, Any]) -> Any:
    """Turn tyro's errors into one sentence each."""
    # tyro keeps this hook in a private module: an unknown version prints its own error, with exit code 2.
    errors = getattr(tyro, "_errors", None)
    if not hasattr(errors, "on_parse_error"):
        return contextlib.nullcontext()

    def raise_sentence(event: Any) -> None:
        kind = type(event).__name__
        sentence = _SENTENCES[kind](event) if kind in _SENTENCES else f"the command line was not understood ({kind})"
        if kind == "UnrecognizedArgs" and "=" in event.tokens[0]:
            options = [name.replace("_", "-") for name in hints]
            sentence += f"; {suggestion(event.tokens[0].partition('=')[0], options)}"
        raise UserError(f"{sentence} (see {program} --help)")

    return errors.on_parse_error(raise_sentence)  # type: ignore[union-attr]


def _missing(event: Any) -> str:
    names = []
    for missing in event.missing_arguments:
        argument = missing.arg
        metavar = argument.lowered.metavar
        names.append(metavar if argument.is_positional() else f"{argument.display_name()} {metavar}")
    return "missing " + " and ".join(names)


def _failed(event: Any) -> str:
    message = " ".join(str(event.message).split()).rstrip(".")
    if event.argument is None:
        return message
    name, metavar = event.argument.display_name(), event.argument.lowered.metavar
    match = re.search(r"(?:could not convert string to float|invalid literal for int\(\) with base 10): (.*)", message)
    return f"{name} is {match[1]}; expected {metavar}" if match else f"{name}: {message}"


_SENTENCES: dict[str, Callable[[Any], str]] = {
    "MissingArgs": _missing,
    "InvalidChoice": lambda event: (
        f"{event.argument.display_name()} is {event.value!r}; expected one of {', '.join(event.choices)}"
    ),
    "BadValue": lambda event: (
        f"{event.argument.display_name()} needs a value; expected {event.argument.lowered.metavar}"
    ),
    "UnrecognizedArgs": lambda event: f"unexpected {event.tokens[0]!r} on the command line",
    "InstantiationFailure": _failed,
}
