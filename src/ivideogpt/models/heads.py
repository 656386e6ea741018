"""What a world model has beside its transformer: actions in, rewards and reconstructed actions out, slot embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ivideogpt.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Which heads there are.

    Attributes:
        action_dim: numbers in an action; 0: action-free.
        action_frequencies: sines and cosines of this many octaves join each number of the action; 0 is official.
        action_on_tokens: the action is added to the tokens of its frame too, not to its separator alone (official).
        lookback: embeddings of the tokens that stood in the next place of this many earlier frames join each position,
            so that "as before" needs no attention to be learned first; needs as many dynamics as context tokens; 0 is
            official.
        slots: size of a learned embedding of a token's place in its frame; 0 is official.
        reward: a reward is read off the last token of a frame.
        action_reconstruction: an auxiliary head predicts the action.
    """

    action_dim: int = 0
    action_frequencies: int = 0
    action_on_tokens: bool = False
    lookback: int = 0
    slots: int = 0
    reward: bool = False
    action_reconstruction: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where an option needs actions and there are none."""
        if self.action_dim == 0 and (self.action_frequencies or self.action_on_tokens or self.action_reconstruction):
            raise UserError("action options were given for a model with action_dim 0; set action_dim")

    @property
    def action_features(self) -> int:
        """Width of what the action layer reads."""
        return self.action_dim * (1 + 2 * self.action_frequencies)


class Heads(nn.Module):
    """The linear layers around the transformer, under their official names.

    Source: thuml/iVideoGPT ``HeadModelWithAction``; same. Slots, lookback and frequencies are ours.
    """

    def __init__(self, config: HeadsConfig, hidden_size: int, vocab_size: int = 0) -> None:
        """Only the layers that ``config`` asks for exist; ``vocab_size`` is needed for ``lookback``."""
        super().__init__()
        self.config = config
        if config.action_dim:
            self.action_linear = nn.Linear(config.action_features, hidden_size)
            if config.action_on_tokens:
                # As small as the embeddings it is added to: the default would drown every token.
                nn.init.normal_(self.action_linear.weight, std=0.01)
                nn.init.zeros_(self.action_linear.bias)
        if config.reward:
            self.reward_linear = nn.Linear(hidden_size, 1)
        if config.action_reconstruction:
            self.action_recon_linear = nn.Linear(hidden_size, config.action_dim)
        if config.slots:
            self.slot_embedding = nn.Embedding(config.slots, hidden_size)
            nn.init.normal_(self.slot_embedding.weight, std=0.02)
        if config.lookback:
            tables = (nn.Embedding(vocab_size, hidden_size) for _ in range(config.lookback))
            self.lookback_embeddings = nn.ModuleList(tables)
            for weight in self.lookback_embeddings.parameters():
                nn.init.normal_(weight, std=0.02)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Embeddings ``[... d]`` of actions ``[... a]`` in the units the layer was trained on."""
        octaves = torch.arange(self.config.action_frequencies, device=actions.device, dtype=actions.dtype)
        angles = (actions[..., None] * (math.pi * 2**octaves)).flatten(-2)
        features = torch.cat([actions, angles.sin(), angles.cos()], dim=-1) if len(octaves) else actions
        return self.action_linear(features)
