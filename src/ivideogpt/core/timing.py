"""Clocks that read as English.

every = Every(100)
while Until(config.steps)(step):
    step += 1
    if every(step): ...

watch = Stopwatch()
watch.count(batch_size)
watch.rate  # things a second, since the start or the last ``lap()``
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Every:
    """True at ``steps``, 2 * ``steps``, ...; never where ``steps`` is 0 or less.

    A pure function of the step, so that a resumed run keeps the cadence of the one it continues.
    """

    steps: int

    def __call__(self, step: int) -> bool:
        """Whether something that happens every ``steps`` steps happens after step ``step`` (counted from 1)."""
        return self.steps > 0 and step > 0 and step % self.steps == 0


@dataclass(frozen=True)
class Until:
    """True while fewer than ``steps`` steps are done."""

    steps: int

    def __call__(self, step: int) -> bool:
        """Whether to go on after ``step`` steps."""
        return step < self.steps


class Stopwatch:
    """Seconds since its start, and things a second since the last lap."""

    def __init__(self, seconds: float = 0.0) -> None:
        """Starts at ``seconds``: what an earlier part of the same run took."""
        self._start = time.perf_counter() - seconds
        self.lap()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def lap(self) -> None:
        """Begins a new lap: the rate forgets what came before."""
        self._lap_start = time.perf_counter()
        self._counted = 0

    def count(self, amount: int = 1) -> None:
        """Adds ``amount`` things to this lap."""
        self._counted += amount

    @property
    def rate(self) -> float:
        """Things a second in this lap."""
        return self._counted / max(time.perf_counter() - self._lap_start, 1e-9)
