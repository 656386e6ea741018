"""Checkpoints: tensors in safetensors files, and which folder a CHECKPOINT on the command line means.

A checkpoint folder holds ``config.json`` or the pair ``tokenizer/`` and ``transformer/``. A run folder holds
``checkpoints/step-00000010`` folders, each a checkpoint. Nothing here reads or writes a pickle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import replace_folder, write_atomic, write_text_atomic

__all__ = [
    "is_checkpoint",
    "load_tensors",
    "replace_folder",
    "resolve_checkpoint",
    "save_tensors",
    "step_folder",
    "step_folders",
    "write_atomic",
    "write_text_atomic",
]

_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def save_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes named tensors of any shape and dtype as one safetensors file, atomically.

    Tensors that share memory (tied weights) are written once each.
    """
    # safetensors refuses views and shared memory; a clone is neither.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode  # the library makes files that nobody else may read
        save_file(plain, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)

    write_atomic(path, write)


def load_tensors(path: Path | str, *, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Reads a safetensors file onto ``device``.

    Raises:
        UserError: the file is missing, damaged, or of another format (pickles are never opened).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file; pickled weights can run code and are never opened: convert it"
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected the tensors of a checkpoint there")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); copy or download it again") from error


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a model: ``config.json``, or the official ``tokenizer/`` and ``transformer/``."""
    return (folder / "config.json").is_file() or all((folder / part).is_dir() for part in ("tokenizer", "transformer"))


def step_folder(run_folder: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of ``step``."""
    return run_folder / "checkpoints" / f"step-{step:08d}"


def step_folders(run_folder: Path) -> list[tuple[int, Path]]:
    """The (step, folder) checkpoints of a run, oldest first."""
    found = []
    for folder in (run_folder / "checkpoints").glob("step-*"):
        match = _STEP_FOLDER.fullmatch(folder.name)
        if match and folder.is_dir():
            found.append((int(match[1]), folder))
    return sorted(found)


def resolve_checkpoint(name: str, *, revision: str | None = None, shipped: Mapping[str, Path]) -> Path:
    """The folder that CHECKPOINT means on a command line.

    Args:
        name: the name of a shipped model, a checkpoint folder, a run folder (its newest checkpoint), or a Hub id
            ``owner/name``. A shipped name wins over a folder of that name; write ``./name`` for the folder.
        revision: branch, tag or commit of a Hub repository.
        shipped: folder of each shipped model, by name.

    Raises:
        UserError: there is no such checkpoint, or it cannot be downloaded.
    """
    if name in shipped:
        return shipped[name]
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(f"checkpoint {name!r} is a file; expected the folder that holds its config.json")
    if folder.is_dir():
        return _local_checkpoint(folder)
    if _HUB_ID.fullmatch(name):
        return _hub_checkpoint(name, revision)
    raise UserError(
        f"checkpoint {name!r} is no folder, no Hub id (owner/name) and no shipped model; {suggestion(name, shipped)}"
    )


def _local_checkpoint(folder: Path) -> Path:
    if (folder / "checkpoints").is_dir():
        for _, checkpoint in reversed(step_folders(folder)):
            if is_checkpoint(checkpoint):
                return checkpoint
        raise UserError(f"run folder '{folder}' holds no complete checkpoint yet; wait for its first or train longer")
    if is_checkpoint(folder):
        return folder
    raise UserError(f"folder '{folder}' is no checkpoint; expected config.json, or tokenizer/ and transformer/, in it")


def _hub_checkpoint(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # only a Hub id needs it, and it is slow to import

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # a network, proxy, authorisation or cache error of whichever client the Hub uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"checkpoint {name!r} is no folder here and did not come from the Hugging Face Hub"
            f"{f' at revision {revision!r}' if revision else ''} ({reason}); check the name and the network, "
            "or download the repository and give its folder"
        ) from error
    if not is_checkpoint(folder):
        raise UserError(
            f"Hub repository {name!r} is no checkpoint; expected config.json, or tokenizer/ and transformer/, in it"
        )
    return folder
