"""What every importer hands to the store: one episode as its source holds it, read when somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class JpegFrames:
    """Frames as the JPEG files of their source, kept as they are.

    Attributes:
        files: the bytes of each frame.
        height, width: of every frame, in pixels.
        fast: decode with the fast inverse transform, as TensorFlow does; False: with the accurate one.
    """

    files: Sequence[bytes]
    height: int
    width: int
    fast: bool = False

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.files)


#: uint8 ``[t h w 3]`` RGB, or JPEG files.
Frames = np.ndarray | JpegFrames


@dataclass(frozen=True, kw_only=True)
class ActionField:
    """Where some numbers of an action come from.

    Attributes:
        name: path of the field in the source, for example "action/world_vector".
        size: how many numbers it holds.
    """

    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class SourceEpisode:
    """One recorded trajectory of t frames, at its source's resolution.

    Attributes:
        key: official name, unique in its dataset and split, for example "train_eps_00000012".
        split: "train", "test", "val" or another name.
        camera: the name of the camera that the catalogue uses.
        cameras: frames of each camera by name; all have t frames.
        actions: float32 ``[t a]`` raw, or None; row t leads from frame t to t + 1; the last row is padding (zero).
        action_fields: what the numbers of an action are, in order; empty: unknown.
        rewards: float32 ``[t]`` or None; same convention as the actions.
        terminated: bool ``[t]`` or None; same convention.
        state: float32 ``[t s]`` or None: every row counts.
        arrays: other arrays with one row a frame (masks, joint angles), by name.
        text: the instruction, or "".
        fps: frames a second, or None where the source does not say.
        meta: plain JSON values: which file it came from.
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

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.cameras[self.camera])
