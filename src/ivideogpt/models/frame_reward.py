"""Reward network of picture models: reads reward and success from a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.models.blocks import ChannelNorm, ResnetBlock

Readout = Literal["sum", "places"]
#: Channels of a patch, and numbers after it, in the readout by places.
_PLACE_WIDTH, _HIDDEN = 16, 128
#: A known reward is read divided by this.
_USUAL_REWARD = 10.0


class KnownReward(NamedTuple):
    """A frame whose reward is known.

    Attributes:
        frames: float ``[b c h w]`` in [0, 1].
        rewards: float32 ``[b]`` in reward units, NaN where the reward is unknown.
    """

    frames: Tensor
    rewards: Tensor

    def select(self, rows: Tensor) -> KnownReward:
        """Return the rows int64 ``[k]``, in any order and any number."""
        return KnownReward(*(x[rows.to(x.device)] for x in self))

    def or_else(self, earlier: KnownReward) -> KnownReward:
        """Return these rows, and those of ``earlier`` where the reward is unknown here."""
        unknown = self.rewards.isnan()
        frames = torch.where(unknown[:, None, None, None], earlier.frames, self.frames)
        return KnownReward(frames, torch.where(unknown, earlier.rewards, self.rewards))


@dataclass(frozen=True, kw_only=True)
class FrameRewardConfig:
    """Sizes of a `FrameReward`.

    Attributes:
        channels: of a frame.
        patch: side of a patch in px.
        width: channels of a patch.
        blocks: residual blocks.
        readout: "sum" adds the contributions of the patches, wherever they are; it suits rewards such as the covered
            share of a goal. "places" reads all patches at their places; it suits a camera that stands still.
        resolution: height and width of a frame in px, for "places"; 0 for "sum".
        symlog: the network predicts sign(reward) ln(1 + |reward|), so that small rewards count too.
        change: a second network of these sizes predicts the change since an earlier frame with a known reward.
        success_above: a reward above this is a success; None: success is not predicted.
    """

    channels: int = 3
    patch: int = 4
    width: int = 32
    blocks: int = 2
    readout: Readout = "sum"
    resolution: int = 0
    symlog: bool = False
    change: bool = False
    success_above: float | None = None

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range, or the resolution does not fit the readout.
        """
        check_at_least(self, channels=1, patch=1, width=1, blocks=0, resolution=0)
        if (self.readout == "places") != bool(self.resolution) or self.resolution % self.patch:
            raise UserError(
                f"resolution is {self.resolution} with readout {self.readout!r}; expected 0 for 'sum' and a multiple "
                f"of {self.patch} px for 'places'"
            )


class _FrameReader(nn.Module):
    """A small network from maps of a frame to one number, 0 before training."""

    def __init__(self, config: FrameRewardConfig, pictures: int, numbers: int = 0) -> None:
        """Create the layers for ``pictures`` pictures, and for ``numbers`` that every patch reads."""
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(pictures * config.channels * config.patch**2 + numbers, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(ResnetBlock(config.width, config.width, 0) for _ in range(config.blocks))
        self.norm = ChannelNorm(config.width)
        self.head: nn.Conv2d | nn.Sequential
        if config.readout == "sum":
            self.head = last = nn.Conv2d(config.width, 1, 1)
        else:
            last = nn.Linear(_HIDDEN, 1)
            self.head = nn.Sequential(
                nn.Conv2d(config.width, _PLACE_WIDTH, 1),
                nn.Flatten(),
                nn.Linear(_PLACE_WIDTH * (config.resolution // config.patch) ** 2, _HIDDEN),
                nn.SiLU(),
                last,
            )
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def read(self, pictures: Sequence[Tensor], numbers: Tensor | None = None) -> Tensor:
        """Return a number for each row ``[b]``.

        Args:
            pictures: each ``[b c h w]``.
            numbers: ``[b n]``, or None.

        Raises:
            UserError: a side is no multiple of ``config.patch``.
        """
        maps, patch = torch.cat(list(pictures), dim=1).to(self.stem.weight.dtype), self.config.patch
        if maps.shape[-2] % patch or maps.shape[-1] % patch:
            shape = list(pictures[0].shape)
            raise UserError(
                f"frames have shape {shape}; expected sides that are multiples of {patch} px; resize or pad them"
            )
        x = F.pixel_unshuffle(maps, patch)
        if numbers is not None:
            x = torch.cat([x, numbers.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[-2:])], dim=1)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return self.head(F.silu(self.norm(x))).float().flatten(1).sum(dim=1)


class FrameReward(_FrameReader):
    """Predict the reward of a frame from its patches.

    Source: ours; thuml/iVideoGPT reads the reward from the last token of a frame.
    """

    def __init__(self, config: FrameRewardConfig) -> None:
        """Create the layers; before training every frame has the reward 0."""
        super().__init__(config, pictures=2)

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
        value = self.value(frames, background)
        return value.sign() * torch.expm1(value.abs()) if self.config.symlog else value

    def value(self, frames: Tensor, background: Tensor) -> Tensor:
        """Predict what the network is trained on, the reward or its symlog ``[b]``; arguments as in `forward`."""
        background = background.expand(len(frames), -1, -1, -1)
        return self.read([frames - background, background - 1])

    def target(self, rewards: Tensor) -> Tensor:
        """Return what `value` should be for rewards ``[..]``, of the same shape."""
        return symlog(rewards) if self.config.symlog else rewards

    def success(self, rewards: Tensor) -> Tensor:
        """Return True for rewards ``[..]`` of a success: bool ``[..]``.

        Raises:
            UserError: the model does not predict success.
        """
        if self.config.success_above is None:
            raise UserError("success_above is None; expected a reward above which a task is solved; set it")
        return rewards > self.config.success_above


class RewardChange(_FrameReader):
    """Predict the change of the reward since an earlier frame whose reward is known."""

    def __init__(self, config: FrameRewardConfig) -> None:
        """Create the layers; before training no reward changes."""
        super().__init__(config, pictures=4, numbers=2)

    def forward(self, frames: Tensor, earlier: KnownReward, background: Tensor) -> Tensor:
        """Return the change ``[b]`` in reward units.

        Args:
            frames: float ``[b c h w]`` in [0, 1].
            earlier: frames and rewards of the same rows; a reward of NaN gives NaN.
            background: float ``[b c h w]`` or ``[1 c h w]`` in [0, 1].
        """
        background = background.expand(len(frames), -1, -1, -1)
        pictures = [frames - background, earlier.frames - background, frames - earlier.frames, background - 1]
        rewards = earlier.rewards.float()
        return self.read(pictures, torch.stack([symlog(rewards), rewards / _USUAL_REWARD], dim=1))


def symlog(values: Tensor) -> Tensor:
    """Return sign(x) ln(1 + |x|) of each value."""
    return values.sign() * torch.log1p(values.abs())
