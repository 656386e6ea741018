"""Objectives of planning: scores of imagined futures for a goal, ``objective(rollout, goal) -> [k]``, higher is better.

A new objective is one function and one row of ``OBJECTIVES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.models.success_classifier import SuccessClassifier
from ivideogpt.planning.models import Rollout
from ivideogpt.worldmodel.world_model import WorldModel

#: Radius in px of 64 at which a turn of the T of PushT counts: about its radius of gyration.
_TURN_RADIUS = 8.0


@dataclass(frozen=True, eq=False)
class Goal:
    """The picture that a planner is to reach.

    Attributes:
        frame: float32 ``[c h w]`` in [0, 1].
    """

    frame: Tensor


#: Score of futures: a rollout of k candidates and a goal to float32 ``[k]``, higher is better.
Objective = Callable[[Rollout, Goal], Tensor]
#: Maker of an objective; the world model is None where the planner has none (the simulator plans).
ObjectiveFactory = Callable[[WorldModel | None], Objective]

#: Every objective by name: "module:function" of its factory, imported when it is used.
OBJECTIVES: dict[str, str] = {
    "pixels": "ivideogpt.planning.objectives:pixel_objective",
    "last-pixels": "ivideogpt.planning.objectives:last_pixel_objective",
    "perceptual": "ivideogpt.planning.objectives:perceptual_objective",
    "reward": "ivideogpt.planning.objectives:reward_objective",
    "tokenizer": "ivideogpt.planning.objectives:tokenizer_objective",
    "classifier": "ivideogpt.planning.objectives:classifier_objective",
    "pusht-block": "ivideogpt.planning.objectives:pusht_block_objective",
    "pusht-agent": "ivideogpt.planning.objectives:pusht_agent_objective",
}


def make_objective(
    weights: Mapping[str, float], model: WorldModel | None, classifier: SuccessClassifier | None = None
) -> Objective:
    """Make the weighted sum of objectives.

    Args:
        weights: weight of each objective by name, more than 0.
        model: the world model that plans, or None.
        classifier: of success, for the objective of that name.

    Raises:
        UserError: an objective is unknown, a weight is not positive, or the model lacks a part that one needs.
        MissingExtraError: a package that an objective needs is not installed.
    """
    if not weights:
        raise UserError(f"there is no objective; expected some of {', '.join(OBJECTIVES)}")
    parts: list[tuple[float, Objective]] = []
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise UserError(f"there is no objective {name!r}; {suggestion(name, OBJECTIVES)}")
        if not weight > 0:
            raise UserError(f"the weight of the objective {name} is {weight}; expected more than 0")
        module, _, function = OBJECTIVES[name].partition(":")
        options = {"classifier": classifier} if name == "classifier" else {}
        parts.append((weight, getattr(importlib.import_module(module), function)(model, **options)))

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        return torch.stack([weight * part(rollout, goal) for weight, part in parts]).sum(dim=0)

    return objective


def pixel_objective(model: WorldModel | None) -> Objective:
    """Make the negative squared error of all frames, summed over time, pixels and channels.

    Source: VP2, ``mse``; same.
    """

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        frames = rollout.frames_at(range(rollout.horizon))
        return -reduce((frames - goal.frame.to(frames.device)) ** 2, "k t c h w -> k", "sum")

    return objective


def last_pixel_objective(model: WorldModel | None) -> Objective:
    """Make the negative squared error of the last frame, summed over pixels and channels."""

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        frames = _last(rollout)
        return -reduce((frames - goal.frame.to(frames.device)) ** 2, "k c h w -> k", "sum")

    return objective


def perceptual_objective(model: WorldModel | None) -> Objective:
    """Make the negative perceptual distance of the last frame: LPIPS where its weights are, else ST-LPIPS.

    Raises:
        MissingExtraError: no weights are installed.
    """
    from ivideogpt.metrics.perceptual import load_perceptual

    distance = load_perceptual(network="alex")
    if model is not None:
        distance = distance.to(model.device)

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        frames = _last(rollout)
        with torch.inference_mode():
            return -distance(frames, goal.frame.to(frames).expand_as(frames))

    return objective


def reward_objective(model: WorldModel | None) -> Objective:
    """Make the mean reward of the steps; the goal picture is not read.

    Raises:
        UserError: the model has no reward head.
    """
    if model is not None and not model.config.heads.reward:
        raise UserError(
            f"the objective reward needs a reward head, and {model.config.name or 'this model'} has none; "
            "use another objective, or a checkpoint with such a head"
        )

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        if rollout.rewards is None:
            raise UserError("the objective reward needs a model that predicts rewards; use another objective")
        return rollout.rewards.mean(dim=1)

    return objective


def tokenizer_objective(model: WorldModel | None) -> Objective:
    """Make the negative mean squared distance between the code vectors of the last frame and of the goal.

    Both are encoded as context frames, so that their codes do not depend on the frames before them.

    Raises:
        UserError: the model has no tokenizer.
    """
    if model is None:
        raise UserError("the objective tokenizer needs a world model with a tokenizer; use another objective")
    model.require_tokens("the objective tokenizer")
    from ivideogpt.worldmodel.chunked_tokenizer import encode_context

    tokenizer = model.tokenizer

    def vectors(frames: Tensor) -> Tensor:
        codes, _ = encode_context(tokenizer, frames[:, None].to(model.device, model.dtype))
        return tokenizer.quantize.decode(codes[:, 0])

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        with torch.inference_mode():
            difference = vectors(_last(rollout)) - vectors(goal.frame[None])
        return -reduce(difference.float() ** 2, "k n d -> k", "mean")

    return objective


def classifier_objective(model: WorldModel | None, classifier: SuccessClassifier | None = None) -> Objective:
    """Make the logit of success of a frame, summed over the frames; the goal picture is not read.

    Source: VP2, ``classifier``; same. Its network is another one.

    Raises:
        UserError: there is no classifier, or it reads instructions.
    """
    if classifier is None:
        raise UserError(
            "the objective classifier needs a success classifier; train one (ivideogpt train-classifier) and give its "
            "folder by --classifier, or use another objective"
        )
    if classifier.config.words:
        raise UserError(
            f"the success classifier of {classifier.facts.task} reads instructions, and a planner has none; train one "
            "with --network.words 0"
        )
    if model is not None:
        classifier.to(model.device)

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        frames = rollout.frames_at(range(rollout.horizon))
        with torch.inference_mode():
            logits = classifier(rearrange(frames, "k t c h w -> (k t) c h w").to(classifier.device).float())
        return reduce(logits, "(k t) -> k", "sum", k=len(frames))

    return objective


def pusht_block_objective(model: WorldModel | None) -> Objective:
    """Make the negative distance in px of 64 between the block in the last frame and in the goal; turns count too.

    Poses are read from the pictures. A turn counts as the way of a point 8 px from the centre.
    """
    from ivideogpt.evaluation.pusht_metrics import locate_block

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        block = locate_block(torch.cat([_last(rollout).cpu(), goal.frame[None].cpu()]))
        turn = block.angle[:-1] - block.angle[-1]
        turn = torch.atan2(turn.sin(), turn.cos()).abs()
        return -((block.xy[:-1] - block.xy[-1]).norm(dim=1) + _TURN_RADIUS * turn)

    return objective


def pusht_agent_objective(model: WorldModel | None) -> Objective:
    """Make the negative distance in px of 64 between the agent in the last frame and in the goal."""
    from ivideogpt.evaluation.pusht_metrics import locate_agent

    def objective(rollout: Rollout, goal: Goal) -> Tensor:
        frames = torch.cat([_last(rollout).cpu(), goal.frame[None].cpu()])
        places = locate_agent(frames).xy
        return -(places[:-1] - places[-1]).norm(dim=1)

    return objective


def _last(rollout: Rollout) -> Tensor:
    """Return the last frames ``[k c h w]``."""
    return rearrange(rollout.frames_at([-1]), "k 1 c h w -> k c h w")
