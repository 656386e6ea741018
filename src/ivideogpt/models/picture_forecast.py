"""Forecast network of picture models: the next frame from the last ones and the action.

A small U-Net for frames with a still background. It reads the difference from the background, and draws a frame and a
mask that blends it over the background. A pointer action (a position in the frame) is read as maps of the offset to
that position from each patch. So the network is fully convolutional: it can be trained on crops and run on whole frames
of any size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.models.blocks import ChannelNorm, ResnetBlock

ActionKind = Literal["pointer", "numbers", "none"]
#: Brightness that is subtracted from the background before it is read, so that a white one is nearly zero.
_USUAL_BACKGROUND = 0.9
# Initial value of the copy mask before its sigmoid: few pixels are copied before training, most where they can move.
_RARE, _USUAL = -4.0, 1.0


@dataclass(frozen=True, kw_only=True)
class PictureNetConfig:
    """Sizes of the U-Net.

    Attributes:
        channels: of a frame.
        patch: side in px of a patch, one position of the fine grid; the coarse grid has twice that.
        width, deep_width: channels on the fine and on the coarse grid.
        blocks_in, blocks_deep, blocks_out: residual blocks on the fine grid, the coarse one, and the fine one again.
        copies: a second mask copies pixels of the last frame, so that still objects stay sharp.
        flow: the copied pixels come from displaced places of the last frame, so that moving objects stay sharp too.
    """

    channels: int = 3
    patch: int = 4
    width: int = 48
    deep_width: int = 96
    blocks_in: int = 1
    blocks_deep: int = 4
    blocks_out: int = 1
    copies: bool = False
    flow: bool = False

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range, or there is a flow without copies.
        """
        least = dict.fromkeys(("channels", "patch", "width", "deep_width"), 1)
        check_at_least(self, **least, blocks_in=0, blocks_deep=0, blocks_out=0)
        if self.flow and not self.copies:
            raise UserError("flow is true and copies false; the flow displaces copied pixels: set copies to true")

    @property
    def multiple(self) -> int:
        """The divisor of the sides of a frame, in px."""
        return 2 * self.patch


@dataclass(frozen=True, kw_only=True)
class PictureForecastConfig:
    """Inputs and sizes of a `PictureForecast`.

    Attributes:
        net: sizes of the U-Net.
        frames: frames of history.
        action: "pointer", a position in the frame in px (x to the right, y down); "numbers", ``action_dim`` numbers,
            read by every patch and once more on the coarse grid, as gains and shifts of its channels; "none".
        action_dim: numbers in an action; 2 for a pointer, 0 for none.
        pointer_radii: in px; each is the width of a Gaussian map around the pointer.
        pointer_reach: px; offsets to the pointer are divided by it.
    """

    net: PictureNetConfig = field(default_factory=PictureNetConfig)
    frames: int = 2
    action: ActionKind = "pointer"
    action_dim: int = 2
    pointer_radii: tuple[float, ...] = (3.0, 10.0)
    pointer_reach: float = 32.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: one is out of range, or the action's size does not fit its kind.
        """
        check_at_least(self, frames=1, action_dim=0, pointer_reach=1)
        expected = {"pointer": self.action_dim == 2, "numbers": self.action_dim >= 1, "none": self.action_dim == 0}
        if not expected[self.action]:
            raise UserError(
                f"action_dim is {self.action_dim} with action {self.action!r}; "
                "expected 2 for a pointer, at least 1 for numbers and 0 for none; change one of them"
            )

    @property
    def action_maps(self) -> int:
        """Channels of the action maps."""
        return 2 + len(self.pointer_radii) if self.action == "pointer" else self.action_dim


class _PictureNet(nn.Module):
    """U-Net with two grids from patches of pictures to a picture and a mask, blended over the background."""

    def __init__(self, config: PictureNetConfig, in_channels: int, numbers: int) -> None:
        """Create the layers for ``in_channels`` input maps and an action of ``numbers``.

        Residual blocks start close to the identity.
        """
        super().__init__()
        self.patch = config.patch
        width, deep = config.width, config.deep_width
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks_in = nn.ModuleList(ResnetBlock(width, width, 0) for _ in range(config.blocks_in))
        self.down = nn.Conv2d(width, deep, 2, stride=2)
        self.blocks_deep = nn.ModuleList(ResnetBlock(deep, deep, 0) for _ in range(config.blocks_deep))
        self.up = nn.Conv2d(deep, 4 * width, 1)
        self.blocks_out = nn.ModuleList(ResnetBlock(width, width, 0) for _ in range(config.blocks_out))
        self.norm = ChannelNorm(width)
        self.gains = nn.Linear(numbers, 2 * deep) if numbers else None
        self.copies, self.flow = config.copies, config.flow
        maps = config.channels + 1 + 2 * config.flow + config.copies
        self.head = nn.Conv2d(width, maps * config.patch**2, 3, padding=1)
        if config.copies:
            assert self.head.bias is not None
            self.head.bias.data[-(config.patch**2) :] = _USUAL if config.flow else _RARE
        for block in (*self.blocks_in, *self.blocks_deep, *self.blocks_out):
            assert isinstance(block, ResnetBlock)
            block.conv2.weight.data.mul_(0.3)

    def forward(self, maps: Tensor, numbers: Tensor | None, background: Tensor, last: Tensor) -> Tensor:
        """Draw a picture.

        Args:
            maps: ``[b in h/patch w/patch]``.
            numbers: an action ``[b a]`` that is no pointer, or None.
            background: ``[b c h w]``.
            last: picture ``[b c h w]``.
        """
        fine = self.stem(maps.contiguous(memory_format=torch.channels_last))
        for block in self.blocks_in:
            fine = block(fine)
        coarse = self.down(fine)
        if self.gains is not None and numbers is not None:
            gain, shift = self.gains(numbers)[:, :, None, None].chunk(2, dim=1)
            coarse = coarse * (1 + gain) + shift
        for block in self.blocks_deep:
            coarse = block(coarse)
        fine = fine + F.pixel_shuffle(self.up(coarse), 2)
        for block in self.blocks_out:
            fine = block(fine)
        drawn = F.pixel_shuffle(self.head(F.silu(self.norm(fine))), self.patch).float()
        channels = background.shape[1]
        picture, mask = drawn[:, :channels], drawn[:, channels : channels + 1].sigmoid()
        blended = background + mask * (picture - background)
        if not self.copies:
            return blended
        copied = displaced(last, drawn[:, channels + 1 : channels + 3]) if self.flow else last
        return blended + drawn[:, -1:].sigmoid() * (copied - blended)


def displaced(pictures: Tensor, flow: Tensor) -> Tensor:
    """Move pixels: pixel (x, y) takes the colour at (x, y) + ``flow`` [b 2 h w] px of ``pictures`` [b c h w]."""
    h, w = pictures.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=flow.device) + 0.5, torch.arange(w, device=flow.device) + 0.5, indexing="ij"
    )
    places = torch.stack([(x + flow[:, 0]) * (2 / w) - 1, (y + flow[:, 1]) * (2 / h) - 1], dim=-1)
    return F.grid_sample(pictures.float(), places, padding_mode="border", align_corners=False)


class PictureForecast(nn.Module):
    """Next picture from the last ones, the still background and the action.

    Source: ours; it stands where thuml/iVideoGPT has only the transformer.
    """

    def __init__(self, config: PictureForecastConfig) -> None:
        """Create the U-Net; its input is the history, the background and the maps of the action."""
        super().__init__()
        self.config = config
        net = config.net
        in_channels = (config.frames + 1) * net.channels * net.patch**2 + config.action_maps
        self.net = _PictureNet(net, in_channels, config.action_dim if config.action == "numbers" else 0)

    def forward(self, frames: Tensor, background: Tensor, actions: Tensor | None = None) -> Tensor:
        """Draws the picture after ``frames``.

        Args:
            frames: float ``[b k c h w]`` in [0, 1], the last ``config.frames`` ones, oldest first.
            background: float ``[b c h w]`` or ``[1 c h w]`` in [0, 1].
            actions: float ``[b a]`` that leads to the next picture; a pointer's in px from the upper left corner of
                ``frames``; None where the model takes none.

        Returns:
            float ``[b c h w]``, not clamped.

        Raises:
            UserError: a shape does not fit the configuration.
        """
        net, (b, k, c, h, w) = self.config.net, frames.shape
        if k != self.config.frames or c != net.channels or h % net.multiple or w % net.multiple:
            raise UserError(
                f"frames have shape {list(frames.shape)}; expected [b {self.config.frames} {net.channels} h w] with "
                f"sides that are multiples of {net.multiple} px; pass the last frames, resized or padded"
            )
        background = background.expand(b, -1, -1, -1)
        change = rearrange(frames - background[:, None], "b k c h w -> b (k c) h w")
        maps = [F.pixel_unshuffle(change, net.patch)]
        if self.config.action_maps:
            maps.append(self._action_maps(actions, b, h // net.patch, w // net.patch))
        maps.append(F.pixel_unshuffle(background - _USUAL_BACKGROUND, net.patch))
        numbers = actions if self.config.action == "numbers" else None
        return self.net(torch.cat(maps, dim=1), numbers, background, frames[:, -1])

    def _action_maps(self, actions: Tensor | None, b: int, rows: int, columns: int) -> Tensor:
        """Return the action as maps over the fine grid: ``[b maps rows columns]``."""
        if actions is None or actions.shape != (b, self.config.action_dim):
            shape = None if actions is None else list(actions.shape)
            raise UserError(
                f"actions have shape {shape}; expected [{b} {self.config.action_dim}], one row for each history"
            )
        if self.config.action == "numbers":
            return actions[:, :, None, None].expand(-1, -1, rows, columns)
        middle, patch = (self.config.net.patch - 1) / 2, self.config.net.patch
        x = torch.arange(columns, device=actions.device, dtype=actions.dtype) * patch + middle
        y = torch.arange(rows, device=actions.device, dtype=actions.dtype) * patch + middle
        right = (actions[:, 0, None, None] - x).expand(-1, rows, -1)
        down = (actions[:, 1, None, None] - y[:, None]).expand(-1, -1, columns)
        squared, reach = right**2 + down**2, self.config.pointer_reach
        near = [torch.exp(-squared / (2 * radius**2)) for radius in self.config.pointer_radii]
        return torch.stack([right / reach, down / reach, *near], dim=1)
