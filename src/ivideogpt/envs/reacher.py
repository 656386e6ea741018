"""Reacher: a disc on a plane moves to another disc; control from pixels in a fraction of a millisecond a step.

It is for tests, and for experiments on learning in imagination that take minutes on any processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise MissingExtraError("gymnasium", "rl") from error

#: Distance to the goal that counts as success, in half sides of the plane.
NEAR = 0.15
#: Spacing of the grid that both discs stand on: a sixteenth of the side, four pixels of 64.
CELL = 0.125
_WALL = 7 * CELL
_RADIUS = 0.16
_GROUND, _GOAL, _AGENT = (30, 30, 40), (60, 200, 90), (240, 120, 60)


class Reacher(gymnasium.Env):
    """The plane reaches from -1 to 1 both ways, x to the right and y down; discs stand on a grid of 1/8.

    Observation: uint8 ``[size size 3]``, RGB.
    Action: float32 ``[2]`` in -1 to 1; at 1 the agent moves ``speed`` half sides, rounded to the grid.
    Reward, "distance": 1 minus the distance to the goal in half sides, at least 0, and 1 more within ``NEAR``;
    "action": 1 minus the squared distance of the action from ``BEST_ACTION``, independent of the picture.
    Terminated at the goal where ``terminate_at_goal``; truncated after ``steps``.
    Info: ``success`` bool (within ``NEAR``), ``state`` float64 ``[4]`` (agent x, y, goal x, y).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    BEST_ACTION = (0.5, -0.5)

    def __init__(
        self,
        *,
        size: int = 64,
        steps: int = 25,
        speed: float = 0.25,
        goal: Sequence[float] | None = None,
        reward: Literal["distance", "action"] = "distance",
        terminate_at_goal: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            size: side of the picture in pixels.
            steps: actions of an episode.
            speed: half sides of the plane that an action of 1 moves.
            goal: its place in all episodes; None: drawn in each, at least .5 from the agent.
            reward: see above.
            terminate_at_goal: end the episode at the goal.
            render_mode: "rgb_array" (``render()`` returns the observation) or None.

        Raises:
            UserError: a number is out of range.
        """
        for name, value in {"size": size, "steps": steps}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least 1")
        if not (math.isfinite(speed) and speed > 0):
            raise UserError(f"speed is {speed}; expected a number above 0")
        if goal is not None and not (len(goal) == 2 and all(abs(number) <= _WALL for number in goal)):
            raise UserError(f"goal is {goal!r}; expected two numbers from {-_WALL} to {_WALL}")
        if reward not in ("distance", "action"):
            raise UserError(f"reward is {reward!r}; expected distance or action")
        self.size, self.steps, self.speed, self.reward = size, steps, speed, reward
        self.terminate_at_goal, self.render_mode = terminate_at_goal, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._fixed = None if goal is None else _place(np.array(goal))
        self._across = (np.arange(size) + 0.5) / size * 2 - 1
        self._agent = self._goal = np.zeros(2)
        self._left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Place agent and goal at random; the same seed gives the same places; ``options`` are not used."""
        super().reset(seed=seed)
        while True:
            self._agent = self._random_place()
            self._goal = self._random_place() if self._fixed is None else self._fixed
            if self._distance() >= 0.5:
                break
        self._left = self.steps
        return self._picture(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move the agent.

        Raises:
            UserError: the action is not two finite numbers, or the episode is over.
        """
        if not self._left:
            raise UserError(f"the episode is over after {self.steps} steps or has not begun; call reset first")
        moves = np.asarray(action, np.float64)
        if moves.shape != (2,) or not np.isfinite(moves).all():
            raise UserError(f"the action is {moves.tolist()}; expected two finite numbers, -1 to 1")
        moves = np.clip(moves, -1.0, 1.0)
        self._agent = np.clip(self._agent + _place(self.speed * moves), -_WALL, _WALL)
        self._left -= 1
        info = self._info()
        terminated = self.terminate_at_goal and info["success"]
        if terminated:
            self._left = 0
        return self._picture(), self._reward(moves, info["success"]), terminated, not (self._left or terminated), info

    def render(self) -> np.ndarray | None:
        """Return the observation, or None without a render mode."""
        return self._picture() if self.render_mode else None

    def _reward(self, action: np.ndarray, success: bool) -> float:
        if self.reward == "action":
            return float(1 - np.square(action - self.BEST_ACTION).sum())
        return max(0.0, 1 - self._distance()) + float(success)

    def _distance(self) -> float:
        return float(np.linalg.norm(self._agent - self._goal))

    def _random_place(self) -> np.ndarray:
        return _place(self.np_random.uniform(-_WALL, _WALL, 2))

    def _info(self) -> dict[str, Any]:
        return {"success": self._distance() < NEAR, "state": np.concatenate([self._agent, self._goal])}

    def _picture(self) -> np.ndarray:
        picture = np.empty((self.size, self.size, 3), np.float32)
        picture[:] = _GROUND
        for place, colour in ((self._goal, _GOAL), (self._agent, _AGENT)):
            away = np.hypot(self._across[None] - place[0], self._across[:, None] - place[1])
            share = np.clip((_RADIUS - away) * self.size / 2 + 0.5, 0, 1)[..., None].astype(np.float32)
            picture += share * (np.array(colour, np.float32) - picture)
        return picture.round().astype(np.uint8)


def _place(point: np.ndarray) -> np.ndarray:
    """Round to the grid."""
    return np.round(point / CELL) * CELL
