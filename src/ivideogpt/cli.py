"""The ``ivideogpt`` command: a table of commands, each a function with typed keyword arguments.

    ivideogpt demo
    ivideogpt predict pusht-64 --input video.mp4        # also: input=video.mp4; a_b and a-b are equal

The module of a command is imported when the command is known, and its function imports PyTorch when it runs, so that
help is instant. A user's error is one sentence on stderr with exit code 2; any other error is a bug and shows its
traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from ivideogpt import __version__
from ivideogpt.commands.registry import COMMANDS, Command
from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import Stopped, UserError


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
    from ivideogpt.commands.arguments import parse_command

    result = parse_command(function, words, f"ivideogpt {name}", command.settings_loader())()
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
