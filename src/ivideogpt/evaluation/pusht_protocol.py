"""The PushT protocol: clips of fresh or held-out PushT episodes in which the block moves, measured from the pictures.

figures = measure_pusht(model, contact_windows(episodes, model.context_frames + HORIZON))
figures["imagined"]["block_error_moved"]     # beside "copy_last", "reconstruction" and "permuted_actions"
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.evaluation.pusht_metrics import pusht_measures
from ivideogpt.evaluation.rollouts import Clips, rollout_figures
from ivideogpt.worldmodel.world_model import WorldModel

#: Name of the protocol on the command line.
PUSHT = "pusht"
#: Seeds of the episodes that are recorded by default; seeds from 10000 on are never trained on.
SEEDS = "20000:20020"
#: Future frames of a clip.
HORIZON = 14
#: px of 512 that the block must travel in a clip to count as moved (8 px of 64).
MOVED = 64.0


def measure_pusht(
    model: WorldModel, windows: Sequence[Episode], *, sampling: Sampling, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Measure a model on windows of one length; see `rollout_figures` and `pusht_measures`.

    Args:
        model: of PushT, for frames of 64 px.
        windows: context frames and future of each clip.
        sampling: how tokens are drawn.
        seed: clip i draws from stream (seed, i).

    Returns:
        The figures of "imagined" and of each baseline.
    """
    return rollout_figures(
        model,
        Clips.from_episodes(windows),
        sampling=sampling,
        seed=seed,
        measures=lambda true, imagined, context_frame: pusht_measures(true, imagined, context_frame=context_frame),
    )


def contact_windows(episodes: Sequence[Episode], length: int) -> list[Episode]:
    """Cut one window of ``length`` frames from each episode: the first in which the block moves, else the middle one.

    Raises:
        UserError: an episode is too short, or has no state of the simulator.
    """
    windows = []
    for episode in episodes:
        if len(episode) < length or episode.state is None:
            reason = "no state of the simulator" if episode.state is None else f"{len(episode)} frames"
            raise UserError(
                f"episode {episode.key!r} has {reason}; the PushT protocol needs {length} frames and the state: record "
                "episodes with ivideogpt collect pusht"
            )
        moving = moving_starts(episode, length)
        windows.append(episode.window(moving[0] if moving else (len(episode) - length) // 2, length))
    return windows


def moving_starts(episode: Episode, length: int) -> list[int]:
    """Return every fourth first frame of ``length`` frames during whose future the block moves 8 px of 64."""
    starts = range(0, len(episode) - length + 1, 4)
    return [start for start in starts if block_travel(episode, start + 1, start + length - 1) >= MOVED]


def block_travel(episode: Episode, first: int, last: int) -> float:
    """Return the distance in px of 512 between the block's positions at two frames."""
    assert episode.state is not None
    return float(np.linalg.norm(episode.state[last, 2:4] - episode.state[first, 2:4]))
