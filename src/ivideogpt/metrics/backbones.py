"""Convolutional networks under perceptual distances: VGG16 and AlexNet, plain and shift-tolerant.

Layers are numbered as in the files that hold their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: VGG16 or AlexNet, by their names in LPIPS.
Network = Literal["vgg", "alex"]

# Simonyan & Zisserman 2015: channels of the 3x3 convolutions, in five stages with a pool between them.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class BlurPool(nn.Module):
    """Downsampling by 2 without aliasing: a blur with (1 2 1) / 4 each way, then every second pixel.

    The border is reflected by two pixels, so that n pixels become (n + 3) // 2.

    Source: Zhang 2019, Making Convolutional Networks Shift-Invariant Again; the wide border is that of ST-LPIPS
    (Ghildyal & Liu 2022).
    """

    def __init__(self, channels: int) -> None:
        """Make one filter for each of ``channels``."""
        super().__init__()
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", torch.outer(binomial, binomial).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b c h w]`` of at least 3 x 3 pixels to ``[b c (h+3)//2 (w+3)//2]``."""
        filt = self.get_buffer("filt").to(x.dtype)
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), filt, stride=2, groups=len(filt))


class Trunk(nn.Sequential):
    """Network that returns its features at five depths.

    Attributes:
        taps: the five layers whose outputs are returned, ascending.
        channels: of these outputs.
        smallest: least height and width of a picture in pixels; the last layers see nothing of smaller ones.
    """

    def __init__(
        self, layers: Sequence[nn.Module], taps: Sequence[int], channels: Sequence[int], smallest: int
    ) -> None:
        """Chain ``layers``; see the attributes."""
        super().__init__(*layers)
        self.taps, self.channels, self.smallest = tuple(taps), tuple(channels), smallest

    def forward(self, input: Tensor) -> list[Tensor]:
        """Map ``[b 3 h w]`` to five maps ``[b c h' w']``, none of them negative."""
        maps = []
        for number, layer in enumerate(self):
            input = layer(input)
            if number in self.taps:
                maps.append(input)
        return maps


def build_trunk(network: Network, *, shift_tolerant: bool) -> Trunk:
    """Make a trunk without weights.

    Source: the networks under LPIPS (Zhang et al. 2018) and, shift-tolerant, under ST-LPIPS: strides become blur
    pools. Same.
    """
    return _vgg16(shift_tolerant) if network == "vgg" else _alexnet(shift_tolerant)


def _vgg16(shift_tolerant: bool) -> Trunk:
    layers: list[nn.Module] = []
    taps, width = [], 3
    for number, stage in enumerate(_VGG16):
        if number:
            layers += [nn.MaxPool2d(2, stride=1), BlurPool(width)] if shift_tolerant else [nn.MaxPool2d(2)]
        for channels in stage:
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(inplace=True)]
            width = channels
        taps.append(len(layers) - 1)
    return Trunk(layers, taps, [stage[-1] for stage in _VGG16], smallest=18 if shift_tolerant else 16)


def _alexnet(shift_tolerant: bool) -> Trunk:
    def pool(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, stride=1), BlurPool(channels)] if shift_tolerant else [nn.MaxPool2d(3, stride=2)]

    def rectified(*convolution: nn.Module) -> None:
        layers.extend([*convolution, nn.ReLU(inplace=True)])
        taps.append(len(layers) - 1)

    layers: list[nn.Module] = []
    taps: list[int] = []
    if shift_tolerant:
        rectified(nn.Conv2d(3, 64, 11, padding=2), BlurPool(64))
    else:
        rectified(nn.Conv2d(3, 64, 11, stride=4, padding=2))
    layers += pool(64)
    rectified(nn.Conv2d(64, 192, 5, padding=2))
    layers += pool(192)
    rectified(nn.Conv2d(192, 384, 3, padding=1))
    rectified(nn.Conv2d(384, 256, 3, padding=1))
    rectified(nn.Conv2d(256, 256, 3, padding=1))
    return Trunk(layers, taps, (64, 192, 384, 256, 256), smallest=21 if shift_tolerant else 31)
