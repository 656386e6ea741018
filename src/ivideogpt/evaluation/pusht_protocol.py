"""Clips of fresh PushT episodes in which the block moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError

#: Seeds of the episodes that are recorded by default; seeds from 10000 on are never trained on.
SEEDS = "20000:20020"
#: Future frames of a clip.
HORIZON = 14
#: px of 512 that the block must travel in a clip to count as moved (8 px of 64).
MOVED = 64.0


def record_pusht(seeds: str | None = None) -> list[Episode]:
    """Record episodes of seeds first:stop; None: `SEEDS`.

    Raises:
        UserError: the seeds cannot be read.
        MissingExtraError: the simulator is not installed.
    """
    from ivideogpt.envs.record.pusht_episodes import collect_pusht, parse_seeds  # imports the simulator

    return list(collect_pusht(range(*parse_seeds(seeds or SEEDS))))


def contact_windows(episodes: Sequence[Episode], length: int) -> list[Episode]:
    """Cut one window of ``length`` frames from each episode; see `contact_start`."""
    return [episode.window(contact_start(episode, length), length) for episode in episodes]


def contact_start(episode: Episode, length: int) -> int:
    """Return the first frame of the first window in which the block moves, else of the middle window.

    Raises:
        UserError: the episode is too short, or has no state of the simulator.
    """
    if len(episode) < length or episode.state is None:
        reason = "no state of the simulator" if episode.state is None else f"{len(episode)} frames"
        raise UserError(
            f"episode {episode.key!r} has {reason}; the PushT protocol needs {length} frames and the state: record "
            "episodes with ivideogpt collect pusht"
        )
    moving = moving_starts(episode, length)
    return moving[0] if moving else (len(episode) - length) // 2


def moving_starts(episode: Episode, length: int) -> list[int]:
    """Return every fourth first frame of ``length`` frames during whose future the block moves 8 px of 64."""
    starts = range(0, len(episode) - length + 1, 4)
    return [start for start in starts if block_travel(episode, start + 1, start + length - 1) >= MOVED]


def block_travel(episode: Episode, first: int, last: int) -> float:
    """Return the distance in px of 512 between the block's positions at two frames."""
    assert episode.state is not None
    return float(np.linalg.norm(episode.state[last, 2:4] - episode.state[first, 2:4]))
