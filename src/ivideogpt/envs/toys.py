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
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
#: Cells along a side of the plane, and those from either end that count as its side.
CELLS, ZONE = 8, 2
#: An action moves the agent where its larger number is at least this.
LEAST_MOVE = 0.33
_GROUND, _ZONE_COLOUR, _WHITE = (24, 26, 34), (44, 50, 60), (240, 240, 235)


class ToyPush(gymnasium.Env):
    """A plane of 8 x 8 cells with an agent and two squares, each in a cell. The agent pushes the square it walks into.

    A square at a wall or before the other square does not move, and the agent neither.

    Observation: uint8 ``[size size 3]``, RGB; the four sides are brighter than the middle.
    Action: float32 ``[2]`` in -1 to 1, x to the right and y down. The agent moves one cell along the larger number, or
    not at all where that is smaller than ``LEAST_MOVE``.
    Reward: 1 while the named square is at the named side, else 0.
    Terminated: at success, where ``terminate``; truncated after ``steps``.
    Info: ``success`` bool; ``instruction``, such as "push the red square to the left"; ``state`` float64 ``[8]``: cell
    (x and y) of the agent and of each square, the number of the named square and that of the named side.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, *, size: int = 32, steps: int = 20, terminate: bool = True, render_mode: str | None = None
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            size: side of the picture in pixels, a multiple of 8.
            steps: actions of an episode.
            terminate: end an episode at success.
            render_mode: "rgb_array" or None.

        Raises:
            UserError: an argument is out of range.
        """
        for name, value, least in (("size", size, 16), ("steps", steps, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}")
        if size % CELLS:
            raise UserError(f"size is {size}; expected a multiple of {CELLS}, so that a cell is some whole pixels")
        self.size, self.steps, self.terminate, self.render_mode = size, steps, terminate, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        cells = np.arange(CELLS)
        is_outside = (cells < ZONE) | (cells >= CELLS - ZONE)
        self._ground = np.where((is_outside[:, None] | is_outside)[..., None], _ZONE_COLOUR, _GROUND).astype(np.uint8)
        self._agent, self._squares = np.zeros(2, int), np.zeros((len(COLOURS), 2), int)
        self._named, self._side, self._left = 0, 0, 0

    @property
    def instruction(self) -> str:
        """The task of the episode in words."""
        return f"push the {list(COLOURS)[self._named]} square to the {list(SIDES)[self._side]}"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Place agent and squares and draw a task; the same seed gives the same ones; ``options`` are not used."""
        super().reset(seed=seed)
        random = self.np_random
        inside = np.array([(x, y) for x in range(ZONE, CELLS - ZONE) for y in range(ZONE, CELLS - ZONE)])
        self._squares = inside[random.choice(len(inside), len(COLOURS), replace=False)]
        self._agent = random.integers(0, CELLS, 2)
        while (self._agent == self._squares).all(axis=1).any():
            self._agent = random.integers(0, CELLS, 2)
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
        axis = int(abs(moves[1]) > abs(moves[0]))
        if abs(moves[axis]) >= LEAST_MOVE:
            self._walk(np.eye(2, dtype=int)[axis] * int(np.sign(moves[axis])))
        self._left -= 1
        info = self._info()
        terminated = self.terminate and info["success"]
        if terminated:
            self._left = 0
        return self._picture(), float(info["success"]), terminated, not (self._left or terminated), info

    def render(self) -> np.ndarray | None:
        """Return the observation, or None without a render mode."""
        return self._picture() if self.render_mode else None

    def _walk(self, way: np.ndarray) -> None:
        """Move the agent by a cell, and the square that stands there, if the cell after it is free."""
        place = self._agent + way
        pushed = np.flatnonzero((self._squares == place).all(axis=1))
        last = place + way if len(pushed) else place
        is_free = not (self._squares == last).all(axis=1).any()
        if is_free and last.min() >= 0 and last.max() < CELLS:
            self._agent = place
            self._squares[pushed] += way

    def _info(self) -> dict[str, Any]:
        side = np.array(list(SIDES.values())[self._side])
        place = (self._squares[self._named] * abs(side)).sum()
        at_side = place < ZONE if side.sum() < 0 else place >= CELLS - ZONE
        state = np.concatenate([self._agent, self._squares.ravel(), [self._named, self._side]]).astype(np.float64)
        return {"success": bool(at_side), "instruction": self.instruction, "state": state}

    def _picture(self) -> np.ndarray:
        picture = self._ground.copy()
        for (x, y), colour in zip((*self._squares, self._agent), (*COLOURS.values(), _WHITE), strict=True):
            picture[y, x] = colour
        pixels = self.size // CELLS
        return picture.repeat(pixels, axis=0).repeat(pixels, axis=1)
