"""Reading and writing of checkpoint folders: ours and the official ones.

Both hold the folders ``tokenizer/`` and ``transformer/`` with the official names and shapes. Ours also has a
``config.json`` with a `WorldModelConfig`, and ``heads.safetensors`` where the official format has no name for a head.

Source: the thuml/ivideogpt-* repositories on the Hugging Face Hub and thuml/iVideoGPT train_gpt.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ivideogpt.core.checkpoint import load_tensors, save_tensors
from ivideogpt.core.config import from_dict, load_json, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import replace_folder, write_text_atomic
from ivideogpt.models.dynamics import ACTION_TOKENS, Dynamics, Heads, HeadsConfig
from ivideogpt.models.loading import load_module
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.tokenizer import CONFIG_FILE, CompressiveTokenizer
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.worldmodel.config import ActionSpace, WorldModelConfig
from ivideogpt.worldmodel.model_card import model_card, picture_facts, token_facts

TRANSFORMER_WEIGHTS, HEAD_WEIGHTS = "model.safetensors", "heads.safetensors"
ACTION_RANGES = "action_ranges.json"  # of models of RLVR-World, which keep them in their source code
PICTURE_WEIGHTS = "pictures.safetensors"
PREFIX = "llm."
OFFICIAL_HEADS = ("action_linear", "reward_linear", "action_recon_linear")
END_OF_TEXT = 50256  # out of vocabulary on purpose: generation never stops early

# Facts that no official file has: frames of the training clips, and whether the context is [goal, last frame].
RELEASED = {
    "ivideogpt-oxe-64-act-free": (16, False),
    "ivideogpt-oxe-64-act-free-medium": (16, False),
    "ivideogpt-oxe-64-goal-cond": (17, True),
    "ivideogpt-oxe-256-act-free": (16, False),
    "ivideogpt-bair-64-act-free": (16, False),
    "ivideogpt-bair-64-act-cond": (16, False),
    "ivideogpt-robonet-64-act-cond": (12, False),
    "ivideogpt-vp2-robosuite-64-act-cond": (12, False),
    "ivideogpt-vp2-robodesk-64-act-cond": (12, False),
}

_LAYER = (
    ("attention.out", "self_attn.o_proj"),
    ("feed_forward.down", "mlp.down_proj"),
    ("attention_norm", "input_layernorm"),
    ("feed_forward_norm", "post_attention_layernorm"),
)
_FUSED = (
    ("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("feed_forward.gate_up", ("mlp.gate_proj", "mlp.up_proj")),
)
_CONFIG_FIELDS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "attention_dropout": "attention_dropout",
}
_ENDS = (("embed", "model.embed_tokens"), ("norm", "model.norm"), ("head", "lm_head"))


class CheckpointParts(NamedTuple):
    """The parts of a world model.

    Attributes:
        config: settings.
        tokenizer: in evaluation mode.
        transformer: of the dynamics.
        heads: the layers around it.
    """

    config: WorldModelConfig
    tokenizer: CompressiveTokenizer
    transformer: Transformer
    heads: Heads


def read_checkpoint(folder: Path, context_frames: int | None = None) -> CheckpointParts:
    """Read a checkpoint folder, official or ours.

    Args:
        folder: the folder.
        context_frames: fewer than the checkpoint's; the position embeddings of the last ones are kept. None: all.

    Raises:
        UserError: a file is missing or damaged, or holds another kind of model.
    """
    tokenizer = CompressiveTokenizer.from_pretrained(folder / "tokenizer")
    transformer, head_tensors = read_transformer(folder / "transformer")
    values = load_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    if "world_model" in values:
        config = config_from_json(values["world_model"], str(folder / CONFIG_FILE))
    else:
        config = official_config(folder, tokenizer, heads_config(head_tensors))
    width, codes = transformer.config.hidden_size, tokenizer.layout.dynamics_codes
    with torch.device("meta"):
        has_weights = bool(Heads(config.heads, width, codes).state_dict())
    if has_weights and not config.heads.is_official:
        head_tensors |= load_tensors(folder / HEAD_WEIGHTS)
    heads = load_module(lambda: Heads(config.heads, width, codes), head_tensors, folder)
    if context_frames is not None:
        if config.heads.action_tokens:
            raise UserError("context_frames cannot be changed where actions are tokens; leave it out")
        tokenizer.set_context_frames(context_frames)
        config = replace(config, context_frames=context_frames)
    return CheckpointParts(config, tokenizer, transformer, heads)


def write_checkpoint(
    folder: Path | str,
    config: WorldModelConfig,
    tokenizer: CompressiveTokenizer,
    dynamics: Dynamics,
    *,
    dtype: torch.dtype | None = None,
    also: Callable[[Path], object] | None = None,
) -> None:
    """Write a checkpoint folder that appears whole or not at all; arguments as in `WorldModel.save_pretrained`."""

    def write(temporary: Path) -> None:
        write_folders(temporary, tokenizer, dynamics, dtype)
        values = {
            "format": "ivideogpt",
            "version": 1,
            "layout": to_dict(dynamics.layout),
            "resolution": tokenizer.config.resolution,
            "frame_size": list(tokenizer.config.frame_size),
            "world_model": to_dict(config),
        }
        write_text_atomic(temporary / CONFIG_FILE, json.dumps(values, indent=2) + "\n")
        write_text_atomic(temporary / "README.md", model_card(config, token_facts(config, tokenizer, dynamics)))
        if also is not None:
            also(temporary)

    replace_folder(folder, write)


def is_picture_checkpoint(folder: Path) -> bool:
    """Return whether a checkpoint folder holds a picture model."""
    return (folder / PICTURE_WEIGHTS).is_file()


def read_picture_checkpoint(folder: Path) -> tuple[WorldModelConfig, PictureDynamics]:
    """Read the settings and the networks of a picture model.

    Raises:
        UserError: a file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    values = load_json(path)
    for name in ("world_model", "pictures"):
        if name not in values:
            raise UserError(f"{path} has no {name!r}; expected the config.json of a picture model")
    config = config_from_json(values["world_model"], str(path))
    shape = from_dict(PictureDynamicsConfig, values["pictures"], where=str(path))
    tensors = load_tensors(folder / PICTURE_WEIGHTS)
    return config, load_module(lambda: PictureDynamics(shape), tensors, folder / PICTURE_WEIGHTS)


def write_picture_checkpoint(
    folder: Path | str,
    config: WorldModelConfig,
    pictures: PictureDynamics,
    *,
    dtype: torch.dtype | None = None,
    also: Callable[[Path], object] | None = None,
) -> None:
    """Write the folder of a picture model; arguments as in `WorldModel.save_pretrained`."""

    def write(temporary: Path) -> None:
        tensors = {name: value.to(dtype) if dtype else value for name, value in pictures.state_dict().items()}
        save_tensors(temporary / PICTURE_WEIGHTS, {name: value.contiguous() for name, value in tensors.items()})
        values = {
            "format": "ivideogpt",
            "version": 1,
            "resolution": pictures.config.resolution,
            "world_model": to_dict(config),
            "pictures": to_dict(pictures.config),
        }
        write_text_atomic(temporary / CONFIG_FILE, json.dumps(values, indent=2) + "\n")
        write_text_atomic(temporary / "README.md", model_card(config, picture_facts(config, pictures)))
        if also is not None:
            also(temporary)

    replace_folder(folder, write)


def config_from_json(values: Any, where: str) -> WorldModelConfig:
    """Read the settings in a ``config.json``; an older one has ``temperature`` in place of ``sampling``.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    if isinstance(values, dict) and "temperature" in values and "sampling" not in values:
        values = {name: value for name, value in values.items() if name != "temperature"} | {
            "sampling": {"temperature": values["temperature"]}
        }
    return from_dict(WorldModelConfig, values, where=where)


# Names


def transformer_from_official(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Rename official tensors (without ``llm.``) to ours; queries, keys and values are joined, as are gate and up.

    Raises:
        UserError: a tensor is missing. Names that are not used stay in ``tensors``.
    """

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise UserError(f"the transformer has no tensor {name}; is it a checkpoint of another kind?")
        return tensors.pop(name)

    ours = {f"{name}.weight": take(f"{official}.weight") for name, official in _ENDS}
    for index in range(num_layers):
        our_layer, their_layer = f"layers.{index}", f"model.layers.{index}"
        for name, official in _LAYER:
            ours[f"{our_layer}.{name}.weight"] = take(f"{their_layer}.{official}.weight")
        for name, officials in _FUSED:
            parts = [take(f"{their_layer}.{official}.weight") for official in officials]
            ours[f"{our_layer}.{name}.weight"] = torch.cat(parts)
    return ours


def transformer_to_official(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Rename our tensors to the official ones: the inverse of `transformer_from_official`."""
    official = {f"{target}.weight": tensors[f"{name}.weight"] for name, target in _ENDS}
    for index in range(num_layers):
        our_layer, their_layer = f"layers.{index}", f"model.layers.{index}"
        for name, target in _LAYER:
            official[f"{their_layer}.{target}.weight"] = tensors[f"{our_layer}.{name}.weight"]
        for name, targets in _FUSED:
            parts = tensors[f"{our_layer}.{name}.weight"].chunk(len(targets))
            official |= {f"{their_layer}.{target}.weight": part for target, part in zip(targets, parts, strict=True)}
    return official


def transformer_config_from_official(values: dict[str, Any], vocab_size: int) -> TransformerConfig:
    """Convert the values of a ``transformer/config.json``; the vocabulary is that of the weights.

    Raises:
        UserError: it describes another model, or an option that we do not have.
    """
    if values.get("model_type", "llama") != "llama" or "hidden_size" not in values:
        raise UserError(f"transformer/config.json describes {values.get('model_type')!r}; expected a 'llama' model")
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(values.get(name), int) or values[name] < 1:
            raise UserError(
                f"transformer/config.json says {name}={values.get(name)!r}; expected a number of at least 1"
            )
    expected = {
        "num_key_value_heads": values["num_attention_heads"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_scaling": None,
    }
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise UserError(f"transformer option {name}={values[name]!r} is not supported; expected {value!r}")
    rope = values.get("rope_parameters") or {}  # where newer releases of transformers keep theta
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"transformer option rope_type={rope['rope_type']!r} is not supported; expected 'default'")
    values = {**values, "rope_theta": values.get("rope_theta", rope.get("rope_theta", 10000.0))}
    ours = {name: values[official] for name, official in _CONFIG_FIELDS.items() if official in values}
    return from_dict(TransformerConfig, {**ours, "vocab_size": vocab_size}, where="transformer/config.json")


def transformer_config_to_official(config: TransformerConfig, dtype: str = "float32") -> dict[str, Any]:
    """Return the fields of an official ``transformer/config.json``; ``dtype``: of the stored weights."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": config.attention_dropout,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_length": config.max_positions,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "4.44.2",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


# Folders


def read_transformer(folder: Path) -> tuple[Transformer, dict[str, Tensor]]:
    """Read the transformer of a ``transformer/`` folder, and the tensors of the heads in the same file.

    Raises:
        UserError: a file is missing or damaged, or holds another kind of model.
    """
    values = load_json(folder / CONFIG_FILE)
    tensors = load_tensors(folder / TRANSFORMER_WEIGHTS)
    plain = {name.removeprefix(PREFIX): value for name, value in tensors.items() if "rotary_emb" not in name}
    heads = {name: plain.pop(name) for name in list(plain) if name.split(".")[0] in OFFICIAL_HEADS}
    embedding = plain.get("model.embed_tokens.weight")
    if embedding is None:
        raise UserError(
            f"{folder / TRANSFORMER_WEIGHTS} has no model.embed_tokens.weight; expected a LLaMA transformer"
        )
    config = transformer_config_from_official(values, len(embedding))
    ours = transformer_from_official(plain, config.num_layers)
    if plain:
        raise UserError(f"{folder / TRANSFORMER_WEIGHTS} holds {min(plain)}, which no world model has")
    transformer = load_module(lambda: Transformer(config), ours, folder / TRANSFORMER_WEIGHTS)
    return transformer, heads


def heads_config(tensors: dict[str, Tensor]) -> HeadsConfig:
    """Return the heads that an official file holds, and the action dimension, from its tensors."""
    dims = [
        tensors[name].shape[axis]
        for name, axis in (("action_linear.weight", 1), ("action_recon_linear.weight", 0))
        if name in tensors
    ]
    return HeadsConfig(
        action_dim=dims[0] if dims else 0,
        reward="reward_linear.weight" in tensors,
        action_reconstruction="action_recon_linear.weight" in tensors,
    )


def official_config(folder: Path, tokenizer: CompressiveTokenizer, heads: HeadsConfig) -> WorldModelConfig:
    """Return the settings of an official folder, some of which follow from the name of its repository.

    Raises:
        UserError: the folder is of RLVR-World, and the ranges of its actions are missing.
    """
    if tokenizer.config.levels:
        return _rlvr_config(folder, tokenizer)
    name = folder.absolute().name
    if folder.absolute().parent.name == "snapshots":  # the cache of the Hub: models--owner--name/snapshots/commit
        name = folder.absolute().parent.parent.name.split("--")[-1]
    clip_frames, goal_conditioned = RELEASED.get(name, (None, "goal-cond" in name))
    return WorldModelConfig(
        name=name,
        context_frames=tokenizer.config.context_frames,
        clip_frames=clip_frames,
        goal_conditioned=goal_conditioned,
        heads=heads,
    )


def _rlvr_config(folder: Path, tokenizer: CompressiveTokenizer) -> WorldModelConfig:
    """Return the settings of files of RLVR-World, whose actions are tokens.

    Source: thuml/RLVR-World, the processors and the scripts: clips of 5 and of 9 frames.
    """
    path = folder / ACTION_RANGES
    if not path.is_file():
        raise UserError(
            f"{folder} has a tokenizer of RLVR-World, whose models need the ranges of their actions; put them into "
            f"{ACTION_RANGES} as lists low and high, a number for each number of an action (docs/post-training.md)"
        )
    ranges = from_dict(ActionSpace, load_json(path), where=str(path))
    heads = HeadsConfig(
        action_dim=len(ranges.low),
        action_conditioning=ACTION_TOKENS,
        action_low=ranges.low,
        action_high=ranges.high,
    )
    lead = int(tokenizer.config.conditional)
    return WorldModelConfig(
        name=folder.absolute().name,
        context_frames=tokenizer.config.context_frames + lead,
        clip_frames=9 if lead else 5,
        heads=heads,
    )


def write_folders(folder: Path, tokenizer: CompressiveTokenizer, dynamics: Dynamics, dtype: torch.dtype | None) -> None:
    """Write ``tokenizer/``, ``transformer/`` and, for heads without an official place, ``heads.safetensors``.

    Args:
        folder: an existing folder.
        tokenizer: of a world model.
        dynamics: of the same.
        dtype: of the stored weights; None: as they are.
    """

    def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(dtype) if dtype else value for name, value in tensors.items()}

    def write_config(path: Path, values: dict[str, Any]) -> None:
        write_text_atomic(path, json.dumps(values, indent=2, sort_keys=True) + "\n")

    transformer, heads = dynamics.transformer, dynamics.heads
    count = transformer.config.num_layers
    tensors = transformer_to_official(dict(transformer.state_dict()), count)
    head_tensors = dict(heads.state_dict())
    if head_tensors and heads.config.is_official:
        tensors = {PREFIX + name: value for name, value in tensors.items()} | head_tensors
    elif head_tensors:
        save_tensors(folder / HEAD_WEIGHTS, stored(head_tensors))
    else:
        generation = {"_from_model_config": True, "bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT}
        write_config(folder / "transformer" / "generation_config.json", generation)
    save_tensors(folder / "transformer" / TRANSFORMER_WEIGHTS, stored(tensors))
    stored_as = str(dtype or transformer.embed.weight.dtype).removeprefix("torch.")
    write_config(folder / "transformer" / CONFIG_FILE, transformer_config_to_official(transformer.config, stored_as))
    tokenizer.save_pretrained(folder / "tokenizer", dtype)
