"""``ivideogpt migrate``: the command here that does what a pasted command of thuml/iVideoGPT does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.configs.migration_table import Flag

# Programs that start several processes ("torch.distributed.run" too), and their options for the number.
_LAUNCHERS = ("accelerate", "torchrun", "run", "launch")
_COUNTS = ("--num_processes", "--num-processes", "--nproc_per_node", "--nproc-per-node")
# {path to preprocessed_OXE} or <path>: something to be filled in.
_PLACEHOLDER = re.compile(r"\{[^{}\n]*\}|<[^<>\n]*>")


class OfficialCommand(NamedTuple):
    """A pasted command: its program, assignments before it, number of processes, and what was typed."""

    program: str
    flags: Mapping[str, Flag]
    environment: tuple[str, ...]
    processes: int | None
    typed: Mapping[str, Any]

    @property
    def given(self) -> dict[str, Any]:
        """All flags, those that were not typed at their official defaults."""
        return {name: flag.default for name, flag in self.flags.items()} | dict(self.typed)


def migrate(
    command: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="-- COMMAND")],
    *,
    stores: str = "stores",
    gpus: int | None = None,
    run: bool = False,
) -> int:
    """Print the command here for one of the official repository, and what became of its flags.

    Args:
        command: the official command, after two dashes, or between quotes; or the file of an official script.
        stores: folder of the stores that `ivideogpt convert` wrote, each with the name of its dataset.
        gpus: of the official command, since its batch sizes are of one; default: what it says itself, else 4, as the
            official scripts.
        run: run it too.
    """
    from ivideogpt.configs.official import GPUS

    if gpus is not None and gpus < 1:
        raise UserError(f"gpus is {gpus}; expected at least 1")
    translations = []
    for official in read_commands(_read_script(command)):
        words, notes = translate(official, stores=stores, gpus=gpus or official.processes or GPUS)
        translations.append((official, _launched(official, list(map(str, words)))))
        launcher, words = translations[-1][1]
        shown = shlex.join([*official.environment, *(launcher or ["ivideogpt"])])
        for word in words:
            shown += (" \\\n    " if word.startswith(("--", "run=")) else " ") + shlex.quote(word)
        print("\n" * (len(translations) > 1) + "\n".join([shown, *(f"# {note}" for note in notes)]))
    for _, (_, words) in translations if run else ():
        for match in (_PLACEHOLDER.search(word) for word in words if "=" not in word):
            if match is not None:
                raise UserError(f"{match[0]} stands for something; put it in before the command is run")
    for official, (launcher, words) in translations if run else ():
        print(f"ivideogpt {words[0]} ...", flush=True)
        module = ["torch.distributed.run", *launcher[1:]] if launcher else ["ivideogpt"]
        environment = os.environ | dict(pair.split("=", 1) for pair in official.environment)
        if code := subprocess.run([sys.executable, "-m", *module, *words], env=environment, check=False).returncode:
            return code
    return 0


def _launched(official: OfficialCommand, words: list[str]) -> tuple[list[str], list[str]]:
    """Return the launcher of several processes, if any, and the words after it."""
    if (official.processes or 1) == 1 or not words[0].startswith("train-"):
        return [], words
    place = words.index("--run")  # torchrun would take it for its own option
    words[place : place + 2] = [f"run={words[place + 1]}"]
    return ["torchrun", "--nproc-per-node", str(official.processes), "-m", "ivideogpt"], words


# Reading


def _read_script(command: str) -> str:
    from ivideogpt.configs.official import OFFICIAL, official_script

    script = next((word for word in command.split() if word.endswith(".sh")), None)
    if script is None or ".py" in command:
        return command
    if Path(script).is_file():
        return Path(script).read_text(encoding="utf-8")
    presets = {official_script(preset).rpartition("/")[2]: preset for preset in OFFICIAL}
    preset = presets.get(script.rpartition("/")[2])
    advice = f"; its settings are the preset {preset}" if preset else ""
    raise UserError(f"there is no file {script}{advice}; give the path of a script, or paste a command")


def read_commands(text: str) -> list[OfficialCommand]:
    """Read official commands as a shell would; lines that start no official program, such as ``cd``, are skipped.

    Raises:
        UserError: there is no official program, or a flag or a value that the program does not take.
    """
    joined = _PLACEHOLDER.sub(lambda match: re.sub(r"\s+", "_", match[0]), re.sub(r"\\\s*\n", " ", text))
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
            commands.append(_read_command(words[:place], words[place], words[place + 1 :]))
    if not commands:
        raise UserError(f"there is no official program in it; expected one of {', '.join(_programs())}")
    return commands


def _programs() -> dict[str, Mapping[str, Flag]]:
    from ivideogpt.configs.migration_table import PROGRAMS
    from ivideogpt.configs.migration_table_mbrl import MBRL_KEYS, MBRL_PROGRAMS

    return {**PROGRAMS, **dict.fromkeys(MBRL_PROGRAMS, MBRL_KEYS)}


def _read_command(before: Sequence[str], script: str, after: Sequence[str]) -> OfficialCommand:
    from ivideogpt.configs.migration_table import PLANNED

    programs, name = _programs(), script.rpartition("/")[2]
    for planned, purpose in PLANNED.items():
        if planned.rpartition("/")[2] == name:
            raise UserError(f"{script} has no counterpart here yet: {purpose} is planned")
    program = next((program for program in programs if program.rpartition("/")[2] == name), None)
    if program is None:
        raise UserError(f"{script} is no official program; {suggestion(script, programs)}")
    first = next((i for i, word in enumerate(before) if not re.fullmatch(r"[A-Za-z_]\w*=.*", word, re.S)), len(before))
    read = _read_keys if program.startswith("mbrl/") else _read_flags
    flags = programs[program]
    return OfficialCommand(program, flags, tuple(before[:first]), _processes(before), read(program, flags, after))


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


def _read_flags(program: str, flags: Mapping[str, Flag], words: Sequence[str]) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"{program} takes no {word!r}; expected a flag, such as --{next(iter(flags))}")
        if name not in flags:
            raise UserError(f"{program} has no flag --{name}; {suggestion(name, flags)}")
        if flags[name].is_switch:
            if equals:
                raise UserError(f"--{name} of {program} stands alone; leave out {value!r}")
            typed[name] = True
        elif not equals and (not rest or rest[0].startswith("--")):
            raise UserError(f"--{name} of {program} needs a value; give one")
        else:
            typed[name] = _value(flags[name], value if equals else rest.pop(0), f"--{name}")
    return typed


def _read_keys(program: str, keys: Mapping[str, Flag], words: Sequence[str]) -> dict[str, Any]:
    typed: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.lstrip("+").partition("=")
        if not equals or name.startswith("-"):
            raise UserError(f"{program} takes no {word!r}; expected keys, such as {next(iter(keys))}=...")
        if name not in keys:
            raise UserError(f"{program} has no key {name}; {suggestion(name, keys)}")
        if keys[name].type is bool and text.lower() not in ("true", "false", "null", "none", ""):
            raise UserError(f"{name} is {text!r}; expected true or false")
        is_none = text.lower() in ("null", "none", "")
        is_true = text.lower() == "true"
        typed[name] = None if is_none else is_true if keys[name].type is bool else _value(keys[name], text, name)
    return typed


def _value(flag: Flag, text: str, shown: str) -> Any:
    try:
        # The official programs take any text but the empty one for true.
        return bool(text) if flag.type is bool else flag.type(text)
    except ValueError:
        kind = "a whole number" if flag.type is int else "a number"
        raise UserError(f"{shown} is {text!r}; expected {kind}") from None


# Translation


def translate(official: OfficialCommand, *, stores: str, gpus: int) -> tuple[list[Any], list[str]]:
    """Return the words after ``ivideogpt``, and notes on what is gone or taken for granted, a sentence each.

    Raises:
        UserError: a value has no counterpart here.
    """
    from ivideogpt.commands import migrate_programs as programs

    typed, flags, given = dict(official.typed), official.flags, official.given | {"gpus": gpus, "stores": stores}
    dashes = "--"
    if official.program.startswith("mbrl/"):
        dashes = ""
        words, notes = programs.translate_mbrl(official.program, typed, flags, given)
    elif official.program == "train_tokenizer.py":
        words, notes = programs.translate_train_tokenizer(typed, flags, given)
    elif official.program == "train_gpt.py":
        program = programs.translate_evaluate if given["eval_only"] else programs.translate_train_transformer
        words, notes = program(typed, flags, given)
    elif official.program == "inference/predict.py":
        words, notes = programs.translate_predict(typed, flags, given)
    else:
        words, notes = programs.translate_convert(official.program, typed, flags, given)
    gone = [name for name in official.typed if not official.flags[name].ours]
    return words, [*notes, *(f"{dashes}{name} is gone: {official.flags[name].note}" for name in gone)]
