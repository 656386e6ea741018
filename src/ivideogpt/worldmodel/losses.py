"""What a transformer is trained on: tokens, rewards and reconstructed actions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.core.layout import IGNORED_LABEL
from ivideogpt.worldmodel import embeddings
from ivideogpt.worldmodel.world_model import WorldModel


class TransformerLosses(NamedTuple):
    """Scalars; None where the model has no such head or the target is not given.

    Attributes:
        tokens: cross-entropy over all tokens after the prompt, separators included.
        rewards: mean squared error (of symlog where the model uses it).
        terminations: cross-entropy of whether a step was the last.
        actions: mean squared error of reconstructed actions over all positions of future frames.
        forecast: cross-entropy of the first guess at the dynamics tokens.
        accuracy: share of dynamics tokens that are the likeliest (no gradient).
    """

    tokens: Tensor
    rewards: Tensor | None
    terminations: Tensor | None
    actions: Tensor | None
    forecast: Tensor | None
    accuracy: Tensor


def transformer_losses(
    model: WorldModel,
    ids: Tensor,
    actions: Tensor | None = None,
    rewards: Tensor | None = None,
    inputs: Tensor | None = None,
    terminated: Tensor | None = None,
) -> TransformerLosses:
    """Losses of one batch.

    Args:
        model: the world model.
        ids: int64 ``[b length]``, as `CompressiveTokenizer.tokenize` gives them.
        actions: ``[b f a]`` in model units, one for each future frame, or None.
        rewards: ``[b f]`` in reward units, or None.
        inputs: what the transformer reads instead of ``ids``, or None; frames that it reads wrong are no targets.
        terminated: bool ``[b f]``, whether the step to each future frame was the last, or None.

    Source: thuml/iVideoGPT train_gpt.py and HeadModelWithAction; same.
    """
    layout, prompt = model.layout, model.layout.prompt_length(model.context_frames)
    hidden, guess = embeddings.hidden_states(model, ids if inputs is None else inputs, actions)
    logits, targets = model.transformer.logits(hidden[:, prompt - 1 : -1]), ids[:, prompt:]
    if inputs is not None:
        wrong = rearrange((inputs != ids)[:, prompt - 1 :], "b (f m) -> b f m", m=layout.frame_length).any(dim=-1)
        targets = targets.masked_fill(wrong.repeat_interleave(layout.frame_length, dim=1)[:, 1:], IGNORED_LABEL)
    count = (targets != IGNORED_LABEL).sum().clamp(min=1)  # where nothing is a target, the loss is 0
    tokens = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / count
    with torch.no_grad():
        counted = (targets != IGNORED_LABEL) & (targets != layout.dynamics_separator)
        right = ((logits.argmax(dim=-1) == targets) & counted).sum() / counted.sum().clamp(min=1)
    frames = rearrange(hidden[:, prompt - 1 :], "b (f m) d -> b f m d", m=layout.frame_length)
    reward_loss = end_loss = action_loss = forecast_loss = None
    if rewards is not None and model.config.heads.reward:
        target = rewards.sign() * rewards.abs().log1p() if model.config.symlog_rewards else rewards
        reward_loss = F.mse_loss(model.heads.reward_linear(frames[:, :, -1])[..., 0].float(), target)
    if terminated is not None and model.config.heads.termination:
        ends = model.heads.termination_linear(frames[:, :, -1])[..., 0].float()
        end_loss = F.binary_cross_entropy_with_logits(ends, terminated.float())
    if actions is not None and model.config.heads.action_reconstruction:
        found = model.heads.action_recon_linear(frames).float()
        action_loss = F.mse_loss(found, repeat(actions, "b f a -> b f m a", m=layout.frame_length))
    if guess is not None:
        scores = model.transformer.guess_logits(guess, layout.dynamics_ids)
        _, codes = layout.split(ids, model.context_frames)
        forecast_loss = F.cross_entropy(scores.flatten(0, 2), codes.flatten())
    return TransformerLosses(tokens, reward_loss, end_loss, action_loss, forecast_loss, right)
