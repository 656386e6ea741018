"""The ``ivideogpt`` command: a table of commands, each a function with typed keyword arguments.

    ivideogpt demo
    ivideogpt predict pusht-64 --input video.mp4        # also: input=video.mp4; a_b and a-b are equal

The module of a command is imported when the command is known, and its function imports PyTorch when it runs, so that
help is instant. A user's error is one sentence on stderr with exit code 2; any other error is a bug and shows its
traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ivideogpt import __version__
from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import Stopped, UserError


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        target: the function that runs it, "module:function".
        summary: one line of help.
        settings: the function that loads the default settings, "module:function", for a command with settings.
    """

    target: str
    summary: str
    settings: str = ""

    def load(self) -> Callable[..., object]:
        """Import the function that runs the command."""
        return _imported(self.target)

    def settings_loader(self) -> Callable[[Mapping[str, str]], Any] | None:
        """Import the function that loads the default settings; None for a command without settings."""
        return _imported(self.settings) if self.settings else None


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


COMMANDS: Mapping[str, Command] = {
    "demo": Command("ivideogpt.commands.demo:demo", "imagine a held-out episode with the shipped model"),
    "predict": Command("ivideogpt.commands.predict:predict", "imagine the future of a video or an episode of your own"),
    "gallery": Command(
        "ivideogpt.commands.gallery:gallery", "write a web page of held-out clips beside what the model imagines"
    ),
    "serve": Command("ivideogpt.commands.serve:serve", "play a world in a browser, one action at a time"),
    "collect": Command(
        "ivideogpt.commands.collect:collect",
        "record episodes in a simulator into an episode store",
        settings="ivideogpt.commands.collect:load_settings",
    ),
    "convert": Command("ivideogpt.commands.convert:convert", "turn a downloaded dataset into an episode store"),
    "data": Command("ivideogpt.commands.data:data", "print what an episode store holds, and check it"),
    "train-tokenizer": Command(
        "ivideogpt.commands.train:train_tokenizer",
        "train a tokenizer on episode stores",
        settings="ivideogpt.commands.train:load_settings",
    ),
    "tokenize": Command("ivideogpt.commands.train:tokenize", "store the tokens of episodes, to train from"),
    "train-transformer": Command(
        "ivideogpt.commands.train:train_transformer",
        "train a world model around a tokenizer",
        settings="ivideogpt.commands.train:load_settings",
    ),
    "evaluate": Command(
        "ivideogpt.commands.evaluate:evaluate", "measure a checkpoint on held-out episodes, by a protocol"
    ),
    "bench": Command("ivideogpt.commands.bench:bench", "measure how fast a model imagines on this machine"),
    "mbrl": Command(
        "ivideogpt.commands.mbrl:mbrl",
        "train an agent on real and imagined episodes",
        settings="ivideogpt.commands.mbrl:load_settings",
    ),
    "mbrl plot": Command("ivideogpt.commands.mbrl_plot:mbrl_plot", "draw the learning curves of such runs"),
    "migrate": Command("ivideogpt.commands.migrate:migrate", "print the command here for one of thuml/iVideoGPT"),
}


def main(arguments: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: the words after ``ivideogpt``; by default those this process was started with.
        commands: the table of commands.

    Returns:
        0; 2 for a user's error; 130 for Ctrl-C; or the int that the command returned.
    """
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments), commands)
    except UserError as error:
        print(f"ivideogpt: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"ivideogpt: {stop}", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("ivideogpt: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, such as ``head``; nothing more can be written there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str], commands: Mapping[str, Command]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(commands))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"ivideogpt {__version__}")
        return 0
    name, words = _split_name(arguments, commands)
    command = commands[name]
    function = command.load()
    from ivideogpt.commands.arguments import parse

    result = parse(function, words, f"ivideogpt {name}", command.settings_loader())()
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _split_name(arguments: Sequence[str], commands: Mapping[str, Command]) -> tuple[str, Sequence[str]]:
    """Return the name of the command, one word or two, and the words after it.

    Raises:
        UserError: there is no such command.
    """
    first = arguments[0].replace("_", "-")
    for count in (2, 1):
        name = " ".join([first, *arguments[1:count]])
        if name in commands:
            return name, arguments[count:]
    family = [name for name in commands if name.startswith(f"{first} ")]
    if family:
        name = " ".join([first, *arguments[1:2]])
        raise UserError(f"unknown command {name!r}; expected one of: {', '.join(family)}")
    raise UserError(f"unknown command {arguments[0]!r}; {suggestion(first, commands)}")


def _help(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands), default=0)
    return "\n".join(
        [
            "usage: ivideogpt COMMAND [OPTIONS]",
            "",
            *(f"  {name:<{width}}  {command.summary}" for name, command in commands.items()),
            "",
            "ivideogpt COMMAND --help lists the options of a command; --name value and name=value are the same.",
        ]
    )
