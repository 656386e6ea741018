"""Episode files: many episodes in one .safetensors file.

An episode's frames are one tall PNG (t * h rows, lossless) in a uint8 tensor ``<index>.frames``, its other arrays
lie raw in ``<index>.actions`` and so on, and the header's metadata lists keys, splits and meta as JSON.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, PngImagePlugin
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic

FORMAT = "ivideogpt-episodes-1"
_ROWS = ("actions", "rewards", "terminated", "state")


def save_episodes(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Writes ``episodes`` to one file; the file appears whole or not at all.

    Args:
        path: ends in ``.safetensors``; its folder is made.
        episodes: any number of them; their lengths and image sizes may differ.
    """
    tensors: dict[str, np.ndarray] = {}
    entries = []
    for index, episode in enumerate(episodes):
        tensors[f"{index}.frames"] = _pack_frames(episode.frames)
        for label in _ROWS:
            value = getattr(episode, label)
            if value is not None:
                tensors[f"{index}.{label}"] = np.ascontiguousarray(value)
        entries.append({"key": episode.key, "split": episode.split, "frames": len(episode), "meta": episode.meta})
    content = save(tensors, metadata={"format": FORMAT, "episodes": json.dumps(entries)})
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def load_episodes(path: str | Path) -> list[Episode]:
    """All episodes of one file, in the order they were saved.

    Raises:
        UserError: the file is missing, damaged or not an episode file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no episode file {path}; check the path or collect episodes first")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format")
                raise UserError(f"{path} is not an episode file: its format is {found!r}, not {FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
            entries = json.loads(metadata["episodes"])
        return [_unpack(index, entry, tensors) for index, entry in enumerate(entries)]
    except UserError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's bad PNG
        raise UserError(f"{path} is damaged ({error}); delete it and collect or convert it again") from error


def load_folder(folder: str | Path, split: str | None = None) -> list[Episode]:
    """All episodes of the ``*.safetensors`` files in ``folder``, files by name.

    Args:
        folder: holds episode files.
        split: only episodes of this split; None for all.

    Raises:
        UserError: there is no such folder or it holds no such episode, or a file is damaged.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UserError(f"there are no episode files (*.safetensors) in {folder}; check the path or collect some first")
    episodes = []
    for path in tqdm(paths, desc=f"reading {folder.name}", unit="file", disable=None):
        episodes += [episode for episode in load_episodes(path) if split in (None, episode.split)]
    if not episodes:
        raise UserError(f"no episode in {folder} is of split {split!r}")
    return episodes


def _pack_frames(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 ``[t h w 3]`` as the bytes of a PNG, uint8 ``[n]``."""
    buffer = io.BytesIO()
    Image.fromarray(rearrange(frames, "t h w c -> (t h) w c")).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _unpack(index: int, entry: dict, tensors: dict[str, np.ndarray]) -> Episode:
    # Image.open would refuse long episodes as "decompression bombs"; these pictures are ours.
    with PngImagePlugin.PngImageFile(io.BytesIO(tensors[f"{index}.frames"].tobytes())) as image:
        frames = rearrange(np.array(image), "(t h) w c -> t h w c", t=entry["frames"])
    rows = {label: tensors.get(f"{index}.{label}") for label in _ROWS}
    return Episode(frames=frames, key=entry["key"], split=entry["split"], meta=entry["meta"], **rows)
