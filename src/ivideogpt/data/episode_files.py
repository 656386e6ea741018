"""Episode files: many episodes in one ``.safetensors`` file.

The frames of an episode are one tall PNG (t * h rows, lossless) in a uint8 tensor ``<index>.frames``. Its other arrays
are raw tensors ``<index>.actions`` and so on. The metadata of the header lists keys, splits and meta as JSON.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.numpy import save

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic
from ivideogpt.core.reading import check_is_file, check_unpacked_size, local_path, reading
from ivideogpt.data.augment import both_sides, resize

FORMAT = "ivideogpt-episodes-1"
#: Splits that no model is trained on.
HELD_OUT = ("val", "test")
# Arrays of an episode, with the kind of their numbers and their axes.
_ROWS = {"actions": ("f", 2), "rewards": ("f", 1), "terminated": ("b", 1), "state": ("f", 2)}
_ENTRY = {"key": str, "split": str, "frames": int, "meta": dict}


def save_episodes(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Write ``episodes`` to one file, atomically.

    Args:
        path: ends in ``.safetensors``; its folder is created.
        episodes: any number of them; their lengths and image sizes may differ.

    Raises:
        UserError: the file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    entries = []
    for index, episode in enumerate(episodes):
        tensors[f"{index}.frames"] = _png(episode.frames)
        for label in _ROWS:
            value = getattr(episode, label)
            if value is not None:
                tensors[f"{index}.{label}"] = np.ascontiguousarray(value)
        entries.append({"key": episode.key, "split": episode.split, "frames": len(episode), "meta": episode.meta})
    content = save(tensors, metadata={"format": FORMAT, "episodes": json.dumps(entries)})
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def load_episodes(path: str | Path) -> list[Episode]:
    """Return all episodes of one file, in the order they were saved.

    Raises:
        UserError: the file is missing, damaged or not an episode file.
    """
    path = local_path(path)
    if not path.exists():
        raise UserError(f"there is no episode file {path}; check the path or collect episodes first")
    check_is_file(path, "episode file")
    with reading(path, "delete it and collect or convert it again"):
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                stated = metadata.get("format")
                raise UserError(f"{path} is not an episode file: its format is {stated!r}, not {FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
        entries = json.loads(metadata["episodes"])
        if not isinstance(entries, list):
            raise ValueError("its list of episodes is no list")
        return [_unpack(path, index, entry, tensors) for index, entry in enumerate(entries)]


def is_store(path: Path) -> bool:
    """Return whether ``path`` is the folder of an episode store."""
    return (local_path(path) / "index.parquet").is_file()


def open_episodes(path: str | Path, *, most: int = 200, size: int | None = None) -> list[Episode]:
    """Return the episodes of an episode file, or some of an episode store, held-out ones first.

    Args:
        path: a ``.safetensors`` file, or the folder of a store.
        most: number of episodes of a store.
        size: frames of a store are resized to size x size pixels (bilinear, antialiased, without a crop).

    Raises:
        UserError: there is no such file or store, or it is damaged.
    """
    if Path(path).suffix == ".safetensors":
        return load_episodes(path)
    from ivideogpt.data.store.reader import EpisodeStore  # needs the extra data

    store = EpisodeStore(path)
    order = sorted(range(len(store)), key=lambda index: store.splits[index] not in HELD_OUT)
    return [resized(store[index], size) for index in order[:most]]


def resized(episode: Episode, size: int | tuple[int, int] | None) -> Episode:
    """Return the episode with frames of size x size pixels, or of (height, width); None: the same episode."""
    if size is None or episode.frames.shape[1:3] == both_sides(size):
        return episode
    frames = resize(torch.from_numpy(episode.frames), size)
    return replace(episode, frames=rearrange(frames, "t c h w -> t h w c").numpy())


def _png(frames: np.ndarray) -> np.ndarray:
    """Return frames uint8 ``[t h w 3]`` as the bytes of one tall PNG, uint8 ``[n]``."""
    buffer = io.BytesIO()
    Image.fromarray(rearrange(frames, "t h w c -> (t h) w c")).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _unpack(path: Path, index: int, entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Episode:
    """Return one episode of the list.

    Raises:
        Exception: of any kind, where the entry or a tensor is damaged.
    """
    for name, kind in _ENTRY.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"{name} of episode {index} is {str(entry[name])[:80]!r}")
    rows = {label: tensors.get(f"{index}.{label}") for label in _ROWS}
    for label, (kind, axes) in _ROWS.items():
        value = rows[label]
        if value is not None and (value.dtype.kind, value.ndim) != (kind, axes):
            raise ValueError(f"{label} of episode {index} has type {value.dtype} and {value.ndim} axes")
    # Image.open would refuse long episodes as decompression bombs; the size is checked here instead.
    content = tensors[f"{index}.frames"].tobytes()
    with PngImagePlugin.PngImageFile(io.BytesIO(content)) as image:
        width, height = image.size
        check_unpacked_size(f"episode {index} of {path}", unpacked=3 * width * height, stored=len(content))
        frames = rearrange(np.array(image), "(t h) w c -> t h w c", t=entry["frames"])
    return Episode(frames=frames, key=entry["key"], split=entry["split"], meta=entry["meta"], **rows)
