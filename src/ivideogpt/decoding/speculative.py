"""Speculative decoding: a draft of a whole frame is checked in one pass of the transformer.

1) A draft of all tokens of the frame is made: sampled from the forecast, or the tokens of the previous frame.
2) One pass reads the draft. Each token is sampled from the resulting logits, with the random number that it would be
   sampled with token by token.
3) Up to the first token that differs from the draft, nothing would have been different token by token: these tokens
   are accepted, and so is the first one that differs, since all before it were right.
4) The tokens that were sampled after it are the next draft, as in Jacobi decoding. Back to 2.

Since each token has a random number of its own, the result does not depend on the draft, rounding apart. The forecast
knows the action, and its tokens are sampled with the same random numbers, so that they agree more often than
independent ones. Drafts are given up where they do not pay. This is decided by counting positions, not by the clock: a
clock would decide differently from run to run, and passes of other lengths round differently, so that a seed would no
longer give the same frames on the same machine.

Source: Leviathan et al. 2023, with shared random numbers instead of rejection; Santilli et al. 2023 for step 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.decoding.decode import FrameInputs, FrameTokens, decode_tokens, stack_tokens
from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.dynamics import Dynamics
from ivideogpt.models.kv_cache import KVCache

#: Cost of a pass beside its positions, in positions: reading the weights, and reading the cache of each row. Measured
#: on one core of a CPU, about the same for 3M weights and for the official 138M (docs/performance.md); not on a GPU,
#: where a pass costs more beside its positions, so that drafts pay there even sooner.
PASS_POSITIONS, ROW_POSITIONS = 24, 3
#: A draft is not read when a smaller share of it is expected to be right: drafts of untrained weights.
LEAST_SHARE = 0.1
#: Drafts of a frame are given up when they have lost this share of the cost of the frame token by token. With less,
#: those of many rows are given up too early: their first passes accept few tokens, and the fourth often all the rest.
MOST_LOSS = 0.5
#: Frames after which drafts that did not pay are tried again.
RETRY_FRAMES = 8
#: Batches up to this size are decoded with drafts. A wrong draft of one row is read again for all: with 32 rows drafts
#: save a quarter of the time, with 64 nothing (docs/performance.md).
DRAFT_ROWS = 32


class DraftInputs(NamedTuple):
    """The inputs of a drafter.

    Attributes:
        dynamics: the network.
        cache: what was read so far: whole frames.
        forecast: ``[b m d]`` of the frame, or None where the model has none.
        sampling: the sampling rule of its tokens.
        uniforms: float32 ``[b m]`` in [0, 1): the random number of each token.
    """

    dynamics: Dynamics
    cache: KVCache
    forecast: Tensor | None
    sampling: Sampling
    uniforms: Tensor


class Draft(NamedTuple):
    """Likely tokens of a frame.

    Attributes:
        ids: int64 ``[b m]`` of the full vocabulary.
        share: share of them that is expected to be right, 0 to 1.
    """

    ids: Tensor
    share: float


class DraftStatistics:
    """Record of the frames of one cache in which drafts paid.

    It depends on the past of the cache alone, so that a step that is made again is made in the same way.
    """

    def __init__(self) -> None:
        """Start without a record."""
        self._paid: dict[int, bool] = {}

    def may_pay(self, position: int, frame_length: int) -> bool:
        """Return False for some frames after drafts did not pay; ``position``: the first one of the next frame."""
        if not self._paid or self._paid[max(self._paid)]:
            return True
        return position - max(self._paid) >= RETRY_FRAMES * frame_length

    def record(self, position: int, paid: bool) -> None:
        """Record the frame that begins at ``position``."""
        self._paid[position] = paid

    def truncate(self, position: int) -> None:
        """Drop the records of frames from ``position`` on."""
        self._paid = {start: paid for start, paid in self._paid.items() if start < position}


class DraftCost:
    """Cost of a frame so far, beside the cost of its tokens one by one; in positions of one row's pass."""

    def __init__(self, rows: int, tokens: int) -> None:
        """Start at 0 for a frame of m ``tokens`` for b ``rows``."""
        self.rows, self.tokens, self.passes, self.positions = rows, tokens, 0, 0

    def add(self, positions: int) -> None:
        """Add a pass over so many positions of each row."""
        self.passes += 1
        self.positions += positions

    def still_pays(self, accepted: int) -> bool:
        """Return True where drafting should go on after ``accepted`` tokens: few at first, often the rest at once."""
        lost = self._cost(self.passes, self.positions) - self._cost(accepted, accepted)
        return lost <= MOST_LOSS * self._token_by_token

    @property
    def paid(self) -> bool:
        """True where the whole frame was cheaper than token by token."""
        return self._cost(self.passes, self.positions) < self._token_by_token

    @property
    def _token_by_token(self) -> int:
        return self._cost(self.tokens + 1, self.tokens + 1)

    def _cost(self, passes: int, positions: int) -> int:
        return passes * (PASS_POSITIONS + ROW_POSITIONS * self.rows) + positions * self.rows


def decode_frame_speculatively(frame: FrameInputs, statistics: DraftStatistics) -> FrameTokens:
    """Sample the tokens of the next frame with drafts where they pay; all rows go on together.

    Args:
        frame: the inputs.
        statistics: record of the earlier frames of this cache; the frame joins it.
    """
    dynamics, cache, separators, action, sampling, uniforms = frame
    rows, count = uniforms.shape
    start, allowed = cache.length, dynamics.allowed_ids(sampling.legal_only)
    slots = torch.arange(1 + count, device=separators.device)
    forecast = dynamics.next_forecast(cache, action)
    inputs = dynamics.frame_inputs(forecast, action)
    statistics.truncate(start)

    # 1) Make the draft.
    draft = None
    if rows <= DRAFT_ROWS and statistics.may_pay(start, dynamics.layout.frame_length):
        draft = first_draft(DraftInputs(dynamics, cache, forecast, sampling, uniforms))
    if draft is None:
        return stack_tokens(*decode_tokens(frame, separators, 0, inputs))

    sequence, cost = torch.cat([separators[:, None], draft.ids], dim=1), DraftCost(rows, count)
    ids = sequence[:, 1:]
    log_probs, entropies = (torch.empty(rows, count, device=ids.device) for _ in range(2))
    accepted = 0
    while True:
        # 2) Read the draft from the last accepted token on, and sample after each of its positions.
        hidden = dynamics.append(
            cache, sequence[:, accepted:], slots[accepted:], None if inputs is None else inputs[:, accepted:]
        )
        cost.add(count + 1 - accepted)
        if accepted == count:
            break
        logits = dynamics.logits(hidden[:, :-1], allowed)
        choice = sampling.choose(logits.flatten(0, 1), uniforms[:, accepted:].flatten())
        index, log_prob, entropy = (x.view(rows, -1) for x in choice)

        # 3) Accept the tokens up to the first that differs from the draft in any row, and that one.
        sampled = allowed.start + index
        right = int((sampled == ids[:, accepted:]).all(dim=0).long().cumprod(dim=0).sum())
        ids[:, accepted:], log_probs[:, accepted:], entropies[:, accepted:] = sampled, log_prob, entropy
        if right == count - accepted:
            break
        accepted += right + 1
        cache.truncate(start + accepted)

        # 4) Go on with what was sampled as the next draft, or token by token where drafts lose.
        if not cost.still_pays(accepted):
            tokens, last = decode_tokens(frame, sequence[:, accepted], accepted, inputs)
            for place, token in enumerate(tokens, accepted):
                ids[:, place], log_probs[:, place], entropies[:, place] = token
                cost.add(1)
            cost.add(1)
            hidden = last[:, None]
            break
    statistics.record(start, cost.paid)
    return FrameTokens(ids, log_probs, entropies, hidden[:, -1])


def first_draft(inputs: DraftInputs) -> Draft | None:
    """Return the draft of the next frame, or None where none is likely to pay."""
    draft = next(filter(None, (drafter(inputs) for drafter in DRAFTERS)), None)
    return None if draft is None or draft.share < LEAST_SHARE else draft


def draft_from_forecast(inputs: DraftInputs) -> Draft | None:
    """Sample a draft from the forecast; the expected share of right tokens is their mean probability."""
    dynamics, sampling = inputs.dynamics, inputs.sampling
    if inputs.forecast is None:
        return None
    allowed = dynamics.allowed_ids(sampling.legal_only)
    logits = dynamics.forecast_logits(inputs.forecast, allowed)
    choice = sampling.choose(logits.flatten(0, 1), inputs.uniforms.flatten())
    return Draft(allowed.start + choice.index.view(inputs.uniforms.shape), choice.log_prob.exp().mean().item())


def draft_from_previous_frame(inputs: DraftInputs) -> Draft | None:
    """Return the tokens of the last frame; the expected share is that of tokens equal in the last two frames.

    None where one of the two is a context frame with another codebook.
    """
    last, before = (_previous_frame(inputs.dynamics, inputs.cache, back) for back in (1, 2))
    return None if last is None or before is None else Draft(last, (last == before).float().mean().item())


#: The first drafter that returns a draft makes it.
DRAFTERS: tuple[Callable[[DraftInputs], Draft | None], ...] = (draft_from_forecast, draft_from_previous_frame)


def _previous_frame(dynamics: Dynamics, cache: KVCache, back: int) -> Tensor | None:
    """Return the dynamics ids ``[b m]`` of the frame ``back`` frames before the next one, or None."""
    layout, context_frames = dynamics.layout, dynamics.context_frames
    future = (cache.length - layout.context_length(context_frames)) // layout.frame_length
    frame, coded = context_frames + future - back, context_frames - layout.lead_frames
    if frame < 0 or (frame < coded and not dynamics.shared_codebook):
        return None
    start = layout.frame_start(context_frames, frame)
    ids = cache.ids[:, start : start + layout.dynamics_tokens]
    return ids if frame >= coded else ids + layout.dynamics_ids.start - layout.context_ids.start
