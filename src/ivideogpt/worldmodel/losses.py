"""What a transformer is trained on: tokens, rewards and reconstructed actions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.worldmodel.world_model import WorldModel


class TransformerLosses(NamedTuple):
    """Scalars; None where the model has no such head or the target is not given.

    Attributes:
        tokens: cross-entropy over all tokens after the prompt, separators included.
        rewards: mean squared error (of symlog where the model uses it).
        actions: mean squared error of reconstructed actions over all positions of future frames.
        accuracy: share of dynamics tokens that are the likeliest (no gradient).
    """

    tokens: Tensor
    rewards: Tensor | None
    actions: Tensor | None
    accuracy: Tensor


def transformer_losses(
    model: WorldModel,
    ids: Tensor,
    actions: Tensor | None = None,
    rewards: Tensor | None = None,
    inputs: Tensor | None = None,
) -> TransformerLosses:
    """Losses of one batch.

    Args:
        model: the world model.
        ids: int64 ``[b length]``, as `CompressiveTokenizer.tokenize` gives them.
        actions: ``[b f a]`` in model units, one for each future frame, or None.
        rewards: ``[b f]`` in reward units, or None.
        inputs: what the transformer reads instead of ``ids`` (noised tokens), or None.

    Source: thuml/iVideoGPT train_gpt.py and HeadModelWithAction; same.
    """
    layout, prompt = model.layout, model.layout.prompt_length(model.context_frames)
    hidden = model.hidden_states(ids if inputs is None else inputs, actions)
    logits, targets = model.transformer.logits(hidden[:, prompt - 1 : -1]), ids[:, prompt:]
    tokens = F.cross_entropy(rearrange(logits, "b n v -> (b n) v"), rearrange(targets, "b n -> (b n)"))
    with torch.no_grad():
        right = (logits.argmax(dim=-1) == targets)[targets != layout.dynamics_separator].float().mean()
    frames = rearrange(hidden[:, prompt - 1 :], "b (f m) d -> b f m d", m=layout.frame_length)
    reward_loss = action_loss = None
    if rewards is not None and model.config.heads.reward:
        target = rewards.sign() * rewards.abs().log1p() if model.config.symlog_rewards else rewards
        reward_loss = F.mse_loss(model.heads.reward_linear(frames[:, :, -1])[..., 0].float(), target)
    if actions is not None and model.config.heads.action_reconstruction:
        found = model.heads.action_recon_linear(frames).float()
        action_loss = F.mse_loss(found, repeat(actions, "b f a -> b f m a", m=layout.frame_length))
    return TransformerLosses(tokens, reward_loss, action_loss, right)
