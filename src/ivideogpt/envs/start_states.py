"""Where imagined episodes begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError


class Starts(Protocol):
    """Where imaginations begin."""

    def __call__(self, count: int, random: np.random.Generator, indices: np.ndarray | None) -> np.ndarray:
        """Start states: those of ``indices`` int64 ``[count]``, or where that is None drawn by ``random``.

        Returns:
            uint8 ``[count f h w 3]``: the last frame is the state, those before it led there.
        """
        ...


class EpisodeStarts:
    """Every state of some episodes, but for the first ones, which have no past, and the last."""

    def __init__(self, episodes: Sequence[Episode], frames: int) -> None:
        """The states and the ``frames - 1`` frames before each.

        Raises:
            UserError: no episode is long enough.
        """
        self.frames = frames
        self._places = [(one, last) for one in episodes for last in range(frames - 1, len(one) - 1)]
        if not self._places:
            raise UserError(
                f"no episode has {frames + 1} frames, which a start state and a step need; give longer ones"
            )

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    def __call__(self, count: int, random: np.random.Generator, indices: np.ndarray | None) -> np.ndarray:
        """See ``Starts``.

        Raises:
            UserError: there is no such state.
        """
        chosen = random.integers(0, len(self), count) if indices is None else np.asarray(indices)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise UserError(f"indices is {chosen.tolist()}; expected numbers from 0 to {len(self) - 1}")
        found = [self._places[int(place)] for place in chosen]
        return np.stack([one.frames[last - self.frames + 1 : last + 1] for one, last in found])
