"""Turns an official command of reinforcement learning into ours: the preset ``official``, and what was typed.

words, notes = translate_mbrl(read_commands("python mbrl/train_metaworld_mbpo.py task=hammer demo=true")[0])
words      # ["mbrl", "official", "task=hammer", "demo=true", ...]
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

from ivideogpt.configs.migration_table_mbrl import MBRL_PROGRAMS, setting_of
from ivideogpt.configs.pasted import Pasted
from ivideogpt.core.errors import UserError

_LINEAR = re.compile(r"linear\(\s*([^,()]+),\s*([^,()]+),\s*([^,()]+)\)")
# Said in every command: their official defaults are not ours.
_ALWAYS = ("task", "num_train_frames", "seed")
_COUNTED_IN_FRAMES = ("gen_every_steps", "update_gen_every_step", "update_tokenizer_every_step")
_ENVIRONMENT = {"action_repeat": "action_repeat", "duration": "steps", "succ_bonus": "success_bonus"}
_SCHEDULE, _LOADED = "stddev_schedule", "world_model.load_pretrained_model"
_CHECKPOINTS = ("world_model.pretrained_transformer_path", "world_model.pretrained_model_name_or_path")
# Say the same as another key, which counts.
_SAID_BY = {"agent.num_expl_steps": "num_seed_frames", "start_mbpo": "num_seed_frames"}
_RUN = ("exp_name", "experiment")


def translate_mbrl(pasted: Pasted) -> tuple[list[str], list[str]]:
    """What follows ``ivideogpt``, and notes, a sentence each.

    Args:
        pasted: a program of ``MBRL_PROGRAMS``.

    Raises:
        UserError: a schedule that is not understood, or a model without a folder of its own.
    """
    given, typed = pasted.values, pasted.given
    options = {name: given["task_name"] if name == "task" and "task" not in typed else given[name] for name in _ALWAYS}
    settings, notes = dict[str, Any](), list[str]()
    for name, value in typed.items():
        if name in _SAID_BY:
            notes.append(f"{name} is gone: random steps, updates and imagination change over after {_SAID_BY[name]}")
        elif name == _SCHEDULE:
            settings |= _noise(str(value))
        elif name in _COUNTED_IN_FRAMES:
            settings[setting_of(name)[0]] = max(int(value or 0) // int(given["action_repeat"]), 1) if value else 0
        elif name == "action_repeat":
            settings["action_repeat"] = value
        elif name not in (*_ALWAYS, *_ENVIRONMENT, *_CHECKPOINTS, *_RUN, _LOADED, "task_name"):
            ours, is_option = setting_of(name)
            (options if is_option else settings).update({ours: value} if ours and value is not None else {})
    if any(name in typed for name in _ENVIRONMENT):
        said = {"action_repeat": given["action_repeat"]}
        said |= {ours: given[name] for name, ours in _ENVIRONMENT.items() if name in typed}
        settings["environment"] = said
    options |= _model(pasted)
    if folder := next((typed[name] for name in _RUN if name in typed), None):
        options["run"] = f"runs/{folder}"
    words = [*MBRL_PROGRAMS[pasted.program], *(f"{name}={_text(value)}" for name, value in options.items())]
    if settings:
        words += [*(f"{name}={json.dumps(value)}" for name, value in settings.items())]
    return words, notes


def _noise(schedule: str) -> dict[str, Any]:
    """The settings of an official schedule, "linear(1.0,0.1,100000)" or a number."""
    found = _LINEAR.fullmatch(schedule.strip())
    try:
        start, end, frames = (float(text) for text in (found.groups() if found else (schedule, schedule, "1")))
    except ValueError:
        raise UserError(f"{_SCHEDULE} is {schedule!r}; expected a number or linear(start,end,frames)") from None
    return {"agent.noise_start": start, "agent.noise_end": end, "agent.noise_frames": int(frames)}


def _model(pasted: Pasted) -> dict[str, str]:
    """The option that says the world model, where one was typed."""
    if pasted.given.get(_LOADED) is False:
        return {"model": "none"}
    for name in _CHECKPOINTS:
        if typed := pasted.given.get(name):
            path = PurePosixPath(str(typed))
            return {"model": str(path.parent if path.name in ("transformer", "tokenizer") else path)}
    return {}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
