"""Dynamics of picture models: the next frame from the last frames and the action, without tokens.

A convolutional forecast draws the next frame. Rigid objects are read from it and drawn again, so that errors of shape
do not grow over a rollout. The reward is read from the frame, or from its difference from an earlier frame whose reward
is known. Everything is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.models.frame_reward import FrameReward, FrameRewardConfig, KnownReward, RewardChange
from ivideogpt.models.picture_forecast import PictureForecast, PictureForecastConfig
from ivideogpt.models.sprites import SpriteProjection, SpriteProjectionConfig

#: A pixel that differs from a background by this much, in [0, 1], does not show it.
_APART = 0.1
#: Least share of frames in which a pixel shows its background, and in which it does not.
_RARELY = 0.02


@dataclass(frozen=True, kw_only=True)
class PictureDynamicsConfig:
    """The networks of a `PictureDynamics`.

    Attributes:
        resolution: height and width of a frame in pixels.
        scenes: backgrounds; the scene is read from each frame.
        forecast: the network that draws the next frame.
        pointer_scale: pixels of the frame for each model unit of a pointer action.
        pointer_offset: pixel (x and y) to which a pointer action of 0 model units points.
        sprites: rigid objects that are read from a frame and drawn again, or None.
        reward: the network that reads the reward from a frame, or None.
    """

    resolution: int = 64
    scenes: int = 1
    forecast: PictureForecastConfig = field(default_factory=PictureForecastConfig)
    pointer_scale: float = 32.0
    pointer_offset: float = 32.0
    sprites: SpriteProjectionConfig | None = None
    reward: FrameRewardConfig | None = None

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: a size is out of range, or the resolution does not fit the forecast.
        """
        check_at_least(self, resolution=1, scenes=1)
        multiple = self.forecast.net.multiple
        if self.resolution % multiple:
            raise UserError(
                f"resolution is {self.resolution}; expected a multiple of {multiple} px, the grid of the forecast"
            )


def likeliest_scene(frames: Tensor, backgrounds: Tensor, steadiness: Tensor) -> Tensor:
    """Return the number of the scene that each frame most likely shows, int64 ``[b]``; pixels count independently.

    Args:
        frames: float ``[b c h w]`` in [0, 1].
        backgrounds: float ``[s c h w]`` in [0, 1].
        steadiness: float ``[s h w]``, the share of a scene's frames in which a pixel shows the background.
    """
    likely, scores = steadiness.clamp(_RARELY, 1 - _RARELY), []
    for background, share in zip(backgrounds, likely, strict=True):
        shows = shows_background(frames, background).float()
        scores.append((shows * share.log() + (1 - shows) * (1 - share).log()).sum(dim=(1, 2)))
    return torch.stack(scores, dim=1).argmax(dim=1)


def shows_background(frames: Tensor, background: Tensor) -> Tensor:
    """Return where frames ``[b c h w]`` show a background ``[c h w]``: bool ``[b h w]``."""
    return (frames - background).abs().amax(dim=1) < _APART


class PictureStep(NamedTuple):
    """One step of a `PictureDynamics`.

    Attributes:
        frames: float32 ``[b c h w]`` in [0, 1].
        rewards: float32 ``[b]`` in reward units, or None without a reward head.
        terminations: float32 ``[b]``, 1 where the reward is that of a success and else 0, or None where the reward head
            has no threshold of success.
        poses: float32 ``[b s 3]``, the poses of s rigid objects in the frame, or None without them.
    """

    frames: Tensor
    rewards: Tensor | None
    terminations: Tensor | None
    poses: Tensor | None = None


class PictureDynamics(nn.Module):
    """Draw the next frame from the last frames and the action.

    Attributes:
        config: which networks exist.
        background: float ``[s c h w]`` in [0, 1], the still part of the frames of s scenes; saved with the weights.
        steadiness: float ``[s h w]``, see `likeliest_scene`; only with several scenes.

    Source: ours; it takes the place of tokenizer and transformer of thuml/iVideoGPT.
    """

    background: Tensor
    steadiness: Tensor

    def __init__(self, config: PictureDynamicsConfig) -> None:
        """Create the networks with new weights and a black background."""
        super().__init__()
        self.config = config
        size = config.resolution
        self.register_buffer("background", torch.zeros(config.scenes, config.forecast.net.channels, size, size))
        if config.scenes > 1:
            self.register_buffer("steadiness", torch.ones(config.scenes, size, size))
        self.forecast = PictureForecast(config.forecast)
        self.sprites = SpriteProjection(config.sprites) if config.sprites else None
        self.reward = FrameReward(config.reward) if config.reward else None
        self.reward_change = RewardChange(config.reward) if config.reward and config.reward.change else None

    def forward(
        self,
        history: Tensor,
        actions: Tensor | None,
        poses: Tensor | None = None,
        earlier: KnownReward | None = None,
    ) -> PictureStep:
        """Draw the frame after ``history``.

        Args:
            history: float ``[b k c h w]`` in [0, 1], oldest first, at least as many frames as the forecast reads.
            actions: float ``[b a]`` in model units that lead to the next frame, or None for an action-free model.
            poses: float ``[b s 3]`` of the rigid objects in the last frame of ``history``; None: they are read from it.
            earlier: frame and reward of the last transition whose reward is known, or None; see `read_reward`.
        """
        history = history[:, -self.config.forecast.frames :]
        background = self.background_of(history[:, -1])
        if self.sprites is not None and poses is None:
            poses = torch.stack(self.sprites.read(history[:, -1], background)[0], dim=1)

        # forecast, then whole objects where it shows them
        frames = self.draw(history, actions, background)
        next_poses = None
        if self.sprites is not None and poses is not None:
            read, _ = self.sprites.read(frames, background, poses.unbind(dim=1))
            frames = self.sprites.draw(read, background).clamp(0, 1)
            next_poses = torch.stack(read, dim=1)

        rewards, terminations = self.read_reward(frames, background, earlier)
        return PictureStep(frames, rewards, terminations, next_poses)

    def draw(self, history: Tensor, actions: Tensor | None, background: Tensor | None = None) -> Tensor:
        """Draw the forecast's frame ``[b c h w]`` in [0, 1], before rigid objects are made whole; see `forward`."""
        background = self.background_of(history[:, -1]) if background is None else background
        if actions is not None and self.config.forecast.action == "pointer":  # the pointer in pixels
            actions = self.config.pointer_offset + self.config.pointer_scale * actions
        return self.forecast(history, background, actions).clamp(0, 1)

    def background_of(self, frames: Tensor) -> Tensor:
        """Return the background of each of ``frames`` [b c h w]: ``[b c h w]``, or ``[1 c h w]`` with one scene."""
        return self.background if self.config.scenes == 1 else self.background[self.scene_of(frames)]

    def scene_of(self, frames: Tensor) -> Tensor:
        """Return the number of the scene of each of ``frames`` [b c h w], int64 ``[b]``."""
        if self.config.scenes == 1:
            return torch.zeros(len(frames), dtype=torch.long, device=frames.device)
        return likeliest_scene(frames, self.background, self.steadiness)

    def read_reward(
        self, frames: Tensor, background: Tensor | None = None, earlier: KnownReward | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the rewards ``[b]`` of frames ``[b c h w]`` and their success, 1 or 0 ``[b]``; see `PictureStep`.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            background: of these frames; None: it is read from them.
            earlier: an earlier frame of each row and its reward. Where the reward is known and the model has a network
                for its change, the change is added to it; else the reward is read from the frame alone.
        """
        if self.reward is None:
            return None, None
        background = self.background_of(frames) if background is None else background
        rewards = self.reward(frames, background)
        if earlier is not None and self.reward_change is not None:
            changed = earlier.rewards + self.reward_change(frames, earlier, background)
            rewards = torch.where(earlier.rewards.isnan(), rewards, changed)
        if self.reward.config.success_above is None:
            return rewards, None
        return rewards, self.reward.success(rewards).float()
