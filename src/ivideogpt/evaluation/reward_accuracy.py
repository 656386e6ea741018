"""Accuracy of imagined rewards beside recorded ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.intervals import Bootstrap, Estimate
from ivideogpt.evaluation.trust_signals import correlation, ranks


@dataclass(frozen=True)
class RewardScores:
    """Accuracy of rewards over the future frames.

    Attributes:
        pearson: linear correlation over all frames of all clips, -1 to 1.
        spearman: rank correlation over the same.
        sums: linear correlation of the sums over a clip, the returns.
        error: mean absolute error, in reward units.
    """

    pearson: Estimate
    spearman: Estimate
    sums: Estimate
    error: Estimate


def measure_rewards(imagined: Tensor, true: Tensor, bootstrap: Bootstrap) -> RewardScores:
    """Compare rewards of n clips of f future frames.

    A correlation is NaN where one of the two is constant.

    Args:
        imagined: ``[n f]`` in reward units.
        true: ``[n f]``, recorded.
        bootstrap: of the n clips.

    Raises:
        UserError: the shapes differ.
    """
    if imagined.shape != true.shape or imagined.ndim != 2:
        raise UserError(f"rewards are {list(imagined.shape)} and {list(true.shape)}; expected the same [n f]")
    a, b = (x.detach().double().cpu().numpy() for x in (imagined, true))
    return RewardScores(
        pearson=bootstrap.over(lambda clips: correlation(a[clips].ravel(), b[clips].ravel())),
        spearman=bootstrap.over(lambda clips: correlation(ranks(a[clips].ravel()), ranks(b[clips].ravel()))),
        sums=bootstrap.over(lambda clips: correlation(a[clips].sum(axis=1), b[clips].sum(axis=1))),
        error=bootstrap.over(lambda clips: float(np.abs(a[clips] - b[clips]).mean())),
    )


def reward_rows(
    rewards: Mapping[str, Tensor], true: Tensor, context_frames: int, *, goal_conditioned: bool = False
) -> dict[str, Tensor]:
    """Return the rows to compare with the recorded rewards of the future: row -> ``[n f]``.

    Args:
        rewards: row -> imagined rewards ``[n k f]`` of its k futures.
        true: recorded ones of whole clips, ``[n t]``; ``true[:, t]`` belongs to the transition from frame t to t + 1.
        context_frames: of a clip.
        goal_conditioned: the first of them is the goal, which no transition leaves.

    Returns:
        The first future of each row; "mean" of all futures where there are several; "last_known": the reward of the
        last transition in the context, as if nothing changed, where there is one.
    """
    rows = {row: values[:, 0] for row, values in rewards.items()}
    if rewards["imagined"].shape[1] > 1:
        rows["mean"] = rewards["imagined"].mean(dim=1)
    last = last_reward(true, context_frames, goal_conditioned=goal_conditioned)
    if last is not None:
        rows["last_known"] = last[:, None].expand_as(rows["imagined"])
    return rows


def last_reward(rewards: Tensor | None, context_frames: int, *, goal_conditioned: bool = False) -> Tensor | None:
    """Return the reward of the last transition in the context ``[n]`` from those of whole clips ``[n t]``, or None."""
    if rewards is None or context_frames <= 1 + goal_conditioned:
        return None
    return rewards[:, context_frames - 2]
