"""What a checkpoint says about itself beyond the shapes of its two networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ivideogpt.core.errors import UserError
from ivideogpt.models.heads import HeadsConfig


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """The part of ``config.json`` that the official format has no place for.

    Attributes:
        name: of the model.
        context_frames: frames a prompt holds.
        clip_frames: frames of the clips it was trained on, context included; None: unknown.
        goal_conditioned: the context is [goal, last frame].
        symlog_rewards: the reward head was trained on symlog(reward).
        action_mean, action_std: of raw actions; ``normalize_actions`` applies them. Empty: raw actions are model units.
        frame_stride: recorded frames from one frame of a clip to the next.
        heads: which heads there are.
        metadata: plain JSON values for people: training data, seconds, held-out results.
    """

    name: str = ""
    context_frames: int = 2
    clip_frames: int | None = None
    goal_conditioned: bool = False
    symlog_rewards: bool = False
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    frame_stride: int = 1
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError where the parts contradict each other."""
        for label in ("action_mean", "action_std"):
            count = len(getattr(self, label))
            if count not in (0, self.heads.action_dim):
                raise UserError(f"{label} has {count} numbers; expected {self.heads.action_dim}, the action dimension")
        if not all(map(math.isfinite, self.action_mean)):
            raise UserError(f"action_mean is {list(self.action_mean)}; expected only finite numbers")
        if not all(0 < std < math.inf for std in self.action_std):
            raise UserError(f"action_std is {list(self.action_std)}; expected only finite numbers above 0")
        for label in ("context_frames", "frame_stride", "clip_frames"):
            if getattr(self, label) is not None and getattr(self, label) < 1:
                raise UserError(f"{label} is {getattr(self, label)}; expected at least 1")
        if self.goal_conditioned and self.context_frames != 2:
            raise UserError(f"a goal-conditioned model has 2 context frames (goal, last); got {self.context_frames}")
