"""The reference of all commands, from their signatures and docstrings.

Writes docs/commands.md: ``python -m ivideogpt.commands.reference > docs/commands.md``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from ivideogpt.commands.arguments import SETTINGS, is_positional, option_types, resolved_hints
from ivideogpt.commands.registry import COMMANDS, Command

_START = """\
# Commands

*Written by `python -m ivideogpt.commands.reference > docs/commands.md`.*

`ivideogpt COMMAND --help` prints the options of a command. `--name value` and `name=value` are the same, and so are
`_` and `-` in names: `ivideogpt demo --episode 3` and `ivideogpt demo episode=3`. A mistake is one sentence, with exit
code 2; Ctrl-C ends any command with exit code 130. Commands that measure or make something end with one line of JSON.

Commands with a PRESET have the settings of the preset as options too, by their whole names:

```sh
ivideogpt train-transformer pusht-64 --help
ivideogpt train-transformer pusht-64 --data tokens --tokenizer runs/tokenizer --run runs/model \\
    --transformer.learning-rate 3e-4 transformer.batch_size=16
```

`null` stands for nothing, lists are written as `transformer.betas=[0.9,0.95]`, and a whole group as JSON:
`augmentation=null`, `forecasts=[]`. The folder of a run keeps its settings in `settings.json`. A resumed run takes
them from there and refuses others.

"""


def options(function: Callable[..., object], settings: Any = None) -> dict[str, Any]:
    """Return the type of each option of a command by name, those of its settings included."""
    return option_types(resolved_hints(function), settings)


def commands_page(commands: Mapping[str, Command] = COMMANDS) -> str:
    """Return the whole page."""
    index = [f"| [`{name}`](#ivideogpt-{name.replace(' ', '-')}) | {row.summary} |\n" for name, row in commands.items()]
    sections = [_section(name, command.load()) for name, command in commands.items()]
    return "".join([_START, "| command | |\n|---|---|\n", *index, *sections])


def _section(name: str, function: Callable[..., object]) -> str:
    summary, descriptions = _docstring(function)
    hints = resolved_hints(function)
    parameters = {
        parameter: row for parameter, row in inspect.signature(function).parameters.items() if parameter != SETTINGS
    }
    usage = " ".join([f"ivideogpt {name}", *_usage(parameters, hints)])
    rows = [
        f"| {_name(parameter, row, hints[parameter])} | {descriptions[parameter]}{_default(row, hints[parameter])} |\n"
        for parameter, row in parameters.items()
    ]
    table = "".join(["| option | |\n|---|---|\n", *rows])
    return f"\n## ivideogpt {name}\n\n{summary}\n\n```text\n{usage}\n```\n\n{table}"


def _docstring(function: Callable[..., object]) -> tuple[str, dict[str, str]]:
    """Return the summary of a function, and the description of each parameter, of a Google-style docstring."""
    text = inspect.getdoc(function) or ""
    summary, _, rest = text.partition("\nArgs:\n")
    arguments = re.split(r"\n\S", rest, maxsplit=1)[0]
    parts = re.split(r"^    (\w+): ", arguments, flags=re.MULTILINE)[1:]
    descriptions = {name: " ".join(body.split()) for name, body in zip(parts[::2], parts[1::2], strict=True)}
    return " ".join(summary.split()), descriptions


def _usage(parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]) -> list[str]:
    words = []
    for name, parameter in parameters.items():
        is_required = parameter.default is inspect.Parameter.empty
        if is_positional(hints[name]):
            metavar = _metavar(name, hints[name])
            words.append(metavar if is_required or metavar.startswith("[") else f"[{metavar}]")
        elif is_required:
            words.append(f"--{name.replace('_', '-')} {_metavar(name, hints[name])}")
    return [*words, "[OPTIONS]"]


def _name(name: str, parameter: inspect.Parameter, hint: Any) -> str:
    if is_positional(hint):
        return f"`{_metavar(name, hint)}`"
    if hint is bool:
        flag = name.replace("_", "-")
        return f"`--{flag}`, `--no-{flag}`" if parameter.default is True else f"`--{flag}`"
    return f"`--{name.replace('_', '-')} {_metavar(name, hint)}`"


def _metavar(name: str, hint: Any) -> str:
    for marker in getattr(hint, "__metadata__", ()):
        if getattr(marker, "metavar", None):
            return marker.metavar
    if is_positional(hint):
        return name.upper()
    members = [member for member in get_args(hint) if member is not type(None)]
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, members)) + "}"
    if get_origin(hint) is tuple:
        return f"{members[0].__name__.upper()} ..."
    return (members[0] if members else hint).__name__.upper()


def _default(parameter: inspect.Parameter, hint: Any) -> str:
    if parameter.default is inspect.Parameter.empty:
        return " (required)" if not is_positional(hint) else ""
    if hint is bool:
        return " (default: on)" if parameter.default is True else ""
    if parameter.default in (None, ()):
        return ""
    return f" (default: `{parameter.default}`)"


if __name__ == "__main__":
    print(commands_page(), end="")
