"""How a token is chosen, and where each row's randomness comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.core.errors import UserError


class Choice(NamedTuple):
    """One token a row.

    Attributes:
        index: int64 ``[b]`` into the scores.
        log_prob: float32 ``[b]``, before top-k and top-p.
        entropy: float32 ``[b]`` in nats, of the distribution before top-k and top-p.
    """

    index: Tensor
    log_prob: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_k: only the k likeliest ids can be drawn; None: all.
        top_p: only the likeliest ids that together hold this probability can be drawn; None: all.
        greedy: the likeliest id is taken, nothing is drawn.
        legal_only: only ids that may stand in a slot can be drawn. False: any id (official behaviour); ids out of
            range are clamped for decoding only.
        free_separators: separators of later frames are drawn too, not forced (the official action-free ``generate``).
    """

    temperature: float = 1.0
    top_k: int | None = 100
    top_p: float | None = None
    greedy: bool = False
    legal_only: bool = True
    free_separators: bool = False

    def __post_init__(self) -> None:
        """Raises UserError where a value is out of range."""
        if not self.temperature > 0:
            raise UserError(
                f"temperature is {self.temperature}; expected more than 0 (use greedy for the likeliest token)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; expected at least 1, or none to draw from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; expected more than 0 and at most 1")

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Log-probabilities float32 ``[... v]`` at this temperature, before top-k and top-p."""
        return F.log_softmax(logits.float() / self.temperature, dim=-1)

    def choose(self, logits: Tensor, uniforms: Tensor) -> Choice:
        """Draws one id a row.

        Args:
            logits: ``[b v]``.
            uniforms: ``[b]`` in [0, 1): the randomness of each row.
        """
        log_probabilities = self.log_probabilities(logits)
        if self.greedy:
            index = logits.argmax(dim=-1)
        else:
            probabilities = self._narrow(log_probabilities).exp()
            total = probabilities.cumsum(dim=-1)
            index = torch.searchsorted(total, (uniforms * total[:, -1])[:, None], right=True)[:, 0]
            # The last sum can be reached by rounding: the last id that has any probability stands for it.
            index = torch.minimum(index, (total < total[:, -1:]).sum(dim=-1))
        log_prob = log_probabilities.gather(-1, index[:, None])[:, 0]
        return Choice(index, log_prob, entropy(log_probabilities))

    def _narrow(self, scores: Tensor) -> Tensor:
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = scores.softmax(dim=-1).sort(dim=-1, descending=True)
            outside = ordered.cumsum(dim=-1) - ordered >= self.top_p
            scores = scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
        return scores


@dataclass(frozen=True)
class RandomStreams:
    """One stream of random numbers a row: a pure function of the row's key and the step.

    Nothing is consumed, so going back to a step draws the same numbers again, and a row draws the same whatever the
    batch around it.

    Attributes:
        keys: one 128-bit number a row.
        generation: how many forks lie behind; it keeps the children of a fork's fork at one step apart.
    """

    keys: tuple[int, ...]
    generation: int = 0

    @classmethod
    def from_seed(cls, seed: int | Sequence[int] | RandomStreams, rows: int) -> RandomStreams:
        """Row i of ``seed``, or one seed a row (then each is row 0 of its own seed); streams are taken as they are.

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
        """The streams of some rows."""
        return RandomStreams(self.keys[rows], self.generation)

    def rows(self, rows: Sequence[int]) -> RandomStreams:
        """The streams of rows of these numbers, in any order."""
        return RandomStreams(tuple(self.keys[row] for row in rows), self.generation)

    def uniforms(self, step: int, count: int) -> Tensor:
        """float32 ``[b count]`` in [0, 1) for ``step``."""
        rows = [np.random.Generator(np.random.Philox(key=key, counter=step << 64)).random(count) for key in self.keys]
        return torch.from_numpy(np.stack(rows).astype(np.float32)).clamp(max=1 - 2**-24)

    def fork(self, k: int, step: int, common: bool, first: int = 0) -> RandomStreams:
        """Streams of children ``first`` to ``first + k`` of each row: child 0 keeps its parent's, others get new ones.

        With ``common`` all keep it.
        """

        def of(key: int, child: int) -> int:
            return key if common or child == 0 else _key(key, self.generation, step, child)

        children = range(first, first + k)
        return RandomStreams(tuple(of(key, child) for key in self.keys for child in children), self.generation + 1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy ``[...]`` in nats of log-probabilities ``[... v]``."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)


def _key(*numbers: int) -> int:
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
