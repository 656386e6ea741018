"""``ivideogpt migrate``: the command here that does what a pasted command of thuml/iVideoGPT does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.configs.pasted import Pasted
    from ivideogpt.configs.translation import Ours

_PLACEHOLDER = re.compile(r"\{[^{}]*\}|<[^<>]*>")


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
        gpus: how many the official command trained on, since its batch sizes are of one; default: what it says itself,
            else 4, as the official scripts.
        run: run it too.
    """
    from ivideogpt.configs.official import GPUS
    from ivideogpt.configs.pasted import read_commands
    from ivideogpt.configs.translation import translate

    if gpus is not None and gpus < 1:
        raise UserError(f"gpus is {gpus}; expected at least 1")
    found = [
        (pasted, translate(pasted, stores=stores, gpus=gpus or pasted.processes or GPUS))
        for pasted in read_commands(_text(command))
    ]
    for number, (pasted, ours) in enumerate(found):
        print("\n" * (number > 0) + shown(pasted, ours))
    if run:
        for _, ours in found:
            _check_filled_in(ours)
        for pasted, ours in found:
            print(f"ivideogpt {ours.words[0]} ...", flush=True)
            if code := _run(pasted, ours):
                return code
    return 0


def _text(command: str) -> str:
    """Return the pasted text, or the text of the file that it names."""
    from ivideogpt.configs.official import OFFICIAL, official_script

    script = next((word for word in command.split() if word.endswith(".sh")), None)
    if script is None or ".py" in command:
        return command
    if Path(script).is_file():
        return Path(script).read_text(encoding="utf-8")
    name = script.rpartition("/")[2]
    presets = {official_script(preset).rpartition("/")[2]: preset for preset in OFFICIAL}
    advice = f"; its settings are the preset {presets[name]}" if name in presets else ""
    raise UserError(f"there is no file {script}{advice}; give the path of a script, or paste a command")


def shown(pasted: Pasted, ours: Ours) -> str:
    """Our command as lines that a shell takes, then the notes as comments."""
    launcher, words = _command(pasted, ours)
    command = shlex.join([*pasted.environment, *(launcher or ["ivideogpt"])])
    for word in words:
        starts_line = word.startswith(("--", "run="))
        command += (" \\\n    " if starts_line else " ") + shlex.quote(word)
    return "\n".join([command, *(f"# {note}" for note in ours.notes)])


def _command(pasted: Pasted, ours: Ours) -> tuple[list[str], list[str]]:
    """What starts several processes, where there are several, and the words after ``ivideogpt``."""
    words = list(ours.words)
    if (pasted.processes or 1) == 1 or not words[0].startswith("train-"):
        return [], words
    place = words.index("--run")  # torchrun would take it for an option of its own
    words[place : place + 2] = [f"run={words[place + 1]}"]
    return ["torchrun", "--nproc-per-node", str(pasted.processes), "-m", "ivideogpt"], words


def _check_filled_in(ours: Ours) -> None:
    for word in ours.words:
        # The JSON of a setting has braces too.
        if "=" not in word and (found := _PLACEHOLDER.search(word)):
            raise UserError(f"{found[0]} stands for something; put it in before the command is run")


def _run(pasted: Pasted, ours: Ours) -> int:
    """Runs it in a process of its own; returns its exit code."""
    launcher, words = _command(pasted, ours)
    start = ["torch.distributed.run", *launcher[1:]] if launcher else ["ivideogpt"]
    environment = dict(one.split("=", 1) for one in pasted.environment)
    return subprocess.run([sys.executable, "-m", *start, *words], env=os.environ | environment, check=False).returncode
