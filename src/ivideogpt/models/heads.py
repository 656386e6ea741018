"""What a world model has beside its transformer: actions, slots and a forecast in, rewards and actions out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ivideogpt.core.errors import UserError
from ivideogpt.models.token_forecast import Forecast


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Which heads there are.

    Attributes:
        action_dim: numbers in an action; 0: action-free.
        action_frequencies: sines and cosines of this many octaves join each number of the action; 0 is official.
        slots: size of a learned embedding of a token's place in its frame; 0 is official.
        forecast_grid: side of the token grid that a `Forecast` reads; 0, no forecast, is official.
        forecast_frames, forecast_width, forecast_blocks: frames it looks back, its channels and residual blocks.
        reward: a reward is read off the last token of a frame.
        action_reconstruction: an auxiliary head predicts the action.
        termination: whether the step ended the episode is read off the last token of a frame too.
    """

    action_dim: int = 0
    action_frequencies: int = 0
    slots: int = 0
    forecast_grid: int = 0
    forecast_frames: int = 2
    forecast_width: int = 128
    forecast_blocks: int = 3
    reward: bool = False
    action_reconstruction: bool = False
    termination: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where an option needs actions and there are none."""
        if self.action_dim == 0 and (self.action_frequencies or self.action_reconstruction):
            raise UserError("action options were given for a model with action_dim 0; set action_dim")

    @property
    def action_features(self) -> int:
        """Width of what the action layer reads."""
        return self.action_dim * (1 + 2 * self.action_frequencies)


class Heads(nn.Module):
    """The linear layers around the transformer, under their official names.

    Source: thuml/iVideoGPT ``HeadModelWithAction``; same. Slots, forecast, frequencies and termination are ours.
    """

    def __init__(self, config: HeadsConfig, hidden_size: int, codes: int = 0) -> None:
        """Only the layers that ``config`` asks for exist; ``codes``, the codebook's size, is needed for a forecast."""
        super().__init__()
        self.config = config
        if config.action_dim:
            self.action_linear = nn.Linear(config.action_features, hidden_size)
        if config.reward:
            self.reward_linear = nn.Linear(hidden_size, 1)
        if config.termination:
            self.termination_linear = nn.Linear(hidden_size, 1)
        if config.action_reconstruction:
            self.action_recon_linear = nn.Linear(hidden_size, config.action_dim)
        if config.slots:
            self.slot_embedding = nn.Embedding(config.slots, hidden_size)
            nn.init.normal_(self.slot_embedding.weight, std=0.02)
        if config.forecast_grid:
            self.forecast = Forecast(
                codes=codes,
                grid=config.forecast_grid,
                frames=config.forecast_frames,
                width=config.forecast_width,
                blocks=config.forecast_blocks,
                action_features=config.action_features,
                hidden_size=hidden_size,
            )

    def action_features(self, actions: Tensor) -> Tensor:
        """What the action layers read of actions ``[... a]`` in the units they were trained on."""
        if not self.config.action_frequencies:
            return actions
        octaves = torch.arange(self.config.action_frequencies, device=actions.device, dtype=actions.dtype)
        angles = (actions[..., None] * (math.pi * 2**octaves)).flatten(-2)
        return torch.cat([actions, angles.sin(), angles.cos()], dim=-1)
