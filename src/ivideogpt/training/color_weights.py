"""Weights of pixels by how rare their colours are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RareColours(nn.Module):
    """Weights of pixels: those of rare colours count more.

    A small thing (a gripper, PushT's agent) is a few pixels of thousands: with equal weights it is never drawn.
    """

    LEVELS = 8
    weight: Tensor

    def __init__(self, frames: Tensor, most: float) -> None:
        """Counts the colours of ``frames`` ``[n c h w]`` in [0, 1]; ``most`` is the largest weight."""
        super().__init__()
        colours = self._colours(frames)
        share = torch.bincount(colours.flatten(), minlength=self.LEVELS**3) / colours.numel()
        self.register_buffer("weight", (share.max() / share.clamp(min=1e-9)).sqrt().clamp(max=most))

    def forward(self, true: Tensor) -> Tensor:
        """Weights ``[... 1 h w]`` of the pixels of frames ``[... c h w]`` in [0, 1]."""
        return self.weight[self._colours(true)].unsqueeze(-3)

    def _colours(self, frames: Tensor) -> Tensor:
        red, green, blue = (frames * (self.LEVELS - 1e-3)).long().unbind(dim=-3)
        return (red * self.LEVELS + green) * self.LEVELS + blue
