"""Replay buffers: whole episodes, each frame once, from which transitions, clips and start states are drawn."""

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
from ivideogpt.policies.drqv2 import Transitions


@dataclass(frozen=True, eq=False)
class Kept:
    """An episode in a buffer.

    Attributes:
        episode: rows lead from frame t to t + 1; the last is padding.
        first: frame that its first transition starts from; the frames before are only seen.
        permanent: it never leaves: a demonstration.
        number: of the episode in its buffer, from 0 on.
    """

    episode: Episode
    first: int
    permanent: bool
    number: int

    @property
    def transitions(self) -> int:
        """How many there are."""
        return len(self.episode) - 1 - self.first


class Segments(NamedTuple):
    """Windows of episodes.

    Attributes:
        frames: uint8 ``[b t h w 3]``.
        actions: float32 ``[b t-1 a]``; ``actions[:, i]`` leads from frame i to i + 1.
        rewards: float32 ``[b t-1]``, paid for them.
        terminated: bool ``[b t-1]``.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray


class Replay:
    """Episodes up to a number of transitions; the oldest go first, demonstrations never.

    An episode joins whole, so nothing is ever drawn from half of one.
    """

    def __init__(self, capacity: int, *, folder: Path | None = None) -> None:
        """An empty buffer.

        Args:
            capacity: most transitions of episodes that are not permanent.
            folder: where each episode that joins is written, one file an episode, for ``load_state_dict``; permanent
                ones too, so that nothing is read again from where they came from. None: the state holds them all.
        """
        if capacity < 1:
            raise UserError(f"the capacity of a replay buffer is {capacity}; expected at least 1 transition")
        self.capacity, self.folder = capacity, folder
        self._kept: list[Kept] = []
        self._ends: list[int] = []
        self._added = 0

    def __len__(self) -> int:
        """Transitions there are."""
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Kept]:
        """The episodes, oldest first."""
        return iter(self._kept)

    @property
    def episodes(self) -> int:
        """Episodes there are."""
        return len(self._kept)

    def add(self, episode: Episode, *, first: int = 0, permanent: bool = False) -> None:
        """Adds a finished episode and lets the oldest go where there is no room.

        Args:
            episode: with actions and rewards, and at least one transition.
            first: frame that its first transition starts from.
            permanent: it never leaves.

        Raises:
            UserError: it lacks actions, rewards or a transition.
        """
        if episode.actions is None or episode.rewards is None:
            raise UserError(f"episode {episode.key!r} has no actions or no rewards; expected both")
        kept = Kept(episode, first, permanent, self._added)
        if kept.transitions < 1:
            raise UserError(f"episode {episode.key!r} has {len(episode)} frames; expected at least {first + 2}")
        if self.folder is not None:
            save_episodes(self._path(kept.number), [episode])
        self._added += 1
        self._kept.append(kept)
        self._leave()

    def keep_newest(self, episodes: int) -> None:
        """Lets all but the newest episodes go; permanent ones stay."""
        passing = [kept for kept in self._kept if not kept.permanent]
        gone = {kept.number for kept in passing[: max(len(passing) - episodes, 0)]}
        self._keep([kept for kept in self._kept if kept.number not in gone])

    # What is drawn

    def transitions(
        self, count: int, *, stack: int, steps: int, discount: float, random: np.random.Generator
    ) -> Transitions:
        """Draws n-step transitions, each start alike.

        Where fewer than ``steps`` are left, as many as there are: the last observation of a cut-off episode is still
        worth what the critic says; after a termination nothing is.

        Args:
            count: b.
            stack: frames k of an observation; before the first frame of an episode that one stands.
            steps: rewards that are summed.
            discount: of a step.
            random: of the choice.
        """
        chosen = [self._at(int(place)) for place in random.integers(0, len(self), count)]
        size = chosen[0][0].episode.frames.shape[1]
        seen = np.empty((2, count, size, size, stack, 3), np.uint8)
        actions = np.empty((count, chosen[0][0].episode.actions.shape[1]), np.float32)  # type: ignore[union-attr]
        rewards, discounts = np.zeros(count, np.float32), np.ones(count, np.float32)
        for row, (kept, frame) in enumerate(chosen):
            episode, last = kept.episode, min(frame + steps, len(kept.episode) - 1)
            actions[row] = episode.actions[frame]  # type: ignore[index]
            for now in range(frame, last):
                rewards[row] += discounts[row] * episode.rewards[now]  # type: ignore[index]
                discounts[row] *= discount
                if episode.terminated is not None and episode.terminated[now]:
                    discounts[row], last = 0.0, now + 1
                    break
            for which, newest in enumerate((frame, last)):
                for back in range(stack):
                    seen[which, row, :, :, back] = episode.frames[max(newest - stack + 1 + back, 0)]
        observations = torch.from_numpy(seen.reshape(2, count, size, size, stack * 3))
        return Transitions(
            observations[0],
            torch.from_numpy(actions),
            torch.from_numpy(rewards),
            torch.from_numpy(discounts),
            observations[1],
        )

    def segments(self, count: int, length: int, random: np.random.Generator, *, official: bool = False) -> Segments:
        """Draws windows of ``length`` frames: every start that there is room for is as likely, the last one too.

        Args:
            count: b.
            length: frames t of a window; episodes that are shorter are left out.
            random: of the choice.
            official: leaves out the last two starts of an episode, as the official code does.

        Raises:
            UserError: no episode is as long.
        """
        starts = [max(len(kept.episode) - length + 1 - 2 * official, 0) for kept in self._kept]
        ends = np.cumsum(starts)
        if not len(ends) or ends[-1] == 0:
            longest = max((len(kept.episode) for kept in self._kept), default=0)
            raise UserError(f"no episode has {length} frames (the longest has {longest}); use shorter segments")
        found = []
        for place in random.integers(0, ends[-1], count):
            number = int(np.searchsorted(ends, place, side="right"))
            start = int(place - (ends[number] - starts[number]))
            found.append(_window(self._kept[number].episode, start, length))
        return Segments(*(np.stack(part) for part in zip(*found, strict=True)))

    def starts(self, count: int, frames: int, random: np.random.Generator) -> np.ndarray:
        """Draws observed states, each as likely: uint8 ``[count frames h w 3]``, the state last."""
        found = []
        for place in random.integers(0, len(self), count):
            kept, frame = self._at(int(place))
            found.append(kept.episode.frames[np.maximum(np.arange(frame - frames + 1, frame + 1), 0)])
        return np.stack(found)

    # State

    def state_dict(self) -> dict[str, Any]:
        """The numbers of its episodes, or without a folder the episodes themselves."""
        state: dict[str, Any] = {
            "added": self._added,
            "kept": [[kept.number, kept.first, kept.permanent] for kept in self._kept],
        }
        if self.folder is None:
            state["episodes"] = [_arrays(kept.episode) for kept in self._kept]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state_dict`` gave.

        Raises:
            UserError: a file of an episode is missing or damaged.
        """
        inside = state.get("episodes")
        found = []
        for index, (number, first, permanent) in enumerate(state["kept"]):
            episode = Episode(**inside[index]) if inside is not None else load_episodes(self._path(number))[0]
            found.append(Kept(episode, first, permanent, number))
        self._added = state["added"]
        self._keep(found)

    def forget_files(self, state: Mapping[str, Any]) -> None:
        """Deletes the files of episodes that left before ``state`` was written."""
        if self.folder is None:
            return
        wanted = {self._path(number).name for number, _, _ in state["kept"]}
        for path in self.folder.glob("episode-*.safetensors"):
            if path.name not in wanted and path.name < self._path(state["added"]).name:
                path.unlink(missing_ok=True)

    # Parts

    def _at(self, place: int) -> tuple[Kept, int]:
        """The episode and the frame that transition ``place`` starts from."""
        number = bisect_right(self._ends, place)
        kept = self._kept[number]
        return kept, kept.first + place - (self._ends[number] - kept.transitions)

    def _leave(self) -> None:
        passing = sum(kept.transitions for kept in self._kept if not kept.permanent)
        gone = set()
        for kept in self._kept:
            if passing <= self.capacity or kept.number == self._added - 1:
                break
            if not kept.permanent:
                gone.add(kept.number)
                passing -= kept.transitions
        self._keep([kept for kept in self._kept if kept.number not in gone])

    def _keep(self, kept: list[Kept]) -> None:
        self._kept = kept
        self._ends = list(np.cumsum([one.transitions for one in kept]))

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
