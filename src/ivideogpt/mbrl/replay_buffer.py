"""Replay buffers of whole episodes, each frame stored once, for drawing transitions, segments and start states."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.episode_files import load_episodes, save_episodes
from ivideogpt.envs.start_states import StartBatch
from ivideogpt.policies.drqv2 import Transitions

_PIXEL = np.dtype("V3")


@dataclass(frozen=True, eq=False)
class StoredEpisode:
    """An episode in a buffer.

    Attributes:
        episode: rows lead from frame t to t + 1; the last is padding.
        first: frame that its first transition starts from; frames before it are context.
        permanent: never evicted: a demonstration.
        number: of the episode in its buffer, from 0 on.
    """

    episode: Episode
    first: int
    permanent: bool
    number: int

    @property
    def transitions(self) -> int:
        """Number of transitions."""
        return len(self.episode) - 1 - self.first


class Segments(NamedTuple):
    """Windows of episodes.

    Attributes:
        frames: uint8 ``[b t h w 3]``.
        actions: float32 ``[b t-1 a]``; ``actions[:, i]`` leads from frame i to i + 1.
        rewards: float32 ``[b t-1]`` of these actions.
        terminated: bool ``[b t-1]``.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray


class ReplayBuffer:
    """A buffer of episodes up to a number of transitions; the oldest are evicted first, demonstrations never.

    An episode is added whole, so nothing is ever drawn from half of one.
    """

    def __init__(self, capacity: int, *, folder: Path | None = None) -> None:
        """Make an empty buffer.

        Args:
            capacity: most transitions of episodes that are not permanent.
            folder: takes one file for each added episode, which ``load_state_dict`` reads; demonstrations too, so that
                their source is read once. None: the state holds the episodes.
        """
        if capacity < 1:
            raise UserError(f"the capacity of a replay buffer is {capacity}; expected at least 1 transition")
        self.capacity, self.folder = capacity, folder
        self._stored: list[StoredEpisode] = []
        self._ends: list[int] = []
        self._added = 0

    def __len__(self) -> int:
        """Return the number of transitions."""
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[StoredEpisode]:
        """Iterate over the episodes: permanent ones, then the others, oldest first."""
        return iter(self._stored)

    @property
    def demonstrations(self) -> int:
        """Number of transitions of permanent episodes."""
        return sum(stored.transitions for stored in self._stored if stored.permanent)

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self._stored)

    def add(self, episode: Episode, *, first: int = 0, permanent: bool = False) -> None:
        """Add a finished episode and evict the oldest ones beyond the capacity.

        Args:
            episode: with actions and rewards, and at least one transition.
            first: frame that its first transition starts from.
            permanent: never evict it.

        Raises:
            UserError: it lacks actions, rewards or a transition.
        """
        if episode.actions is None or episode.rewards is None:
            raise UserError(f"episode {episode.key!r} has no actions or no rewards; expected both")
        stored = StoredEpisode(episode, first, permanent, self._added)
        if stored.transitions < 1:
            raise UserError(f"episode {episode.key!r} has {len(episode)} frames; expected at least {first + 2}")
        if self.folder is not None:
            save_episodes(self._path(stored.number), [episode])
        self._added += 1
        self._stored.append(stored)
        self._evict()

    def keep_newest(self, episodes: int) -> None:
        """Evict all but the newest episodes; permanent ones stay."""
        evictable = [stored for stored in self._stored if not stored.permanent]
        evicted = {stored.number for stored in evictable[: max(len(evictable) - episodes, 0)]}
        self._set_stored([stored for stored in self._stored if stored.number not in evicted])

    # sampling

    def transitions(
        self,
        count: int,
        *,
        stack: int,
        steps: int,
        discount: float,
        random: np.random.Generator,
        demonstrations: bool = False,
    ) -> Transitions:
        """Draw n-step transitions uniformly.

        Near the end of an episode a return has fewer than ``steps`` rewards. The last observation of a
        truncated episode keeps its value; after a termination there is none.

        Args:
            count: b.
            stack: frames k of an observation; the first frame of an episode stands for those before it.
            steps: rewards of a return.
            discount: of a step.
            random: generator of the draws.
            demonstrations: draw from the permanent episodes alone.
        """
        transitions = self.demonstrations if demonstrations else len(self)
        chosen = [self._at(int(index)) for index in random.integers(0, transitions, count)]
        size = chosen[0][0].episode.frames.shape[1]
        frames = np.empty((2, count, size, size, stack, 3), np.uint8)
        pixels = frames.view(_PIXEL)[..., 0]  # copying three bytes at once takes a third of the time
        actions = np.empty((count, chosen[0][0].episode.actions.shape[1]), np.float32)  # type: ignore[union-attr]
        rewards, discounts = np.zeros(count, np.float32), np.ones(count, np.float32)
        for row, (stored, first) in enumerate(chosen):
            # n-step return
            episode, last = stored.episode, min(first + steps, len(stored.episode) - 1)
            actions[row] = episode.actions[first]  # type: ignore[index]
            for step in range(first, last):
                rewards[row] += discounts[row] * episode.rewards[step]  # type: ignore[index]
                discounts[row] *= discount
                if episode.terminated is not None and episode.terminated[step]:
                    discounts[row], last = 0.0, step + 1
                    break
            # observations before and after
            for end, newest in enumerate((first, last)):
                for back in range(stack):
                    frame = np.ascontiguousarray(episode.frames[max(newest - stack + 1 + back, 0)])
                    pixels[end, row, :, :, back] = frame.view(_PIXEL)[..., 0]
        observations = torch.from_numpy(frames.reshape(2, count, size, size, stack * 3))
        return Transitions(
            observations[0],
            torch.from_numpy(actions),
            torch.from_numpy(rewards),
            torch.from_numpy(discounts),
            observations[1],
            torch.tensor([stored.permanent for stored, _ in chosen]),
        )

    def segments(self, count: int, length: int, random: np.random.Generator) -> Segments:
        """Draw windows of ``length`` frames; every possible start is as likely, the last one too.

        Args:
            count: b.
            length: frames t of a window; shorter episodes are left out.
            random: generator of the draws.

        Raises:
            UserError: no episode is long enough.
        """
        starts = [max(len(stored.episode) - length + 1, 0) for stored in self._stored]
        ends = np.cumsum(starts)
        if not len(ends) or ends[-1] == 0:
            longest = max((len(stored.episode) for stored in self._stored), default=0)
            raise UserError(f"no episode has {length} frames (the longest has {longest}); use shorter segments")
        windows = []
        for index in random.integers(0, ends[-1], count):
            number = int(np.searchsorted(ends, index, side="right"))
            start = int(index - (ends[number] - starts[number]))
            windows.append(_window(self._stored[number].episode, start, length))
        return Segments(*(np.stack(part) for part in zip(*windows, strict=True)))

    def starts(self, count: int, frames: int, random: np.random.Generator) -> StartBatch:
        """Draw observed states uniformly, with the ``frames - 1`` frames before each."""
        states, rewards = [], []
        for index in random.integers(0, len(self), count):
            stored, last = self._at(int(index))
            states.append(stored.episode.frames[np.maximum(np.arange(last - frames + 1, last + 1), 0)])
            rewards.append(stored.episode.reward_before(last))
        return StartBatch(np.stack(states), np.array(rewards, np.float32))

    # state

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of the episodes, or without a folder the episodes themselves."""
        state: dict[str, Any] = {
            "added": self._added,
            "stored": [[stored.number, stored.first, stored.permanent] for stored in self._stored],
        }
        if self.folder is None:
            state["episodes"] = [_arrays(stored.episode) for stored in self._stored]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned.

        Raises:
            UserError: a file of an episode is missing or damaged.
        """
        arrays = state.get("episodes")
        loaded = []
        for index, (number, first, permanent) in enumerate(state["stored"]):
            episode = Episode(**arrays[index]) if arrays is not None else load_episodes(self._path(number))[0]
            loaded.append(StoredEpisode(episode, first, permanent, number))
        self._added = state["added"]
        self._set_stored(loaded)

    def forget_files(self, state: Mapping[str, Any]) -> None:
        """Delete the files of episodes that were evicted before ``state`` was written."""
        if self.folder is None:
            return
        needed = {self._path(number).name for number, _, _ in state["stored"]}
        for path in self.folder.glob("episode-*.safetensors"):
            if path.name not in needed and path.name < self._path(state["added"]).name:
                path.unlink(missing_ok=True)

    # private

    def _at(self, index: int) -> tuple[StoredEpisode, int]:
        """Return the episode of transition ``index`` and the frame it starts from."""
        number = bisect_right(self._ends, index)
        stored = self._stored[number]
        return stored, stored.first + index - (self._ends[number] - stored.transitions)

    def _evict(self) -> None:
        transitions = sum(stored.transitions for stored in self._stored if not stored.permanent)
        evicted = set()
        for stored in self._stored:
            if transitions <= self.capacity or stored.number == self._added - 1:
                break
            if not stored.permanent:
                evicted.add(stored.number)
                transitions -= stored.transitions
        self._set_stored([stored for stored in self._stored if stored.number not in evicted])

    def _set_stored(self, stored: list[StoredEpisode]) -> None:
        self._stored = sorted(stored, key=lambda episode: not episode.permanent)
        self._ends = list(np.cumsum([episode.transitions for episode in self._stored]))

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"episode-{number:07d}.safetensors"


def _window(episode: Episode, start: int, length: int) -> tuple[np.ndarray, ...]:
    rows = slice(start, start + length - 1)
    assert episode.actions is not None and episode.rewards is not None
    terminated = np.zeros(length - 1, bool) if episode.terminated is None else episode.terminated[rows]
    return episode.frames[start : start + length], episode.actions[rows], episode.rewards[rows], terminated


def _arrays(episode: Episode) -> dict[str, Any]:
    names = ("frames", "actions", "rewards", "terminated")
    return {name: getattr(episode, name) for name in names if getattr(episode, name) is not None}
