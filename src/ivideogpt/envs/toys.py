"""Toy push: coloured squares on a plane, one of which must be pushed to a side that an instruction names.

It is for tests, and for experiments on policies that read language, from pixels, in minutes on any processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise MissingExtraError("gymnasium", "rl") from error

#: Colour of each square, by its name in the instruction.
COLOURS = {"red": (225, 60, 60), "blue": (70, 120, 245)}
#: Unit vector of each side, by its name in the instruction; x to the right, y down.
SIDES = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}
#: Half sides of a square and of the agent, and the distance that an action of 1 moves, in half sides of the plane.
SQUARE, AGENT, SPEED = 0.17, 0.12, 0.12
#: Distance from the middle of the plane at which a square counts as being at a side.
GOAL = 0.6
_GROUND, _ZONE, _WHITE = (24, 26, 34), (44, 50, 60), (240, 240, 235)


class ToyPush(gymnasium.Env):
    """The plane reaches from -1 to 1 both ways, x to the right and y down. The agent pushes squares by touching them.

    Observation: uint8 ``[size size 3]``, RGB; the four sides are brighter than the middle.
    Action: float32 ``[2]`` in -1 to 1, the movement of the agent in units of ``SPEED``.
    Reward: 1 while the named square is at the named side, else 0.
    Terminated: at success, where ``terminate``; truncated after ``steps``.
    Info: ``success`` bool; ``instruction``, such as "push the red square to the left"; ``state`` float64 ``[8]``: x and
    y of the agent and of each square, the number of the named square and that of the named side.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, *, size: int = 32, steps: int = 32, terminate: bool = True, render_mode: str | None = None
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            size: side of the picture in pixels.
            steps: actions of an episode.
            terminate: end an episode at success.
            render_mode: "rgb_array" or None.

        Raises:
            UserError: an argument is out of range.
        """
        for name, value, least in (("size", size, 16), ("steps", steps, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}")
        self.size, self.steps, self.terminate, self.render_mode = size, steps, terminate, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._across = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        self._ground = np.empty((size, size, 3), np.float32)
        self._ground[:] = _GROUND
        outside = np.abs(self._across) > GOAL
        self._ground[outside[:, None] | outside] = _ZONE
        self._agent, self._squares = np.zeros(2), np.zeros((len(COLOURS), 2))
        self._named, self._side, self._left = 0, 0, 0

    @property
    def instruction(self) -> str:
        """The task of the episode in words."""
        return f"push the {list(COLOURS)[self._named]} square to the {list(SIDES)[self._side]}"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Place agent and squares and draw a task; the same seed gives the same ones; ``options`` are not used."""
        super().reset(seed=seed)
        random = self.np_random
        while True:
            self._squares = random.uniform(-0.4, 0.4, (len(COLOURS), 2))
            self._agent = random.uniform(-0.85, 0.85, 2)
            between = np.abs(self._squares[0] - self._squares[1]).max()
            if between > 2.2 * SQUARE and np.abs(self._squares - self._agent).max(1).min() > 1.1 * (SQUARE + AGENT):
                break
        self._named, self._side = int(random.integers(len(COLOURS))), int(random.integers(len(SIDES)))
        self._left = self.steps
        return self._picture(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move the agent and what it touches.

        Raises:
            UserError: the action is not two finite numbers, or the episode is over.
        """
        if not self._left:
            raise UserError(f"the episode is over after {self.steps} steps or has not begun; call reset first")
        moves = np.asarray(action, np.float64)
        if moves.shape != (2,) or not np.isfinite(moves).all():
            raise UserError(f"the action is {moves.tolist()}; expected two finite numbers, -1 to 1")
        self._agent = np.clip(self._agent + SPEED * np.clip(moves, -1, 1), AGENT - 1, 1 - AGENT)
        for square in self._squares:
            square += _apart(square, self._agent, SQUARE + AGENT)
        first, second = self._squares
        if (touching := _apart(second, first, 2 * SQUARE)).any():
            # the square that the agent touches moves the other one
            agent_at_first = np.abs(first - self._agent).max() < np.abs(second - self._agent).max()
            second += touching if agent_at_first else 0
            first -= 0 if agent_at_first else touching
        np.clip(self._squares, SQUARE - 1, 1 - SQUARE, out=self._squares)
        for square in self._squares:  # a square at a wall, or one that the other square holds, stops the agent
            self._agent += _apart(self._agent, square, SQUARE + AGENT)
        np.clip(self._agent, AGENT - 1, 1 - AGENT, out=self._agent)
        self._left -= 1
        info = self._info()
        terminated = self.terminate and info["success"]
        if terminated:
            self._left = 0
        return self._picture(), float(info["success"]), terminated, not (self._left or terminated), info

    def render(self) -> np.ndarray | None:
        """Return the observation, or None without a render mode."""
        return self._picture() if self.render_mode else None

    def _info(self) -> dict[str, Any]:
        at_side = float(self._squares[self._named] @ np.array(list(SIDES.values())[self._side])) >= GOAL
        state = np.concatenate([self._agent, self._squares.ravel(), [self._named, self._side]])
        return {"success": at_side, "instruction": self.instruction, "state": state}

    def _picture(self) -> np.ndarray:
        picture = self._ground.copy()
        things = [*zip(self._squares, [SQUARE] * len(COLOURS), COLOURS.values(), strict=True)]
        for place, half, colour in (*things, (self._agent, AGENT, _WHITE)):
            near = [np.clip((half - np.abs(self._across - x)) * self.size / 2 + 0.5, 0, 1) for x in place]
            picture += np.outer(near[1], near[0])[..., None] * (np.array(colour, np.float32) - picture)
        return picture.round().astype(np.uint8)


def _apart(moved: np.ndarray, still: np.ndarray, distance: float) -> np.ndarray:
    """Return the shortest way along an axis, ``[2]``, that takes ``moved`` out of ``still``; 0 if they do not overlap.

    Args:
        moved: middle of a square, ``[2]``.
        still: middle of another.
        distance: sum of their half sides.
    """
    between = moved - still
    overlap = distance - np.abs(between)
    way = np.zeros(2)
    if (overlap > 0).all():
        axis = int(overlap[1] < overlap[0])
        way[axis] = overlap[axis] * (1 if between[axis] >= 0 else -1)
    return way
