"""Pictures, and ways to spoil them."""

from importlib.util import find_spec

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F


def waves(height, width, phase=0.0):
    """Float [3 height width] in [0, 1]: smooth stripes of three directions, the same on every machine."""
    row, column = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    planes = [torch.sin(0.31 * row + phase), torch.sin(0.23 * column - phase), torch.sin(0.17 * (row + column))]
    return (torch.stack(planes) / 2 + 0.5).float()


def blurred(frames, sigma):
    """A Gaussian blur of float [... c h w]."""
    offsets = torch.arange(-int(3 * sigma), int(3 * sigma) + 1)
    window = torch.exp(-(offsets**2) / (2 * sigma**2))
    window /= window.sum()
    planes = rearrange(frames, "... h w -> (...) 1 h w")
    reach = len(offsets) // 2
    planes = F.conv2d(F.pad(planes, (reach,) * 4, mode="reflect"), torch.outer(window, window)[None, None])
    return planes.reshape(frames.shape).clamp(0, 1)


def noisy(frames, deviation):
    """Gaussian noise on float frames, the same in every call."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return (frames + deviation * noise).clamp(0, 1)


def needs(package):
    """A mark for tests that need the weights inside a package, which is not imported."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
