"""Effect of the actions on imagined frames.

Each clip is imagined with its own actions, with those of another clip, and with zeros, from the same random numbers.
A model that follows the actions is far closer to the truth with the right ones; a model that ignores them is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.intervals import Bootstrap, Estimate
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True)
class Following:
    """Scores of the effect of the actions.

    Attributes:
        score: for each kind of wrong actions, see `following_score`.
        gap: for each kind of wrong actions, dB of PSNR that the true ones are better.
        motion: `motion_explained` under the true actions.
    """

    score: dict[str, Estimate]
    gap: dict[str, Estimate]
    motion: Estimate


def wrong_actions(model: WorldModel, actions: Tensor) -> dict[str, Tensor]:
    """Return actions in place of the true ones: name -> ``[n f a]`` in model units.

    "permuted_actions": those of the next clip, likely actions with another outcome (left out for a single clip).
    "zero_actions": zeros in raw units: no movement where actions are velocities or steps, a fixed position where they
    are positions.

    Args:
        model: the world model.
        actions: ``[n f a]`` in model units.
    """
    zeros = model.normalize_actions(torch.zeros_like(actions))
    return ({"permuted_actions": actions.roll(1, dims=0)} if len(actions) > 1 else {}) | {"zero_actions": zeros}


def following_score(true: Tensor, wrong: Tensor, floor: Tensor, bootstrap: Bootstrap) -> Estimate:
    """Return the share of the avoidable error under wrong actions that the right actions remove.

    (wrong - true) / (wrong - floor), each a sum over clips: 1 where the true actions lead as close to the truth as the
    tokenizer can show, 0 where they lead no closer than wrong ones, below 0 where they lead further away. NaN where the
    wrong actions already lead to the floor: then no visible part depends on the actions.

    Args:
        true: mean squared error of each clip under its own actions, ``[n]``.
        wrong: under wrong actions.
        floor: of the tokenizer alone.
        bootstrap: of the n clips.

    Raises:
        UserError: the shapes differ.
    """
    if not true.shape == wrong.shape == floor.shape:
        raise UserError(
            f"errors have shapes {list(true.shape)}, {list(wrong.shape)} and {list(floor.shape)}; expected [n] thrice"
        )
    if (wrong - floor).sum() <= 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    return bootstrap.ratio(wrong - true, wrong - floor)


def motion_explained(true: Tensor, copy_last: Tensor, bootstrap: Bootstrap) -> Estimate:
    """Return 1 - error / error of a copy of the last context frame: 1 is perfect, 0 no better than standing still.

    Args:
        true: mean squared error of each clip under its own actions, ``[n]``.
        copy_last: error of the copy, which is the motion to predict.
        bootstrap: of the n clips.
    """
    return bootstrap.ratio(copy_last - true, copy_last)


def measure_following(errors: Mapping[str, Tensor], ratios: Mapping[str, Tensor], bootstrap: Bootstrap) -> Following:
    """Compute the scores from the errors of each clip, means over its future frames.

    Args:
        errors: mean squared error ``[n]`` of the rows "imagined" (first future), "copy_last", those of `wrong_actions`
            and "reconstruction", which a model without tokens lacks: its floor is 0.
        ratios: PSNR ``[n]`` of the same rows in dB.
        bootstrap: of the n clips.
    """
    wrong = [name for name in errors if name.endswith("_actions")]
    floor = errors.get("reconstruction", torch.zeros_like(errors["imagined"]))
    return Following(
        score={name: following_score(errors["imagined"], errors[name], floor, bootstrap) for name in wrong},
        gap={name: bootstrap.mean(ratios["imagined"] - ratios[name]) for name in wrong},
        motion=motion_explained(errors["imagined"], errors["copy_last"], bootstrap),
    )
