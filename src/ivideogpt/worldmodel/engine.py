"""The inner loop of every rollout: a cache that is kept between frames, one position a token.

A frame costs 1 + m positions: its separator (with the action) and its m tokens. The last token is read too, so that
the cache is complete and the reward can be read off it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ivideogpt.models.transformer import KVCache
from ivideogpt.worldmodel.sampling import Sampling
from ivideogpt.worldmodel.scoring import score_tokens

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


#: Weights up to this size stay in a CPU's cache: products this small are slower shared between threads, and many times
#: slower where another program keeps one of the cores busy.
CACHED_BYTES = 24 * 2**20


@contextmanager
def decode_threads(model: WorldModel) -> Iterator[None]:
    """One thread while a small model decodes on a CPU; others use as many as PyTorch has."""
    before = torch.get_num_threads()
    size = sum(p.numel() * p.element_size() for p in model.transformer.layers.parameters())
    if model.device.type != "cpu" or size > CACHED_BYTES or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    cache = KVCache.allocate(
        model.transformer.config,
        rows=len(context_codes),
        positions=layout.length(count, future_frames),
        device=model.device,
        dtype=model.dtype,
    )
    _feed(model, cache, layout.join(context_codes), layout.slots(count, 0))
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
    with decode_threads(model):
        return _decode_frame(model, cache, separators, action, sampling, uniforms)


def _decode_frame(
    model: WorldModel, cache: KVCache, separators: Tensor, action: Tensor | None, sampling: Sampling, uniforms: Tensor
) -> FrameTokens:
    legal = model.layout.dynamics_ids if sampling.legal_only else range(model.layout.vocab_size)
    actions = model.frame_actions(action)
    slots = torch.arange(model.layout.frame_length, device=separators.device)
    hidden = _feed(model, cache, separators[:, None], slots[:1], actions[0])
    ids, log_probs = [], []
    for index in range(model.layout.dynamics_tokens):
        chosen, log_prob = sampling.choose(model.transformer.logits(hidden[:, -1], legal), uniforms[:, index])
        ids.append(chosen + legal.start)
        log_probs.append(log_prob)
        hidden = _feed(model, cache, ids[-1][:, None], slots[index + 1 : index + 2], actions[1])
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
    added = None
    if first is not None:
        others = torch.zeros_like(first) if rest is None else rest
        added = torch.cat([first, others.expand(-1, ids.shape[1], -1)], dim=1)
    hidden = _feed(model, cache, sequence, slots, added)
    return FrameTokens(ids, score_tokens(model, hidden[:, :-1], ids, sampling), hidden[:, -1])


def _feed(model: WorldModel, cache: KVCache, ids: Tensor, slots: Tensor, added: Tensor | None = None) -> Tensor:
    """Reads the next ids ``[b n]``; returns their hidden states ``[b n d]``."""
    return model.transformer(model.embed(cache.remember(ids), slots, added), cache)
