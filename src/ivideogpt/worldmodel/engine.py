"""The inner loop of every rollout: a cache that is kept between frames, one position a token.

A frame costs 1 + m positions: its separator (with the action) and its m tokens. The last token is read too, so that
the cache is complete and the reward can be read off it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ivideogpt.models.transformer import KVCache
from ivideogpt.worldmodel.sampling import Sampling

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


class FrameTokens(NamedTuple):
    """One frame as the transformer made or read it.

    Attributes:
        ids: int64 ``[b m]`` of the full vocabulary.
        log_probs: float32 ``[b m]``.
        hidden: ``[b d]`` after the last token: the reward and the next separator are read off it.
    """

    ids: Tensor
    log_probs: Tensor
    hidden: Tensor


def prefill(model: WorldModel, context_codes: Tensor, future_frames: int) -> KVCache:
    """Reads the context.

    Args:
        model: the world model.
        context_codes: int64 ``[b c n]``.
        future_frames: how many frames the cache has room for.

    Returns:
        A cache that holds the context, without the separator of the first future frame.
    """
    layout = model.layout
    count = context_codes.shape[1]
    embeddings = model.embed(layout.join(context_codes), layout.slots(count, 0))
    cache = KVCache.allocate(
        model.transformer.config,
        rows=len(context_codes),
        positions=layout.length(count, future_frames),
        device=embeddings.device,
        dtype=embeddings.dtype,
    )
    model.transformer(embeddings, cache)
    return cache


def decode_frame(
    model: WorldModel, cache: KVCache, separators: Tensor, action: Tensor | None, sampling: Sampling, uniforms: Tensor
) -> FrameTokens:
    """Draws the tokens of the next frame one by one.

    Args:
        model: the world model.
        cache: earlier positions; grows by 1 + m.
        separators: int64 ``[b]``: the id that opens the frame.
        action: ``[b a]`` in model units, or None.
        sampling: how to draw.
        uniforms: float32 ``[b m]`` in [0, 1).
    """
    legal = model.layout.dynamics_ids if sampling.legal_only else range(model.layout.vocab_size)
    actions = model.frame_actions(action)
    slots = torch.arange(model.layout.frame_length, device=separators.device)
    hidden = model.transformer(model.embed(separators[:, None], slots[:1], actions[0]), cache)
    ids, log_probs = [], []
    for index in range(model.layout.dynamics_tokens):
        chosen, log_prob = sampling.choose(model.transformer.logits(hidden[:, -1], legal), uniforms[:, index])
        ids.append(chosen + legal.start)
        log_probs.append(log_prob)
        embedding = model.embed(ids[-1][:, None], slots[index + 1 : index + 2], actions[1])
        hidden = model.transformer(embedding, cache)
    return FrameTokens(torch.stack(ids, dim=1), torch.stack(log_probs, dim=1), hidden[:, -1])


def read_frame(
    model: WorldModel, cache: KVCache, separators: Tensor, ids: Tensor, action: Tensor | None, sampling: Sampling
) -> FrameTokens:
    """Appends a frame whose tokens are known, in one pass; its log-probabilities are the model's surprise.

    Args:
        model: the world model.
        cache: earlier positions; grows by 1 + m.
        separators: int64 ``[b]``: the id that opens the frame.
        ids: int64 ``[b m]`` of the full vocabulary.
        action: ``[b a]`` in model units, or None.
        sampling: temperature and legal ids.
    """
    layout = model.layout
    sequence = torch.cat([separators[:, None], ids], dim=1)
    slots = torch.arange(layout.frame_length, device=ids.device)
    first, rest = model.frame_actions(action)
    added = None if first is None else torch.cat([first, (0 * first if rest is None else rest).expand(-1, ids.shape[1], -1)], 1)
    hidden = model.transformer(model.embed(sequence, slots, added), cache)
    return FrameTokens(ids, score_tokens(model, hidden[:, :-1], ids, sampling), hidden[:, -1])


def score_tokens(model: WorldModel, hidden: Tensor, ids: Tensor, sampling: Sampling) -> Tensor:
    """Log-probability float32 ``[...]`` of each of ``ids`` ``[...]`` after the hidden state ``[... d]`` before it."""
    legal = model.layout.dynamics_ids if sampling.legal_only else range(model.layout.vocab_size)
    log_probabilities = sampling.log_probabilities(model.transformer.logits(hidden, legal))
    return log_probabilities.gather(-1, (ids - legal.start)[..., None])[..., 0]
