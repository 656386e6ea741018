"""The settings of a world model beyond the shapes of its networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ivideogpt.core.errors import UserError
from ivideogpt.core.layout import TokenLayout
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.tokenizer_config import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """The meaning of the numbers of a raw action; everything empty: unknown.

    Attributes:
        names: one a number.
        low, high: the range of each in raw units.
        units: one a number; "" for a plain number.
        pointer: the two numbers are a point of the frame: ``low`` is its left and upper edge, ``high`` its right and
            lower one.
    """

    names: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    pointer: bool = False


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """The part of ``config.json`` that the official format has no place for.

    Attributes:
        name: name of the model.
        context_frames: frames of the context; one more than the tokenizer's where the last one is a lead frame (see
            `TokenLayout`).
        clip_frames: frames of the training clips, context included; None: unknown.
        goal_conditioned: the context is [goal, last frame].
        symlog_rewards: the reward head was trained on symlog(reward).
        action_mean, action_std: of raw actions; ``normalize_actions`` applies them. Empty: raw actions are model units.
        action_space: names, ranges and units of raw actions.
        sampling: the sampling rule of every command and function that is given none.
        frame_stride: recorded frames from one frame of a clip to the next.
        heads: the layers around the transformer.
        metadata: plain JSON values for people: training data, seconds, held-out results.
    """

    name: str = ""
    context_frames: int = 2
    clip_frames: int | None = None
    goal_conditioned: bool = False
    symlog_rewards: bool = False
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    action_space: ActionSpace = field(default_factory=ActionSpace)
    sampling: Sampling = field(default_factory=Sampling)
    frame_stride: int = 1
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    metadata: dict[str, Any] = field(default_factory=dict)

    def layout(self, tokenizer: TokenizerConfig) -> TokenLayout:
        """Return the layout of the token sequence around a tokenizer.

        Raises:
            UserError: the tokenizer takes another number of context frames.
        """
        heads, lead = self.heads, int(self.heads.action_tokens and tokenizer.conditional)
        if self.context_frames != tokenizer.context_frames + lead:
            raise UserError(
                f"the model takes {self.context_frames} context frames and its tokenizer {tokenizer.context_frames}; "
                f"expected {tokenizer.context_frames + lead} for the model"
            )
        if not heads.action_tokens:
            return tokenizer.layout
        if lead and tokenizer.context_frames != 1:
            raise UserError(
                f"the tokenizer takes {tokenizer.context_frames} context frames; expected 1, as actions are tokens"
            )
        return replace(
            tokenizer.layout,
            action_tokens=heads.action_dim,
            action_bins=heads.action_bins,
            shared_ids=not tokenizer.conditional,
            lead_frames=lead,
        )

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UserError: they contradict each other, or a number is out of range.
        """
        for label in ("action_mean", "action_std"):
            count = len(getattr(self, label))
            if count not in (0, self.heads.action_dim):
                raise UserError(f"{label} has {count} numbers; expected {self.heads.action_dim}, the action dimension")
        for label in ("names", "low", "high", "units"):
            count = len(getattr(self.action_space, label))
            if count not in (0, self.heads.action_dim):
                raise UserError(
                    f"action_space has {count} {label}; expected {self.heads.action_dim}, the action dimension"
                )
        if not all(low < high for low, high in zip(self.action_space.low, self.action_space.high, strict=False)):
            raise UserError("action_space has a low that is not below its high; expected ranges")
        if self.action_space.pointer and (self.heads.action_dim != 2 or not self.action_space.low):
            raise UserError("action_space is a pointer; expected actions of 2 numbers with low and high")
        if not all(map(math.isfinite, self.action_mean)):
            raise UserError(f"action_mean is {list(self.action_mean)}; expected only finite numbers")
        if not all(0 < std < math.inf for std in self.action_std):
            raise UserError(f"action_std is {list(self.action_std)}; expected only finite numbers above 0")
        for label in ("context_frames", "frame_stride", "clip_frames"):
            if getattr(self, label) is not None and getattr(self, label) < 1:
                raise UserError(f"{label} is {getattr(self, label)}; expected at least 1")
        if self.goal_conditioned and self.heads.action_tokens:
            raise UserError("a goal-conditioned model has no action between its context frames; expected other actions")
        if self.goal_conditioned and self.context_frames != 2:
            raise UserError(f"a goal-conditioned model has 2 context frames (goal, last); got {self.context_frames}")
