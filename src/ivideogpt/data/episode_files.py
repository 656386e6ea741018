"""Episode files: many episodes in one .safetensors file.

An episode's frames are one tall PNG (t * h rows, lossless) in a uint8 tensor ``<index>.frames``, its other arrays
lie raw in ``<index>.actions`` and so on, and the header's metadata lists keys, splits and meta as JSON.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, PngImagePlugin
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.files import write_atomic
from ivideogpt.data.augment import resize

FORMAT = "ivideogpt-episodes-1"
#: Splits that no model is trained on.
HELD_OUT = ("val", "test")
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


def is_store(path: Path) -> bool:
    """Whether ``path`` is the folder of an episode store."""
    return (path / "index.parquet").is_file()


def open_episodes(path: str | Path, *, most: int = 200, size: int | None = None) -> list[Episode]:
    """The episodes of an episode file, or some of an episode store: held-out ones before others.

    Args:
        path: a ``.safetensors`` file, or the folder of a store.
        most: episodes of a store.
        size: frames of a store are resized to size x size pixels (bilinear, antialiased, without a crop).

    Raises:
        UserError: there is neither, or it is damaged.
    """
    if Path(path).suffix == ".safetensors":
        return load_episodes(path)
    from ivideogpt.data.store.reader import EpisodeStore  # needs the extra data

    store = EpisodeStore(path)
    order = sorted(range(len(store)), key=lambda index: store.splits[index] not in HELD_OUT)
    return [resized(store[index], size) for index in order[:most]]


def resized(episode: Episode, size: int | None) -> Episode:
    """The episode with frames of size x size pixels; None: as it is."""
    if size is None or episode.frames.shape[1:3] == (size, size):
        return episode
    frames = resize(torch.from_numpy(episode.frames), size)
    return replace(episode, frames=rearrange(frames, "t c h w -> t h w c").numpy())


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
