"""Start states of imagined episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError


class StartBatch(NamedTuple):
    """Some start states.

    Attributes:
        frames: uint8 ``[n f h w 3]``: the last frame is the state, those before it led there.
        rewards: float32 ``[n]``, of the transition to the last frame, NaN where it is unknown; None: all unknown.
    """

    frames: np.ndarray
    rewards: np.ndarray | None = None


class StartStates(Protocol):
    """A source of start states.

    A source with a length and a list ``instructions``, one a state, pairs each start with its task in words.
    """

    def __call__(self, count: int, random: np.random.Generator, indices: np.ndarray | None) -> StartBatch:
        """Return start states.

        Args:
            count: how many.
            random: draws them where ``indices`` is None.
            indices: int64 ``[count]``, which ones; or None.
        """
        ...


class EpisodeStarts:
    """All states of some episodes, except the last and the first ones, which have no past."""

    def __init__(self, episodes: Sequence[Episode], frames: int) -> None:
        """Take the states with the ``frames - 1`` frames before each.

        Raises:
            UserError: no episode is long enough.
        """
        self.frames = frames
        self._states = [(episode, last) for episode in episodes for last in range(frames - 1, len(episode) - 1)]
        if not self._states:
            raise UserError(
                f"no episode has {frames + 1} frames, which a start state and a step need; give longer ones"
            )

        words = [episode.instruction for episode, _ in self._states]
        #: The task of each state in words; empty where no episode has one.
        self.instructions = words if any(words) else []

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self._states)

    def __call__(self, count: int, random: np.random.Generator, indices: np.ndarray | None) -> StartBatch:
        """Return start states; see `StartStates`.

        Raises:
            UserError: an index is out of range.
        """
        states = [self._states[index] for index in _chosen(len(self), count, random, indices)]
        frames = np.stack([episode.frames[last - self.frames + 1 : last + 1] for episode, last in states])
        return StartBatch(frames, np.array([episode.reward_before(last) for episode, last in states], np.float32))


class GivenStarts:
    """Start states that are given as frames, such as the first frames of held-out episodes."""

    def __init__(self, frames: np.ndarray, instructions: Sequence[str] = (), rewards: np.ndarray | None = None) -> None:
        """Take states uint8 ``[n f h w 3]``, the task of each in words, or none, and `StartBatch.rewards`."""
        self.frames, self.instructions, self.rewards = frames, list(instructions), rewards

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self.frames)

    def __call__(self, count: int, random: np.random.Generator, indices: np.ndarray | None) -> StartBatch:
        """Return start states; see `StartStates`.

        Raises:
            UserError: an index is out of range.
        """
        chosen = _chosen(len(self), count, random, indices)
        return StartBatch(self.frames[chosen], None if self.rewards is None else self.rewards[chosen])


def _chosen(states: int, count: int, random: np.random.Generator, indices: np.ndarray | None) -> list[int]:
    """Return numbers of states: those of ``indices``, or drawn ones."""
    chosen = random.integers(0, states, count) if indices is None else np.asarray(indices)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < states):
        raise UserError(f"indices is {chosen.tolist()}; expected numbers from 0 to {states - 1}")
    return [int(index) for index in chosen]
