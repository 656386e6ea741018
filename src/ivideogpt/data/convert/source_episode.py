"""Types that every importer gives to the store: an episode of its source, and what of the source is not stored.

Each task of an importer yields the ``SourceEpisode`` objects of one shard, and an ``Omission`` in place of an episode
that cannot be stored. Omissions of whole files or fields stand in its ``ShardTasks``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class JpegFrames:
    """Frames as JPEG files, such as the unchanged ones of their source.

    Attributes:
        files: the bytes of each frame.
        height, width: of every frame, in pixels.
        fast: decode with the fast inverse transform, as TensorFlow does; False: with the accurate one.
        keep_small: store the files of small frames too; False: their pixels.
    """

    files: Sequence[bytes]
    height: int
    width: int
    fast: bool = False
    keep_small: bool = False

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.files)


#: uint8 ``[t h w 3]`` RGB, or JPEG files.
Frames = np.ndarray | JpegFrames


@dataclass(frozen=True, kw_only=True)
class ActionField:
    """Consecutive numbers of an action that come from one field of the source.

    Attributes:
        name: path of the field in the source, for example "action/world_vector".
        size: count of its numbers.
    """

    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Omission:
    """Something of a source that is not in the store, or not where the source has it.

    Attributes:
        items: plural noun, for example "tables of actions".
        reason: the rest of the sentence, for example "no recording has their name".
        count: number of items.
        names: of up to ``EXAMPLES`` of them.
    """

    items: str
    reason: str
    count: int = 1
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the omission as a part of a sentence."""
        missing = self.count - len(self.names)
        names = ", ".join(self.names) + (f" and {missing:,} more" if self.names and missing > 0 else "")
        return f"{self.count:,} {self.items} ({self.reason}{': ' if names else ''}{names})"


#: Names that an ``Omission`` keeps.
EXAMPLES = 3


def omission(items: str, reason: str, names: Iterable[object]) -> tuple[Omission, ...]:
    """Return one omission for the items ``names``, or none where there are no names."""
    names = [str(name) for name in names]
    return (Omission(items=items, reason=reason, count=len(names), names=tuple(names[:EXAMPLES])),) if names else ()


def merged_omissions(omissions: Iterable[Omission]) -> tuple[Omission, ...]:
    """Return omissions of which those with equal items and reason are added up."""
    merged: dict[tuple[str, str], Omission] = {}
    for entry in omissions:
        total = merged.setdefault((entry.items, entry.reason), replace(entry, count=0, names=()))
        names = tuple(dict.fromkeys((*total.names, *entry.names)))[:EXAMPLES]
        merged[entry.items, entry.reason] = replace(total, count=total.count + entry.count, names=names)
    return tuple(merged.values())


@dataclass(frozen=True, kw_only=True)
class SourceEpisode:
    """One recorded trajectory of t frames, at its source's resolution.

    Attributes:
        key: official name, unique in its dataset and split, for example "train_eps_00000012".
        split: "train", "test", "val" or another name.
        camera: the name of the camera that the catalogue uses.
        cameras: frames of each camera by name; all have t frames.
        actions: float32 ``[t a]`` raw, or None; row t leads from frame t to t + 1; the last row is padding (zero).
        action_fields: meaning of the numbers of an action, in order; empty: unknown.
        rewards: float32 ``[t]`` or None; same convention as the actions.
        terminated: bool ``[t]`` or None; same convention.
        state: float32 ``[t s]`` or None: every row counts.
        arrays: other arrays with one row a frame (masks, joint angles), by name.
        text: the instruction, or "".
        fps: frames a second, or None where the source does not tell.
        meta: plain JSON values, such as the file it came from.
        omissions: what of the recording is not stored, or not where the source has it.
    """

    key: str
    split: str = "train"
    camera: str = "image"
    cameras: Mapping[str, Frames] = field(default_factory=dict)
    actions: np.ndarray | None = None
    action_fields: tuple[ActionField, ...] = ()
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    state: np.ndarray | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    text: str = ""
    fps: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    omissions: tuple[Omission, ...] = ()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.cameras[self.camera])
