"""Reward and success read from a picture: how much of a goal is covered, say, is a sum over places."""

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
        channels: of a picture.
        patch: side in px of the squares that become one place.
        width: channels of the places.
        blocks: residual blocks.
        success_above: a reward above this is a success; None: there is no success.
    """

    channels: int = 3
    patch: int = 4
    width: int = 32
    blocks: int = 2
    success_above: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError where a size cannot be."""
        check_at_least(self, channels=1, patch=1, width=1, blocks=0)


class FrameReward(nn.Module):
    """Reward of a picture before its background: the sum of what each place adds.

    Source: ours; it stands where thuml/iVideoGPT reads the reward off the last token of a frame.
    """

    def __init__(self, config: FrameRewardConfig) -> None:
        """Starts at a reward of 0 for every picture."""
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
        """Reads the reward.

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
        return self.head(F.silu(self.norm(x))).sum(dim=(1, 2, 3))

    def success(self, rewards: Tensor) -> Tensor:
        """Return True for rewards ``[..]`` of a success: bool ``[..]``.

        Raises:
            UserError: the model knows no success.
        """
        if self.config.success_above is None:
            raise UserError("success_above is None; expected a reward above which a task is solved; set it")
        return rewards > self.config.success_above
