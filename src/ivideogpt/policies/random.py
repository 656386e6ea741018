"""Uniform random actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class RandomPolicy:
    """A `Policy` that draws every action from a uniform distribution, -1 to 1."""

    def __init__(self, action_dim: int) -> None:
        """Draw actions of ``action_dim`` numbers."""
        self.action_dim = action_dim
        self._generators: list[np.random.Generator] = []

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes; see `Policy`."""
        self._generators = [
            self._generators[row] if seed is None else np.random.default_rng([seed, 1])
            for row, seed in enumerate(seeds)
        ]

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Draw an action a row, float32 ``[b a]``; the observation is not read."""
        actions = [generator.uniform(-1.0, 1.0, self.action_dim) for generator in self._generators]
        return np.array(actions, np.float32)
