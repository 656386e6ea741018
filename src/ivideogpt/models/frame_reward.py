"""Reward network of picture models: reads reward and success from a frame, as a sum over its patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.models.blocks import ChannelNorm, ResnetBlock


@dataclass(frozen=True, kw_only=True)
class FrameRewardConfig:
    """Sizes of a `FrameReward`.

    Attributes:
        channels: of a frame.
        patch: side of a patch in px.
        width: channels of a patch.
        blocks: residual blocks.
        scale: of the rewards, in reward units: the network predicts the reward divided by it.
        success_above: a reward above this is a success; None: success is not predicted.
    """

    channels: int = 3
    patch: int = 4
    width: int = 32
    blocks: int = 2
    scale: float = 1.0
    success_above: float | None = None

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range.
        """
        check_at_least(self, channels=1, patch=1, width=1, blocks=0)
        if not self.scale > 0:
            raise UserError(f"scale is {self.scale}; expected a number above 0")


class FrameReward(nn.Module):
    """Predict the reward of a frame as the sum of the contributions of its patches.

    A sum suits rewards such as the covered share of a goal.

    Source: ours; thuml/iVideoGPT reads the reward from the last token of a frame.
    """

    def __init__(self, config: FrameRewardConfig) -> None:
        """Create the layers; before training every frame has the reward 0."""
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(2 * config.channels * config.patch**2, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(ResnetBlock(config.width, config.width, 0) for _ in range(config.blocks))
        self.norm = ChannelNorm(config.width)
        self.head = nn.Conv2d(config.width, 1, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, frames: Tensor, background: Tensor) -> Tensor:
        """Predict the reward.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            background: float ``[b c h w]`` or ``[1 c h w]`` in [0, 1].

        Returns:
            float ``[b]`` in reward units.

        Raises:
            UserError: a side is no multiple of ``config.patch``.
        """
        if frames.shape[-2] % self.config.patch or frames.shape[-1] % self.config.patch:
            raise UserError(
                f"frames have shape {list(frames.shape)}; expected sides that are multiples of {self.config.patch} px; "
                "resize or pad them"
            )
        background = background.expand(len(frames), -1, -1, -1)
        x = F.pixel_unshuffle(torch.cat([frames - background, background - 1], dim=1), self.config.patch)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return self.head(F.silu(self.norm(x))).float().sum(dim=(1, 2, 3)) * self.config.scale

    def success(self, rewards: Tensor) -> Tensor:
        """Return True for rewards ``[..]`` of a success: bool ``[..]``.

        Raises:
            UserError: the model does not predict success.
        """
        if self.config.success_above is None:
            raise UserError("success_above is None; expected a reward above which a task is solved; set it")
        return rewards > self.config.success_above
