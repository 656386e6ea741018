"""The ``ivideogpt`` command: a table of verbs, each a plain function with typed keyword arguments.

    ivideogpt demo
    ivideogpt train-demo --steps 10        # also: steps=10; a_b and a-b are equal

A verb's module is imported once the verb is known, so ``ivideogpt --help`` is instant. What a user can mend is one
sentence on stderr and exit code 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ivideogpt import __version__
from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import Stopped, UserError


@dataclass(frozen=True)
class Verb:
    """Where a verb lives ("module:function") and one line of help."""

    target: str
    summary: str

    def load(self) -> Callable[..., object]:
        """Imports the function."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


VERBS: Mapping[str, Verb] = {
    "demo": Verb("ivideogpt.commands.demo:demo", "imagine a held-out episode with the shipped model, beside the truth"),
    "predict": Verb("ivideogpt.commands.predict:predict", "imagine the future of a video or an episode of your own"),
    "gallery": Verb(
        "ivideogpt.commands.gallery:gallery", "write a page of held-out clips: what happened and what is imagined"
    ),
    "serve": Verb("ivideogpt.commands.serve:serve", "play a world in a browser, one action at a time"),
    "collect": Verb("ivideogpt.commands.collect:collect", "record episodes in a simulator"),
    "demos": Verb("ivideogpt.commands.demos:demos", "record scripted episodes of Meta-World into an episode store"),
    "convert": Verb("ivideogpt.commands.convert:convert", "turn a downloaded dataset into an episode store"),
    "tokenize": Verb("ivideogpt.commands.train:tokenize", "keep the tokens of episode stores, to train from"),
    "train-tokenizer": Verb("ivideogpt.commands.train:train_tokenizer", "train a tokenizer on episode stores"),
    "train-transformer": Verb("ivideogpt.commands.train:train_transformer", "train a world model around a tokenizer"),
    "data": Verb("ivideogpt.commands.data:data", "print what an episode store holds, and check it"),
    "migrate": Verb("ivideogpt.commands.migrate:migrate", "print the command here for one of thuml/iVideoGPT"),
    "evaluate": Verb(
        "ivideogpt.commands.evaluate:evaluate", "measure a checkpoint on held-out episodes, by a protocol"
    ),
    "bench": Verb("ivideogpt.commands.bench:bench", "measure how fast a model imagines on this machine"),
    "mbrl": Verb("ivideogpt.commands.mbrl:mbrl", "train an agent on real and imagined episodes"),
    "mbrl plot": Verb("ivideogpt.commands.mbrl_plot:mbrl_plot", "draw what such runs reached, over their seeds"),
    "train-demo": Verb(
        "ivideogpt.commands.demo:train_demo", "train the shipped model again, from simulator to checkpoint"
    ),
    "eval-demo": Verb("ivideogpt.commands.demo:eval_demo", "measure the shipped model on fresh episodes"),
}


def main(arguments: Sequence[str] | None = None, verbs: Mapping[str, Verb] = VERBS) -> int:
    """Runs one command line and returns its exit code.

    Args:
        arguments: what follows ``ivideogpt``; by default the words this process was started with.
        verbs: the table to look the verb up in.

    Returns:
        0; 2 for what the user can mend; 130 for Ctrl-C; or the int that the verb returned.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(verbs))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"ivideogpt {__version__}")
        return 0
    try:
        name, options = _verb(arguments, verbs)
        result = _parse(verbs[name].load(), options, f"ivideogpt {name}")()
    except UserError as error:
        print(f"ivideogpt: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"ivideogpt: {stop}", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("ivideogpt: stopped", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


def _verb(arguments: Sequence[str], verbs: Mapping[str, Verb]) -> tuple[str, Sequence[str]]:
    """The verb, of one word or two, and what follows it.

    Raises:
        UserError: there is none of that name.
    """
    first = arguments[0].replace("_", "-")
    for count in (2, 1):
        name = " ".join([first, *arguments[1:count]])
        if name in verbs:
            return name, arguments[count:]
    family = [name for name in verbs if name.startswith(f"{first} ")]
    if family:
        wanted = " ".join([first, *arguments[1:2]])
        raise UserError(f"unknown command {wanted!r}; expected one of: {', '.join(family)}")
    raise UserError(f"unknown command {arguments[0]!r}; {suggestion(first, verbs)}")


def _help(verbs: Mapping[str, Verb]) -> str:
    width = max(map(len, verbs), default=0)
    table = [f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items()]
    return "\n".join(
        [
            "usage: ivideogpt COMMAND [OPTIONS]",
            "",
            *table,
            "",
            "ivideogpt COMMAND --help lists the options of a command; --name value and name=value are the same.",
        ]
    )


def _parse(function: Callable[..., object], arguments: Sequence[str], program: str) -> Callable[[], object]:
    """The call that the command line asks for.

    Raises:
        UserError: an unknown option, a missing or a wrong value.
        SystemExit: after ``--help``.
    """
    import tyro

    @functools.wraps(function)
    def bind(*positional: Any, **named: Any) -> Callable[[], object]:
        return functools.partial(function, *positional, **named)

    words = _plain_options(arguments, _options(function), program)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            call, rest = tyro.cli(bind, prog=program, args=words, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_one_sentence(printed.getvalue(), program)}; see {program} --help") from None
    if rest:
        name, equals, _ = rest[0].partition("=")
        advice = f"; {suggestion(name, _options(function))}" if equals else ""
        raise UserError(f"unexpected {rest[0]!r} on the command line{advice} (see {program} --help)")
    return typing.cast("Callable[[], object]", call)


def _options(function: Callable[..., object]) -> dict[str, Any]:
    """The type of each option by name; those of a nested dataclass as "field.name"."""
    options: dict[str, Any] = {}

    def add(hints: Mapping[str, Any], prefix: str) -> None:
        for name, hint in hints.items():
            if isinstance(hint, type) and is_dataclass(hint):
                types = typing.get_type_hints(hint)
                add({field.name: types[field.name] for field in fields(hint)}, f"{prefix}{name}.")
            else:
                options[f"{prefix}{name}".replace("_", "-")] = hint

    hints = typing.get_type_hints(function, include_extras=True)
    add({name: hint for name, hint in hints.items() if name != "return"}, "")
    return options


def _is_positional(hint: Any) -> bool:
    import tyro

    marker = typing.get_args(tyro.conf.Positional[str])[1]
    return marker in getattr(hint, "__metadata__", ())


def _plain_options(arguments: Sequence[str], options: Mapping[str, Any], program: str) -> list[str]:
    """Writes ``name=value`` and ``--flag true`` the way tyro reads them.

    Raises:
        UserError: an option that the function does not have.
    """
    known = {name for name, hint in options.items() if not _is_positional(hint)}
    known |= {f"no-{name}" for name in known if options[name] is bool}
    words: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":  # what follows is a command of another program: one value, whatever its options are
            words.append(shlex.join(rest))
            break
        dashed = re.fullmatch(r"--([A-Za-z][\w.-]*)(?:=(.*))?", word, flags=re.DOTALL)
        short = re.fullmatch(r"([A-Za-z][\w.-]*)=(.*)", word, flags=re.DOTALL)
        match = dashed or short
        name = match[1].replace("_", "-") if match else ""
        if dashed and name not in known and name != "help" and not name.startswith("tyro-"):
            raise UserError(f"unknown option --{name}; {suggestion(name, known)} (see {program} --help)")
        if not match or name not in options.keys() | known:
            words.append(word)  # a value, or a path that happens to hold "="
            continue
        value = match[2]
        if options.get(name) is bool and value is None and rest and rest[0].lower() in ("true", "false"):
            value = rest.pop(0)
        words += _spelled(name, value, options.get(name), program)
    return words


def _spelled(name: str, value: str | None, hint: Any, program: str) -> list[str]:
    if value is None:
        return [f"--{name}"]
    if _is_positional(hint):
        return [value]
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"--{name} is {value!r}; expected true or false (see {program} --help)")
        return [f"--{name}" if value.lower() == "true" else f"--no-{name}"]
    return [f"--{name}", value]


def _one_sentence(box: str, program: str) -> str:
    """What tyro says in a box of several lines, as one sentence."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.replace("│", " ").rstrip()
        if re.fullmatch(r" *[─-]{3,}", text):
            sections.append([])
        elif text and text[0] not in "╭╰":
            sections[-1].append(text)
    if "╭" not in box:  # where the terminal cannot draw lines, the title is a section too
        del sections[0]
    said, *more = [" ".join(" ".join(section).split()) for section in sections] or [""]
    if said.startswith(f"Missing from {program}:"):
        # One option a line, each above its help, which is indented further.
        indents = [len(text) - len(text.lstrip()) for text in sections[0]]
        names = [text.strip() for text, indent in zip(sections[0], indents, strict=True) if indent == indents[0] + 4]
        return "missing " + " and ".join(names)
    if more and more[0].startswith("Argument helptext: "):
        said = f"{said}; expected {more[0].removeprefix('Argument helptext: ')}"
    return said.rstrip(".") or "the command line could not be read"
