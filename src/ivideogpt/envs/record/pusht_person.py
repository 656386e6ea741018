"""Scripted imitation of a person at PushT: far targets, jumps, long pushes, walls, chasing the block, pauses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

#: Side of the plane in px.
SIDE = 512.0
# From the block's reference point to its centre of mass, along its own y axis, in px.
_CENTRE_OFFSET = 45.0
# How often each behaviour is drawn.
_SHARES = {"far": 0.2, "jumps": 0.1, "push": 0.38, "wall": 0.1, "chase": 0.12, "idle": 0.1}

Kind = Literal["far", "jumps", "push", "wall", "chase", "idle"]
#: A target in px, or a function from a state to one.
Target = np.ndarray | Callable[[np.ndarray], np.ndarray]


class PersonPolicy:
    """Target positions as a person clicks them: each behaviour lasts some steps, then a random one follows.

    The scripted `DragPolicy` moves its target at a speed; a person clicks anywhere, holds the mouse still far behind
    the block, or presses along a wall.
    """

    def __init__(self, random: np.random.Generator) -> None:
        """Take all random numbers from ``random``."""
        self._random = random
        self._plan: list[Target] = []

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the next target, float32 ``[2]`` in px (0 to 512), for ``state`` ``[5]`` (see the environment)."""
        if not self._plan:
            kinds, shares = list(_SHARES), list(_SHARES.values())
            self._plan = list(getattr(self, f"_{self._random.choice(kinds, p=shares)}")(state))
        step = self._plan.pop(0)
        return np.clip(step(state) if callable(step) else step, 0.0, SIDE).astype(np.float32)

    def _far(self, state: np.ndarray) -> Sequence[Target]:
        return [self._random.uniform(0, SIDE, 2)] * int(self._random.integers(3, 14))

    def _jumps(self, state: np.ndarray) -> Sequence[Target]:
        places = self._random.uniform(0, SIDE, (int(self._random.integers(2, 6)), 2))
        return [place for place in places for _ in range(int(self._random.integers(1, 3)))]

    def _push(self, state: np.ndarray) -> Sequence[Target]:
        random, angle = self._random, self._random.uniform(-np.pi, np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        aside = np.array([-direction[1], direction[0]]) * random.normal(0, 30)
        centre = _centre(state)
        behind = np.clip(centre - direction * random.uniform(80, 130) + aside, 10, SIDE - 10)
        beyond = centre + direction * random.uniform(20, 400) + aside
        return [behind] * int(random.integers(4, 8)) + [beyond] * int(random.integers(6, 16))

    def _wall(self, state: np.ndarray) -> Sequence[Target]:
        random, wall = self._random, int(self._random.integers(4))
        first, last = random.uniform(0, SIDE, 2)
        steps, near = int(random.integers(6, 16)), random.choice([0.0, 12.0, 30.0])
        along = np.linspace(first, last, steps)
        across = np.full(steps, near if wall % 2 else SIDE - near)
        return list(np.stack([along, across] if wall < 2 else [across, along], 1))

    def _chase(self, state: np.ndarray) -> Sequence[Target]:
        random = self._random
        turn, reach, start = random.uniform(-0.8, 0.8), random.uniform(0, 110), random.uniform(-np.pi, np.pi)

        def at(step: int) -> Callable[[np.ndarray], np.ndarray]:
            angle = start + turn * step
            return lambda now: _centre(now) + reach * np.array([np.cos(angle), np.sin(angle)])

        return [at(step) for step in range(int(random.integers(6, 16)))]

    def _idle(self, state: np.ndarray) -> Sequence[Target]:
        return [state[:2].astype(np.float64)] * int(self._random.integers(8, 20))


def _centre(state: np.ndarray) -> np.ndarray:
    """Return the centre of mass of the block in px."""
    return state[2:4] + _CENTRE_OFFSET * np.array([-np.sin(state[4]), np.cos(state[4])])
