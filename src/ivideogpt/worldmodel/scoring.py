"""How likely given tokens are: teacher forcing over the same sequences that a session makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.decoding.sampling import Sampling, entropy
from ivideogpt.worldmodel import embeddings

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


def log_prob(
    model: WorldModel, context: Tensor, actions: Tensor | None, ids: Tensor, sampling: Sampling, segment: int
) -> Tensor:
    """Log-probabilities of the frames of ``ids``, differentiable.

    Args:
        model: the world model.
        context: ``[b c_frames c h w]`` in [0, 1].
        actions: ``[b horizon a]`` in model units, or None.
        ids: int64 ``[b horizon m]`` of the full vocabulary.
        sampling: temperature and legal ids.
        segment: frames after which the last ones become a new context, as in a session.

    Returns:
        float32 ``[b horizon m]``.
    """
    layout, parts = model.layout, []
    for start in range(0, ids.shape[1], segment):
        if start:
            context = _next_context(model, context, ids[:, start - segment : start])
        part = ids[:, start : start + segment]
        with torch.no_grad():
            codes, _ = model.tokenizer.encode_context(context.to(model.dtype))
        sequence = layout.join(codes, part - layout.dynamics_ids.start)
        hidden, _ = embeddings.hidden_states(
            model, sequence, None if actions is None else actions[:, start : start + segment]
        )
        future = hidden[:, layout.context_length(model.context_frames) :]
        before = rearrange(future, "b (f m) d -> b f m d", m=layout.frame_length)[:, :, :-1]
        parts.append(score_tokens(model, before, part, sampling)[0])
    return torch.cat(parts, dim=1)


@torch.no_grad()
def _next_context(model: WorldModel, context: Tensor, ids: Tensor) -> Tensor:
    """The context that a session takes after frames of ``ids`` ``[b f m]``: the last ones, and the goal if any."""
    codes, _ = model.tokenizer.encode_context(context.to(model.dtype))
    future = model.tokenizer.decode_future(model.codes(ids), model.tokenizer.decoder_features(codes))
    frames = torch.cat([context, future.clamp(0, 1).float()], dim=1)
    if model.config.goal_conditioned:
        return torch.stack([context[:, 0], frames[:, -1]], dim=1)
    return frames[:, -model.context_frames :]


def score_tokens(model: WorldModel, hidden: Tensor, ids: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Log-probability of each of ``ids`` ``[...]`` after the hidden state ``[... d]`` before it, and entropy there."""
    legal = model.layout.dynamics_ids if sampling.legal_only else range(model.layout.vocab_size)
    log_probabilities = sampling.log_probabilities(model.transformer.logits(hidden, legal))
    return log_probabilities.gather(-1, (ids - legal.start)[..., None])[..., 0], entropy(log_probabilities)
