"""Compares an upload with the recordings of a model: another world is recognized by its pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from PIL import Image

# Frames are compared as small pictures of so many pixels a side.
_SIDE = 16
# So many frames of so many recordings are compared.
_FRAMES, _RECORDINGS = 16, 32
# An upload may be further from the recordings than they are from each other: by this factor, and by 1 of 100.
_FACTOR, _ALLOWANCE = 1.5, 0.01


class Likeness:
    """Distances to a set of recordings.

    A distance is the mean over the frames of an episode of the mean absolute difference, 0 to 1, to the nearest frame
    of any recording.
    """

    def __init__(self, recordings: Sequence[np.ndarray]) -> None:
        """Keep some frames of each recording.

        Args:
            recordings: frames uint8 ``[t s s 3]`` of each, at the size of the model.
        """
        self._known = [_thumbnails(frames) for frames in recordings[:_RECORDINGS]]
        others = [self._known[:index] + self._known[index + 1 :] for index in range(len(self._known))]
        distances = [_distance(known, rest) for known, rest in zip(self._known, others, strict=True) if rest]
        #: Largest distance of an episode of the same world; None: fewer than two recordings tell nothing.
        self.limit = _FACTOR * max(distances) + _ALLOWANCE if distances else None

    def distance(self, frames: np.ndarray) -> float:
        """Return the distance of frames uint8 ``[t s s 3]``; 0 where there are no recordings."""
        return _distance(_thumbnails(frames), self._known) if self._known else 0.0

    def is_familiar(self, frames: np.ndarray) -> bool:
        """Return False where frames uint8 ``[t s s 3]`` show another world than the recordings."""
        return self.limit is None or self.distance(frames) <= self.limit


def _thumbnails(frames: np.ndarray) -> np.ndarray:
    """Return float32 ``[n d]`` in [0, 1] of up to ``_FRAMES`` frames, the first one included."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int)]
    small = [Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BOX) for frame in chosen]
    return rearrange(np.stack([np.asarray(picture, np.float32) / 255 for picture in small]), "n h w c -> n (h w c)")


def _distance(frames: np.ndarray, recordings: Sequence[np.ndarray]) -> float:
    nearest = [min(float(np.abs(frame - known).mean(1).min()) for known in recordings) for frame in frames]
    return float(np.mean(nearest))
