"""Base of the environments of planning benchmarks: a state can be saved, put back and compared with that of a goal."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise MissingExtraError("gymnasium", "rl") from error


class GoalEnvironment(gymnasium.Env):
    """A simulated robot from pixels.

    Observation: uint8 ``[size size 3]``, RGB. Action: float32 ``[a]``, clipped to -1 to 1.
    Reward: that of `simulate`. Never terminated; truncated after ``steps``.
    Info: ``success`` bool, ``state`` float64 ``[s]``, see `save_state`.

    Attributes:
        cameras: names of the camera in goal files of VP2, the usual one first.
        solved_score: an instance is solved by a `score` below it.
        lowest_score: no score is lower.
        goal_state: float64 ``[s]`` of the instance; None: there is no goal.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    cameras: tuple[str, ...] = ("camera",)
    solved_score: float = 0.0
    lowest_score: float = 0.0

    def __init__(self, action_dim: int, *, seed: int | None, size: int, steps: int, render_mode: str | None) -> None:
        """Set the spaces.

        Args:
            action_dim: numbers in an action.
            seed: of the first reset that gives none.
            size: side of the picture in pixels.
            steps: actions of an episode.
            render_mode: "rgb_array" (``render()`` returns the last observation) or None.

        Raises:
            UserError: a number is out of range.
        """
        for name, value in (("size", size), ("steps", steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least 1")
        self.size, self.steps, self.render_mode = size, steps, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.goal_state: np.ndarray | None = None
        self._first_seed = seed
        self._steps_left = 0
        self._picture: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Place robot and objects at random; the same seed gives the same places.

        Args:
            seed: of this and all later draws.
            options: ``simulator_state`` float ``[s]`` begins at this state instead.
        """
        seed = self._first_seed if seed is None else seed
        self._first_seed = None
        super().reset(seed=seed)
        self._place(int(self.np_random.integers(2**31)) if seed is None else seed)
        if options and options.get("simulator_state") is not None:
            self.restore_state(np.asarray(options["simulator_state"], np.float64))
        self._steps_left = self.steps
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take an action.

        Raises:
            UserError: the action is not a row of finite numbers, or the episode is over.
        """
        if not self._steps_left:
            raise UserError(f"the episode is over after {self.steps} steps or has not begun; call reset first")
        clipped, shape = np.asarray(action, np.float64), self.action_space.shape
        if clipped.shape != shape or not np.isfinite(clipped).all():
            raise UserError(f"the action is {clipped.tolist()}; expected {shape[0]} finite numbers, -1 to 1")  # type: ignore[index]
        reward = self.simulate(clipped)
        self._steps_left -= 1
        return self._observe(), reward, False, not self._steps_left, self._info()

    def render(self) -> np.ndarray | None:
        """Return the last observation, or None without a render mode."""
        return self._picture.copy() if self.render_mode and self._picture is not None else None

    @abstractmethod
    def simulate(self, action: np.ndarray) -> float:
        """Take an action ``[a]``, which is clipped, without a picture; return the reward."""

    @abstractmethod
    def picture(self) -> np.ndarray:
        """Return the picture of the present state, uint8 ``[size size 3]``."""

    @abstractmethod
    def save_state(self) -> np.ndarray:
        """Return the state, float64 ``[s]``."""

    @abstractmethod
    def restore_state(self, state: np.ndarray) -> None:
        """Go to a state, of this environment or another one of its kind.

        Raises:
            UserError: the state is of another scene.
        """

    @abstractmethod
    def score(self) -> float:
        """Return the score of the present state for ``goal_state``; lower is better."""

    @abstractmethod
    def scripted_action(self) -> np.ndarray:
        """Return the next action ``[a]`` of the script that records goals, for an episode that `reset` began."""

    @abstractmethod
    def is_goal(self, start: np.ndarray) -> bool:
        """Return whether the present state can be the goal of an instance that begins at the state ``start``."""

    def scene(self) -> str:
        """Return the scene as MJCF, for goal files; "": it is always the same."""
        return ""

    @abstractmethod
    def _place(self, seed: int) -> None:
        """Place robot and objects at random."""

    def success(self) -> bool:
        """Return whether the present state solves the task."""
        return self.score() < self.solved_score

    def _observe(self) -> np.ndarray:
        self._picture = self.picture()
        return self._picture.copy()

    def _info(self) -> dict[str, Any]:
        return {"success": self.success(), "state": self.save_state()}


@contextlib.contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for a block, and restore it."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
