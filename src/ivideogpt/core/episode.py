"""Recorded episodes (``Episode``) and training batches (``Clip``).

Time convention, here and in every store: ``actions[t]``, ``rewards[t]`` and ``terminated[t]`` belong to the
transition from frame t to frame t + 1. The last row has no transition: it is padding, zero and never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ivideogpt.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded trajectory of t frames.

    Attributes:
        frames: uint8 ``[t h w c]``, RGB, 0 to 255.
        actions: float32 ``[t a]`` in the units of the robot or environment (raw), or None. Row t leads from
            frame t to t + 1; the last row is padding.
        rewards: float32 ``[t]`` or None, same convention.
        terminated: bool ``[t]`` or None, same convention.
        state: float32 ``[t s]`` or None: state of the simulator at frame t (no transition, every row counts).
        key: name of the episode, unique in its dataset.
        split: "train", "test" or another name.
        meta: plain JSON values, such as the source.
    """

    frames: np.ndarray
    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    state: np.ndarray | None = None
    key: str = ""
    split: str = "train"
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise UserError if shapes or types are wrong, or a number is not finite."""
        name = f"episode {self.key!r}" if self.key else "an episode"
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise UserError(
                f"{name} has frames of type {self.frames.dtype} and shape {list(self.frames.shape)}; "
                "expected uint8 [t h w 3]"
            )
        for label in ("actions", "rewards", "terminated", "state"):
            value = getattr(self, label)
            if value is None:
                continue
            if len(value) != len(self.frames):
                raise UserError(
                    f"{name} has {len(value)} rows of {label} for {len(self.frames)} frames; expected one a frame"
                )
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                row = int(np.argwhere(~np.isfinite(value))[0][0])
                raise UserError(f"{name} has NaN or infinity in {label} at frame {row}; remove or repair the episode")

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    @property
    def instruction(self) -> str:
        """The task in words, from ``meta``; "" where there is none."""
        return str(self.meta.get("instruction") or self.meta.get("text") or "")

    def reward_before(self, frame: int) -> float:
        """Return the reward of the transition to a frame; NaN for frame 0 and without rewards."""
        return float("nan") if self.rewards is None or frame < 1 else float(self.rewards[frame - 1])

    def window(self, start: int, length: int) -> Episode:
        """Return frames ``start`` to ``start + length`` with their rows; the last action row becomes padding again."""
        stop = start + length
        if start < 0 or length < 1 or stop > len(self):
            raise UserError(f"frames {start} to {stop} were asked of episode {self.key!r}, which has {len(self)}")

        def cut(value: np.ndarray | None, transition: bool) -> np.ndarray | None:
            if value is None:
                return None
            rows = value[start:stop].copy()
            if transition:
                rows[-1] = 0
            return rows

        return replace(
            self,
            frames=self.frames[start:stop],
            actions=cut(self.actions, True),
            rewards=cut(self.rewards, True),
            terminated=cut(self.terminated, True),
            state=cut(self.state, False),
        )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A batch of training windows.

    Attributes:
        frames: float32 ``[b t c h w]`` in [0, 1].
        actions: float32 ``[b t a]`` in the units the model is trained on, or None; ``actions[:, t]`` leads from
            frame t to t + 1, the last row is padding.
        context_frames: number of context frames among the t frames.
        rewards: float32 ``[b t]`` or None, same convention as the actions.
        frame_index: int64 ``[b t]`` or None: number of each frame in its episode.
        pad_mask: bool ``[b t]`` or None: True where an episode was too short and its last used frame is repeated.
        action_mask: bool ``[b t a]`` or None: True where ``actions`` holds a recorded number; False in rows without a
            next frame and in the padding of narrower action spaces.
        embodiment: int64 ``[b]`` or None: id of the robot in its mixture.
    """

    frames: torch.Tensor
    actions: torch.Tensor | None = None
    context_frames: int = 2
    rewards: torch.Tensor | None = None
    frame_index: torch.Tensor | None = None
    pad_mask: torch.Tensor | None = None
    action_mask: torch.Tensor | None = None
    embodiment: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Clip:
        """Return the clip on ``device``."""
        tensors = {label: value for label, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{label: value.to(device) for label, value in tensors.items()})
