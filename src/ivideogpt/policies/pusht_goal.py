"""A script that solves PushT: one push after the other, each the one that brings the block closest to its goal.

The block stands still when it is not pushed, and contacts have no friction. So the motion of a push along the normal of
an edge follows from where the edge is touched. The script rates pushes at points all around the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from ivideogpt.policies.scripted import PUSHT_SIDE, ScriptedPolicy

#: Pose of the goal: x, y in px and angle in rad.
GOAL = (256.0, 256.0, np.pi / 4)
# Corners of the T in its own frame in px, clockwise; its centre of mass; its moment of inertia, for a mass of 1, as
# gym-pusht sets it (the bar counts twice, the stem not at all).
_CORNERS = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], np.float64)
_CENTRE = np.array([0.0, 45.0])
_INERTIA = 3000.0
# px that a turn of 1 rad counts in the error: about the distance that the points of the T move.
_TURN = 45.0
_AGENT = 15.0
_LENGTHS = np.array([1.0, 2, 4, 8, 14, 22, 32, 45])
# px a step of the target: near the block, and on the way.
_PUSH_SPEED, _SPEED = 8.0, 45.0
# Distance between the agent's edge and the block before a push; of the agent's centre on the way around.
_GAP, _CLEAR, _RING = 6.0, 20.0, 112.0
# The agent follows its target within this many steps.
_LAG = 3


def _contacts() -> tuple[np.ndarray, np.ndarray]:
    """Return points on the edges that the agent can touch, ``[k 2]``, and the inner normals there, ``[k 2]``."""
    points, normals = [], []
    for a, b in zip(_CORNERS, np.roll(_CORNERS, -1, axis=0), strict=True):
        along = (b - a) / np.linalg.norm(b - a)
        normal = np.array([-along[1], along[0]])
        for place in np.arange(3.0, np.linalg.norm(b - a) - 2.0, 6.0):
            point = a + place * along
            if _distances(_CORNERS, (point - _AGENT * normal)[None])[0] > _AGENT - 0.5:
                points.append(point)
                normals.append(normal)
    return np.array(points), np.array(normals)


def _distances(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the distances ``[n]`` of points ``[n 2]`` from the outline with ``corners`` ``[k 2]``."""
    edges = np.roll(corners, -1, axis=0) - corners
    offsets = points[:, None] - corners
    share = np.clip((offsets * edges).sum(-1) / (edges**2).sum(-1), 0, 1)
    return np.linalg.norm(offsets - share[..., None] * edges, axis=-1).min(axis=1)


_POINTS, _NORMALS = _contacts()
_LEVERS = _POINTS - _CENTRE
_TORQUES = _LEVERS[:, 0] * _NORMALS[:, 1] - _LEVERS[:, 1] * _NORMALS[:, 0]


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


class PushToGoalScript:
    """Pushes that bring the block of PushT to its goal; a `Script`."""

    def __init__(self, random: np.random.Generator, noise: float = 0.0) -> None:
        """Draw the noise from ``random``.

        Args:
            random: generator of the noise.
            noise: standard deviation in px of the noise on each target position.
        """
        self._random, self._noise = random, noise
        self._route: list[np.ndarray] = []
        self._push: list[np.ndarray] = []
        self._speed = _SPEED
        self._target: np.ndarray | None = None
        self._wait = 0

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the next target position, float32 ``[2]`` in px (0 to 512), for ``state`` [5] of PushT."""
        state = state.astype(np.float64)
        target = state[:2] if self._target is None else self._target
        if not self._route and self._wait <= 0:
            if self._push:
                self._route, self._push, self._speed = self._push, [], _PUSH_SPEED
            else:
                self._plan(state)
                self._speed = _SPEED
        self._wait -= 1
        if self._route:
            offset = self._route[0] - target
            distance = float(np.linalg.norm(offset))
            target = self._route[0] if distance <= self._speed else target + offset * (self._speed / distance)
            if distance <= self._speed:
                self._route.pop(0)
                self._wait = _LAG if not self._route else 0
        self._target = target
        return np.clip(target + self._noise * self._random.standard_normal(2), 0, PUSHT_SIDE).astype(np.float32)

    def _plan(self, state: np.ndarray) -> None:
        """Choose the push that gains most for its time, and the way to its start."""
        agent, turn = state[:2], _rotation(state[4])
        centre = state[2:4] + turn @ _CENTRE
        goal_centre = np.array(GOAL[:2]) + _rotation(GOAL[2]) @ _CENTRE
        shift = goal_centre - centre
        angle = np.arctan2(np.sin(GOAL[2] - state[4]), np.cos(GOAL[2] - state[4]))

        # gain of each push of each length
        normals, points = _NORMALS @ turn.T, state[2:4] + _POINTS @ turn.T
        share = 1 / (1 + _TORQUES**2 / _INERTIA)
        moved = share[:, None, None] * normals[:, None] * _LENGTHS[:, None]
        turned = (share * _TORQUES / _INERTIA)[:, None] * _LENGTHS
        after = np.sqrt(((shift - moved) ** 2).sum(-1) + (_TURN * (angle - turned)) ** 2)
        before = np.sqrt((shift**2).sum() + (_TURN * angle) ** 2)
        starts = points - (_AGENT + _GAP) * normals
        seconds = np.linalg.norm(starts - agent, axis=1) / _SPEED
        gain = (before - after) / (8 + seconds[:, None] + _LENGTHS / _PUSH_SPEED)
        gain[~((starts > _AGENT + 6) & (starts < PUSHT_SIDE - _AGENT - 6)).all(axis=1)] = -np.inf
        best, length = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[best, length] <= 0:  # nothing helps: stay away from the block
            self._wait = _LAG
            return
        corners = state[2:4] + _CORNERS @ turn.T
        self._route = _way(agent, starts[best], centre, corners)
        self._push = [points[best] + (_LENGTHS[length] - _AGENT) * normals[best]]


def _way(agent: np.ndarray, goal: np.ndarray, centre: np.ndarray, corners: np.ndarray) -> list[np.ndarray]:
    """Return points that lead from ``agent`` to ``goal`` around the outline with ``corners``."""
    if _is_free(agent, goal, corners):
        return [goal]
    first, last = (np.arctan2(*(point - centre)[::-1]) for point in (agent, goal))
    ways = []
    for sweep in ((last - first) % (2 * np.pi), (last - first) % (2 * np.pi) - 2 * np.pi):
        angles = first + np.linspace(0, sweep, max(int(abs(sweep) / 0.5) + 1, 2))
        ring = centre + _RING * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        outside = np.clip(ring, _AGENT + 6, PUSHT_SIDE - _AGENT - 6) - ring
        ways.append((abs(sweep) + 0.05 * np.abs(outside).sum(), list(ring + outside)))
    ring = min(ways, key=lambda way: way[0])[1]
    # leave the ring as soon as the goal is in sight
    while len(ring) > 1 and _is_free(ring[-2], goal, corners):
        ring.pop()
    return [*ring, goal]


def _is_free(start: np.ndarray, stop: np.ndarray, corners: np.ndarray) -> bool:
    """Return True where the agent can go straight from ``start`` to ``stop``."""
    points = start + np.linspace(0, 1, 24)[:, None] * (stop - start)
    near = _distances(corners, points)
    # at both ends it may be close to the block
    return bool((near > np.minimum(_CLEAR, np.maximum(near[0], near[-1]) - 0.5)).all() and near.min() > _AGENT)


class PushToGoalPolicy(ScriptedPolicy):
    """Pushes to the goal of PushT; state ``[b 5]``, actions ``[b 2]`` in -1 to 1."""

    def __init__(self, noise: float = 0.0) -> None:
        """Make a `PushToGoalScript` a row, with this noise."""
        super().__init__(partial(PushToGoalScript, noise=noise))

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose the next target positions, float32 ``[b 2]`` in -1 to 1."""
        half = PUSHT_SIDE / 2
        return ((super().act(observation).astype(np.float64) - half) / half).astype(np.float32)
