"""Every flag of the official programs, and what takes its place here: the table behind ``ivideogpt migrate``.

    flag = PROGRAMS["train_gpt.py"]["max_train_steps"]
    flag.ours       # "`transformer.steps=N`"
    flag.setting    # "transformer.steps"

docs/migrating.md shows the same table; a test compares them.

Source: the programs of thuml/iVideoGPT, names and defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ivideogpt.configs.official import medium_transformer, small_transformer, tokenizer_updates
from ivideogpt.core.config import to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.data.augment import Augmentation

Value = bool | int | float | str | None
#: All flags of a command, those that were not typed at their official defaults, and "gpus".
Given = Mapping[str, Any]
#: The value of a setting that a command does not use.
UNUSED = object()


@dataclass(frozen=True)
class Flag:
    """One official flag, or one key of an official configuration.

    Attributes:
        name: as it is typed, without dashes.
        default: official; None: it has none; a bool: it is a switch, unless ``kind`` is bool.
        ours: what takes its place, in Markdown; "": nothing does.
        note: why nothing does, or what is different.
        kind: type of its value, where the default does not show it.
        setting: the setting of the preset that takes its place; "": none.
        convert: returns the value of the setting; None: that of the flag.
    """

    name: str
    default: Value = None
    ours: str = ""
    note: str = ""
    kind: type | None = None
    setting: str = ""
    convert: Callable[[Given], Any] | None = None

    @property
    def is_switch(self) -> bool:
        """True for a flag without a value."""
        return self.kind is None and isinstance(self.default, bool)

    @property
    def type(self) -> type:
        """The type of its value."""
        return self.kind or (str if self.default is None else type(self.default))


def _set(
    name: str,
    default: Value,
    setting: str,
    note: str = "",
    kind: type | None = None,
    convert: Callable[[Given], Any] | None = None,
    ours: str = "",
) -> Flag:
    """A flag whose place a setting of the preset takes."""
    return Flag(name, default, ours or f"`{setting}=N`", note, kind, setting, convert)


def _gone(name: str, default: Value, why: str, kind: type | None = None) -> Flag:
    return Flag(name, default, "", why, kind)


_SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}
_TRANSFORMERS = {"config.json": small_transformer, "config_medium.json": medium_transformer}


def _half(name: str) -> Callable[[Given], Any]:
    """The official counter of the tokenizer alternates between generator and discriminator."""
    return lambda given: tokenizer_updates(given[name])


def _is_adversarial(given: Given) -> bool:
    return given["disc_start"] < given["max_train_steps"]


def _if_adversarial(convert: Callable[[Given], Any]) -> Callable[[Given], Any]:
    return lambda given: convert(given) if _is_adversarial(given) else UNUSED


def _after_context(name: str) -> Callable[[Given], Any]:
    return lambda given: given[name] - given["context_length"]


def _schedule(name: str) -> Callable[[Given], Any]:
    def convert(given: Given) -> str:
        if given[name] not in _SCHEDULES:
            raise UserError(f"{name} is {given[name]!r}, which is not here; give one of {', '.join(_SCHEDULES)}")
        return _SCHEDULES[given[name]]

    return convert


def _warmup(schedule: str, steps: str) -> Callable[[Given], Any]:
    return lambda given: 0 if given[schedule] == "constant" else given[steps]


def _batch(size: str) -> Callable[[Given], Any]:
    return lambda given: given[size] * given["gradient_accumulation_steps"] * given["gpus"]


def _other_than(name: str, base: str, convert: Callable[[Given], Any] | None = None) -> Callable[[Given], Any]:
    """The value where it differs from that of another flag, else None."""
    convert_base = _schedule(base) if convert else lambda given: given[base]
    own = convert or (lambda given: given[name])
    return lambda given: None if own(given) == convert_base(given) else own(given)


def _augmentation(given: Given) -> dict[str, Any] | None:
    if given["no_aug"]:
        return None
    return to_dict(Augmentation.strong() if given["strong_aug"] else Augmentation())


def _shape(given: Given) -> dict[str, Any]:
    shape = _TRANSFORMERS.get(PurePosixPath(given["config_name"]).name)
    if shape is None:
        raise UserError(
            f"config_name is {given['config_name']}; expected {' or '.join(_TRANSFORMERS)} of configs/llama: give one "
            "of them, and the sizes to our command as model.transformer.num_layers=N and so on"
        )
    return to_dict(replace(shape(), attention_dropout=given["llama_attn_drop"] or 0.0))


def _lora(name: str) -> Callable[[Given], Any]:
    return lambda given: given[name] if given["lora"] else UNUSED


_EACH_CHECKPOINT = "held-out figures and pictures come with each checkpoint (`save_every`)"
_LAST_TWO = "the newest two checkpoints are kept"
_TRACKER = "tensorboard, wandb, trackio or none; metrics.jsonl has a line an update in any case"
_RUN = "the same command again goes on where its run stopped"
_NO_EFFECT = "without effect in the official code"
_ONLY_KIND = "the only kind there is; others fail in the official code"
_LATER = "`ivideogpt evaluate` measures a checkpoint"
_SSV2 = "Something-Something is the store `sthsth` beside the others"

_TRAIN_TOKENIZER = (
    _gone("log_grad_norm_steps", 500, "norms of gradients are not logged"),
    _set("log_steps", 50, "tokenizer.log_every", "half, as max_train_steps", convert=_half("log_steps")),
    _gone("validation_steps", 5000, _EACH_CHECKPOINT),
    _gone("log_image_steps", 100, _EACH_CHECKPOINT),
    _set(
        "vae_loss",
        "l1",
        "tokenizer.loss.l2_weight",
        ours="`tokenizer.loss.l1_weight=N tokenizer.loss.l2_weight=N`",
        convert=lambda given: given["recon_weight"] if given["vae_loss"] == "l2" else 0.0,
    ),
    Flag("pretrained_model_name_or_path", None, "`--init FOLDER`", "for aMUSEd's VQGAN `--vqgan FOLDER`"),
    _gone("model_config_name_or_path", None, "the official code fails with it; the preset has the shape"),
    _gone("discriminator_config_name_or_path", None, "a discriminator starts from random weights"),
    _gone("dataset_name", "robotic", _ONLY_KIND),
    Flag("output_dir", "vqgan-output", "`--run FOLDER`", "without the date in its name"),
    _gone("cache_dir", None, _NO_EFFECT),
    Flag("seed", None, "`--seed N`", "other draws than the official ones; 0 where it is not given", kind=int),
    Flag("resolution", 256, "the preset: 64 or 256"),
    _set(
        "train_batch_size",
        16,
        "tokenizer.batch_size",
        "of all GPUs and accumulated batches together",
        convert=_batch("train_batch_size"),
    ),
    _gone("num_train_epochs", 1, "steps are counted, not epochs"),
    _set(
        "max_train_steps",
        1_000_000,
        "tokenizer.steps",
        "half: the official counter alternates with a discriminator",
        convert=_half("max_train_steps"),
    ),
    _set("gradient_accumulation_steps", 1, "tokenizer.gradient_accumulation", "and `tokenizer.batch_size` times it"),
    _gone("gradient_checkpointing", False, _NO_EFFECT),
    _set(
        "discr_learning_rate",
        1e-4,
        "tokenizer.discriminator_learning_rate",
        "null: the tokenizer's",
        convert=_if_adversarial(_other_than("discr_learning_rate", "learning_rate")),
    ),
    _set("learning_rate", 1e-4, "tokenizer.learning_rate"),
    _gone("scale_lr", False, _NO_EFFECT),
    _set(
        "lr_scheduler",
        "constant_with_warmup",
        "tokenizer.schedule",
        '"cosine" or "constant"',
        convert=_schedule("lr_scheduler"),
    ),
    _set(
        "discr_lr_scheduler",
        "constant_with_warmup",
        "tokenizer.discriminator_schedule",
        "null: the tokenizer's",
        convert=_if_adversarial(_other_than("discr_lr_scheduler", "lr_scheduler", _schedule("discr_lr_scheduler"))),
    ),
    _set(
        "lr_warmup_steps",
        500,
        "tokenizer.warmup_steps",
        "updates in both, of tokenizer and discriminator each",
        convert=_warmup("lr_scheduler", "lr_warmup_steps"),
    ),
    _gone("use_8bit_adam", False, "there is one optimizer, AdamW"),
    _gone("allow_tf32", False, "PyTorch's own setting"),
    _set(
        "use_ema",
        False,
        "tokenizer.average_decay",
        "0.9999; every checkpoint then holds the averages",
        convert=lambda given: 0.9999 if given["use_ema"] else 0.0,
    ),
    Flag("dataloader_num_workers", 0, "`--workers N`"),
    _set(
        "adam_beta1",
        0.9,
        "tokenizer.betas",
        "both numbers",
        convert=lambda given: [given["adam_beta1"], given["adam_beta2"]],
    ),
    Flag("adam_beta2", 0.999, "`tokenizer.betas=N`", "both numbers"),
    _set("adam_weight_decay", 0, "tokenizer.weight_decay", "biases, norms and codebooks have none", kind=float),
    _gone("adam_epsilon", 1e-8, "1e-8 always"),
    _set("max_grad_norm", 1.0, "tokenizer.clip_norm"),
    _gone("logging_dir", "logs", "curves are in the run folder"),
    Flag("mixed_precision", None, "`--precision float32` or `bfloat16`", "no float16"),
    Flag("report_to", "tensorboard", "`--tracker NAME`", _TRACKER),
    _gone("local_rank", -1, "the launcher's environment says it"),
    _set(
        "checkpointing_steps",
        5000,
        "tokenizer.save_every",
        "half, as max_train_steps",
        convert=_half("checkpointing_steps"),
    ),
    _gone("resume_from_checkpoint", None, _RUN),
    _gone("enable_xformers_memory_efficient_attention", False, "PyTorch's own kernels are used"),
    _gone("tracker_project_name", "vqgan-training", "the project is called ivideogpt"),
    _set(
        "segment_length",
        5,
        "tokenizer.future_frames",
        "minus the context frames",
        convert=_after_context("segment_length"),
    ),
    _set("context_length", 1, "tokenizer.tokenizer.context_frames"),
    _set(
        "segment_horizon",
        16,
        "tokenizer.horizon",
        "minus the context frames",
        convert=_after_context("segment_horizon"),
    ),
    _set("video_stepsize", 1, "video_stepsize"),
    Flag("rand_select", False, "always", "except with `model.goal_conditioned`"),
    _set("rand_shuffle", False, "model.goal_conditioned", ours="`model.goal_conditioned=true`"),
    _gone("model_type", "vqgan", f"ctx_vqgan is {_ONLY_KIND}"),
    Flag("dataset_path", "/data2/tensorflow_datasets", "`--data FOLDER`", "of converted stores"),
    _gone("dataset_size", None, "all episodes are used", kind=int),
    _gone("weighted_mse", None, _NO_EFFECT, kind=float),
    _gone("weighted_gan", False, _NO_EFFECT),
    _set(
        "disc_start",
        0,
        "tokenizer.loss.discriminator_start",
        "half, as max_train_steps",
        convert=_if_adversarial(_half("disc_start")),
    ),
    _set(
        "disc_weight",
        0.8,
        "tokenizer.loss.discriminator_weight",
        "0 where it would start after the last step",
        convert=lambda given: given["disc_weight"] if _is_adversarial(given) else 0.0,
    ),
    _gone("latest_checkpoint_only", False, _LAST_TWO),
    Flag("exp_name", None, "`--run FOLDER`", "its last part"),
    _set(
        "disc_depth",
        4,
        "tokenizer.discriminator.depth",
        convert=_if_adversarial(lambda given: given["disc_depth"]),
    ),
    _set("perc_weight", 1.0, "tokenizer.loss.perceptual_weight"),
    _set(
        "recon_weight",
        1.0,
        "tokenizer.loss.l1_weight",
        "or l2_weight, as vae_loss says",
        convert=lambda given: 0.0 if given["vae_loss"] == "l2" else given["recon_weight"],
    ),
    Flag("oxe_data_mixes_type", "frac", "`--mixture NAME`", "a single dataset needs none: `--data STORE`"),
    Flag("strong_aug", False, "`augmentation={...}`", "its five ranges"),
    Flag("sthsth_root_path", "/data/something-something-v2/20bn-something-something-v2-frames-64", "`--data`", _SSV2),
    _gone("skip_first_val", False, _EACH_CHECKPOINT),
    _gone("start_global_step", 0, _RUN),
    _set("balanced_loss", False, "tokenizer.loss.balanced"),
    _set(
        "selected_params",
        False,
        "tokenizer.codes",
        "frozen codes take no part in clipping either",
        convert=lambda given: "frozen" if given["selected_params"] else "gradient",
        ours='`tokenizer.codes="frozen"`',
    ),
    _set("no_aug", False, "augmentation", convert=_augmentation, ours="`augmentation=null`"),
)

_TRAIN_GPT = (
    _set(
        "config_name",
        "configs/llama/config.json",
        "model.transformer",
        convert=_shape,
        ours="the preset, or `model.transformer.num_layers=N` ...",
    ),
    Flag("llama_attn_drop", None, "`model.transformer.attention_dropout=N`", kind=float),
    _set(
        "per_device_train_batch_size",
        8,
        "transformer.batch_size",
        "of all GPUs and accumulated batches together",
        convert=_batch("per_device_train_batch_size"),
    ),
    _gone("per_device_eval_batch_size", None, _EACH_CHECKPOINT, kind=int),
    _set("learning_rate", 5e-5, "transformer.learning_rate"),
    _set("weight_decay", 0.0, "transformer.weight_decay"),
    _gone("num_train_epochs", 1, "steps are counted, not epochs"),
    _set("max_train_steps", 1_000_000, "transformer.steps"),
    _set(
        "gradient_accumulation_steps", 1, "transformer.gradient_accumulation", "and `transformer.batch_size` times it"
    ),
    _set(
        "lr_scheduler_type",
        "constant_with_warmup",
        "transformer.schedule",
        '"cosine" or "constant"',
        convert=_schedule("lr_scheduler_type"),
    ),
    _set(
        "num_warmup_steps",
        5000,
        "transformer.warmup_steps",
        convert=_warmup("lr_scheduler_type", "num_warmup_steps"),
    ),
    Flag("output_dir", "trm-output", "`--run FOLDER`", "without the date in its name"),
    Flag("seed", None, "`--seed N`", "other draws than the official ones; 0 where it is not given", kind=int),
    _gone("vqgan_type", "vqgan", f"ctx_vqgan is {_ONLY_KIND}"),
    Flag("pretrained_model_name_or_path", None, "`--tokenizer FOLDER`"),
    Flag("pretrained_transformer_path", None, "`--init FOLDER`", "the one that holds tokenizer/ and transformer/"),
    _gone("load_internal_llm", False, "a checkpoint with or without an action layer is known by its weights"),
    _gone("trust_remote_code", False, "no code of others is run", kind=bool),
    _set("checkpointing_steps", 5000, "transformer.save_every"),
    _gone("resume_from_checkpoint", None, _RUN),
    _gone("with_tracking", True, "`--tracker none` draws no curves", kind=bool),
    Flag("report_to", "tensorboard", "`--tracker NAME`", _TRACKER),
    Flag("mixed_precision", None, "`--precision float32` or `bfloat16`", "no float16"),
    Flag("exp_name", None, "`--run FOLDER`", "its last part"),
    Flag("lora", False, "`transformer.lora.rank=8`", "only with `--init`; a checkpoint holds merged weights"),
    _set(
        "lora_r",
        8,
        "transformer.lora.rank",
        "0: all weights are trained",
        convert=lambda given: given["lora_r"] if given["lora"] else 0,
    ),
    _set("lora_alpha", 32.0, "transformer.lora.alpha", convert=_lora("lora_alpha")),
    _set("lora_dropout", 0.0, "transformer.lora.dropout", "not that of lm_head", convert=_lora("lora_dropout")),
    _set("gradient_checkpointing", False, "transformer.gradient_checkpointing"),
    _set("max_grad_norm", None, "transformer.clip_norm", "null: no clipping", kind=float),
    _set(
        "reward_prediction",
        False,
        "model.rewards",
        "trained here; the official loss leaves it out",
        ours="`model.rewards=true`",
    ),
    _gone("start_completed_steps", None, _RUN, kind=int),
    _set(
        "action_recon",
        None,
        "transformer.action_reconstruction_weight",
        kind=float,
        convert=lambda given: given["action_recon"] or UNUSED,
        ours="`model.action_reconstruction=true transformer.action_reconstruction_weight=N`",
    ),
    _set("segment_length", 2, "transformer.clip_frames"),
    Flag("context_length", 1, "read from the tokenizer"),
    _set("video_stepsize", 1, "video_stepsize"),
    Flag("dataset_path", "/data2/frame_datasets", "`--data FOLDER`", "of converted stores, or of their tokens"),
    _gone("dataset_size", None, "all episodes are used", kind=int),
    Flag("sthsth_root_path", "/data/something-something-v2/20bn-something-something-v2-frames-64", "`--data`", _SSV2),
    Flag("resolution", 256, "read from the tokenizer"),
    Flag("dataloader_num_workers", 4, "`--workers N`"),
    Flag("strong_aug", False, "`augmentation={...}`", "its five ranges"),
    _set("no_aug", False, "augmentation", convert=_augmentation, ours="`augmentation=null`"),
    Flag("oxe_data_mixes_type", "select", "`--mixture NAME`", "a single dataset needs none: `--data STORE`"),
    _set("log_steps", 100, "transformer.log_every"),
    _gone("validation_steps", 5000, _EACH_CHECKPOINT),
    _gone("skip_first_val", False, _EACH_CHECKPOINT),
    _gone("latest_checkpoint_only", False, _LAST_TWO),
    _gone("special_token", True, "always so, also there"),
    _set("action_conditioned", False, "model.actions", ours="`model.actions=true`"),
    Flag("action_dim", 4, "read from the data"),
    Flag("embed_no_wd", False, "always"),
    _set("goal_conditioned", False, "model.goal_conditioned"),
    _gone("max_eval_iters", 100, f"{_LATER} on all episodes, with `ivideogpt evaluate --clips N` on fewer"),
    _gone("use_eval_dataset", False, f"{_LATER} on the split test"),
    Flag("i3d_path", "pretrained_models/i3d/i3d_torchscript.pt", "`ivideogpt evaluate --i3d FILE`"),
    Flag(
        "use_frame_metrics",
        False,
        "`ivideogpt evaluate`",
        "PSNR and SSIM always, LPIPS with `ivideogpt evaluate --metrics perceptual`",
    ),
    Flag("use_fvd", False, "`ivideogpt evaluate --metrics video`"),
    Flag("eval_generate_times", 1, "`ivideogpt evaluate --samples N`"),
    Flag("max_generate_batchsize", None, "`ivideogpt evaluate --batch-size N`", kind=int),
    _gone("max_decode_batchsize", None, "frames are decoded in batches of the same size", kind=int),
    Flag("eval_only", False, "`ivideogpt evaluate`"),
    _gone("log_gif_interval", 10, "the report shows clips"),
)

_PREDICT = (
    Flag(
        "pretrained_model_name_or_path",
        None,
        "the first word",
        "a Hub id, a folder, a run folder or `pusht-64`",
    ),
    Flag("input_path", None, "`--input FILE`", "also videos, GIFs, folders of images, episode files, stores"),
    Flag("dataset_name", None, "`--dataset-name NAME`", "optional; or `--camera-key` and `--stride`"),
    Flag("output_path", "outputs", "`--output FOLDER`", "default outputs/predict/ and the input's name"),
    Flag("context_length", 2, "`--context-frames N`", "read from the checkpoint; for fewer"),
    Flag("segment_length", 16, "`--horizon N`", "minus the context frames; by default what the model was trained on"),
    Flag("resolution", 64, "read from the checkpoint"),
    Flag("goal_conditioned", False, "read from the checkpoint", "of an official one by the repository's name: keep it"),
    Flag("action_conditioned", False, "read from the checkpoint"),
    Flag("action_dim", 4, "read from the checkpoint"),
    Flag("repeat_times", 5, "`--repeat N`", "default 1"),
    Flag("seed", 0, "`--seed N`", "other draws than the official ones"),
)

_CONVERT_OXE = (
    Flag("dataset_name", "fractal20220817_data", "the word NAME"),
    Flag("input_path", "/data3/tensorflow_datasets", "the word SRC"),
    Flag("output_path", "inputs", "the word DST", "a store each: DST/NAME"),
    _gone("max_num_episodes", None, "all episodes; with `--partial` those of the files that are there", kind=int),
)
_CONVERT_BAIR = (
    Flag("input_path", None, "the word SRC"),
    Flag("save_path", None, "the word DST"),
    _gone("save_gif", False, "`ivideogpt data DIR --sheet FILE` draws episodes"),
)
_CONVERT_ROBONET = (
    Flag("hdf5_path", None, "the word SRC"),
    Flag("save_path", None, "the word DST"),
)
_CONVERT_VP2 = (
    Flag("dir_path", None, "the word SRC"),
    Flag("save_path", None, "the word DST"),
)

#: Every official program that has flags, by its path; each flag by its name.
PROGRAMS: Mapping[str, Mapping[str, Flag]] = {
    program: {flag.name: flag for flag in flags}
    for program, flags in {
        "train_tokenizer.py": _TRAIN_TOKENIZER,
        "train_gpt.py": _TRAIN_GPT,
        "inference/predict.py": _PREDICT,
        "datasets/oxe_data_converter.py": _CONVERT_OXE,
        "datasets/preprocess_bair.py": _CONVERT_BAIR,
        "datasets/preprocess_robonet.py": _CONVERT_ROBONET,
        "datasets/preprocess_vp2.py": _CONVERT_VP2,
    }.items()
}

_STORE = "`--data STORE`"
_DATASET = (
    Flag("bair_train_dataset", None, _STORE, "both splits are in one store"),
    Flag("bair_test_dataset", None, _STORE, "the same store"),
    Flag("robonet_train_dataset", None, _STORE, "both splits are in one store"),
    Flag("robonet_test_dataset", None, _STORE, "the same store"),
    Flag("robodesk_dataset", None, _STORE),
    Flag("robosuite_dataset", None, _STORE),
)

#: Every key of the official configuration files that a user may change, by file.
CONFIGURATIONS: Mapping[str, Mapping[str, Flag]] = {
    "DATASET.yaml": {flag.name: flag for flag in _DATASET},
}

#: Official programs without a counterpart yet.
PLANNED: Mapping[str, str] = {"scripts/run_control.py": "planning on VP2"}
