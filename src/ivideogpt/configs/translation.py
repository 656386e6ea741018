"""Turns an official command into ours: the preset that is nearest to it, and the settings in which they differ.

    ours = translate(pasted, stores="stores", gpus=4)
    ours.words     # ["train-transformer", "official-bair-64-act-cond", "--data", "stores/bair_robot_pushing", ...]

All flags take part, those that were not typed with their official defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from ivideogpt.configs.migration_table_mbrl import MBRL_PROGRAMS
from ivideogpt.configs.nearest import as_settings, nearest, tokenizer_settings, transformer_settings
from ivideogpt.configs.pasted import Pasted
from ivideogpt.configs.translation_mbrl import translate_mbrl
from ivideogpt.core.errors import UserError
from ivideogpt.data.mixtures import mixture_weights
from ivideogpt.evaluation.protocols import find_protocol

_MEASURE = "ivideogpt evaluate"
# What of train_gpt.py matters where it only measures.
_MEASURED = {
    "eval_only",
    "pretrained_model_name_or_path",
    "pretrained_transformer_path",
    "oxe_data_mixes_type",
    "segment_length",
    "context_length",
    "resolution",
    "seed",
    "output_dir",
    "exp_name",
}
_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "bfloat16"}
_TRACKERS = ("tensorboard", "wandb")
_PROTOCOLS = {"bair": "bair", "tfds_robonet": "robonet", "vp2_robodesk": "vp2", "vp2_robosuite": "vp2"}
_STORES = "{data} holds what ivideogpt convert wrote; the files of the official converters are not read"


@dataclass(frozen=True)
class Ours:
    """One command of ours.

    Attributes:
        words: after ``ivideogpt``.
        notes: what is gone and why, and what was taken for granted; a sentence each.
    """

    words: tuple[str, ...]
    notes: tuple[str, ...]


def translate(pasted: Pasted, *, stores: str, gpus: int) -> Ours:
    """Our command for an official one.

    Args:
        pasted: the official one.
        stores: folder of converted stores.
        gpus: how many the official command trained on; its batch sizes are of one.

    Raises:
        UserError: a value has no counterpart here.
    """
    translations: dict[str, Callable[[Pasted, str, int], Ours]] = {
        "train_tokenizer.py": _train_tokenizer,
        "train_gpt.py": _evaluate if pasted.values.get("eval_only") else _train_transformer,
        "inference/predict.py": _predict,
        **dict.fromkeys(MBRL_PROGRAMS, _mbrl),
    }
    ours = translations.get(pasted.program, _convert)(pasted, stores, gpus)
    dashes = "" if pasted.program in MBRL_PROGRAMS else "--"
    nothing = [name for name in pasted.given if not pasted.flags[name].ours]
    gone = tuple(f"{dashes}{name} is gone: {pasted.flags[name].note}" for name in nothing)
    return Ours(ours.words, (*ours.notes, *gone))


def _train_tokenizer(pasted: Pasted, stores: str, gpus: int) -> Ours:
    given = pasted.values
    words, notes = list[Any](), list[str]()
    if given["pretrained_model_name_or_path"] is not None:
        start = str(given["pretrained_model_name_or_path"])
        words += ["--vqgan" if "amused" in start else "--init", start]
    settings = tokenizer_settings(given, gpus)
    if not (given["rand_select"] or given["rand_shuffle"]):
        notes.append("without --rand_select the official tokenizer sees consecutive frames; here always random ones")
    adversarial = settings["tokenizer.loss.discriminator_weight"] > 0
    schedules = {given["lr_scheduler"], *([given["discr_lr_scheduler"]] if adversarial else [])}
    if len(schedules) > 1 and "constant" in schedules:
        notes.append("tokenizer and discriminator warm up alike here, as --lr_scheduler says, each from its start on")
    if "cosine" in schedules:
        notes.append("the learning rate falls to 0 here; in the official code only half of the cosine is reached")
    return _training("tokenizer", pasted, settings, words, notes, stores, gpus)


def _train_transformer(pasted: Pasted, stores: str, gpus: int) -> Ours:
    given, words, notes = pasted.values, list[Any](), list[str]()
    if given["pretrained_model_name_or_path"] is None:
        raise UserError("--pretrained_model_name_or_path of train_gpt.py is missing; give the tokenizer's folder")
    words += ["--tokenizer", given["pretrained_model_name_or_path"]]
    if given["pretrained_transformer_path"] is not None:
        words += ["--init", _model_folder(given["pretrained_transformer_path"], notes)]
    if given["weight_decay"] and not given["embed_no_wd"]:
        notes.append("embeddings, norms and biases never decay here; officially they do without --embed_no_wd")
    if measuring := [f"--{name}" for name in pasted.given if _MEASURE in pasted.flags[name].ours]:
        notes.append(f"{', '.join(measuring)}: ivideogpt evaluate measures a checkpoint, training does not")
    settings = transformer_settings(given, gpus)
    return _training("transformer", pasted, settings, words, notes, stores, gpus)


def _training(
    training: Literal["tokenizer", "transformer"],
    pasted: Pasted,
    settings: Mapping[str, Any],
    words: list[Any],
    notes: list[str],
    stores: str,
    gpus: int,
) -> Ours:
    """The command for one of the two trainings, ``words`` among its own."""
    given = pasted.values
    preset, different = nearest(training, given, settings)
    data, mixture = _data(given["oxe_data_mixes_type"], stores)
    run = PurePosixPath(str(given["output_dir"])) / str(given["exp_name"] or training)
    found = [f"train-{training}", preset, "--data", data, *mixture, *words, "--run", run]
    if given["seed"]:
        found += ["--seed", given["seed"]]
    if given["dataloader_num_workers"]:
        found += ["--workers", given["dataloader_num_workers"]]
    if given["mixed_precision"] is not None:
        found += ["--precision", _precision(given["mixed_precision"], notes)]
    if "report_to" in pasted.given:
        if given["report_to"] in _TRACKERS:
            found += ["--tracker", given["report_to"]]
        else:
            notes.append(f"--report_to {given['report_to']} is gone: there is {' and '.join(_TRACKERS)}")
    if different:
        found += [*as_settings(different)]
    size = settings[f"{training}.batch_size"]
    notes = [
        f"batches are of {size} clips, those of {gpus} official GPUs together; --gpus N says another number",
        _STORES.format(data=data),
        *notes,
    ]
    return Ours(tuple(map(str, found)), tuple(notes))


def _precision(name: str, notes: list[str]) -> str:
    if name not in _PRECISIONS:
        raise UserError(f"mixed_precision is {name!r}; expected one of {', '.join(_PRECISIONS)}")
    if name == "fp16":
        notes.append("--mixed_precision fp16 is gone: bfloat16 needs no scaling of the loss")
    return _PRECISIONS[name]


def _data(mixture: str, stores: str) -> tuple[str, list[str]]:
    """What follows ``--data``, and ``--mixture`` with its name where there are several stores."""
    datasets = list(mixture_weights(mixture))
    return (f"{stores}/{datasets[0]}", []) if len(datasets) == 1 else (stores, ["--mixture", mixture])


def _model_folder(transformer: str, notes: list[str]) -> str:
    """The folder that holds a whole world model, from that of its transformer."""
    path = PurePosixPath(transformer)
    if path.name != "transformer":
        notes.append(f"{transformer} is taken for a whole model; put its files into transformer/, beside tokenizer/")
    return str(path.parent) if path.name == "transformer" else transformer


def _evaluate(pasted: Pasted, stores: str, gpus: int) -> Ours:
    given, notes = pasted.values, list[str]()
    if given["pretrained_transformer_path"] is None:
        raise UserError("--pretrained_transformer_path is missing; give the transformer that is to be measured")
    model = _model_folder(given["pretrained_transformer_path"], notes)
    if str(PurePosixPath(str(given["pretrained_model_name_or_path"])).parent) != model:
        notes.append(f"the tokenizer is the one in {model}/tokenizer")
    data, mixture = _data(given["oxe_data_mixes_type"], stores)
    if mixture:
        raise UserError(f"{given['oxe_data_mixes_type']} is a mixture, and ivideogpt evaluate measures on one store")
    metrics = [name for name, flag in (("perceptual", "use_frame_metrics"), ("video", "use_fvd")) if given[flag]]
    protocol = find_protocol(_PROTOCOLS.get(given["oxe_data_mixes_type"], "single"))
    words = ["evaluate", model, "--data", data, "--protocol", protocol.name]
    if protocol.samples != given["eval_generate_times"]:
        words += ["--samples", given["eval_generate_times"]]
    if protocol.clip_frames != given["segment_length"]:
        words += ["--horizon", given["segment_length"] - given["context_length"]]
    words += ["--metrics", ",".join([*metrics, "tokens"])]
    if given["use_fvd"]:
        words += ["--i3d", given["i3d_path"]]
    if given["seed"]:
        words += ["--seed", given["seed"]]
    if given["max_generate_batchsize"]:
        words += ["--batch-size", given["max_generate_batchsize"]]
    words += ["--output", PurePosixPath(str(given["output_dir"])) / str(given["exp_name"] or "evaluation")]
    notes.append(_STORES.format(data=data))
    unused = [
        f"--{name}"
        for name, flag in ((name, pasted.flags[name]) for name in pasted.given)
        if flag.ours and name not in _MEASURED and _MEASURE not in flag.ours
    ]
    notes += [f"{', '.join(unused)}: for training, or said by checkpoint and data"] if unused else []
    return Ours(tuple(map(str, words)), tuple(notes))


def _predict(pasted: Pasted, stores: str, gpus: int) -> Ours:
    given, typed = pasted.values, pasted.given
    for name in ("pretrained_model_name_or_path", "input_path"):
        if given[name] is None:
            raise UserError(f"--{name} of predict.py is missing; give it")
    words = ["predict", given["pretrained_model_name_or_path"], "--input", given["input_path"]]
    words += ["--dataset-name", given["dataset_name"]] if given["dataset_name"] is not None else []
    words += ["--repeat", given["repeat_times"]]
    words += ["--context-frames", given["context_length"]] if "context_length" in typed else []
    words += ["--horizon", given["segment_length"] - given["context_length"]] if "segment_length" in typed else []
    words += ["--seed", given["seed"]] if given["seed"] else []
    words += ["--output", given["output_path"]] if "output_path" in typed else []
    read = ("resolution", "goal_conditioned", "action_conditioned", "action_dim")
    notes = tuple(f"--{name} is {pasted.flags[name].ours}" for name in read if name in typed)
    return Ours(tuple(map(str, words)), notes)


def _mbrl(pasted: Pasted, stores: str, gpus: int) -> Ours:
    words, notes = translate_mbrl(pasted)
    return Ours(tuple(words), tuple(notes))


def _convert(pasted: Pasted, stores: str, gpus: int) -> Ours:
    given = pasted.values
    kind = pasted.program.rpartition("_")[2].removesuffix(".py")
    source, target = (next(flag.name for flag in pasted.flags.values() if word in flag.ours) for word in ("SRC", "DST"))
    for name in (source, target):
        if given[name] is None:
            raise UserError(f"--{name} of {pasted.program} is missing; give it")
    words, place = ["convert", "oxe" if kind == "converter" else kind], str(given[target])
    if kind == "converter":
        words.append(given["dataset_name"])
        place = f"{place}/{given['dataset_name']}"
    if kind == "vp2":
        names = [name for name in ("robodesk", "robosuite") if name in f"{given[source]} {place}"]
        if len(names) != 1:
            raise UserError(
                f"{given[source]} does not say which benchmark it is; give a path with robodesk or robosuite in it"
            )
        words += names
    return Ours(tuple(map(str, [*words, given[source], place])), ())
