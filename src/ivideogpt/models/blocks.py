"""Convolutional blocks of the autoencoders.

Source: the diffusers VQModel that thuml/iVideoGPT builds on (same arithmetic and parameter names).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.models.weight_cache import WeightCache

NORM_EPS = 1e-6


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, independent of other pixels."""

    def __init__(self, channels: int) -> None:
        """Create one gain and one bias for each of ``channels``."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b c h w]``; same shape."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], self.weight, self.bias, NORM_EPS)
        return y.permute(0, 3, 1, 2)


def make_norm(channels: int, groups: int) -> nn.Module:
    """Return a group norm with ``groups``, or a norm of each pixel over its channels where ``groups`` is 0."""
    return nn.GroupNorm(groups, channels, eps=NORM_EPS) if groups else ChannelNorm(channels)


class ResnetBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, with a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        """Create the layers; the shortcut is a 1x1 convolution where the channel counts differ."""
        super().__init__()
        self.norm1 = make_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b in h w]`` to ``[b out h w]``."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.conv_shortcut(x) + y


class Downsample(nn.Module):
    """Downsampling by 2: one row and column of zeros at the end, then a stride-2 convolution."""

    def __init__(self, channels: int) -> None:
        """Create the layers; the channel count does not change."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b c h w]`` to ``[b c h/2 w/2]``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Upsampling by 2: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        """Create the layers; the channel count does not change."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self._quarters: WeightCache[tuple[Tensor, ...]] = WeightCache()

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b c h w]`` to ``[b c 2h 2w]``."""
        if torch.is_inference_mode_enabled() and x.device.type == "cpu":
            return self._by_quarters(x)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def _by_quarters(self, x: Tensor) -> Tensor:
        """Compute the same with 16 products instead of 36.

        The nine neighbours of an upsampled pixel have only four different values. So the pixels of even and odd rows
        and columns each have a kernel of side 2, whose weights are sums of the original ones.
        """
        rows, channels, height, width = x.shape
        out = torch.empty((rows, channels, 2 * height, 2 * width), dtype=x.dtype, memory_format=torch.channels_last)
        kernels = self._quarters.get(self.conv.weight, "quarters", _quarter_kernels)
        for index, kernel in enumerate(kernels):
            down, right = divmod(index, 2)
            y = F.conv2d(x, kernel, self.conv.bias, padding=1)
            out[:, :, down::2, right::2] = y[:, :, down : down + height, right : right + width]
        return out


def _quarter_kernels(weight: Tensor) -> tuple[Tensor, ...]:
    """Return kernels ``[out in 2 2]`` for (even, even), (even, odd), (odd, even), (odd, odd) rows and columns."""

    def halves(x: Tensor, dim: int) -> list[Tensor]:
        first, second, third = x.unbind(dim)
        return [torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)]

    quarters = [quarter for half in halves(weight, 2) for quarter in halves(half, 3)]
    return tuple(quarter.contiguous(memory_format=torch.channels_last) for quarter in quarters)


class DownBlock(nn.Module):
    """Residual blocks, then a downsampler on all but the last level."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, groups: int, downsample: bool) -> None:
        """Create ``num_layers`` residual blocks."""
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in zip(widths, widths[1:], strict=False))
        self.downsamplers = nn.ModuleList([Downsample(out_channels)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b in h w]`` to ``[b out h/2 w/2]``, or to the same size on the last level."""
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks, then an upsampler on all but the last level."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, groups: int, upsample: bool) -> None:
        """Create ``num_layers`` residual blocks."""
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in zip(widths, widths[1:], strict=False))
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b in h w]`` to ``[b out 2h 2w]``, or to the same size on the last level."""
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


class SelfAttention(nn.Module):
    """Attention with one head of full width over all pixels, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        """Create the layers under the names of the official files (``to_out.0``)."""
        super().__init__()
        self.group_norm = make_norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b c h w]``; same shape."""
        y = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + rearrange(self.to_out[0](y), "b 1 (h w) c -> b c h w", h=x.shape[2])


class MidBlock(nn.Module):
    """Residual block, optional attention, residual block."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        """Create the layers; the channel count does not change."""
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([SelfAttention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[b c h w]``; same shape."""
        for layer in [self.resnets[0], *self.attentions, self.resnets[1]]:
            x = layer(x)
        return x
