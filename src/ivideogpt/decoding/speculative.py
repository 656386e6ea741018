"""Drafts: likely tokens of the next frame, which the transformer confirms or corrects a whole frame at a time.

A draft may come from anywhere, because what is drawn does not depend on it: each token is drawn from the transformer's
scores with a random number of its own, and a draft only decides how many tokens can be drawn after one pass (see
`engine.decode_frame`). Two drafters are known here. The forecast knows the action, and its tokens are drawn with the
random numbers that they will be drawn with anyway, so that they agree more often than independent draws. The previous
frame serves every model.

Whether to draft is decided by counting, not by the clock: a clock would choose differently from run to run, and passes
of other lengths round differently, so that a seed would no longer give the same frames on the same machine.

Source: speculative decoding (Leviathan et al. 2023), but with shared random numbers instead of rejection, and with the
transformer's own draws as the next draft, as in Jacobi decoding (Santilli et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from ivideogpt.decoding.sampling import Sampling
from ivideogpt.models.kv_cache import KVCache

if TYPE_CHECKING:
    from ivideogpt.worldmodel.world_model import WorldModel

#: What a pass costs apart from its positions, in positions: reading the weights, and reading the cache of each row.
#: Measured on one core of a CPU, about the same for 3M weights and for the official 138M (docs/performance.md); not on
#: a GPU, where a pass costs more beside its positions, so that drafts pay there even sooner.
PASS_POSITIONS, ROW_POSITIONS = 24, 3
#: A draft of which less than this share is expected to be right is not read: the drafts of random weights.
LEAST_SHARE = 0.1
#: Drafts of a frame are given up when they have lost this share of what the frame costs token by token. With less,
#: those of many rows are given up too early: their first passes settle few tokens, and the fourth often all the rest.
MOST_LOSS = 0.5
#: Frames after which drafts that did not pay are tried again.
RETRY_FRAMES = 8

_switched_on = True
_paid: WeakKeyDictionary[KVCache, dict[int, bool]] = WeakKeyDictionary()


class Known(NamedTuple):
    """What is known before a frame is drawn.

    Attributes:
        model: the world model.
        cache: what was read so far: whole frames.
        guess: the forecast ``[b m d]`` of the frame, or None where the model has none.
        sampling: how its tokens will be drawn.
        uniforms: float32 ``[b m]`` in [0, 1): with these numbers.
    """

    model: WorldModel
    cache: KVCache
    guess: Tensor | None
    sampling: Sampling
    uniforms: Tensor


class Draft(NamedTuple):
    """Likely tokens of a frame.

    Attributes:
        ids: int64 ``[b m]`` of the full vocabulary.
        share: of them that is expected to be right, 0 to 1.
    """

    ids: Tensor
    share: float


class Cost:
    """What a frame cost so far, beside what its tokens would have cost one by one; in positions of one row's pass."""

    def __init__(self, rows: int, tokens: int) -> None:
        """Of a frame of m ``tokens`` for b ``rows``."""
        self.rows, self.tokens, self.passes, self.positions = rows, tokens, 0, 0

    def add(self, positions: int) -> None:
        """Counts a pass over so many positions of each row."""
        self.passes += 1
        self.positions += positions

    def still_pays(self, settled: int) -> bool:
        """Whether to go on with drafts when ``settled`` tokens are known: few at first, and often the rest at once."""
        lost = self._of(self.passes, self.positions) - self._of(settled, settled)
        return lost <= MOST_LOSS * self._alone

    @property
    def _alone(self) -> int:
        """Of the whole frame token by token."""
        return self._of(self.tokens + 1, self.tokens + 1)

    @property
    def paid(self) -> bool:
        """Whether the whole frame was cheaper than token by token."""
        return self._of(self.passes, self.positions) < self._alone

    def _of(self, passes: int, positions: int) -> int:
        return passes * (PASS_POSITIONS + ROW_POSITIONS * self.rows) + positions * self.rows


@contextmanager
def switched_off() -> Iterator[None]:
    """Everything is decoded token by token, for comparisons."""
    global _switched_on
    before, _switched_on = _switched_on, False
    try:
        yield
    finally:
        _switched_on = before


def first_draft(known: Known) -> Draft | None:
    """The draft that the next frame begins with, or None where none is likely to pay.

    The answer depends on the past of this cache alone, so that a step that is made again is made in the same way. A
    fork, and a segment that is opened, begin without what was noted of other caches.
    """
    if not (_switched_on and _may_pay(known.cache, known.model.layout.frame_length)):
        return None
    draft = next(filter(None, (drafter(known) for drafter in DRAFTERS)), None)
    return None if draft is None or draft.share < LEAST_SHARE else draft


def from_forecast(known: Known) -> Draft | None:
    """Tokens drawn from the forecast, of which as many are expected to be right as it says itself."""
    model, sampling = known.model, known.sampling
    if known.guess is None:
        return None
    legal = model.layout.dynamics_ids if sampling.legal_only else range(model.layout.vocab_size)
    scores = model.transformer.guess_logits(known.guess, legal)
    choice = sampling.choose(scores.flatten(0, 1), known.uniforms.flatten())
    return Draft(legal.start + choice.index.view(known.uniforms.shape), choice.log_prob.exp().mean().item())


def from_previous(known: Known) -> Draft | None:
    """The tokens of the last frame, of which as many are expected to be right as were in the frame before it already.

    None where one of the two is a frame of the context and has another codebook.
    """
    last, before = (_frame(known.model, known.cache, back) for back in (1, 2))
    return None if last is None or before is None else Draft(last, (last == before).float().mean().item())


#: The first that has a draft makes it.
DRAFTERS: tuple[Callable[[Known], Draft | None], ...] = (from_forecast, from_previous)


def note(cache: KVCache, start: int, cost: Cost) -> None:
    """Notes whether drafts paid in the frame that begins at position ``start``."""
    _paid.setdefault(cache, {})[start] = cost.paid


def forget(cache: KVCache) -> None:
    """Forgets what was noted of frames that were taken back; called before each new one."""
    noted = _paid.get(cache, {})
    for start in [start for start in noted if start >= cache.length]:
        del noted[start]


def _may_pay(cache: KVCache, frame_length: int) -> bool:
    """False for some frames after drafts did not pay."""
    noted = _paid.get(cache)
    if not noted or noted[max(noted)]:
        return True
    return cache.length - max(noted) >= RETRY_FRAMES * frame_length


def _frame(model: WorldModel, cache: KVCache, back: int) -> Tensor | None:
    """Ids ``[b m]`` of the frame ``back`` frames before the next one, as a future frame has them; None: it has none."""
    layout = model.layout
    future = (cache.length - layout.context_length(model.context_frames)) // layout.frame_length
    if back > future and (model.tokenizer.config.conditional or back > future + model.context_frames):
        return None
    stop = cache.length - (back - 1) * layout.frame_length
    ids = cache.ids[:, stop - layout.dynamics_tokens : stop]
    return ids if back <= future else ids + layout.dynamics_ids.start
