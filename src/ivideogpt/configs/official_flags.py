"""Every flag of the official programs, and what takes its place here: the table behind ``ivideogpt migrate``.

``official_flags.csv`` has the rows. The column ``target`` names an option (``--seed``), a word of the command (``SRC``)
or a setting of its preset (``tokenizer.steps``; a star stands for several). The column ``convert`` names functions of
`CONVERSIONS` that compute the value, in order; ``typed`` means that the official default counts for nothing.
docs/migrating.md shows the table; a test compares them.

Source: the programs of thuml/iVideoGPT, names and defaults.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from ivideogpt.core.config import to_dict
from ivideogpt.core.errors import UserError


@dataclass(frozen=True)
class Flag:
    """An official flag or configuration key: a row of the table."""

    name: str
    type: str
    default: Any
    target: str
    convert: str
    here: str
    note: str

    @property
    def ours(self) -> str:
        """Its replacement in Markdown; "": there is none, and ``note`` says why."""
        return self.here or (f"`{self.target}=N`" if self.target else "")


@functools.cache
def official_flags() -> Mapping[str, Mapping[str, Flag]]:
    """Load the table: the flags of each official program or configuration file, by name."""
    table: dict[str, dict[str, Flag]] = {}
    text = resources.files("ivideogpt.configs").joinpath("official_flags.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        program, name, default = row.pop("program"), row.pop("flag"), row.pop("default")
        value = None if default == "" else default if row["type"] == "str" else json.loads(default)
        table.setdefault(program, {})[name] = Flag(name=name, default=value, **row)
    return table


#: All flags of a command, those not typed at their official defaults, and "typed", "stores" and "gpus".
Given = Mapping[str, Any]
#: Result of a conversion whose setting a command does not use.
UNUSED = object()


def _choice(name: str, choices: Mapping[str, str]) -> Callable[[str | None, Given], str | None]:
    def convert(value: str | None, given: Given) -> str | None:
        if value is not None and value not in choices:
            raise UserError(f"{name} is {value!r}, which is not here; give one of {', '.join(choices)}")
        return value and choices[value]

    return convert


def _augmentation(value: bool, given: Given) -> dict[str, Any] | None:
    from ivideogpt.data.augment import Augmentation

    return None if value else to_dict(Augmentation.strong() if given["strong_aug"] else Augmentation())


def _shape(path: str, given: Given) -> dict[str, Any]:
    from ivideogpt.configs.official import medium_transformer, small_transformer

    shapes = {"config.json": small_transformer, "config_medium.json": medium_transformer}
    if (name := PurePosixPath(path).name) not in shapes:
        raise UserError(
            f"config_name is {path}; expected {' or '.join(shapes)} of configs/llama: give one of them, and the sizes "
            "to our command as model.transformer.num_layers=N and so on"
        )
    return to_dict(replace(shapes[name](), attention_dropout=given["llama_attn_drop"] or 0.0))


def _data(name: str, given: Given) -> dict[str, Any]:
    from ivideogpt.data.mixtures import mixture_weights

    datasets, stores = list(mixture_weights(name)), given["stores"]
    several = len(datasets) > 1
    return {"--data": stores if several else f"{stores}/{datasets[0]}", "--mixture": name if several else None}


def _protocol(given: Given) -> Any:
    from ivideogpt.evaluation.protocols import find_protocol

    names = {"bair": "bair", "tfds_robonet": "robonet", "vp2_robodesk": "vp2", "vp2_robosuite": "vp2"}
    return find_protocol(names.get(given["oxe_data_mixes_type"], "single"))


def _held_out(name: str, given: Given) -> dict[str, Any]:
    data = _data(name, given)
    if data["--mixture"] is not None:
        raise UserError(f"{name} is a mixture, and ivideogpt evaluate measures on one store")
    return {"--data": data["--data"], "--protocol": _protocol(given).name}


def _vp2(source: str, given: Given) -> dict[str, Any]:
    suites = [name for name in ("robodesk", "robosuite") if name in f"{source} {given['save_path']}"]
    if source is not None and len(suites) != 1:
        raise UserError(f"{source} does not say which benchmark it is; give a path with robodesk or robosuite in it")
    return {"NAME": suites[0] if suites else None, "SRC": source}


def _noise(schedule: str, given: Given) -> dict[str, Any]:
    """Convert an official schedule, "linear(1.0,0.1,100000)" or a number."""
    match = re.fullmatch(r"linear\(\s*([^,()]+),\s*([^,()]+),\s*([^,()]+)\)", schedule.strip())
    try:
        start, end, frames = (float(text) for text in (match.groups() if match else (schedule, schedule, "1")))
    except ValueError:
        raise UserError(f"stddev_schedule is {schedule!r}; expected a number or linear(start,end,frames)") from None
    steps = max(int(frames) // given["action_repeat"], 1)
    return {"exploration_noise_start": start, "exploration_noise_end": end, "exploration_decay_steps": steps}


def _environment(value: Any, given: Given) -> dict[str, Any]:
    names = {"duration": "steps", "succ_bonus": "success_bonus"}
    typed = {option: given[name] for name, option in names.items() if name in given["typed"]}
    return {"action_repeat": given["action_repeat"], **typed}


def _model_folder(path: str | None, given: Given | None = None) -> str | None:
    """Return the folder of a whole world model, from that of one of its networks."""
    inner = path is not None and PurePosixPath(path).name in ("transformer", "tokenizer")
    return str(PurePosixPath(path).parent) if path is not None and inner else path


def _world_model(value: Any, given: Given) -> Any:
    names = ("pretrained_transformer_path", "pretrained_model_name_or_path")
    paths = [given[f"world_model.{name}"] for name in names if given[f"world_model.{name}"]]
    return "none" if not given["world_model.load_pretrained_model"] else _model_folder(paths[0]) if paths else UNUSED


def _is_adversarial(given: Given) -> bool:
    return given["disc_start"] < given["max_train_steps"]


#: Functions of the value of a flag and of all flags, by the name in the table.
CONVERSIONS: Mapping[str, Callable[[Any, Given], Any]] = {
    # The official counter of the tokenizer alternates between generator and discriminator.
    "half": lambda value, given: (value + 1) // 2,
    "adversarial": lambda value, given: value if _is_adversarial(given) else UNUSED,
    "discriminator": lambda value, given: value if _is_adversarial(given) else 0.0,
    "after_context": lambda value, given: value - given["context_length"],
    "batch": lambda value, given: value * given["gradient_accumulation_steps"] * given["gpus"],
    "schedule": _choice(
        "the schedule", {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}
    ),
    "precision": _choice("mixed_precision", {"no": "float32", "bf16": "bfloat16", "fp16": "bfloat16"}),
    "tracker": lambda value, given: value if value in ("tensorboard", "wandb") else UNUSED,
    "warmup": lambda value, given: value * ("constant" not in map(given.get, ("lr_scheduler", "lr_scheduler_type"))),
    "other_rate": lambda value, given: None if value == given["learning_rate"] else value,
    "other_schedule": lambda value, given: None if value == given["lr_scheduler"].partition("_")[0] else value,
    "l1": lambda value, given: 0.0 if given["vae_loss"] == "l2" else value,
    "l2": lambda value, given: given["recon_weight"] if value == "l2" else 0.0,
    "betas": lambda value, given: [given["adam_beta1"], given["adam_beta2"]],
    "average": lambda value, given: 0.9999 if value else 0.0,
    "codes": lambda value, given: "frozen" if value else "gradient",
    "augmentation": _augmentation,
    "shape": _shape,
    "start": lambda value, given: {"--vqgan" if "amused" in str(value) else "--init": value},
    "model": _model_folder,
    "data": _data,
    "folder": lambda value, given: str(PurePosixPath(value) / (given["exp_name"] or "run")),
    "lora": lambda value, given: value if given["lora"] else UNUSED,
    "rank": lambda value, given: value if given["lora"] else 0,
    "reconstruction": lambda value, given: (
        {"model.heads.action_reconstruction": True, "transformer.action_reconstruction_weight": value} if value else {}
    ),
    "held_out": _held_out,
    "metrics": lambda value, given: ",".join(
        ["perceptual"] * given["use_frame_metrics"] + ["video"] * given["use_fvd"] + ["tokens"]
    ),
    "video": lambda value, given: value if given["use_fvd"] else UNUSED,
    "samples": lambda value, given: UNUSED if value == _protocol(given).samples else value,
    "horizon": lambda value, given: (
        UNUSED if value == _protocol(given).clip_frames else value - given["context_length"]
    ),
    # Each store has the name of its dataset, by which training finds it.
    "store": lambda value, given: f"{given['stores']}/{given['dataset_name']}",
    "bair_store": lambda value, given: f"{given['stores']}/bair_robot_pushing",
    "robonet_store": lambda value, given: f"{given['stores']}/tfds_robonet",
    "vp2_store": lambda value, given: f"{given['stores']}/vp2_{_vp2(given['dir_path'], given)['NAME']}",
    "vp2": _vp2,
    "task": lambda value, given: given["task" if "task" in given["typed"] else "task_name"],
    "steps": lambda value, given: max(value // given["action_repeat"], 1) if value else 0,
    "repeat": lambda value, given: {"action_repeat": value, "environment_options": _environment(value, given)},
    "noise": _noise,
    "environment": _environment,
    "world_model": _world_model,
    "runs": lambda value, given: f"runs/{given['typed'].get('exp_name', value)}",
}
