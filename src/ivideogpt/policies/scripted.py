"""Scripted policies: a mouse drag in PushT, the package's scripts in Meta-World, the straight way in Reacher.

A script controls one environment and reads the simulator's state. A policy holds a script for each row of a batch.
In the imagination the state comes from a ``state`` function of `ImaginedVectorEnv`.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import MissingExtraError, UserError

#: A script of one episode: the next action ``[a]`` for a state ``[s]``.
Script = Callable[[np.ndarray], np.ndarray]


class ScriptedPolicy:
    """A `Policy` with a script for each row."""

    def __init__(self, new_script: Callable[[np.random.Generator], Script]) -> None:
        """Make scripts with ``new_script``, which takes the random generator of an episode."""
        self._new_script = new_script
        self._scripts: list[Script] = []

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes; see `Policy`."""
        self._scripts = [
            self._scripts[row] if seed is None else self._new_script(np.random.default_rng([seed, 1]))
            for row, seed in enumerate(seeds)
        ]

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose the next actions, float32 ``[b a]``.

        Raises:
            UserError: the observation has no state.
        """
        if "state" not in observation:
            raise UserError(
                f"{type(self).__name__} reads the simulator's state, and this environment gives none; "
                "use an environment whose info has 'state', or give ImaginedVectorEnv a function: state=..."
            )
        states = observation["state"]
        actions = [script(state) for script, state in zip(self._scripts, states, strict=True)]
        return np.array(actions, np.float32)


# PushT

#: Side of PushT's plane in px. Actions -1 to 1 span it.
PUSHT_SIDE = 512.0
# How often each kind of stretch is chosen; the rest are pauses.
_PUSH_SHARE, _ROAM_SHARE = 0.62, 0.28
# The plane of PushT is 512 px wide; the agent's radius is 15 px.
_LOW, _HIGH = 16.0, 496.0
# From the block's reference point to its centre of mass, along its own y axis, in px.
_CENTRE_OFFSET = 45.0
# Far enough from the block's centre not to touch it, in px.
_CLEARANCE = 105.0


@dataclass
class _Leg:
    """A stretch of a drag: move the target to ``goal`` at ``speed`` px a step, then hold it for ``hold`` steps."""

    goal: np.ndarray
    speed: float
    hold: int = 0


class DragScript:
    """Mouse drags in PushT: push the block, roam, pause.

    A push goes behind the block, as seen from where the block should go, and then through it. The target moves
    at a speed drawn for each stretch, from slow to a jump, with a little tremor. The block's position is read
    from the state when a push begins.
    """

    def __init__(self, random: np.random.Generator) -> None:
        """Draw everything from ``random``."""
        self._random = random
        self._legs: list[_Leg] = []
        self._target: np.ndarray | None = None
        self._tremor = random.choice([0.0, 0.7, 2.0])

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the next target position, float32 ``[2]`` in px (0 to 512), for ``state`` [5] of PushT."""
        target = state[:2].astype(np.float64) if self._target is None else self._target
        while not self._legs:
            self._legs = self._plan(target, state)
        leg = self._legs[0]
        offset = leg.goal - target
        distance = float(np.linalg.norm(offset))
        if distance > leg.speed:
            target = target + offset * (leg.speed / distance)
        else:
            target = leg.goal
            leg.hold -= 1
            if leg.hold < 0:
                self._legs.pop(0)
        self._target = target
        shaken = target + self._tremor * self._random.standard_normal(2)
        return np.clip(shaken, 0.0, PUSHT_SIDE).astype(np.float32)

    def _plan(self, target: np.ndarray, state: np.ndarray) -> list[_Leg]:
        kind = self._random.random()
        if kind < _PUSH_SHARE:
            return self._push(target, state)
        if kind < _PUSH_SHARE + _ROAM_SHARE:
            return self._roam(target)
        return [_Leg(target, 1.0, hold=int(self._random.integers(3, 13)))]

    def _push(self, target: np.ndarray, state: np.ndarray) -> list[_Leg]:
        # direction: towards a place inside the plane, so that the block is not pressed against the walls for long
        sine, cosine = np.sin(state[4]), np.cos(state[4])
        centre = state[2:4] + _CENTRE_OFFSET * np.array([-sine, cosine])
        offset = self._random.uniform(110, 402, 2) - centre
        heading = np.arctan2(offset[1], offset[0]) + self._random.normal(0.0, 0.3)
        direction = np.array([np.cos(heading), np.sin(heading)])
        side = np.array([-direction[1], direction[0]])

        # approach from behind, then push through
        lateral = side * self._random.normal(0.0, 20.0)
        behind = centre - direction * self._random.uniform(75, _CLEARANCE) + lateral
        beyond = centre + direction * self._random.uniform(10, 130) + lateral
        approach = self._speed(14, 90)
        legs = [_Leg(_inside(behind), approach, hold=int(self._random.integers(0, 2)))]

        # from before the block, a straight way would run through it: go round on the nearer side
        ahead = float((target - centre) @ direction)
        aside = float((target - centre) @ side)
        if ahead > -_CLEARANCE / 2 and self._random.random() < 0.8:
            around = centre + side * (_CLEARANCE if aside >= 0 else -_CLEARANCE)
            legs.insert(0, _Leg(_inside(around), approach))
        legs.append(_Leg(_inside(beyond), self._speed(5, 45), hold=int(self._random.integers(0, 4))))
        return legs

    def _roam(self, target: np.ndarray) -> list[_Leg]:
        speed = self._speed(6, 80)
        heading = self._random.uniform(-np.pi, np.pi)
        legs = []
        for _ in range(self._random.integers(2, 7)):
            # A curve, not a zigzag: each point lies ahead of the last, a little turned.
            heading += self._random.normal(0.0, 0.6)
            length = self._random.uniform(1.0, 3.0) * speed
            target = _inside(target + length * np.array([np.cos(heading), np.sin(heading)]))
            legs.append(_Leg(target, speed))
        return legs

    def _speed(self, low: float, high: float) -> float:
        """Draw a speed in px a step, log-uniform; now and then a jump."""
        if self._random.random() < 0.08:
            return 600.0
        return float(np.exp(self._random.uniform(np.log(low), np.log(high))))


def _inside(point: np.ndarray) -> np.ndarray:
    return np.clip(point, _LOW, _HIGH)


class DragPolicy(ScriptedPolicy):
    """Mouse drags in PushT; state ``[b 5]``, actions ``[b 2]`` in -1 to 1."""

    def __init__(self) -> None:
        """Make a `DragScript` a row."""
        super().__init__(DragScript)

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Choose the next target positions, float32 ``[b 2]`` in -1 to 1."""
        half = PUSHT_SIDE / 2
        return ((super().act(observation).astype(np.float64) - half) / half).astype(np.float32)


# Meta-World

#: Fewest steps that the hand is led by the script, or moved at random, in a row.
SHORTEST_STRETCH = 5


def metaworld_scripts() -> dict[str, Any]:
    """Return the Meta-World package's script class of each task, such as "plate-slide".

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        from metaworld.policies import ENV_POLICY_MAP
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "metaworld", "metaworld") from error
    return {name.removesuffix("-v3"): script for name, script in ENV_POLICY_MAP.items()}


class MetaWorldScript:
    """The Meta-World package's script of a task, with noise and stretches of random motion.

    In a random stretch the hand goes in one direction and the gripper opens or closes at one pace.
    """

    def __init__(
        self,
        task: str,
        random: np.random.Generator,
        *,
        noise: float = 0.0,
        random_share: float = 0.0,
        longest_stretch: int = 15,
    ) -> None:
        """Draw everything from ``random``.

        Args:
            task: such as "plate-slide".
            random: generator of noise and stretches.
            noise: standard deviation of the noise on each action dimension.
            random_share: share of the steps spent in stretches of random motion, 0 to 1.
            longest_stretch: most steps of a stretch.

        Raises:
            UserError: there is no such task.
        """
        scripts = metaworld_scripts()
        if task not in scripts:
            raise UserError(f"there is no script for the Meta-World task {task!r}; {suggestion(task, scripts)}")
        self._script = scripts[task]()
        self._random = random
        self._noise, self._random_share, self._longest_stretch = noise, random_share, longest_stretch
        self._steps_left = 0
        self._direction: np.ndarray | None = None

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the next action, float32 ``[4]`` in -1 to 1, for ``state`` float64 ``[39]`` of Meta-World."""
        if not self._steps_left:
            self._steps_left = int(self._random.integers(SHORTEST_STRETCH, self._longest_stretch + 1))
            is_random = self._random.random() < self._random_share
            self._direction = self._random.uniform(-1.0, 1.0, 4) if is_random else None
        self._steps_left -= 1
        action = self._scripted(state) if self._direction is None else self._direction
        noisy = action + self._noise * self._random.standard_normal(4)
        return np.clip(noisy, -1.0, 1.0).astype(np.float32)

    def _scripted(self, state: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            # The scripts warn that they ask for more than the limit; the action is clipped here.
            warnings.filterwarnings("ignore", message="Constant")
            return np.asarray(self._script.get_action(np.asarray(state, np.float64)), np.float64)


class MetaWorldPolicy(ScriptedPolicy):
    """The script of a Meta-World task; state ``[b 39]``, actions ``[b 4]`` in -1 to 1."""

    def __init__(self, task: str, *, noise: float = 0.0, random_share: float = 0.0, longest_stretch: int = 15) -> None:
        """Make a `MetaWorldScript` a row; its arguments are the same."""
        options: dict[str, Any] = {"noise": noise, "random_share": random_share, "longest_stretch": longest_stretch}
        super().__init__(lambda random: MetaWorldScript(task, random, **options))


# Reacher


class ReacherPolicy(ScriptedPolicy):
    """The straight way to the goal of Reacher; state ``[b 4]``, actions ``[b 2]`` in -1 to 1."""

    def __init__(self, speed: float = 0.25) -> None:
        """Make a script a row, for a ``Reacher`` of this speed."""
        super().__init__(lambda random: lambda state: np.clip((state[2:] - state[:2]) / speed, -1, 1))


# Toy push

#: Sides of ``ToyPush`` in their order, and its cells along a side.
_PUSH_SIDES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
_PUSH_CELLS = 8
# Largest number of each entry of the state.
_PUSH_LAST = [*[_PUSH_CELLS - 1] * 6, 1, 3]


class ToyPushScript:
    """A script that takes the shortest way to push the named square to the named side, with noise and random steps."""

    def __init__(self, random: np.random.Generator, *, noise: float = 0.0, random_share: float = 0.0) -> None:
        """Begin an episode.

        Args:
            random: generator of the episode.
            noise: standard deviation of what is added to the actions.
            random_share: of the steps that go in a random direction.
        """
        self._random, self._noise, self._share = random, noise, random_share
        self._plan: dict[tuple[int, ...], tuple[int, int]] = {}

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the next action, float64 ``[2]`` in -1 to 1, for ``state`` ``[8]`` of ``ToyPush``."""
        if self._random.random() < self._share:
            action = _PUSH_SIDES[self._random.integers(4)]
        else:
            # A state that was estimated from a frame may be out of range.
            key = tuple(np.clip(state.round().astype(int), 0, _PUSH_LAST).tolist())
            if key not in self._plan:
                self._plan = _push_plan(key)
            action = np.array(self._plan.get(key, (0, 0)))
        return np.clip(action + self._noise * self._random.standard_normal(2), -1, 1)


def _push_plan(state: tuple[int, ...]) -> dict[tuple[int, ...], tuple[int, int]]:
    """Return the step at each state of the shortest way by breadth-first search; the other square is never moved."""
    named, side = state[-2:]
    squares = [state[2:4], state[4:6]]
    other, goal = squares[1 - named], _PUSH_SIDES[side]

    def is_free(place: tuple[int, int]) -> bool:
        return place != other and min(place) >= 0 and max(place) < _PUSH_CELLS

    start = (state[:2], squares[named])
    came: dict[Any, Any] = {start: None}
    queue = deque([start])
    while queue:
        at = queue.popleft()
        (x, y), (u, v) = at
        along = u * goal[0] + v * goal[1]
        if along >= (_PUSH_CELLS - 2 if goal.sum() > 0 else -1):
            plan = {}
            while came[at] is not None:
                at, way = came[at]
                pair = [at[1], other] if named == 0 else [other, at[1]]
                plan[(*at[0], *pair[0], *pair[1], named, side)] = way
            return plan
        for dx, dy in _PUSH_SIDES.tolist():
            agent, square = (x + dx, y + dy), (u, v)
            if agent == square:
                square = (u + dx, v + dy)
            if is_free(agent) and is_free(square) and (agent, square) not in came:
                came[agent, square] = (at, (dx, dy))
                queue.append((agent, square))
    return {}


class ToyPushPolicy(ScriptedPolicy):
    """The script of toy push; state ``[b 8]``, actions ``[b 2]`` in -1 to 1."""

    def __init__(self, *, noise: float = 0.0, random_share: float = 0.0) -> None:
        """Make a `ToyPushScript` a row; its arguments are the same."""
        super().__init__(lambda random: ToyPushScript(random, noise=noise, random_share=random_share))
