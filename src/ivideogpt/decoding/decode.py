"""Prefill, and decoding token by token with a cache that is kept between frames.

A frame takes 1 + m positions: its separator, to which the action is added, and its m tokens. The last token is read
too, so that the cache is complete and the reward can be predicted from its hidden state. Where the numbers of an action
are tokens, the last position of the frame's opening stands for the separator; those before it are read first
(`Dynamics.read_opening`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.models.kv_cache import KVCache

#: Weights up to this size stay in a CPU's cache: products this small are slower when they are shared between threads,
#: and many times slower where another program keeps one of the cores busy.
CACHED_BYTES = 24 * 2**20


class FrameInputs(NamedTuple):
    """Inputs of a decoder for the next frame.

    Attributes:
        dynamics: the network.
        cache: earlier positions, whole frames; a decoder appends the 1 + m of the frame.
        separators: int64 ``[b]``: the ids that open the frame; the last of an opening of several.
        action: ``[b a]`` in model units, or None.
        sampling: the sampling rule.
        uniforms: float32 ``[b m]`` in [0, 1): the random number of each token.
    """

    dynamics: Dynamics
    cache: KVCache
    separators: Tensor
    action: Tensor | None
    sampling: Sampling
    uniforms: Tensor


class FrameTokens(NamedTuple):
    """The tokens of one frame.

    Attributes:
        ids: int64 ``[b m]`` of the full vocabulary.
        log_probs: float32 ``[b m]``.
        entropies: float32 ``[b m]`` in nats.
        hidden: ``[b d]`` of the last token: the reward and the next separator are predicted from it.
    """

    ids: Tensor
    log_probs: Tensor
    entropies: Tensor
    hidden: Tensor


class Token(NamedTuple):
    """One token of each row.

    Attributes:
        ids: int64 ``[b]`` of the full vocabulary.
        log_probs: float32 ``[b]``.
        entropies: float32 ``[b]`` in nats.
    """

    ids: Tensor
    log_probs: Tensor
    entropies: Tensor


@contextmanager
def decode_threads(dynamics: Dynamics) -> Iterator[None]:
    """Use one thread while a small model decodes on a CPU; others use as many as PyTorch has."""
    size = sum(p.numel() * p.element_size() for p in dynamics.transformer.layers.parameters())
    with single_thread(dynamics.device.type == "cpu" and size <= CACHED_BYTES):
        yield


@contextmanager
def single_thread(on: bool = True) -> Iterator[None]:
    """Compute with one thread of PyTorch; change nothing where ``on`` is False."""
    before = torch.get_num_threads()
    if not on or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prefill(
    dynamics: Dynamics,
    context_codes: Tensor,
    future_frames: int,
    lead_codes: Tensor | None = None,
    past_actions: Tensor | None = None,
) -> KVCache:
    """Read the context.

    Args:
        dynamics: the network.
        context_codes: int64 ``[b c n]``.
        future_frames: number of frames that the cache has room for.
        lead_codes: int64 ``[b l m]`` of lead frames, or None; see `TokenLayout`.
        past_actions: ``[b p a]`` in model units: those that are tokens of the context, or None.

    Returns:
        A cache that holds the context, without the opening of the first future frame.
    """
    layout = dynamics.layout
    cache = dynamics.new_cache(len(context_codes), future_frames)
    ids = layout.join(context_codes, lead_codes)
    if past_actions is not None:
        ids = dynamics.with_actions(ids, past_actions)
    dynamics.append(cache, ids, layout.slots(dynamics.context_frames, 0))
    return cache


def decode_frame(frame: FrameInputs) -> FrameTokens:
    """Sample the tokens of the next frame one after another."""
    forecast = frame.dynamics.next_forecast(frame.cache, frame.action)
    added = frame.dynamics.frame_inputs(forecast, frame.action)
    return stack_tokens(*decode_tokens(frame, frame.separators, 0, added))


def decode_tokens(frame: FrameInputs, ids: Tensor, first: int, added: Tensor | None) -> tuple[list[Token], Tensor]:
    """Sample tokens ``first`` to m - 1 of a frame, one after another.

    Args:
        frame: its cache ends before ``ids``.
        ids: int64 ``[b]`` of the separator or token before token ``first``.
        first: number of the first token.
        added: ``[b 1+m d]`` added to the embeddings of the frame, or None; see `Dynamics.frame_inputs`.

    Returns:
        The tokens, and the hidden states ``[b d]`` of the last one.
    """
    dynamics = frame.dynamics
    slots = torch.arange(1 + dynamics.layout.dynamics_tokens, device=ids.device)
    tokens: list[Token] = []
    for index in range(first, len(slots)):
        position = slice(index, index + 1)
        inputs = None if added is None else added[:, position]
        hidden = dynamics.append(frame.cache, ids[:, None], slots[position], inputs)[:, 0]
        if index == dynamics.layout.dynamics_tokens:
            break
        tokens.append(sample_token(dynamics, hidden, frame.sampling, frame.uniforms[:, index]))
        ids = tokens[-1].ids
    return tokens, hidden


def stack_tokens(tokens: Sequence[Token], hidden: Tensor) -> FrameTokens:
    """Return the frame of m tokens and of the hidden states ``[b d]`` of the last one."""
    ids, log_probs, entropies = (torch.stack(values, dim=1) for values in zip(*tokens, strict=True))
    return FrameTokens(ids, log_probs, entropies, hidden)


def sample_token(dynamics: Dynamics, hidden: Tensor, sampling: Sampling, uniforms: Tensor) -> Token:
    """Sample one token a row after hidden states ``[b d]``, with random numbers ``[b]``."""
    allowed = dynamics.allowed_ids(sampling.legal_only)
    choice = sampling.choose(dynamics.logits(hidden, allowed), uniforms)
    return Token(allowed.start + choice.index, choice.log_prob, choice.entropy)


def read_frame(
    dynamics: Dynamics,
    cache: KVCache,
    separators: Tensor,
    ids: Tensor,
    action: Tensor | None,
    sampling: Sampling,
) -> FrameTokens:
    """Append a frame of given tokens in one pass, and return their log-probabilities.

    Args:
        dynamics: the network.
        cache: earlier positions; grows by 1 + m.
        separators: int64 ``[b]``: the ids that open the frame.
        ids: int64 ``[b m]`` of the full vocabulary.
        action: ``[b a]`` in model units, or None.
        sampling: its temperature and legal ids.
    """
    sequence = torch.cat([separators[:, None], ids], dim=1)
    slots = torch.arange(sequence.shape[1], device=ids.device)
    inputs = dynamics.frame_inputs(dynamics.next_forecast(cache, action), action)
    hidden = dynamics.append(cache, sequence, slots, inputs)
    allowed = dynamics.allowed_ids(sampling.legal_only)
    log_probs, entropies = sampling.score(dynamics.logits(hidden[:, :-1], allowed), ids - allowed.start)
    return FrameTokens(ids, log_probs, entropies, hidden[:, -1])
