"""Meta-World: a robot arm at a table, 50 tasks, seen from a corner at 64x64 pixels; after the package metaworld.

Physics, rewards and scripts are the package's own (its v3). The wrapper follows the official one: every action is
taken twice, an episode has 100 steps, success earns a bonus, and every reset draws object and goal anew.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.envs.mujoco_rendering import OffscreenCamera, choose_gl

if importlib.util.find_spec("metaworld") is None:
    raise MissingExtraError("metaworld", "metaworld")
choose_gl()

try:
    import gymnasium
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
except ModuleNotFoundError as error:  # of what the package needs and does not name: packaging
    raise MissingExtraError(error.name or "metaworld", "metaworld") from error

_OBSERVABLE = "-v3-goal-observable"
#: Every task of the package, such as "plate-slide".
TASKS: tuple[str, ...] = tuple(sorted(name.removesuffix(_OBSERVABLE) for name in ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE))
#: Parts of an action: the hand along x, y and z (1: one centimetre a simulator step), the fingers.
ACTION_FIELDS = (("hand", 3), ("gripper", 1))
_CAMERA = "corner"
# Position of the first object in a state, in m.
_OBJECT = slice(4, 7)


def task_name(name: str) -> str:
    """Return the name of a task as in ``TASKS``; "plate_slide" and "plate-slide-v3" are understood.

    Raises:
        UserError: there is no such task.
    """
    task = name.replace("_", "-").removesuffix("-v3")
    if task not in TASKS:
        raise UserError(f"there is no Meta-World task {name!r}; {suggestion(task, TASKS)}")
    return task


class MetaWorld(gymnasium.Env):
    """One task of Meta-World from pixels, 80 / ``action_repeat`` steps a second.

    Observation: uint8 ``[size size 3]``, RGB, upright and left-right mirrored, as in the official demonstrations.
    Action: float32 ``[4]``, clipped to -1 to 1: see ``ACTION_FIELDS``; the gripper closes at 1 and opens at -1.
    Reward: sum over the repeated action (the package pays up to 10 each time), and ``success_bonus`` once where one
    of them succeeded. Never terminated; truncated after ``steps``.
    Info: ``success`` bool, ``state`` float64 ``[39]`` (hand, gripper, objects; these one simulator step before; goal),
    ``object_position`` float64 ``[3]`` in m, and what the package gives (``near_object``, ``obj_to_target``, ...).

    Source: ``mbrl/metaworld_env.py``. Same: camera, picture, repeat, bonus, length, one idle simulator step after a
    reset. Differs: v3 of the package, seeded draws, actions clipped for the fingers too, a smaller shadow map, frames
    not stacked.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # with the default action_repeat

    def __init__(
        self,
        task: str,
        *,
        seed: int | None = None,
        size: int = 64,
        action_repeat: int = 2,
        steps: int = 100,
        success_bonus: float = 10.0,
        shadow_size: int = 1024,
        samples: int = 4,
        render_mode: str | None = None,
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            task: one of ``TASKS``.
            seed: of the first reset that gives none.
            size: side of the picture in pixels.
            action_repeat: simulator steps (1/80 s) of an action.
            steps: actions of an episode.
            success_bonus: added to the reward of a step that succeeded.
            shadow_size: side of the shadow map in pixels (the package's own: 4096); 0: no shadows.
            samples: for each pixel, against jagged edges; 0: one.
            render_mode: "rgb_array" (``render()`` returns the last observation) or None.

        Raises:
            UserError: there is no such task, a number is out of range, or it cannot be drawn here.
        """
        _check_whole(1, size=size, action_repeat=action_repeat, steps=steps)
        _check_whole(0, shadow_size=shadow_size, samples=samples)
        if not math.isfinite(success_bonus):
            raise UserError(f"success_bonus is {success_bonus}; expected a finite number")
        self.task = task_name(task)
        self.action_repeat = action_repeat
        self.steps = steps
        self.success_bonus = float(success_bonus)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (sum(width for _, width in ACTION_FIELDS),), np.float32)
        # With a seed the package leaves the global random numbers alone; reset seeds what counts.
        simulator_class: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[self.task + _OBSERVABLE]
        self._simulator: Any = simulator_class(seed=0)
        self._simulator._freeze_rand_vec = False
        self._simulator.seeded_rand_vec = True
        self._simulator.max_path_length = steps * action_repeat + 1
        rate = 1 / (self._simulator.dt * action_repeat)
        self.metadata = self.metadata | {"render_fps": round(rate, 6)}
        self._camera = OffscreenCamera(
            self._simulator.model, _CAMERA, size=size, shadow_size=shadow_size, samples=samples
        )
        self._first_seed = seed
        self._steps_left = 0
        self._picture: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Place object and goal at random; the same seed gives the same places.

        Args:
            seed: of this and all later draws.
            options: not used.
        """
        seed = self._first_seed if seed is None else seed
        self._first_seed = None
        super().reset(seed=seed)
        # One generator for both, so that np_random describes all the randomness there is.
        self._simulator.np_random = self.np_random
        self._simulator.reset()
        state, _, _, _, details = self._simulator.step(np.zeros(self.action_space.shape or (), np.float32))
        self._steps_left = self.steps
        return self._observe(), self._info(state, details, success=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take ``action`` for ``action_repeat`` simulator steps.

        Raises:
            UserError: the action is not four finite numbers, or the episode is over.
        """
        if not self._steps_left:
            raise UserError(f"the episode is over after {self.steps} steps or has not begun; call reset first")
        clipped = np.asarray(action, np.float32)
        if clipped.shape != self.action_space.shape or not np.isfinite(clipped).all():
            raise UserError(f"the action is {clipped.tolist()}; expected four finite numbers, -1 to 1")
        clipped = np.clip(clipped, -1.0, 1.0)
        reward, success = 0.0, False
        for _ in range(self.action_repeat):
            state, step_reward, _, _, details = self._simulator.step(clipped)
            reward += float(step_reward)
            success = success or bool(details["success"])
        if success:
            reward += self.success_bonus
        self._steps_left -= 1
        return self._observe(), reward, False, not self._steps_left, self._info(state, details, success=success)

    def render(self) -> np.ndarray | None:
        """Return the last observation, or None without a render mode."""
        return self._picture.copy() if self.render_mode and self._picture is not None else None

    def close(self) -> None:
        """Free the OpenGL context."""
        self._camera.close()

    def _observe(self) -> np.ndarray:
        # The camera hangs upside down, so OpenGL's order of rows, lowest first, is the upright one, mirrored.
        self._picture = self._camera.draw(self._simulator.data)
        return self._picture.copy()

    def _info(self, state: np.ndarray, details: dict, *, success: bool) -> dict:
        return details | {"success": success, "state": state, "object_position": state[_OBJECT].copy()}


def _check_whole(least: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} is {value!r}; expected a whole number of at least {least}")


def metaworld(task: str, *, seed: int, **options: Any) -> MetaWorld:
    """Make ``MetaWorld(task, seed=seed, ...)``: the first ``reset`` without a seed takes this one."""
    return MetaWorld(task, seed=seed, **options)
