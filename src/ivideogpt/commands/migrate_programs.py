"""The translation of each official program into a command here, from the table of its flags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from ivideogpt.commands.arguments import assign
from ivideogpt.configs.migration_table import UNUSED, Flag
from ivideogpt.configs.migration_table_mbrl import MBRL_PROGRAMS
from ivideogpt.configs.official import OFFICIAL
from ivideogpt.configs.recipe import Recipe
from ivideogpt.core.config import to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.data.mixtures import mixture_weights
from ivideogpt.evaluation.protocols import find_protocol

#: Words after ``ivideogpt``, and notes.
Translation = tuple[list[Any], list[str]]
Training = Literal["tokenizer", "transformer"]

_EVALUATE = "ivideogpt evaluate"
_USED_BY_EVALUATE = (
    *("eval_only", "pretrained_model_name_or_path", "pretrained_transformer_path", "oxe_data_mixes_type", "seed"),
    *("segment_length", "context_length", "resolution", "output_dir", "exp_name"),
)
_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "bfloat16"}
_TRACKERS = ("tensorboard", "wandb")
_PROTOCOLS = {"bair": "bair", "tfds_robonet": "robonet", "vp2_robodesk": "vp2", "vp2_robosuite": "vp2"}


def settings_of(flags: Mapping[str, Flag], given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that all flags of a training say, by their whole names."""
    settings: dict[str, Any] = {}
    for flag in flags.values():
        value = flag.convert(given) if flag.convert else given[flag.name]
        if flag.setting == "model.transformer":
            settings |= {f"{flag.setting}.{name}": size for name, size in value.items()}
        elif flag.setting and value is not UNUSED:
            settings[flag.setting] = value
    return settings


def differences(recipe: Recipe, training: Training, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a recipe has otherwise in one training."""
    tree, different = to_dict(recipe), {}
    tree["augmentation"] = tree["augmentation"] if recipe.augment_only in (None, training) else None
    for name, value in settings.items():
        node: Any = tree
        for part in name.split("."):
            node = node[part]
        if node != value:
            different[name] = value
    if "augmentation" in different and recipe.augment_only not in (None, training):
        different["augment_only"] = None
    return different


def nearest_preset(training: Training, given: dict[str, Any], settings: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the official preset with the fewest settings to change, and these; the data decide between equals.

    Raises:
        UserError: there is no preset of this resolution, or the settings do not fit together.
    """
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
    return name, texts


def translate_train_tokenizer(typed: dict[str, Any], flags: Mapping[str, Flag], given: dict[str, Any]) -> Translation:
    """Translate train_tokenizer.py."""
    words, notes, start = list[Any](), list[str](), given["pretrained_model_name_or_path"]
    if start is not None:
        words += ["--vqgan" if "amused" in str(start) else "--init", start]
    if not (given["rand_select"] or given["rand_shuffle"]):
        notes.append("without --rand_select the official tokenizer sees consecutive frames; here always random ones")
    adversarial = given["disc_start"] < given["max_train_steps"]
    schedules = {given["lr_scheduler"], *([given["discr_lr_scheduler"]] if adversarial else [])}
    if len(schedules) > 1 and "constant" in schedules:
        notes.append("tokenizer and discriminator warm up alike here, as --lr_scheduler says, each from its start on")
    if "cosine" in schedules:
        notes.append("the learning rate falls to 0 here; in the official code only half of the cosine is reached")
    return _train("tokenizer", typed, flags, given, words, notes)


def translate_train_transformer(typed: dict[str, Any], flags: Mapping[str, Flag], given: dict[str, Any]) -> Translation:
    """Translate train_gpt.py."""
    if given["pretrained_model_name_or_path"] is None:
        raise UserError("--pretrained_model_name_or_path of train_gpt.py is missing; give the tokenizer's folder")
    words, notes = ["--tokenizer", given["pretrained_model_name_or_path"]], list[str]()
    if given["pretrained_transformer_path"] is not None:
        words += ["--init", _model_folder(given["pretrained_transformer_path"], notes)]
    if given["weight_decay"] and not given["embed_no_wd"]:
        notes.append("embeddings, norms and biases never decay here; officially they do without --embed_no_wd")
    if measuring := [f"--{name}" for name in typed if _EVALUATE in flags[name].ours]:
        notes.append(f"{', '.join(measuring)}: ivideogpt evaluate measures a checkpoint, training does not")
    return _train("transformer", typed, flags, given, words, notes)


def _train(
    training: Training,
    typed: dict[str, Any],
    flags: Mapping[str, Flag],
    given: dict[str, Any],
    words: list[Any],
    notes: list[str],
) -> Translation:
    settings = settings_of(flags, given)
    preset, different = nearest_preset(training, given, settings)
    data, mixture = _data(given)
    run = PurePosixPath(str(given["output_dir"])) / str(given["exp_name"] or training)
    command = [f"train-{training}", preset, "--data", data, *mixture, *words, "--run", run]
    command += ["--seed", given["seed"]] if given["seed"] else []
    command += ["--workers", given["dataloader_num_workers"]] if given["dataloader_num_workers"] else []
    if given["mixed_precision"] is not None:
        if given["mixed_precision"] not in _PRECISIONS:
            raise UserError(f"mixed_precision is {given['mixed_precision']!r}; expected {', '.join(_PRECISIONS)}")
        command += ["--precision", _PRECISIONS[given["mixed_precision"]]]
        notes += ["--mixed_precision fp16 is gone: bfloat16 needs no scaling"] * (given["mixed_precision"] == "fp16")
    if typed.get("report_to") in _TRACKERS:
        command += ["--tracker", given["report_to"]]
    elif "report_to" in typed:
        notes.append(f"--report_to {given['report_to']} is gone: there is {' and '.join(_TRACKERS)}")
    size = settings[f"{training}.batch_size"]
    batches = f"batches are of {size} clips, those of {given['gpus']} official GPUs together; --gpus N changes it"
    return [*command, *(f"{name}={text}" for name, text in different.items())], [batches, _stores(data), *notes]


def _stores(data: str) -> str:
    return f"{data} holds what ivideogpt convert wrote; the files of the official converters are not read"


def _data(given: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the word after ``--data``, and ``--mixture`` with its name where there are several stores."""
    mixture, stores = given["oxe_data_mixes_type"], given["stores"]
    datasets = list(mixture_weights(mixture))
    return (f"{stores}/{datasets[0]}", []) if len(datasets) == 1 else (stores, ["--mixture", mixture])


def _model_folder(transformer: str, notes: list[str]) -> str:
    """Return the folder of a whole world model, from that of its transformer."""
    path = PurePosixPath(transformer)
    if path.name != "transformer":
        notes.append(f"{transformer} is taken for a whole model; put its files into transformer/, beside tokenizer/")
    return str(path.parent) if path.name == "transformer" else transformer


def translate_evaluate(typed: dict[str, Any], flags: Mapping[str, Flag], given: dict[str, Any]) -> Translation:
    """Translate train_gpt.py --eval_only."""
    if given["pretrained_transformer_path"] is None:
        raise UserError("--pretrained_transformer_path is missing; give the transformer that is to be measured")
    notes = list[str]()
    model, (data, mixture) = _model_folder(given["pretrained_transformer_path"], notes), _data(given)
    if str(PurePosixPath(str(given["pretrained_model_name_or_path"])).parent) != model:
        notes.append(f"the tokenizer is the one in {model}/tokenizer")
    if mixture:
        raise UserError(f"{given['oxe_data_mixes_type']} is a mixture, and ivideogpt evaluate measures on one store")
    protocol = find_protocol(_PROTOCOLS.get(given["oxe_data_mixes_type"], "single"))
    metrics = ["perceptual"] * given["use_frame_metrics"] + ["video"] * given["use_fvd"] + ["tokens"]
    words = ["evaluate", model, "--data", data, "--protocol", protocol.name]
    words += ["--samples", given["eval_generate_times"]] * (protocol.samples != given["eval_generate_times"])
    if protocol.clip_frames != given["segment_length"]:
        words += ["--horizon", given["segment_length"] - given["context_length"]]
    words += ["--metrics", ",".join(metrics)] + ["--i3d", given["i3d_path"]] * given["use_fvd"]
    words += ["--seed", given["seed"]] if given["seed"] else []
    words += ["--batch-size", given["max_generate_batchsize"]] if given["max_generate_batchsize"] else []
    words += ["--output", PurePosixPath(str(given["output_dir"])) / str(given["exp_name"] or "evaluation")]
    unused = [name for name in typed if flags[name].ours and name not in _USED_BY_EVALUATE]
    unused = [f"--{name}" for name in unused if _EVALUATE not in flags[name].ours]
    notes += [
        _stores(data),
        *([f"{', '.join(unused)}: for training, or known from checkpoint and data"] if unused else []),
    ]
    return words, notes


def translate_predict(typed: dict[str, Any], flags: Mapping[str, Flag], given: dict[str, Any]) -> Translation:
    """Translate inference/predict.py."""
    _require(given, "predict.py", "pretrained_model_name_or_path", "input_path")
    words = ["predict", given["pretrained_model_name_or_path"], "--input", given["input_path"]]
    words += ["--dataset-name", given["dataset_name"]] if given["dataset_name"] is not None else []
    words += ["--repeat", given["repeat_times"]]
    words += ["--context-frames", given["context_length"]] if "context_length" in typed else []
    words += ["--horizon", given["segment_length"] - given["context_length"]] if "segment_length" in typed else []
    words += ["--seed", given["seed"]] if given["seed"] else []
    words += ["--output", given["output_path"]] if "output_path" in typed else []
    read = ("resolution", "goal_conditioned", "action_conditioned", "action_dim")
    return words, [f"--{name} is {flags[name].ours}" for name in read if name in typed]


def translate_convert(
    program: str, typed: dict[str, Any], flags: Mapping[str, Flag], given: dict[str, Any]
) -> Translation:
    """Translate a converter."""
    kind = program.rpartition("_")[2].removesuffix(".py").replace("converter", "oxe")
    source, target = (next(flag.name for flag in flags.values() if word in flag.ours) for word in ("SRC", "DST"))
    _require(given, program, source, target)
    if kind == "oxe":
        name = [given["dataset_name"]]
        return ["convert", kind, *name, given[source], f"{given[target]}/{given['dataset_name']}"], []
    name = [name for name in ("robodesk", "robosuite") if kind == "vp2" and name in f"{given[source]} {given[target]}"]
    if kind == "vp2" and len(name) != 1:
        raise UserError(
            f"{given[source]} does not say which benchmark it is; give a path with robodesk or robosuite in it"
        )
    return ["convert", kind, *name, given[source], given[target]], []


def _require(given: dict[str, Any], program: str, *names: str) -> None:
    for name in names:
        if given[name] is None:
            raise UserError(f"--{name} of {program} is missing; give it")


def translate_mbrl(program: str, typed: dict[str, Any], keys: Mapping[str, Flag], given: dict[str, Any]) -> Translation:
    """Translate a program of reinforcement learning: the preset ``official``, and what was typed."""
    task = given["task_name"] if "task" not in typed else given["task"]
    options: dict[str, Any] = {"task": task, "num_train_frames": given["num_train_frames"], "seed": given["seed"]}
    settings, notes = dict[str, Any](), list[str]()
    handled = ("task", "task_name", *options, *_ENVIRONMENT, *_MODEL, *_RUN)
    for name, value in typed.items():
        setting = keys[name].setting
        if name in ("agent.num_expl_steps", "start_mbpo"):
            notes.append(f"{name} is gone: random steps, updates and imagination change over after num_seed_frames")
        elif name == "stddev_schedule":
            settings |= _noise(str(value), int(given["action_repeat"]))
        elif name in _COUNTED_IN_FRAMES:
            settings[setting] = max(int(value or 0) // int(given["action_repeat"]), 1) if value else 0
        elif name == "action_repeat":
            settings[setting] = value
        elif name not in handled and setting and value is not None:
            (options if setting in _OPTIONS else settings)[setting] = value
    if any(name in typed for name in _ENVIRONMENT):
        settings["environment_options"] = {"action_repeat": given["action_repeat"]} | {
            option: given[name] for name, option in _ENVIRONMENT.items() if name in typed
        }
    paths = [PurePosixPath(str(typed[name])) for name in _MODEL[1:] if typed.get(name)]
    if typed.get(_MODEL[0]) is False:
        options["model"] = "none"
    elif paths:
        options["model"] = paths[0].parent if paths[0].name in ("transformer", "tokenizer") else paths[0]
    if folder := next((typed[name] for name in _RUN if name in typed), None):
        options["run"] = f"runs/{folder}"
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    texts |= {name: json.dumps(value) for name, value in settings.items()}
    return [*MBRL_PROGRAMS[program], *(f"{name}={text}" for name, text in texts.items())], notes


_OPTIONS = ("task", "num_train_frames", "demo", "demos", "seed", "device", "run", "model")
_COUNTED_IN_FRAMES = (
    "num_seed_frames",
    "eval_every_frames",
    "gen_every_steps",
    "update_gen_every_step",
    "update_tokenizer_every_step",
)
_ENVIRONMENT = {"action_repeat": "action_repeat", "duration": "steps", "succ_bonus": "success_bonus"}
_MODEL = (
    "world_model.load_pretrained_model",
    "world_model.pretrained_transformer_path",
    "world_model.pretrained_model_name_or_path",
)
_RUN = ("exp_name", "experiment")


def _noise(schedule: str, action_repeat: int) -> dict[str, Any]:
    """Return the settings of an official schedule, "linear(1.0,0.1,100000)" or a number."""
    match = re.fullmatch(r"linear\(\s*([^,()]+),\s*([^,()]+),\s*([^,()]+)\)", schedule.strip())
    try:
        start, end, frames = (float(text) for text in (match.groups() if match else (schedule, schedule, "1")))
    except ValueError:
        raise UserError(f"stddev_schedule is {schedule!r}; expected a number or linear(start,end,frames)") from None
    return {
        "agent.exploration_noise_start": start,
        "agent.exploration_noise_end": end,
        "agent.exploration_decay_steps": max(int(frames) // action_repeat, 1),
    }
