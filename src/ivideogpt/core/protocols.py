"""Interfaces that environments, agents, planners and post-training share: NumPy in, NumPy out, batch first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

#: Reward of transitions: frames uint8 ``[b h w 3]``, actions float32 ``[b a]``, next frames, to float ``[b]``.
Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
#: Condition on transitions, such as success or termination: same arguments as `Reward`, to bool ``[b]``.
Condition = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
#: Estimate of a simulator's state from pixels: frames uint8 ``[b h w 3]`` to float ``[b s]``.
StateEstimator = Callable[[np.ndarray], np.ndarray]


class Policy(Protocol):
    """A controller of b environments, real or imagined: a script, an agent, a planner, a remote model."""

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes.

        Args:
            seeds: one a row, of the policy's own random numbers; None: the row's episode continues.
            instructions: a task in words a row, for policies that read language.
        """
        ...

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose the next action of each row.

        Args:
            observation: ``frames`` uint8 ``[b k h w 3]``, the last k frames, oldest first; ``state`` float ``[b s]``
                and ``reward`` float ``[b]``, of the last action, where the environment gives them.

        Returns:
            float32 ``[b a]``, or ``[b chunk a]`` for a policy that plans several actions at once.
        """
        ...
