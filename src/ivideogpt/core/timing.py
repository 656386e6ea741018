"""Cadences of a loop and a stopwatch.

every = Every(100)
while Until(config.steps)(step):
    step += 1
    if every(step): ...

watch = Stopwatch()
watch.count(batch_size)
watch.rate  # counted items a second, since the start or the last ``lap()``
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Every:
    """True at ``steps``, 2 * ``steps``, ...; never where ``steps`` is 0 or less.

    It is a pure function of the step, so that a resumed run keeps its cadence.
    """

    steps: int

    def __call__(self, step: int) -> bool:
        """Return whether step ``step`` (counted from 1) is a multiple of ``steps``."""
        return self.steps > 0 and step > 0 and step % self.steps == 0


@dataclass(frozen=True)
class Until:
    """True while fewer than ``steps`` steps are done."""

    steps: int

    def __call__(self, step: int) -> bool:
        """Return whether the loop continues after ``step`` steps."""
        return step < self.steps


class Stopwatch:
    """Seconds since the start, and counted items a second since the last lap."""

    def __init__(self, seconds: float = 0.0) -> None:
        """Start at ``seconds``: the time of earlier parts of the same run."""
        self._start = time.perf_counter() - seconds
        self.lap()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def lap(self) -> None:
        """Begin a new lap: the rate starts again at 0."""
        self._lap_start = time.perf_counter()
        self._counted = 0

    def count(self, amount: int = 1) -> None:
        """Add ``amount`` items to this lap."""
        self._counted += amount

    @property
    def rate(self) -> float:
        """Items a second in this lap."""
        return self._counted / max(time.perf_counter() - self._lap_start, 1e-9)
