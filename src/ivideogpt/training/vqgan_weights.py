"""Starts a tokenizer from the VQGAN of an image model, such as aMUSEd's: what fits is copied, the rest stays as it is.

    fresh = start_from_vqgan(tokenizer, "amused/amused-256")    # or a folder with config.json and the weights

Source: thuml/iVideoGPT train_tokenizer.py and ``CompressiveVQModel.init_modules``, which begin the 256 px tokenizer so:
encoder, decoder and context codebook are the VQGAN's, and the conditional networks begin as copies of the plain ones
wherever names match. Differs: there all that does not fit is left out without a word.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ivideogpt.core.checkpoint import load_tensors
from ivideogpt.core.config import load_json
from ivideogpt.core.errors import UserError
from ivideogpt.models.tokenizer import CONFIG_FILE, WEIGHTS_FILE, CompressiveTokenizer
from ivideogpt.models.tokenizer_config import TokenizerConfig

#: Where an image model keeps its VQGAN.
SUBFOLDER = "vqvae"

# A plain network, all of whose weights must be there, and the conditional one that begins as its copy.
_NETWORKS = {"encoder": "cond_encoder", "decoder": "cond_decoder"}
# What is copied where its shape is the same: sizes of codes and codebooks may be others.
_CODES = ("quant_conv", "quantize", "post_quant_conv")
# What older releases of diffusers call the layers of attention.
_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLDER_NAME = re.compile(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)")

# What follows the name of a list of layers, or of a layer.
_TENSOR = re.compile(r"\.\d+\.|\.(?:weight|bias)$")


def start_from_vqgan(tokenizer: CompressiveTokenizer, folder_or_hub_id: str | Path) -> list[str]:
    """Load the weights of a VQGAN, a ``VQModel`` in the files of diffusers, into ``tokenizer``.

    Args:
        tokenizer: changed in place; plain encoder and decoder must have the shape of the VQGAN's.
        folder_or_hub_id: a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, one or a Hub id
            that has them in ``vqvae/``, or a Hub id that has them itself.

    Returns:
        The names of the tensors that stay as they were, in the order of the tokenizer.

    Raises:
        UserError: it cannot be found or read, or is no VQGAN; a tensor of encoder or decoder is missing, of another
            shape, or has no place in the tokenizer.
    """
    folder = _find(str(folder_or_hub_id))
    path = folder / WEIGHTS_FILE
    _check_config(folder / CONFIG_FILE, tokenizer.config)
    vqgan = {_present_name(name): value for name, value in load_tensors(path).items()}
    state = tokenizer.state_dict()
    _check_networks(path, state, vqgan)
    mine = {name: vqgan[name] for name in state if name in vqgan and vqgan[name].shape == state[name].shape}
    for network, copy in _NETWORKS.items():
        copied = {copy + name.removeprefix(network): x for name, x in mine.items() if _part(name) == network}
        mine |= {name: value for name, value in copied.items() if name in state}
    tokenizer.load_state_dict({**state, **mine})
    return [name for name in state if name not in mine]


def tokenizer_from_vqgan(
    config: TokenizerConfig, folder_or_hub_id: str | Path, *, seed: int = 0
) -> tuple[CompressiveTokenizer, list[str]]:
    """Create a tokenizer that starts from a VQGAN, as `start_from_vqgan` does.

    Args:
        config: its shape.
        folder_or_hub_id: the VQGAN.
        seed: of the weights that the VQGAN has not.

    Returns:
        The tokenizer, and the layers that are new; those of a list by the name of the list.

    Raises:
        UserError: see `start_from_vqgan`.
    """
    torch.manual_seed(seed)
    tokenizer = CompressiveTokenizer(config)
    fresh = start_from_vqgan(tokenizer, folder_or_hub_id)
    return tokenizer, list(dict.fromkeys(_TENSOR.split(name)[0] for name in fresh))


def _check_networks(path: Path, state: dict[str, Tensor], vqgan: dict[str, Tensor]) -> None:
    """Check that encoder and decoder have the tensors of the tokenizer."""
    for name, value in state.items():
        if _part(name) not in _NETWORKS:
            continue
        if name not in vqgan:
            raise UserError(f"{path} has no {name}, which this tokenizer needs; its networks have another shape")
        if vqgan[name].shape != value.shape:
            raise UserError(
                f"{path} has {name} of shape {list(vqgan[name].shape)}, expected {list(value.shape)}; give a VQGAN "
                "with the networks of this tokenizer, or set the tokenizer's shape to its"
            )
    for name in sorted(vqgan):
        if name not in state or _part(name) not in (*_NETWORKS, *_CODES):
            raise UserError(f"{path} holds {name}, which is no part of a VQGAN with the networks of this tokenizer")


def _check_config(path: Path, config: TokenizerConfig) -> None:
    """Check the settings that the weights do not show."""
    values = load_json(path)
    if values.get("_class_name") != "VQModel":
        kind = values.get("_class_name", "no known class")
        raise UserError(f"{path} describes {kind}, expected VQModel; where it is a tokenizer, give it as --init")
    fixed = (("norm_num_groups", config.norm_groups, 32), ("norm_type", "group", "group"), ("act_fn", "silu", "silu"))
    for name, expected, usual in fixed:
        if values.get(name, usual) != expected:
            raise UserError(
                f"{path} says {name} is {values.get(name, usual)!r}, expected {expected!r} as in this tokenizer; give "
                "another VQGAN, or change the tokenizer's shape"
            )


def _find(name: str) -> Path:
    """Return the folder with the files, local or downloaded from the Hugging Face Hub."""
    root = Path(name).expanduser()
    if not root.is_dir():
        root = _download(name)
    for folder in (root, root / SUBFOLDER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise UserError(f"{name} has no {CONFIG_FILE}, nor one in {SUBFOLDER}/; expected {CONFIG_FILE} and {WEIGHTS_FILE}")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # only a Hub id needs it, and it is slow to import

    files = (CONFIG_FILE, WEIGHTS_FILE)  # an image model is much more than its VQGAN
    try:
        return Path(snapshot_download(name, allow_patterns=[*files, *(f"{SUBFOLDER}/{file}" for file in files)]))
    except Exception as error:  # a network, proxy, authorisation or cache error of whichever client the Hub uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"VQGAN {name!r} is no folder here and did not come from the Hugging Face Hub ({reason}); check the name "
            "and the network, or download it and give its folder"
        ) from error


def _part(name: str) -> str:
    """Return the module of the tokenizer to which a tensor belongs."""
    return name.partition(".")[0]


def _present_name(name: str) -> str:
    older = _OLDER_NAME.fullmatch(name)
    return name if older is None else f"{older[1]}{_OLDER[older[2]]}{older[3]}"
