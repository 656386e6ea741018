"""The official checkpoint layout, in and out: names, shapes and what its files leave unsaid.

Source: the thuml/ivideogpt-* repositories on the Hugging Face Hub and thuml/iVideoGPT train_gpt.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivideogpt.core.checkpoint import load_tensors, save_tensors
from ivideogpt.core.config import from_dict, load_json
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_text_atomic
from ivideogpt.models.heads import Heads, HeadsConfig
from ivideogpt.models.tokenizer import CONFIG_FILE, CompressiveTokenizer, load_state
from ivideogpt.models.transformer import Transformer, TransformerConfig
from ivideogpt.worldmodel.config import WorldModelConfig

TRANSFORMER_WEIGHTS = "model.safetensors"
PREFIX = "llm."
OFFICIAL_HEADS = ("action_linear", "reward_linear", "action_recon_linear")
END_OF_TEXT = 50256  # out of vocabulary on purpose: generation never stops early

# What no official file says: frames of the training clips, and whether the context is [goal, last frame].
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


def has_official_heads(config: HeadsConfig) -> bool:
    """Whether the official format has a place for all the heads."""
    return not (config.action_frequencies or config.slots or config.forecast_grid or config.termination)


# Names


def transformer_from_official(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Our names from official ones (without ``llm.``); queries, keys and values become one matrix, as do gate and up.

    Raises:
        UserError: a tensor is missing; names that are not used are left in ``tensors``.
    """

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise UserError(f"the transformer has no tensor {name}; is it a checkpoint of another kind?")
        return tensors.pop(name)

    ours = {f"{name}.weight": take(f"{official}.weight") for name, official in _ENDS}
    for index in range(num_layers):
        here, there = f"layers.{index}", f"model.layers.{index}"
        for name, official in _LAYER:
            ours[f"{here}.{name}.weight"] = take(f"{there}.{official}.weight")
        for name, officials in _FUSED:
            ours[f"{here}.{name}.weight"] = torch.cat([take(f"{there}.{official}.weight") for official in officials])
    return ours


def transformer_to_official(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The inverse of `transformer_from_official`."""
    official = {f"{there}.weight": tensors[f"{name}.weight"] for name, there in _ENDS}
    for index in range(num_layers):
        here, there = f"layers.{index}", f"model.layers.{index}"
        for name, target in _LAYER:
            official[f"{there}.{target}.weight"] = tensors[f"{here}.{name}.weight"]
        for name, targets in _FUSED:
            parts = tensors[f"{here}.{name}.weight"].chunk(len(targets))
            official |= {f"{there}.{target}.weight": part for target, part in zip(targets, parts, strict=True)}
    return official


def transformer_config_from_official(values: dict[str, Any], vocab_size: int) -> TransformerConfig:
    """Reads a ``transformer/config.json``; the vocabulary is that of the weights.

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
    """The fields of an official ``transformer/config.json``; ``dtype``: of the stored weights."""
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
    """The transformer of a ``transformer/`` folder, and the tensors of the heads that lie in the same file.

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
    transformer = Transformer(config)
    ours = transformer_from_official(plain, config.num_layers)
    if plain:
        raise UserError(f"{folder / TRANSFORMER_WEIGHTS} holds {min(plain)}, which no world model has")
    load_state(transformer, ours, folder / TRANSFORMER_WEIGHTS)
    return transformer, heads


def heads_config(tensors: dict[str, Tensor]) -> HeadsConfig:
    """Which heads an official file holds, and the action dimension, read off the tensors."""
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


def world_model_config(folder: Path, tokenizer: CompressiveTokenizer, heads: HeadsConfig) -> WorldModelConfig:
    """What an official folder leaves unsaid, by the name of its repository."""
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


def write_folders(
    folder: Path, tokenizer: CompressiveTokenizer, transformer: Transformer, heads: Heads, dtype: torch.dtype | None
) -> None:
    """Writes ``tokenizer/``, ``transformer/`` and, for heads without an official place, ``heads.safetensors``.

    Args:
        folder: where to; exists.
        tokenizer: of a world model.
        transformer: of the same.
        heads: of the same.
        dtype: of the stored weights; None: as they are.
    """

    def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(dtype) if dtype else value for name, value in tensors.items()}

    def write_config(path: Path, values: dict[str, Any]) -> None:
        write_text_atomic(path, json.dumps(values, indent=2, sort_keys=True) + "\n")

    count = transformer.config.num_layers
    tensors = transformer_to_official(dict(transformer.state_dict()), count)
    head_tensors = dict(heads.state_dict())
    if head_tensors and has_official_heads(heads.config):
        tensors = {PREFIX + name: value for name, value in tensors.items()} | head_tensors
    elif head_tensors:
        save_tensors(folder / "heads.safetensors", stored(head_tensors))
    else:
        generation = {"_from_model_config": True, "bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT}
        write_config(folder / "transformer" / "generation_config.json", generation)
    save_tensors(folder / "transformer" / TRANSFORMER_WEIGHTS, stored(tensors))
    stored_as = str(dtype or transformer.embed.weight.dtype).removeprefix("torch.")
    write_config(folder / "transformer" / CONFIG_FILE, transformer_config_to_official(transformer.config, stored_as))
    tokenizer.save_pretrained(folder / "tokenizer", dtype)
