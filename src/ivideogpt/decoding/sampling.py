"""The sampling rule of a token, and the random streams of rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.core.errors import UserError


class Choice(NamedTuple):
    """One sampled token a row.

    Attributes:
        index: int64 ``[b]`` into the logits.
        log_prob: float32 ``[b]``, before top-k and top-p.
        entropy: float32 ``[b]`` in nats, of the distribution before top-k and top-p.
    """

    index: Tensor
    log_prob: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling rule of tokens.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_k: only the k likeliest ids can be sampled; None: all.
        top_p: only the likeliest ids that together have this probability can be sampled; None: all.
        greedy: take the likeliest id.
        legal_only: only dynamics ids can be sampled. False: any id (official behaviour); ids out of range are clamped
            for decoding only.
        free_separators: separators of later frames are sampled too, not forced (the official action-free ``generate``).
    """

    temperature: float = 1.0
    top_k: int | None = 100
    top_p: float | None = None
    greedy: bool = False
    legal_only: bool = True
    free_separators: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: one is out of range.
        """
        if not 0 < self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}; expected more than 0, and finite (use greedy for the likeliest "
                "token)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; expected at least 1, or none to sample from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; expected more than 0 and at most 1")

    def override(self, *, temperature: float | None = None, top_k: int | None = None, greedy: bool = False) -> Sampling:
        """Return the rule with the options of a command; None keeps a value, and a ``top_k`` of 0 means all ids.

        Raises:
            UserError: a value is out of range.
        """
        return replace(
            self,
            temperature=self.temperature if temperature is None else temperature,
            top_k=self.top_k if top_k is None else top_k or None,
            greedy=self.greedy or greedy,
        )

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities float32 ``[... v]`` at this temperature, before top-k and top-p."""
        return F.log_softmax(logits.float() / self.temperature, dim=-1)

    def choose(self, logits: Tensor, uniforms: Tensor) -> Choice:
        """Sample one id a row.

        Args:
            logits: ``[b v]``.
            uniforms: ``[b]`` in [0, 1): the random number of each row.
        """
        log_probabilities = self.log_probabilities(logits)
        if self.greedy:
            index = logits.argmax(dim=-1)
        else:
            probabilities = self._mask_unlikely(log_probabilities).exp()
            total = probabilities.cumsum(dim=-1)
            index = torch.searchsorted(total, (uniforms * total[:, -1])[:, None], right=True)[:, 0]
            # Rounding can reach the last sum, behind all ids: take the last id that has any probability.
            index = torch.minimum(index, (total < total[:, -1:]).sum(dim=-1))
        log_prob = log_probabilities.gather(-1, index[:, None])[:, 0]
        return Choice(index, log_prob, entropy(log_probabilities))

    def score(self, logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability float32 ``[...]`` of the tokens ``index`` ``[...]``, and the entropy there.

        Args:
            logits: ``[... v]``.
            index: int64 ``[...]`` into the logits.
        """
        log_probabilities = self.log_probabilities(logits)
        return log_probabilities.gather(-1, index[..., None])[..., 0], entropy(log_probabilities)

    def _mask_unlikely(self, log_probabilities: Tensor) -> Tensor:
        """Return log-probabilities ``[b v]`` with minus infinity where a filter of this rule removes an id."""
        for name, keep_likely in FILTERS.items():
            value = getattr(self, name, None)
            if value is not None:
                log_probabilities = keep_likely(log_probabilities, value)
        return log_probabilities


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Return scores ``[b v]`` with minus infinity for all but the k largest of a row."""
    if k >= scores.shape[-1]:
        return scores
    least = scores.topk(k, dim=-1).values[:, -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Return scores ``[b v]`` with minus infinity for all but the likeliest ids that together have probability p."""
    if p >= 1:
        return scores
    ordered, order = scores.softmax(dim=-1).sort(dim=-1, descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= p
    return scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)


#: Filters of sampling, applied in this order: the field of `Sampling` that sets one, and its function of scores
#: ``[b v]`` and the field's value. A new rule is a field, a function and a row.
FILTERS: dict[str, Callable[[Tensor, Any], Tensor]] = {"top_k": keep_top_k, "top_p": keep_top_p}


@dataclass(frozen=True)
class RandomStreams:
    """One stream of random numbers a row: a pure function of the row's key and the step.

    No state is consumed, so that going back to a step gives the same numbers again, and a row has the same numbers in
    any batch.

    Attributes:
        keys: one 128-bit number a row.
        generation: number of forks before; it separates the children of a fork's fork at one step.
    """

    keys: tuple[int, ...]
    generation: int = 0

    @classmethod
    def from_seed(cls, seed: int | Sequence[int] | RandomStreams, rows: int) -> RandomStreams:
        """Create the streams of row i of ``seed``, or of row 0 of one seed a row; given streams are returned.

        Raises:
            UserError: another number of seeds than rows.
        """
        if isinstance(seed, RandomStreams):
            assert len(seed.keys) == rows
            return seed
        if not isinstance(seed, (Sequence, np.ndarray)):
            return cls(tuple(_key(int(seed), row) for row in range(rows)))
        if len(seed) != rows:
            raise UserError(f"{len(seed)} seeds were given for {rows} rows; expected one number, or one a row")
        return cls(tuple(_key(int(value), 0) for value in seed))

    def select(self, rows: slice) -> RandomStreams:
        """Return the streams of a slice of the rows."""
        return RandomStreams(self.keys[rows], self.generation)

    def rows(self, rows: Sequence[int]) -> RandomStreams:
        """Return the streams of the rows with these numbers, in any order."""
        return RandomStreams(tuple(self.keys[row] for row in rows), self.generation)

    def uniforms(self, step: int, count: int) -> Tensor:
        """Return uniform random numbers float32 ``[b count]`` in [0, 1) for ``step``."""
        if count == 0:
            return torch.empty(len(self.keys), 0)
        rows = [np.random.Generator(np.random.Philox(key=key, counter=step << 64)).random(count) for key in self.keys]
        return torch.from_numpy(np.stack(rows).astype(np.float32)).clamp(max=1 - 2**-24)

    def fork(self, k: int, step: int, common: bool, first: int = 0) -> RandomStreams:
        """Return the streams of children ``first`` to ``first + k`` of each row.

        Child 0 keeps the stream of its parent, the others get new ones; with ``common`` all keep it.
        """

        def child_key(key: int, child: int) -> int:
            return key if common or child == 0 else _key(key, self.generation, step, child)

        children = range(first, first + k)
        return RandomStreams(
            tuple(child_key(key, child) for key in self.keys for child in children), self.generation + 1
        )


def entropy(log_probabilities: Tensor) -> Tensor:
    """Return the entropy ``[...]`` in nats of log-probabilities ``[... v]``."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)


def _key(*numbers: int) -> int:
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
