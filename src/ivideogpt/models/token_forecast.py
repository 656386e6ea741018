"""A forecast of the tokens of a frame from the frames before it, all in one pass."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ivideogpt.models.blocks import ChannelNorm, ResnetBlock


class Forecast(nn.Module):
    """A small residual convolutional network over the token grids of the last frames and the action.

    For each token of the next frame it returns a vector. The vector is added to the embedding of the position that
    predicts this token. Through the transformer's last norm and head the same vector gives logits of the token, trained
    with a loss of their own. The tokens of a forecast are independent of each other; the transformer models their
    dependence. The tokens at the same position of the last frames are added directly, so that "no change" need not be
    learned.
    """

    def __init__(
        self, *, codes: int, grid: int, frames: int, width: int, blocks: int, action_features: int, hidden_size: int
    ) -> None:
        """Create a network for ``frames`` frames of ``grid`` x ``grid`` tokens; ``action_features`` 0: action-free."""
        super().__init__()
        self.grid, self.frames = grid, frames
        self.seen = nn.ModuleList(nn.Embedding(codes, hidden_size) for _ in range(frames))
        self.codes = nn.Embedding(codes, width // 2)
        self.merge = nn.Conv2d(frames * (width // 2), width, 1)
        self.place = nn.Parameter(0.3 * torch.randn(width, grid, grid))
        if action_features:
            self.action = nn.Linear(action_features, width)
        self.blocks = nn.ModuleList(ResnetBlock(width, width, groups=0) for _ in range(blocks))
        self.norm = ChannelNorm(width)
        self.out = nn.Conv2d(width, hidden_size, 1)

    def forward(self, codes: Tensor, action_features: Tensor | None) -> Tensor:
        """Return the vectors ``[b m d]`` of the tokens of the next frame.

        Args:
            codes: int64 ``[b frames m]``, newest last.
            action_features: ``[b a]``, or None.
        """
        grids = rearrange(self.codes(codes), "b f (h w) c -> b (f c) h w", h=self.grid)
        x = self.merge(grids) + self.place
        if action_features is not None:
            x = x + self.action(action_features)[:, :, None, None]
        for block in self.blocks:
            x = block(x)
        forecast = rearrange(self.out(self.norm(x)), "b d h w -> b (h w) d")
        for frame, table in enumerate(self.seen):
            forecast = forecast + table(codes[:, -1 - frame])
        return forecast
