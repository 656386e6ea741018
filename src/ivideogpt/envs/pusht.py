"""PushT: a round agent pushes a T-shaped block on a plane; after gym-pusht, at 64x64 pixels.

Physics and drawing are gym-pusht's own. Two things differ: the picture is area-averaged from 512 px (the original's
linear resize aliases at 64 px and costs three times as much), and actions are normalised. Positions are in px of the
512x512 plane, x to the right and y down.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from einops import rearrange

from ivideogpt.core.errors import MissingExtraError

# pygame reads both when it is imported: no window, no greeting.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

try:
    import cv2
    import gymnasium
    import pygame
    from gym_pusht.envs.pusht import PushTEnv
except ModuleNotFoundError as error:
    raise MissingExtraError("gym-pusht", "pusht") from error

#: Side of the observed image in pixels.
IMAGE_SIZE = 64
#: Side of the plane, in px.
SIDE = 512.0
#: A raw action is a target position in px, 0 to 512; normalised is ``(raw - mean) / std``, -1 to 1.
ACTION_MEAN = (256.0, 256.0)
ACTION_STD = (256.0, 256.0)


def normalised_action(raw: np.ndarray) -> np.ndarray:
    """Convert target positions ``[.. 2]`` in px (0 to 512) to float32 actions of the environment (-1 to 1)."""
    return ((np.asarray(raw, np.float64) - ACTION_MEAN) / ACTION_STD).astype(np.float32)


def raw_action(normalised: np.ndarray) -> np.ndarray:
    """Convert actions ``[.. 2]`` of the environment (-1 to 1) to float32 target positions in px (0 to 512)."""
    return (np.asarray(normalised, np.float64) * ACTION_STD + ACTION_MEAN).astype(np.float32)


class PushT(gymnasium.Env):
    """PushT from pixels, 10 steps a second.

    Observation: uint8 ``[64 64 3]``, RGB; the target of the agent is not drawn.
    Action: float32 ``[2]`` in -1 to 1, the position that the agent is pulled to (see ``raw_action``).
    Reward: covered share of the goal / 0.95, 0 to 1. Terminated when that reaches 1.
    Info: ``state`` float32 ``[5]`` (agent x, y, block x, y in px, block angle in rad), ``is_success`` bool,
    ``coverage`` 0 to 1, and what gym-pusht gives (``n_contacts``, ``block_pose``, ...).

    Args:
        render_mode: "rgb_array" (``render()`` returns uint8 ``[512 512 3]``) or None.
        terminate_on_success: False lets an episode run on after the block has reached the goal.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None, terminate_on_success: bool = True) -> None:
        """Build the environment; ``reset`` must come next."""
        self.render_mode = render_mode
        self.terminate_on_success = terminate_on_success
        self.observation_space = gymnasium.spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._simulator = PushTEnv(obs_type="state")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Place agent and block at random; the same seed gives the same places.

        Args:
            seed: of this and all later draws.
            options: ``reset_to_state`` [5] as gym-pusht takes it (there, the block's angle is set after its
                position and turns it about its centre of mass).
        """
        super().reset(seed=seed)
        # One generator for both, so that np_random describes all the randomness there is.
        self._simulator.np_random = self.np_random
        _, info = self._simulator.reset(options=options)
        return self._observe(), self._with_state(info, coverage=self._simulator._get_coverage())

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Pull the agent to ``action`` for 0.1 s."""
        _, reward, terminated, _, info = self._simulator.step(raw_action(action).astype(np.float64))
        terminated = bool(terminated) and self.terminate_on_success
        return self._observe(), float(reward), terminated, False, self._with_state(info, info["coverage"])

    def save_state(self) -> np.ndarray:
        """Return the state of the physics, float64 ``[10]``; `restore_state` puts it back.

        Positions in px, velocities in px/s, angles in rad: agent x, y and velocity; block x, y, angle, velocity and
        angular velocity.
        """
        agent, block = self._simulator.agent, self._simulator.block
        moving = [*agent.velocity, *block.position, block.angle, *block.velocity, block.angular_velocity]
        return np.array([*agent.position, *moving], np.float64)

    def restore_state(self, state: np.ndarray) -> None:
        """Put agent and block where ``state`` of `save_state` says, of this environment or another one.

        Contacts are computed anew: after it, the block of a push may come to lie a little elsewhere.
        """
        agent, block = self._simulator.agent, self._simulator.block
        agent.position, agent.velocity = tuple(state[:2]), tuple(state[2:4])
        block.angle, block.position = float(state[6]), tuple(state[4:6])
        block.velocity, block.angular_velocity = tuple(state[7:9]), float(state[9])
        self._simulator.space.reindex_shapes_for_body(agent)
        self._simulator.space.reindex_shapes_for_body(block)

    def simulate(self, action: np.ndarray) -> float:
        """Make a step without a picture; return the reward."""
        return float(self._simulator.step(raw_action(action).astype(np.float64))[1])

    def picture(self) -> np.ndarray:
        """Return the observation of the present state, uint8 ``[64 64 3]``."""
        return self._observe()

    def covered_share(self, goal: np.ndarray) -> float:
        """Return the share of a goal pose ``[3]`` (x, y in px, angle in rad) that the block covers, 0 to 1."""
        own, self._simulator.goal_pose = self._simulator.goal_pose, np.asarray(goal, np.float64)
        try:
            return float(self._simulator._get_coverage())
        finally:
            self._simulator.goal_pose = own

    def render(self) -> np.ndarray | None:
        """Return the plane as uint8 ``[512 512 3]``, or None without a render mode."""
        return self._plane().copy() if self.render_mode == "rgb_array" else None

    def _with_state(self, info: dict, coverage: float) -> dict:
        agent, block = self._simulator.agent, self._simulator.block
        state = np.array([*agent.position, *block.position, block.angle], np.float32)
        return info | {"state": state, "coverage": float(coverage), "is_success": bool(info["is_success"])}

    def _plane(self) -> np.ndarray:
        surface = self._simulator._draw()
        return rearrange(pygame.surfarray.pixels3d(surface), "w h c -> h w c")

    def _observe(self) -> np.ndarray:
        # The surface's own memory is rows of BGRX: resizing it as it lies is three times as fast as reordering first.
        rows = pygame.surfarray.pixels2d(self._simulator._draw()).T
        pixels = rearrange(rows.view(np.uint8), "h (w c) -> h w c", c=4)
        small = cv2.resize(pixels, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[..., 2::-1])
