"""The inner loop of every rollout: a cache that is kept between frames, one position a token.

A frame costs 1 + m positions: its separator (with the action) and its m tokens. The last token is read too, so that
the cache is complete and the reward can be read off it.

Where the model has a forecast, few rows are decoded in drafts: all tokens of the frame are drawn from the forecast with
the random numbers they will be drawn with anyway, read in one pass, and drawn again from what the transformer then
says. Up to the first token that comes out another one, nothing would have been different one by one; from there on the
rest is read again. So drafts change the time and, rounding apart, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ivideogpt.models.transformer import KVCache
from ivideogpt.worldmodel import embeddings
from ivideogpt.worldmodel.sampling import Choice, Sampling
from ivideogpt.worldmodel.scoring import score_tokens

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel


#: Weights up to this size stay in a CPU's cache: products this small are slower shared between threads, and many times
#: slower where another program keeps one of the cores busy.
CACHED_BYTES = 24 * 2**20
#: A batch up to this size is decoded in drafts: one row's wrong draft is read again for all.
DRAFT_ROWS = 4


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
        dtype=model.dtype,
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

    drafted = guess is not None and rows <= DRAFT_ROWS
    tokens = torch.cat([separators[:, None], separators.new_zeros(rows, count)], dim=1)
    if drafted:
        assert guess is not None
        tokens[:, 1:] = legal.start + choose(model.transformer.guess_logits(guess, legal), 0).index
    log_probs, entropies = (torch.empty(rows, count, device=tokens.device) for _ in range(2))
    start, read = cache.length, 0
    while True:
        stop = count + 1 if drafted else read + 1
        here = slice(read, stop)
        hidden = _feed(model, cache, tokens[:, here], slots[here], None if added is None else added[:, here])
        if read == count:
            break
        settled = slice(read, min(stop, count))
        choice = choose(model.transformer.logits(hidden[:, : settled.stop - read], legal), read)
        ids = legal.start + choice.index
        right = 0
        if drafted:
            right = int((ids == tokens[:, 1:][:, settled]).all(dim=0).long().cumprod(dim=0).sum())
        known = slice(read, min(read + right + 1, settled.stop))
        tokens[:, 1:][:, known] = ids[:, : known.stop - read]
        log_probs[:, known] = choice.log_prob[:, : known.stop - read]
        entropies[:, known] = choice.entropy[:, : known.stop - read]
        if right == count - read:
            break
        read = known.stop
        cache.truncate(start + read)
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
