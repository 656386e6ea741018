"""The official preset that is nearest to what official flags say, and the settings in which they differ.

    settings = tokenizer_settings(pasted.values, gpus=4)
    preset, different = nearest("tokenizer", pasted.values, settings)

Flags that were not typed count too, at their official defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from ivideogpt.configs.official import OFFICIAL, medium_transformer, small_transformer, tokenizer_updates
from ivideogpt.configs.recipe import Recipe, changed
from ivideogpt.core.config import to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import Augmentation

_SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}
_TRANSFORMERS = {"config.json": small_transformer, "config_medium.json": medium_transformer}
# What other data count, beside settings that differ: less than one of them.
_OTHER_DATA = 0.5


def tokenizer_settings(given: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """What all flags of train_tokenizer.py say, as settings of a recipe."""
    context, l1 = given["context_length"], given["vae_loss"] != "l2"
    adversarial = given["disc_start"] < given["max_train_steps"]
    settings = {
        "tokenizer.tokenizer.context_frames": context,
        "tokenizer.steps": tokenizer_updates(given["max_train_steps"]),
        "tokenizer.batch_size": given["train_batch_size"] * given["gradient_accumulation_steps"] * gpus,
        "tokenizer.future_frames": given["segment_length"] - context,
        "tokenizer.horizon": given["segment_horizon"] - context,
        "tokenizer.learning_rate": given["learning_rate"],
        "tokenizer.schedule": _schedule("lr_scheduler", given),
        "tokenizer.warmup_steps": 0 if given["lr_scheduler"] == "constant" else given["lr_warmup_steps"],
        "tokenizer.betas": [given["adam_beta1"], given["adam_beta2"]],
        "tokenizer.weight_decay": given["adam_weight_decay"],
        "tokenizer.clip_norm": given["max_grad_norm"],
        "tokenizer.codes": "frozen" if given["selected_params"] else "gradient",
        "tokenizer.loss.l1_weight": given["recon_weight"] if l1 else 0.0,
        "tokenizer.loss.l2_weight": 0.0 if l1 else given["recon_weight"],
        "tokenizer.loss.perceptual_weight": given["perc_weight"],
        "tokenizer.loss.discriminator_weight": given["disc_weight"] if adversarial else 0.0,
        "tokenizer.loss.balanced": given["balanced_loss"],
        "tokenizer.average_decay": 0.9999 if given["use_ema"] else 0.0,
        "tokenizer.gradient_accumulation": given["gradient_accumulation_steps"],
        "tokenizer.log_every": tokenizer_updates(given["log_steps"]),
        "tokenizer.save_every": tokenizer_updates(given["checkpointing_steps"]),
        "model.goal_conditioned": given["rand_shuffle"],
        "video_stepsize": given["video_stepsize"],
        "augmentation": _augmentation(given),
    }
    if adversarial:
        rate, schedule = given["discr_learning_rate"], _schedule("discr_lr_scheduler", given)
        settings["tokenizer.discriminator_learning_rate"] = None if rate == given["learning_rate"] else rate
        settings["tokenizer.discriminator_schedule"] = None if schedule == settings["tokenizer.schedule"] else schedule
        settings["tokenizer.loss.discriminator_start"] = tokenizer_updates(given["disc_start"])
        settings["tokenizer.discriminator.depth"] = given["disc_depth"]
    return settings


def transformer_settings(given: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """What all flags of train_gpt.py say, as settings of a recipe."""
    shape = _TRANSFORMERS.get(PurePosixPath(given["config_name"]).name)
    if shape is None:
        raise UserError(
            f"config_name is {given['config_name']}; expected {' or '.join(_TRANSFORMERS)} of configs/llama: give one "
            "of them, and the sizes to our command as model.transformer.num_layers=N and so on"
        )
    settings = {
        "transformer.steps": given["max_train_steps"],
        "transformer.batch_size": given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] * gpus,
        "transformer.clip_frames": given["segment_length"],
        "transformer.learning_rate": given["learning_rate"],
        "transformer.schedule": _schedule("lr_scheduler_type", given),
        "transformer.warmup_steps": 0 if given["lr_scheduler_type"] == "constant" else given["num_warmup_steps"],
        "transformer.weight_decay": given["weight_decay"],
        "transformer.clip_norm": given["max_grad_norm"],
        "transformer.lora.rank": given["lora_r"] if given["lora"] else 0,
        "transformer.gradient_accumulation": given["gradient_accumulation_steps"],
        "transformer.gradient_checkpointing": given["gradient_checkpointing"],
        "transformer.log_every": given["log_steps"],
        "transformer.save_every": given["checkpointing_steps"],
        "model.actions": given["action_conditioned"],
        "model.goal_conditioned": given["goal_conditioned"],
        "model.rewards": given["reward_prediction"],
        "model.action_reconstruction": bool(given["action_recon"]),
        "video_stepsize": given["video_stepsize"],
        "augmentation": _augmentation(given),
    }
    if given["lora"]:
        settings |= {"transformer.lora.alpha": given["lora_alpha"], "transformer.lora.dropout": given["lora_dropout"]}
    if given["action_recon"]:
        settings["transformer.action_reconstruction_weight"] = given["action_recon"]
    sizes = to_dict(replace(shape(), attention_dropout=given["llama_attn_drop"] or 0.0))
    return settings | {f"model.transformer.{name}": value for name, value in sizes.items()}


def nearest(
    training: Literal["tokenizer", "transformer"], given: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The official preset with the fewest settings to change, and these settings.

    Between presets that are equally near, the data decides.

    Raises:
        UserError: there is no preset of this resolution, or the settings do not fit together.
    """
    found = []
    for name, official in OFFICIAL.items():
        recipe = official.recipe()
        shape = recipe.tokenizer.tokenizer
        if shape.resolution != given["resolution"]:
            continue
        different = differences(recipe, training, settings)
        data = official.tokenizer_data if training == "tokenizer" else official.transformer_data
        other = (data != given["oxe_data_mixes_type"]) * _OTHER_DATA + (shape.context_frames != given["context_length"])
        found.append((len(different) + other, name, different))
    if not found:
        raise UserError(f"resolution is {given['resolution']}; the official presets are for 64 and 256")
    _, name, different = min(found, key=lambda one: one[0])
    changed(OFFICIAL[name].recipe(), as_settings(different))
    return name, different


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Settings as ``--set`` takes them, such as ``tokenizer.batch_size=16``."""
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


def differences(
    recipe: Recipe, training: Literal["tokenizer", "transformer"], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that ``recipe`` has otherwise in one training."""
    here = replace(recipe, augmentation=recipe.augmentation_of(training), augment_only=None)
    values, different = to_dict(here), {}
    for name, wanted in settings.items():
        value: Any = values
        for part in name.split("."):
            value = value[part]
        if value != wanted:
            different[name] = wanted
    if "augmentation" in different and recipe.augment_only not in (None, training):
        different["augment_only"] = None
    return different


def _augmentation(given: Mapping[str, Any]) -> dict[str, Any] | None:
    if given["no_aug"]:
        return None
    return to_dict(Augmentation.strong() if given["strong_aug"] else Augmentation())


def _schedule(flag: str, given: Mapping[str, Any]) -> str:
    if given[flag] not in _SCHEDULES:
        raise UserError(f"{flag} is {given[flag]!r}, which is not here; give one of {', '.join(_SCHEDULES)}")
    return _SCHEDULES[given[flag]]
