"""Episodes of the real environments, one step of each at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.mbrl.imagined_episodes import as_episode


def episode_seed(seed: int, row: int, episode: int) -> int:
    """Seed of an environment's episode: a function of the run's seed, the environment's number and the episode's."""
    return int(np.random.SeedSequence([seed, row, episode]).generate_state(1)[0])


class Collector:
    """Steps n environments and gives episodes when they are over.

    An episode is a function of its seed and of what was done. So its state is that much: where a run goes on, the open
    episodes are played again up to where they were.
    """

    def __init__(self, environments: VectorEnv, *, seed: int, stack: int) -> None:
        """Resets all environments.

        Args:
            environments: with autoreset disabled.
            seed: of their episodes.
            stack: frames of an observation.
        """
        self.environments, self.seed, self.stack = environments, seed, stack
        self._episodes = [0] * environments.num_envs
        self._begin()

    @property
    def observations(self) -> np.ndarray:
        """What is seen now: uint8 ``[n k h w 3]``."""
        return self._seen

    def step(self, actions: np.ndarray) -> list[Episode]:
        """Takes an action in each environment, float32 ``[n a]``; returns the episodes that this ended."""
        ended = self._advance(np.asarray(actions, np.float32))
        found = []
        for row in np.flatnonzero(ended):
            paid = [reward for _, reward, _ in self._rows[row]]
            found.append(
                as_episode(
                    self._frames[row],
                    self._rows[row],
                    key=f"real-{row}-{self._episodes[row]}",
                    success=bool(self._success[row]),
                    **{"return": float(np.sum(paid))},
                )
            )
            self._episodes[row] += 1
        if ended.any():
            self._reset(ended)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Which episodes are open, and what was done in them."""
        actions = [np.array([action for action, _, _ in rows], np.float32) for rows in self._rows]
        frames = [np.stack(frames[-1:]) for frames in self._frames]
        return {"episodes": list(self._episodes), "actions": actions, "last": frames}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Plays the open episodes again.

        Raises:
            UserError: the environments then show something else than before.
        """
        if len(state["episodes"]) != self.environments.num_envs:
            raise UserError(
                f"the run has {len(state['episodes'])} environments, not {self.environments.num_envs}; "
                "go on with as many"
            )
        self._episodes = list(state["episodes"])
        self._begin()
        done = [np.asarray(actions).reshape(-1, self._action_size) for actions in state["actions"]]
        # Environments of one vector step together: those with the most to do begin, the others wait at their start.
        longest = max(map(len, done))
        for ahead in range(longest, 0, -1):
            waits = np.array([len(actions) < ahead for actions in done])
            idle = np.zeros(self._action_size, np.float32)
            self._advance(np.stack([idle if wait else had[-ahead] for wait, had in zip(waits, done, strict=True)]))
            if waits.any():
                self._reset(waits)
        for row, (last, frames) in enumerate(zip(state["last"], self._frames, strict=True)):
            if not np.array_equal(last[0], frames[-1]):
                raise UserError(
                    f"environment {row} shows another picture after the same seed and actions than before the stop; "
                    "it has randomness of its own or another version, so this run cannot go on exactly: start a new one"
                )

    # Parts

    @property
    def _action_size(self) -> int:
        return int(self.environments.single_action_space.shape[0])  # type: ignore[index]

    def _begin(self) -> None:
        count = self.environments.num_envs
        self._frames: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._rows: list[list[tuple[np.ndarray, float, bool]]] = [[] for _ in range(count)]
        self._success = np.zeros(count, bool)
        self._reset(np.ones(count, bool))

    def _reset(self, rows: np.ndarray) -> None:
        seeds = [
            episode_seed(self.seed, row, number) if asked else None
            for row, (number, asked) in enumerate(zip(self._episodes, rows, strict=True))
        ]
        observations, _ = self.environments.reset(seed=seeds, options={"reset_mask": rows})  # pyright: ignore[reportArgumentType]  a list too
        self._seen = self._stacks(observations)
        for row in np.flatnonzero(rows):
            self._frames[row], self._rows[row] = [self._seen[row, -1]], []
            self._success[row] = False

    def _advance(self, actions: np.ndarray) -> np.ndarray:
        observations, rewards, terminated, truncated, info = self.environments.step(actions)
        self._seen = self._stacks(observations)
        self._success |= np.asarray(info.get("success", np.zeros(len(actions))), bool)
        for row, action in enumerate(actions):
            self._frames[row].append(self._seen[row, -1])
            self._rows[row].append((action, float(rewards[row]), bool(terminated[row])))
        return np.asarray(terminated | truncated)

    def _stacks(self, observations: np.ndarray) -> np.ndarray:
        return np.array(observations if self.stack > 1 else observations[:, None])  # their buffer is used again
