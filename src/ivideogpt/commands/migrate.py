"""``ivideogpt migrate``: the command here that does what a pasted command of thuml/iVideoGPT does."""

from __future__ import annotations

import argparse
import functools
import json
import operator
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from ivideogpt.configs.official_flags import CONVERSIONS, UNUSED, Flag, Given, official_flags
from ivideogpt.core.config import suggestion, to_dict
from ivideogpt.core.errors import UserError

if TYPE_CHECKING:
    from ivideogpt.configs.recipe import Recipe

#: The command for each official program; words in capitals are targets of the table, PRESET is the nearest preset.
COMMANDS = {
    "train_tokenizer.py": "train-tokenizer PRESET",
    "train_gpt.py": "train-transformer PRESET --tokenizer TOKENIZER",
    "train_gpt.py --eval_only": "evaluate CHECKPOINT",
    "inference/predict.py": "predict CHECKPOINT --input INPUT",
    "datasets/oxe_data_converter.py": "convert oxe NAME SRC DST",
    "datasets/preprocess_bair.py": "convert bair SRC DST",
    "datasets/preprocess_robonet.py": "convert robonet SRC DST",
    "datasets/preprocess_vp2.py": "convert vp2 NAME SRC DST",
    "mbrl/train_metaworld_mbpo.py": "mbrl official",
    "mbrl/train_metaworld_drq.py": "mbrl official --no-imagination",
}
# Programs that start several processes ("torch.distributed.run" too), and their options for the number.
_LAUNCHERS = ("accelerate", "torchrun", "run", "launch")
_COUNTS = ("--num_processes", "--num-processes", "--nproc_per_node", "--nproc-per-node")
_PLACEHOLDER = re.compile(r"\{[^{}\n]*\}|<[^<>\n]*>")  # {path to preprocessed_OXE} or <path>


@dataclass(frozen=True)
class OfficialCommand:
    """A pasted command: its program, assignments before it, number of processes, and the flags that were typed."""

    program: str
    environment: Sequence[str]
    processes: int | None
    typed: Mapping[str, Any]

    @property
    def flags(self) -> Mapping[str, Flag]:
        """The flags of the program."""
        table = official_flags()
        if self.program.startswith("mbrl/"):
            return table["mbrl/cfgs/mbpo_config.yaml"]
        if self.program == "train_gpt.py --eval_only":
            return {name: _for_evaluation(flag) for name, flag in table["train_gpt.py"].items()} | dict(
                table[self.program]
            )
        return table[self.program]

    def given(self, *, stores: str = "stores", gpus: int = 1) -> dict[str, Any]:
        """Return all flags, those not typed at their official defaults, and what conversions need beside them."""
        defaults = {name: flag.default for name, flag in self.flags.items()}
        return defaults | dict(self.typed) | {"typed": self.typed, "stores": stores, "gpus": gpus}


def _for_evaluation(flag: Flag) -> Flag:
    """Return a flag of training as evaluation takes it."""
    if not flag.ours or "ivideogpt evaluate" in flag.here:
        return replace(flag, target="")
    return replace(flag, target="", here="not needed", note="for training, or known from checkpoint and data")


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
    runs = []
    for official in in_sequence(read_commands(_read_script(command))):
        words, notes = translate(official, stores=stores, gpus=gpus or official.processes or GPUS)
        launcher = ["ivideogpt"]
        if (official.processes or 1) > 1 and words[0].startswith("train-"):
            launcher = ["torchrun", "--nproc-per-node", str(official.processes), "-m", "ivideogpt"]
            place = words.index("--run")  # torchrun would take it for its own option
            words[place : place + 2] = [f"run={words[place + 1]}"]
        shown = shlex.join([*official.environment, *launcher])
        for word in words:
            shown += (" \\\n    " if re.match(r"--|[\w.]+=", word) else " ") + shlex.quote(word)
        print("\n" * bool(runs) + "\n".join([shown, *(f"# {note}" for note in notes)]))
        runs.append((official, launcher, words))
    for _, _, words in runs if run else ():
        if missing := next(filter(None, (_PLACEHOLDER.search(word) for word in words if "=" not in word)), None):
            raise UserError(f"{missing[0]} stands for something; put it in before the command is run")
    for official, launcher, words in runs if run else ():
        print(f"ivideogpt {words[0]} ...", flush=True)
        module = ["torch.distributed.run" if launcher[0] == "torchrun" else "ivideogpt", *launcher[1:]]
        environment = os.environ | dict(pair.split("=", 1) for pair in official.environment)
        if code := subprocess.run([sys.executable, "-m", *module, *words], env=environment, check=False).returncode:
            return code
    return 0


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
    programs, commands = [program for program in COMMANDS if program.endswith(".py")], []
    for line in joined.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            reason = f"{line.strip()!r} cannot be read ({error})"
            raise UserError(f"{reason}; paste the command as a shell takes it") from None
        place = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
        if place is not None:
            script, name, launcher = words[place], words[place].rpartition("/")[2], words[:place]
            program = next((program for program in programs if program.rpartition("/")[2] == name), None)
            if name == "run_control.py":
                raise UserError(
                    f"{script} is of VP2; its counterpart here is ivideogpt plan robodesk/TASK (docs/planning.md)"
                )
            if program is None:
                raise UserError(f"{script} is no official program; {suggestion(script, programs)}")
            typed = _read_flags(program, words[place + 1 :])
            program += " --eval_only" if typed.get("eval_only") else ""
            count = next((i for i, word in enumerate(launcher) if not re.fullmatch(r"[A-Za-z_]\w*=.*", word)), place)
            commands.append(OfficialCommand(program, launcher[:count], _processes(launcher), typed))
    if not commands:
        raise UserError(f"there is no official program in it; expected one of {', '.join(programs)}")
    return commands


def _processes(launcher: Sequence[str]) -> int | None:
    """Return the number of processes; None: the launcher does not say it."""
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message.removeprefix('argument ')}; docs/migrating.md lists what it takes")


def _read_flags(program: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the values that were typed, by flag; keys ``name=value`` of a configuration are read as flags."""
    flags, of_keys = OfficialCommand(program, (), None, {}).flags, program.startswith("mbrl/")
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    # The official programs take any text but the empty one for true; the official configuration does not.
    kinds["bool"] = (lambda text: {"true": True, "false": False}[text.lower()]) if of_keys else bool
    parser = _Parser(prog=program, allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    for flag in flags.values():
        if flag.type == "switch":
            parser.add_argument(f"--{flag.name}", dest=flag.name, action="store_true")
        else:
            parser.add_argument(f"--{flag.name}", dest=flag.name, type=str)
    if of_keys and (wrong := next((word for word in words if word.startswith("-")), None)):
        raise UserError(f"{program} takes no {wrong!r}; expected keys, such as {next(iter(flags))}=...")
    typed, rest = parser.parse_known_args([f"--{word.lstrip('+')}" for word in words] if of_keys else words)
    if rest:
        name = rest[0].lstrip("-").partition("=")[0]
        raise UserError(f"{program} takes no {rest[0]!r}; {suggestion(name, flags)}")
    values = vars(typed)
    for name, text in values.items():
        if text is not True:
            try:
                is_null = of_keys and text.lower() in ("null", "none", "")
                values[name] = None if is_null else kinds[flags[name].type](text)
            except (ValueError, KeyError):
                kind = {"int": "a whole number", "float": "a number"}.get(flags[name].type, "true or false")
                raise UserError(f"{name} is {text!r}; expected {kind}") from None
    return values


def replacements(official: OfficialCommand, given: Given) -> dict[str, Any]:
    """Return the value of each target of a command; ``given`` is what `OfficialCommand.given` returns."""
    values: dict[str, Any] = {}
    for flag in official.flags.values():
        value, conversions = given[flag.name], flag.convert.split()
        if not flag.target or ("typed" in conversions and official.typed.get(flag.name) is None):
            continue
        for name in conversions:
            value = value if name == "typed" or value is UNUSED else CONVERSIONS[name](value, given)
        if value is not UNUSED:
            prefix = flag.target.removesuffix("*")
            values |= {flag.target: value} if prefix == flag.target else {prefix + name: x for name, x in value.items()}
    return values


# Translation


def in_sequence(commands: Sequence[OfficialCommand]) -> list[OfficialCommand]:
    """Return commands that read the runs of those before them, where an official path means such a run.

    The official folders have the date in their name, so scripts leave a placeholder to be filled in.
    """
    runs: dict[str, OfficialCommand] = {}
    linked = []
    for official in commands:
        reads = {"pretrained_model_name_or_path": "train_tokenizer.py"} if "train_gpt.py" in official.program else {}
        if official.program == "train_gpt.py --eval_only":
            reads = {"pretrained_transformer_path": "train_gpt.py"}
        run_of_flag = {flag: _run_of(runs.get(earlier), official.typed.get(flag)) for flag, earlier in reads.items()}
        typed = dict(official.typed) | {flag: run for flag, run in run_of_flag.items() if run is not None}
        linked.append(replace(official, typed=typed))
        runs[official.program] = linked[-1]
    return linked


def _run_of(earlier: OfficialCommand | None, path: str | None) -> str | None:
    """Return the run folder of a training if an official path means it, by a placeholder or by the name of the run."""
    if earlier is None or path is None:
        return None
    given = earlier.given()
    is_named = given["exp_name"] is not None and given["exp_name"] in path
    return CONVERSIONS["folder"](given["output_dir"], given) if is_named or _PLACEHOLDER.search(path) else None


def translate(official: OfficialCommand, *, stores: str, gpus: int) -> tuple[list[str], list[str]]:
    """Return the words after ``ivideogpt``, and notes on what is gone or differs, a sentence each.

    Raises:
        UserError: a value has no counterpart here, or a flag is missing.
    """
    flags, program, dashes = official.flags, official.program, "" if official.program.startswith("mbrl/") else "--"
    given, notes, words = official.given(stores=stores, gpus=gpus), list[str](), COMMANDS[program].split()
    values = replacements(official, given)
    for index, word in enumerate(words):
        if word.isupper() and word != "PRESET":
            if values.get(word) is None:
                name = next(name for name, flag in flags.items() if flag.target in (word, "*"))
                raise UserError(f"{dashes}{name} of {program} is missing; give it")
            words[index] = str(values[word])
    settings = {name: value for name, value in values.items() if name[:2] != "--" and not name.isupper()}
    if "PRESET" in words:
        training: Literal["tokenizer", "transformer"] = "tokenizer" if "tokenizer" in program else "transformer"
        size = settings[f"{training}.batch_size"]
        notes.append(f"batches are of {size} clips, those of {gpus} official GPUs together; --gpus N changes it")
        words[1], settings = nearest_preset(training, given, settings)
    if "--data" in values:
        where = values["--data"]
        notes.append(f"{where} holds what ivideogpt convert wrote; the files of the official converters are not read")
    options = {name: value for name, value in values.items() if name[:2] == "--" and value}
    for name in sorted(options, key=lambda name: name not in ("--data", "--mixture")):
        words += [name, str(options[name])]
    words += [f"{name}={x if isinstance(x, str) else json.dumps(x)}" for name, x in settings.items()]
    for flag in map(flags.__getitem__, official.typed):
        if not flag.ours:
            notes.append(f"{dashes}{flag.name} is gone: {flag.note}")
        elif flag.note or not flag.target:
            notes.append(f"{dashes}{flag.name}: " + "; ".join(filter(None, (flag.ours, flag.note))))
    return words, notes


def differences(
    recipe: Recipe, training: Literal["tokenizer", "transformer"], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that a recipe has otherwise in one training."""
    tree = to_dict(recipe)
    if recipe.augmentation_of(training) is None:
        tree["augmentation"] = None
    before = {name: functools.reduce(operator.getitem, name.split("."), tree) for name in settings}
    different = {name: value for name, value in settings.items() if before[name] != value}
    if "augmentation" in different and recipe.augment_only not in (None, training):
        different["augment_only"] = None
    return different


def nearest_preset(
    training: Literal["tokenizer", "transformer"], given: Given, settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the official preset with the fewest settings to change, and these; the data decide between equals.

    Raises:
        UserError: there is no preset of this resolution, or the settings do not fit together.
    """
    from ivideogpt.commands.arguments import assign
    from ivideogpt.configs.official import OFFICIAL

    candidates = []
    for name, official in OFFICIAL.items():
        recipe = official.recipe()
        if recipe.tokenizer.tokenizer.resolution == given["resolution"]:
            different = differences(recipe, training, settings)
            data = official.tokenizer_data if training == "tokenizer" else official.transformer_data
            distance = len(different) + 0.5 * (data != given["oxe_data_mixes_type"])
            distance += recipe.tokenizer.tokenizer.context_frames != given["context_length"]
            candidates.append((distance, name, different))
    if not candidates:
        raise UserError(f"resolution is {given['resolution']}; the official presets are for 64 and 256")
    _, name, different = min(candidates, key=lambda candidate: candidate[0])
    texts = {setting: x if isinstance(x, str) else json.dumps(x) for setting, x in different.items()}
    assign(OFFICIAL[name].recipe(), texts)  # checks them
    return name, different
