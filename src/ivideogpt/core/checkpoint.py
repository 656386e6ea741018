"""Checkpoints on disk: tensors in safetensors files, and the folder that a CHECKPOINT of the command line means.

A checkpoint folder holds ``config.json`` or the pair ``tokenizer/`` and ``transformer/``. A run folder holds
``checkpoints/step-00000010`` folders, each a checkpoint. No pickle is read or written.
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
from ivideogpt.core.files import write_atomic
from ivideogpt.core.reading import check_is_file, local_path, reading

_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def save_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors of any shape and dtype to one safetensors file, atomically.

    Tensors that share memory (tied weights) are each written in full.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    # safetensors refuses views and shared memory; a clone is neither.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode  # the library makes files that other users may not read
        try:
            save_file(plain, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk is reported as one
            raise OSError(str(error)) from error
        temporary.chmod(mode)

    write_atomic(path, write)


def load_tensors(path: Path | str, *, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Load a safetensors file onto ``device``.

    Raises:
        UserError: the file is missing, damaged, or of another format (pickles are never opened).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file; pickled weights can run code and are never opened: convert it"
        )
    if not path.exists():
        raise UserError(f"{path} does not exist; expected the tensors of a checkpoint there")
    check_is_file(path, "safetensors file")
    with reading(path, "copy or download it again"):
        return load_file(path, device=str(device))


def is_checkpoint(folder: Path) -> bool:
    """Return whether ``folder`` holds a model: ``config.json``, or the official ``tokenizer/`` and ``transformer/``."""
    return (folder / "config.json").is_file() or all((folder / part).is_dir() for part in ("tokenizer", "transformer"))


def step_folder(run_folder: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint of ``step``."""
    return run_folder / "checkpoints" / f"step-{step:08d}"


def step_folders(run_folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run as (step, folder), oldest first."""
    checkpoints = []
    for folder in (run_folder / "checkpoints").glob("step-*"):
        match = _STEP_FOLDER.fullmatch(folder.name)
        if match and folder.is_dir():
            checkpoints.append((int(match[1]), folder))
    return sorted(checkpoints)


def resolve_checkpoint(name: str, *, revision: str | None = None, shipped: Mapping[str, Path]) -> Path:
    """Return the folder that CHECKPOINT means on a command line.

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
    folder = local_path(name)
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
    except Exception as error:  # network, proxy, authorisation and cache errors have no common class
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
