"""Recorded episodes as the clips that a picture model is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.models.picture_dynamics import shows_background
from ivideogpt.training.picture_crops import PictureClips

#: Frames that the background is the median of.
_BACKGROUND_FRAMES = 400
#: Difference of two frames, in [0, 1], above which a pixel has changed.
_CHANGED = 0.05
#: How often a transition in which nothing changes is trained on, beside 1. It counts 1 where its action is at least
#: this share of the usual size of actions that change something: such an action was blocked, which is rare.
_STILL_CHANCE, _BLOCKED_ACTION = 0.2, 0.5


def clips_of_changes(episodes: Sequence[Episode]) -> PictureClips:
    """Make clips of episodes of any world; crops are cut around what changes, actions stay as they are recorded.

    Transitions in which nothing changes are trained on less often, except where the action was blocked.
    """
    frames = np.stack([episode.frames for episode in episodes])
    changed = np.abs(np.diff(frames.astype(np.int16), axis=1)).max(-1) > _CHANGED * 255  # [n t-1 h w]
    amount = changed.sum((2, 3))
    rows, columns = np.mgrid[: frames.shape[2], : frames.shape[3]] + 0.5
    middle = np.array([frames.shape[3], frames.shape[2]]) / 2
    centre = np.stack([(changed * columns).sum((2, 3)), (changed * rows).sum((2, 3))], -1)
    centre = np.where(amount[..., None] > 0, centre / np.maximum(amount, 1)[..., None], middle)
    places = np.concatenate([centre[:, :1], centre], axis=1)[:, :, None]
    actions, counts = _stacked(episodes, "actions"), amount > 0
    if actions is not None and counts.any():
        sizes = np.linalg.norm(actions[:, :-1], axis=-1)
        counts |= sizes >= _BLOCKED_ACTION * np.median(sizes[counts])
    chances = np.where(counts, 1.0, _STILL_CHANCE)
    return PictureClips(
        frames=frames,
        actions=actions,
        places=places.astype(np.float32),
        chances=np.pad(chances, ((0, 0), (0, 1))).astype(np.float32),
        rewards=frame_rewards(episodes),
    )


def frame_rewards(episodes: Sequence[Episode]) -> np.ndarray | None:
    """Return what each frame is worth, float32 ``[n t]``: the reward of the transition to it; NaN for the first."""
    rewards = _stacked(episodes, "rewards")
    if rewards is None:
        return None
    return np.pad(rewards[:, :-1], ((0, 0), (1, 0)), constant_values=np.nan)


def read_scenes(episodes: Sequence[Episode], scenes: int) -> tuple[Tensor, Tensor]:
    """Read backgrounds and steadiness of scenes from their frames; a scene is a task, ``meta["task"]``.

    Returns:
        float32 ``[s c h w]`` in [0, 1] and ``[s h w]``, see `PictureDynamics`.

    Raises:
        UserError: the episodes have another number of tasks.
    """
    tasks = sorted({str(episode.meta.get("task", "")) for episode in episodes})
    if len(tasks) != scenes > 1:
        raise UserError(
            f"the episodes are of {len(tasks)} tasks ({', '.join(tasks)}) and the model has {scenes} scenes; set "
            f"training.dynamics.scenes={len(tasks)}, or give episodes of {scenes} tasks"
        )
    groups = (
        [[x for x in episodes if str(x.meta.get("task", "")) == task] for task in tasks] if scenes > 1 else [episodes]
    )
    backgrounds = [median_background(group) for group in groups]
    shares = []
    for group, background in zip(groups, backgrounds, strict=True):
        frames = torch.from_numpy(_some_frames(group)).permute(0, 3, 1, 2).float() / 255
        shares.append(shows_background(frames, background).float().mean(dim=0))
    return torch.stack(backgrounds), torch.stack(shares)


def median_background(episodes: Sequence[Episode]) -> Tensor:
    """Return the still part of the frames, float32 ``[c h w]`` in [0, 1]: the median of frames of many episodes."""
    median = np.median(_some_frames(episodes), axis=0).astype(np.float32) / 255
    return torch.from_numpy(median).permute(2, 0, 1)


def _some_frames(episodes: Sequence[Episode]) -> np.ndarray:
    """Return frames spread over the episodes, uint8 ``[n h w c]``."""
    count = min(len(episodes), _BACKGROUND_FRAMES)
    chosen = np.linspace(0, len(episodes) - 1, count).round().astype(int)
    per_episode = max(_BACKGROUND_FRAMES // count, 1)
    frames = []
    for index in chosen:
        episode = episodes[index]
        times = np.unique(np.linspace(0, len(episode) - 1, min(per_episode, len(episode))).round().astype(int))
        frames.append(episode.frames[times])
    return np.concatenate(frames)


def _stacked(episodes: Sequence[Episode], name: str) -> np.ndarray | None:
    """Return an array of all episodes, float32 ``[n t ..]``, or None where one has none."""
    arrays = [getattr(episode, name) for episode in episodes]
    return None if any(x is None for x in arrays) else np.stack(arrays).astype(np.float32)
