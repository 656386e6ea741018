"""Reads a pasted official command: which program it starts, how, and with which flags.

    pasted = read_commands("accelerate launch train_gpt.py --segment_length 16")[0]
    pasted.program      # "train_gpt.py"
    pasted.given        # {"segment_length": 16}

Programs of reinforcement learning take keys of their configuration, name=value, instead of flags. What is not
understood is an error, never left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ivideogpt.configs.migration_table import PROGRAMS, Flag, Value
from ivideogpt.configs.migration_table_mbrl import MBRL_KEYS, MBRL_PROGRAMS
from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError

#: Official programs that nothing here takes the place of yet.
NOT_YET: Mapping[str, str] = {
    "scripts/run_control.py": "planning on VP2",
}
# Every program that is read.
_READ: Mapping[str, Mapping[str, Flag]] = {**PROGRAMS, **dict.fromkeys(MBRL_PROGRAMS, MBRL_KEYS)}
# What starts several processes ("torch.distributed.run" too), and how it calls their number.
_LAUNCHERS = ("accelerate", "torchrun", "run", "launch")
_COUNTS = ("--num_processes", "--num-processes", "--nproc_per_node", "--nproc-per-node")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
# {path to preprocessed_OXE}: something to be filled in, which the official scripts write without quotes.
_PLACEHOLDER = re.compile(r"\{[^{}\n]*\}|<[^<>\n]*>")


@dataclass(frozen=True)
class Pasted:
    """One official command.

    Attributes:
        program: a key of ``PROGRAMS`` or of ``MBRL_PROGRAMS``.
        environment: assignments before it, such as "CUDA_VISIBLE_DEVICES=0".
        processes: how many train together; None: its launcher's own configuration says it.
        given: the flags or keys that were typed.
    """

    program: str
    environment: tuple[str, ...]
    processes: int | None
    given: Mapping[str, Value]

    @property
    def flags(self) -> Mapping[str, Flag]:
        """Every flag or key of the program."""
        return _READ[self.program]

    @property
    def values(self) -> Mapping[str, Any]:
        """All flags, with their official defaults where they were not typed."""
        return {name: flag.default for name, flag in self.flags.items()} | dict(self.given)


def read_commands(text: str) -> list[Pasted]:
    """Reads one or more official commands, as a shell would.

    Args:
        text: lines, with comments, continuations, assignments of the environment and launchers; those that start no
            official program, such as ``cd`` or ``pip``, are left out.

    Raises:
        UserError: there is no official program in it, or a flag or a value that the program does not take.
    """
    joined = _PLACEHOLDER.sub(lambda found: re.sub(r"\s+", "_", found[0]), re.sub(r"\\\s*\n", " ", text))
    commands = []
    for line in joined.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(
                f"{line.strip()!r} cannot be read ({error}); paste the command as a shell takes it"
            ) from None
        place = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
        if place is not None:
            commands.append(_read(words[:place], words[place], words[place + 1 :]))
    if not commands:
        raise UserError(f"there is no official program in it; expected one of {', '.join(_READ)}")
    return commands


def _read(before: Sequence[str], script: str, after: Sequence[str]) -> Pasted:
    program = _program(script)
    environment = []
    for word in before:
        if not _ASSIGNMENT.fullmatch(word):
            break
        environment.append(word)
    given = read_keys(program, after) if program in MBRL_PROGRAMS else read_flags(program, after)
    return Pasted(program, tuple(environment), _processes(before), given)


def _program(script: str) -> str:
    """The official program that a path means; a file alone, without its folder, is enough."""
    name = script.rpartition("/")[2]
    for known, what in NOT_YET.items():
        if known.rpartition("/")[2] == name:
            raise UserError(f"{script} has no counterpart here yet: {what} is planned")
    found = [known for known in _READ if known.rpartition("/")[2] == name]
    if not found:
        raise UserError(f"{script} is no official program; {suggestion(script, _READ)}")
    return found[0]


def _processes(launcher: Sequence[str]) -> int | None:
    if not any(word.rpartition("/")[2].rpartition(".")[2] in _LAUNCHERS for word in launcher):
        return 1
    for word, following in zip(launcher, [*launcher[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in _COUNTS:
            count = value if equals else following
            if not count.isdigit() or count == "0":
                raise UserError(f"{name} is {count!r}; expected the number of processes")
            return int(count)
    return None


def read_flags(program: str, words: Sequence[str]) -> dict[str, Value]:
    """The flags among the words after an official program.

    Raises:
        UserError: a flag it does not have (the message names the closest one), or a value of another type.
    """
    flags, given, rest = PROGRAMS[program], dict[str, Value](), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"{program} takes no {word!r}; expected a flag, such as --{next(iter(flags))}")
        if name not in flags:
            raise UserError(f"{program} has no flag --{name}; {suggestion(name, flags)}")
        flag = flags[name]
        if flag.is_switch:
            if equals:
                raise UserError(f"--{name} of {program} stands alone; leave out {value!r}")
            given[name] = True
        elif not equals and (not rest or rest[0].startswith("--")):
            raise UserError(f"--{name} of {program} needs a value; give one")
        else:
            given[name] = _value(flag, value if equals else rest.pop(0))
    return given


def read_keys(program: str, words: Sequence[str]) -> dict[str, Value]:
    """The keys among the words after an official program, name=value.

    Raises:
        UserError: a word that is none, a key it does not have (the message names the closest one), or a value of
            another type.
    """
    keys, given = _READ[program], dict[str, Value]()
    for word in words:
        name, equals, value = word.lstrip("+").partition("=")
        if not equals or name.startswith("-"):
            raise UserError(f"{program} takes no {word!r}; expected keys, such as {next(iter(keys))}=...")
        if name not in keys:
            raise UserError(f"{program} has no key {name}; {suggestion(name, keys)}")
        given[name] = _key_value(keys[name], value)
    return given


def _key_value(flag: Flag, text: str) -> Value:
    if text.lower() in ("null", "none", ""):
        return None
    if flag.type is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{flag.name} is {text!r}; expected true or false")
        return text.lower() == "true"
    return _value(flag, text, "")


def _value(flag: Flag, text: str, dashes: str = "--") -> Value:
    if flag.type in (str, bool):
        # The official programs take any text but the empty one for true.
        return text if flag.type is str else bool(text)
    try:
        return flag.type(text)
    except ValueError:
        kind = "a whole number" if flag.type is int else "a number"
        raise UserError(f"{dashes}{flag.name} is {text!r}; expected {kind}") from None
