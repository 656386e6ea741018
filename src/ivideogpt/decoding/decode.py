"""The inner loop of every rollout: a cache that is kept between frames, one position a token.

A frame costs 1 + m positions: its separator (with the action) and its m tokens. The last token is read too, so that
the cache is complete and the reward can be read off it.

Where it pays, frames are decoded in drafts (`drafts`): likely tokens of the whole frame are read in one pass, and all
are drawn from what the transformer then says, each with the random number it is drawn with anyway. Up to the first one
that comes out another, nothing would have been different one by one: these are settled, and so is that one. What was
drawn after it already knows most of the frame, so it is the next draft. Drafts change the time and, rounding apart,
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ivideogpt.decoding import cuda_graph, speculative
from ivideogpt.decoding.sampling import Choice, Sampling
from ivideogpt.models.transformer import KVCache
from ivideogpt.worldmodel import embeddings
from ivideogpt.worldmodel.memory import cache_dtype
from ivideogpt.worldmodel.scoring import score_tokens

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


#: Weights up to this size stay in a CPU's cache: products this small are slower shared between threads, and many times
#: slower where another program keeps one of the cores busy.
CACHED_BYTES = 24 * 2**20
#: A batch up to this size is decoded in drafts. A wrong draft of one row is read again for all: with 32 rows drafts
#: save a quarter of the time, with 64 nothing (docs/performance.md).
DRAFT_ROWS = 32


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
        entropies: float32 ``[b m]`` in nats.
        hidden: ``[b d]`` after the last token: the reward and the next separator are read off it.
    """

    ids: Tensor
    log_probs: Tensor
    entropies: Tensor
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
        dtype=cache_dtype(model),
    )
    _feed(model, cache, layout.join(context_codes), layout.slots(count, 0))
    return cache


def decode_frame(
    model: WorldModel, cache: KVCache, separators: Tensor, action: Tensor | None, sampling: Sampling, uniforms: Tensor
) -> FrameTokens:
    """Draws the tokens of the next frame.

    Args:
        model: the world model.
        cache: earlier positions; grows by 1 + m.
        separators: int64 ``[b]``: the id that opens the frame.
        action: ``[b a]`` in model units, or None.
        sampling: how to draw.
        uniforms: float32 ``[b m]`` in [0, 1).
    """
    if model.device.type == "cuda":
        drawn = cuda_graph.decode_frame(model, cache, separators, action, sampling, uniforms)
        if drawn is not None:
            return FrameTokens(*drawn)
    with decode_threads(model):
        return _decode_frame(model, cache, separators, action, sampling, uniforms)


def _decode_frame(
    model: WorldModel, cache: KVCache, separators: Tensor, action: Tensor | None, sampling: Sampling, uniforms: Tensor
) -> FrameTokens:
    rows, count = uniforms.shape
    legal = model.layout.dynamics_ids if sampling.legal_only else range(model.layout.vocab_size)
    guess = _guess(model, cache, action)
    added = embeddings.frame_inputs(model, guess, action)
    slots = torch.arange(model.layout.frame_length, device=separators.device)

    def choose(logits: Tensor, first: int) -> Choice:
        some = uniforms[:, first : first + logits.shape[1]]
        choice = sampling.choose(logits.flatten(0, 1), some.flatten())
        return Choice(*(value.view(rows, -1) for value in choice))

    speculative.forget(cache)
    known = speculative.Known(model, cache, guess, sampling, uniforms)
    draft = speculative.first_draft(known) if rows <= DRAFT_ROWS else None
    drafting, cost = draft is not None, speculative.Cost(rows, count)
    opened = separators.new_zeros(rows, count) if draft is None else draft.ids
    tokens = torch.cat([separators[:, None], opened], dim=1)
    log_probs, entropies = (torch.empty(rows, count, device=tokens.device) for _ in range(2))
    start, read = cache.length, 0
    while True:
        stop = count + 1 if drafting else read + 1
        here = slice(read, stop)
        hidden = _feed(model, cache, tokens[:, here], slots[here], None if added is None else added[:, here])
        cost.add(stop - read)
        if read == count:
            break
        drawn = slice(read, min(stop, count))
        choice = choose(model.transformer.logits(hidden[:, : drawn.stop - read], legal), read)
        ids, future = legal.start + choice.index, tokens[:, 1:]
        # Rows go on together.
        right = int((ids == future[:, drawn]).all(dim=0).long().cumprod(dim=0).sum()) if drafting else 0
        future[:, drawn], log_probs[:, drawn], entropies[:, drawn] = ids, choice.log_prob, choice.entropy
        if right == count - read:
            break
        read += right + 1
        cache.truncate(start + read)
        drafting = drafting and cost.still_pays(read)
    if draft is not None:
        speculative.note(cache, start, cost)
    return FrameTokens(tokens[:, 1:], log_probs, entropies, hidden[:, -1])


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
    speculative.forget(cache)
    layout = model.layout
    sequence = torch.cat([separators[:, None], ids], dim=1)
    slots = torch.arange(layout.frame_length, device=ids.device)
    added = embeddings.frame_inputs(model, _guess(model, cache, action), action)
    hidden = _feed(model, cache, sequence, slots, added)
    return FrameTokens(ids, *score_tokens(model, hidden[:, :-1], ids, sampling), hidden[:, -1])


def _guess(model: WorldModel, cache: KVCache, action: Tensor | None) -> Tensor | None:
    """The forecast ``[b m d]`` of the next frame, or None where the model has none."""
    if not model.config.heads.forecast_grid:
        return None
    history = embeddings.history(model, cache.ids[:, : cache.length], model.config.heads.forecast_frames)
    return embeddings.forecast(model, history, action)


def _feed(model: WorldModel, cache: KVCache, ids: Tensor, slots: Tensor, added: Tensor | None = None) -> Tensor:
    """Reads the next ids ``[b n]``; returns their hidden states ``[b n d]``."""
    cache.remember(ids)
    x = embeddings.embed(model, ids, slots)
    return model.transformer(x if added is None else x + added, cache)
