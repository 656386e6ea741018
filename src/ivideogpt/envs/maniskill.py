"""ManiSkill: five tasks of a robot arm on a table, drawn by SAPIEN, which needs a Vulkan driver.

Physics, rewards and success checks are those of the package mani-skill. One camera is drawn, at the size that is asked
for. ``rendering_problem()`` says whether this machine can draw, and what to install where it cannot.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.envs.registry import MANISKILL_TASKS

if importlib.util.find_spec("mani_skill") is None:
    raise MissingExtraError("mani-skill", "maniskill")
# Assets are never asked for on standard input: the five tasks come with the package.
os.environ.setdefault("MS_SKIP_ASSET_DOWNLOAD_PROMPT", "1")

import gymnasium  # noqa: E402
from gymnasium.vector import AutoresetMode, VectorEnv  # noqa: E402
from gymnasium.vector.utils import batch_space  # noqa: E402

#: Cameras: "render" sees the whole scene from the front, as ManiSkill's videos; "base" from above; "hand" at the wrist.
MANISKILL_CAMERAS = {"render": "render_camera", "base": "base_camera", "hand": "hand_camera"}
SIM_BACKENDS = ("physx_cpu", "physx_cuda")
MANISKILL_REWARDS = ("normalized_dense", "dense", "sparse")
#: Render backends by the names that ManiSkill takes.
RENDER_BACKENDS = {
    "auto": "",
    "cpu": "sapien_cpu",
    "sapien_cpu": "sapien_cpu",
    "gpu": "sapien_cuda",
    "cuda": "sapien_cuda",
    "sapien_cuda": "sapien_cuda",
}
#: Control mode of a task, unless the registry names another.
CONTROL_MODE = "pd_ee_delta_pose"
_INSTALL = (
    "SAPIEN needs a Vulkan driver: on a processor Mesa 24.3 or newer (Debian 12: add bookworm-backports to "
    "/etc/apt/sources.list.d, then apt-get install -t bookworm-backports mesa-vulkan-drivers), on an NVIDIA card its "
    "driver with Vulkan; VK_ICD_FILENAMES may name the driver's file (docs/maniskill.md)"
)


@functools.cache
def rendering_problem(backend: str = "sapien_cpu") -> str:
    """Return "" where SAPIEN can draw with a backend here, else a sentence that says what to install.

    The device's own ``can_render`` is False for Mesa's processor driver, so a renderer is made.

    Args:
        backend: "sapien_cpu" or "sapien_cuda".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a system-wide libvulkan SAPIEN takes its own, and says so
        import sapien  # pyright: ignore[reportMissingImports]

        try:
            sapien.render.RenderSystem(sapien.Device("cpu" if backend == "sapien_cpu" else "cuda"))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            return f"ManiSkill cannot draw with {backend} here ({reason}). {_INSTALL}"
    return ""


def choose_render_backend(name: str = "auto") -> str:
    """Return the render backend of a name; "auto" is the graphics card, else the processor.

    Raises:
        UserError: there is no such backend, or it cannot draw here.
    """
    if name not in RENDER_BACKENDS:
        raise UserError(f"there is no render_backend {name!r}; {suggestion(name, RENDER_BACKENDS)}")
    candidates = (RENDER_BACKENDS[name],) if RENDER_BACKENDS[name] else ("sapien_cuda", "sapien_cpu")
    for backend in candidates:
        if not rendering_problem(backend):
            return backend
    raise UserError(rendering_problem(candidates[-1]))


def maniskill_id(task: str) -> str:
    """Return ManiSkill's id of a task, such as "PickCube-v1" for "pick_cube".

    Raises:
        UserError: it is none of the five.
    """
    ids = {options["task"]: options["task"] for options in MANISKILL_TASKS.values()}
    plain = task.replace("_", "-").lower().removeprefix("maniskill/")
    by_name = {name.lower(): name for name in ids} | {name: row["task"] for name, row in MANISKILL_TASKS.items()}
    if plain not in by_name:
        raise UserError(f"there is no ManiSkill task {task!r} here; {suggestion(plain, [*MANISKILL_TASKS, *ids])}")
    return by_name[plain]


class _Scenes:
    """Scenes of one task that ManiSkill steps together: one on a processor, any number on a graphics card.

    Attributes:
        count: number n of scenes.
        action_dim: numbers a of an action.
        control_freq: control steps a second.
    """

    def __init__(
        self,
        task: str,
        count: int,
        *,
        size: int = 64,
        steps: int = 50,
        action_repeat: int = 1,
        camera: str = "render",
        show_goal: bool = True,
        control_mode: str = CONTROL_MODE,
        reward_mode: str = "normalized_dense",
        success_bonus: float = 0.0,
        render_backend: str = "auto",
        sim_backend: str = "physx_cpu",
    ) -> None:
        """Check the options, which are those of ``ManiSkill``, and build the scenes."""
        for name, value in (("size", size), ("steps", steps), ("action_repeat", action_repeat)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; expected a whole number of at least 1")
        if not math.isfinite(success_bonus):
            raise UserError(f"success_bonus is {success_bonus}; expected a finite number")
        if camera not in MANISKILL_CAMERAS:
            raise UserError(f"there is no camera {camera!r}; {suggestion(camera, MANISKILL_CAMERAS)}")
        if reward_mode not in MANISKILL_REWARDS:
            raise UserError(f"there is no reward_mode {reward_mode!r}; {suggestion(reward_mode, MANISKILL_REWARDS)}")
        if sim_backend not in SIM_BACKENDS:
            raise UserError(f"there is no sim_backend {sim_backend!r}; {suggestion(sim_backend, SIM_BACKENDS)}")
        self.task, self.count, self._camera, self._show_goal = maniskill_id(task), count, camera, show_goal
        self._action_repeat, self._success_bonus = action_repeat, float(success_bonus)
        self.simulator = _make_simulator(
            self.task,
            count,
            size=size,
            control_mode=control_mode,
            reward_mode=reward_mode,
            render_backend=choose_render_backend(render_backend),
            sim_backend=sim_backend,
        )
        if self._find_camera() is None:
            raise UserError(f"{self.task} has no camera {camera!r}; choose render or base")
        self.action_dim = int(self.simulator.single_action_space.shape[0])
        self.control_freq = self.simulator.control_freq
        self._is_started = False

    def reset(self, seeds: Sequence[int] | None, rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Begin episodes in ``rows`` (bool ``[n]``); return pictures uint8 ``[n size size 3]`` and info by row.

        The first reset begins all episodes. ``seeds`` are of all n rows.
        """
        import torch

        options = {}
        if self._is_started and not rows.all():
            options = {"env_idx": torch.as_tensor(np.flatnonzero(rows), device=self.simulator.device)}
        self._is_started = True
        state, _ = self.simulator.reset(seed=None if seeds is None else list(seeds), options=options)
        return self.draw(), self._info(state, {}, np.zeros(self.count, bool))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Take actions ``[n a]`` for ``action_repeat`` control steps; return pictures, rewards ``[n]`` and info.

        Raises:
            UserError: the actions have another shape or are not finite.
        """
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.count, self.action_dim) or not np.isfinite(actions).all():
            rows = f"{self.count} rows of " if self.count > 1 else ""
            given = actions.tolist() if actions.size <= 16 else f"of shape {list(actions.shape)}"
            raise UserError(f"the action is {given}; expected {rows}{self.action_dim} finite numbers, -1 to 1")
        actions = np.clip(actions, -1.0, 1.0)
        rewards, success = np.zeros(self.count), np.zeros(self.count, bool)
        for _ in range(self._action_repeat):
            state, reward, _, _, details = self.simulator.step(actions)
            rewards += _as_numpy(reward)
            success |= _as_numpy(details["success"]).astype(bool)
        rewards += self._success_bonus * success
        return self.draw(), rewards, self._info(state, details, success)

    def draw(self) -> np.ndarray:
        """Draw the scenes as they are, uint8 ``[n size size 3]``."""
        simulator, camera = self.simulator, self._find_camera()
        for hidden in simulator._hidden_objects:
            hidden.show_visual() if self._show_goal else hidden.hide_visual()
        is_render = self._camera == "render"
        simulator.scene.update_render(update_sensors=not is_render, update_human_render_cameras=is_render)
        camera.capture()
        colors = camera.get_obs(rgb=True, depth=False, position=False, segmentation=False)["rgb"]
        return np.array(_as_numpy(colors))

    def _find_camera(self) -> Any:
        simulator, name = self.simulator, MANISKILL_CAMERAS[self._camera]
        cameras = simulator._human_render_cameras if self._camera == "render" else simulator._sensors
        return cameras.get(name)

    def _info(self, state: Any, details: Mapping[str, Any], success: np.ndarray) -> dict[str, np.ndarray]:
        """Return success and the task's other checks, bool ``[n]``, and the state, float64 ``[n s]``."""
        arrays = {name: _as_numpy(value) for name, value in details.items() if not isinstance(value, Mapping)}
        checks = {name: value for name, value in arrays.items() if value.dtype == bool and value.shape == (self.count,)}
        return checks | {"success": success, "state": _as_numpy(state).astype(np.float64)}


class ManiSkill(gymnasium.Env):
    """One task of ManiSkill from pixels, 20 / ``action_repeat`` steps a second.

    Observation: uint8 ``[size size 3]``, RGB. The goal of PickCube, which ManiSkill hides from sensors, is shown.
    Action: float32 ``[a]``, clipped to -1 to 1. "pd_ee_delta_pose": the hand along x, y, z (1: 10 cm), its rotation
    (1: 0.1 rad) and the fingers (1: open; PushT has a stick instead, so 6 numbers, else 7). "pd_joint_delta_pos": the
    seven joints and the fingers, 8 numbers.
    Reward: ManiSkill's, summed over the repeated action; "normalized_dense" is 0 to 1 a simulator step.
    Terminated: never, unless ``terminate_on_success``: a positive reward each step makes an agent avoid an early end.
    Truncated after ``steps``.
    Info: ``success`` bool, ``state`` float64 ``[s]`` (the state observation: robot, hand, objects, goal), and the
    checks of the task (``is_grasped``, ...).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task: str,
        *,
        seed: int | None = None,
        size: int = 64,
        steps: int = 50,
        action_repeat: int = 1,
        camera: str = "render",
        show_goal: bool = True,
        control_mode: str = CONTROL_MODE,
        reward_mode: str = "normalized_dense",
        success_bonus: float = 0.0,
        terminate_on_success: bool = False,
        render_backend: str = "auto",
        sim_backend: str = "physx_cpu",
        render_mode: str | None = None,
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            task: ManiSkill's id, or its name here, see ``MANISKILL_TASKS``.
            seed: of the first reset that gives none.
            size: side of the picture in pixels.
            steps: actions of an episode.
            action_repeat: control steps (1/20 s) of an action.
            camera: a key of ``MANISKILL_CAMERAS``; only this one is drawn. "hand": PegInsertionSide and StackCube.
            show_goal: draw what ManiSkill hides from sensors: the goal of PickCube.
            control_mode: of the robot.
            reward_mode: one of ``MANISKILL_REWARDS``.
            success_bonus: added to the reward of a step that succeeded.
            terminate_on_success: end the episode there, as ManiSkill does.
            render_backend: auto, sapien_cpu (or cpu) or sapien_cuda (or gpu).
            sim_backend: of the physics, one of ``SIM_BACKENDS``.
            render_mode: "rgb_array" (``render()`` returns the last observation) or None.

        Raises:
            UserError: there is no such task, camera or mode, a number is out of range, or it cannot be drawn here.
        """
        self._scene = _Scenes(
            task,
            1,
            size=size,
            steps=steps,
            action_repeat=action_repeat,
            camera=camera,
            show_goal=show_goal,
            control_mode=control_mode,
            reward_mode=reward_mode,
            success_bonus=success_bonus,
            render_backend=render_backend,
            sim_backend=sim_backend,
        )
        self.task, self.steps, self.action_repeat = self._scene.task, steps, action_repeat
        self.control_mode, self.render_mode = control_mode, render_mode
        self.terminate_on_success = terminate_on_success
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self._scene.action_dim,), np.float32)
        self.metadata = self.metadata | {"render_fps": self._scene.control_freq / action_repeat}
        self._first_seed = seed
        self._steps_left = 0
        self._picture: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Place robot, objects and goal at random; the same seed gives the same places.

        Args:
            seed: of this and all later draws.
            options: not used.
        """
        seed = self._first_seed if seed is None else seed
        self._first_seed = None
        super().reset(seed=seed)
        of_episode = int(self.np_random.integers(2**31)) if seed is None else seed
        pictures, info = self._scene.reset([of_episode], np.ones(1, bool))
        self._steps_left = self.steps
        return self._show(pictures), _first_row(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take ``action`` for ``action_repeat`` control steps.

        Raises:
            UserError: the action is not a row of finite numbers, or the episode is over.
        """
        if not self._steps_left:
            raise UserError(f"the episode is over after {self.steps} steps or has not begun; call reset first")
        pictures, rewards, info = self._scene.step(np.asarray(action, np.float32)[None])
        terminated = bool(info["success"][0]) and self.terminate_on_success
        self._steps_left = 0 if terminated else self._steps_left - 1
        truncated = not self._steps_left and not terminated
        return self._show(pictures), float(rewards[0]), terminated, truncated, _first_row(info)

    def set_simulator_state(self, state: Mapping[str, Any]) -> np.ndarray:
        """Put robot and objects into a recorded state and return the picture.

        Args:
            state: ``actors`` and ``articulations``, each name with a row of numbers ``[n]``, as in ManiSkill's files.

        Raises:
            UserError: the state is of another scene.
        """
        import torch

        try:
            parts = {
                kind: {name: torch.as_tensor(np.array(row, np.float32))[None] for name, row in rows.items()}
                for kind, rows in state.items()
            }
            self._scene.simulator.set_state_dict(parts)
        except (KeyError, RuntimeError, ValueError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"a recorded state does not fit {self.task} ({type(error).__name__}: {reason}); give one of this task"
            ) from error
        return self._show(self._scene.draw())

    def observed_state(self) -> np.ndarray:
        """Return the state observation, float64 ``[s]``, as in the info; of a state that was set, it is up to date."""
        return _as_numpy(self._scene.simulator.get_obs()[0]).astype(np.float64)

    def simulator_state(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the state of the simulator, as ``set_simulator_state`` takes it."""
        state = self._scene.simulator.get_state_dict()
        return {
            kind: {name: _as_numpy(row[0]).astype(np.float32) for name, row in state[kind].items()}
            for kind in ("actors", "articulations")
        }

    def render(self) -> np.ndarray | None:
        """Return the last observation, or None without a render mode."""
        return self._picture.copy() if self.render_mode and self._picture is not None else None

    def close(self) -> None:
        """Free the simulator."""
        self._scene.simulator.close()

    def _show(self, pictures: np.ndarray) -> np.ndarray:
        self._picture = pictures[0]
        return pictures[0].copy()


class ManiSkillVector(VectorEnv):
    """Environments that ManiSkill steps together in one simulator, on a graphics card.

    Observation, reward and ends are those of `ManiSkill`; info is arrays, a row for each environment. Reset with
    ``reset(options={"reset_mask": ...})``. The places in an episode depend on its seed and on the rows that are reset
    with it, and the physics of a graphics card is not exactly repeatable.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}

    def __init__(
        self,
        task: str,
        count: int,
        *,
        frame_stack: int = 1,
        size: int = 64,
        steps: int = 50,
        terminate_on_success: bool = False,
        sim_backend: str = "physx_cuda",
        **options: Any,
    ) -> None:
        """Build the environments.

        Args:
            task: ManiSkill's id, or its name here.
            count: number n of environments.
            frame_stack: frames k of an observation, oldest first: uint8 ``[n k size size 3]``; 1: ``[n size size 3]``.
            size: side of a picture in pixels.
            steps: actions of an episode.
            terminate_on_success: end an episode at success.
            sim_backend: of the physics; "physx_cpu" steps one environment only.
            **options: as for `ManiSkill`.

        Raises:
            UserError: as ``ManiSkill``; or several environments on a processor, or there is no graphics card.
        """
        self._scenes = _Scenes(task, count, size=size, steps=steps, sim_backend=sim_backend, **options)
        self.num_envs, self.steps, self.terminate_on_success = count, steps, terminate_on_success
        stack = () if frame_stack == 1 else (frame_stack,)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (*stack, size, size, 3), np.uint8)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (self._scenes.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, count)
        self.action_space = batch_space(self.single_action_space, count)
        self._frames = np.zeros((count, frame_stack, size, size, 3), np.uint8)
        self._steps_left = np.zeros(count, int)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes in all rows, or in those of ``options["reset_mask"]`` (bool ``[n]``).

        Args:
            seed: of row 0, row 1 has the next one, and so on; or a seed for each row.
            options: see above.
        """
        rows = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)), bool)
        seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else seed
        # rows that go on are not seeded, but ManiSkill takes a number for each row
        row_seeds = None if seeds is None else [0 if number is None else number for number in seeds]
        pictures, info = self._scenes.reset(row_seeds, rows)
        self._frames[rows] = pictures[rows, None]
        self._steps_left[rows] = self.steps
        return self._observation(), info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each environment, ``[n a]``.

        Raises:
            UserError: the actions have another shape or are not finite, or an episode is over.
        """
        if (self._steps_left <= 0).any():
            rows = np.flatnonzero(self._steps_left <= 0).tolist()
            raise UserError(f"the episodes of rows {rows} are over or have not begun; reset them first")
        pictures, rewards, info = self._scenes.step(actions)
        self._frames = np.concatenate([self._frames[:, 1:], pictures[:, None]], axis=1)
        terminated = info["success"] & self.terminate_on_success
        self._steps_left = np.where(terminated, 0, self._steps_left - 1)
        return self._observation(), rewards, terminated, (self._steps_left == 0) & ~terminated, info

    def close_extras(self, **_options: Any) -> None:
        """Free the simulator."""
        self._scenes.simulator.close()

    def _observation(self) -> np.ndarray:
        return self._frames.copy() if self._frames.shape[1] > 1 else self._frames[:, 0].copy()


def _first_row(info: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: bool(rows[0]) if rows.dtype == bool else rows[0] for name, rows in info.items()}


def _as_numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _make_simulator(
    task: str, count: int, *, size: int, control_mode: str, reward_mode: str, render_backend: str, sim_backend: str
) -> Any:
    """Make one of ManiSkill's environments, with ``count`` scenes and without the wrappers that it comes in."""
    import torch

    if count > 1 and sim_backend != "physx_cuda":
        raise UserError(
            f"{count} environments in one simulator need sim_backend=physx_cuda; on a processor ManiSkill steps one"
        )
    if sim_backend == "physx_cuda" and not torch.cuda.is_available():
        raise UserError("sim_backend=physx_cuda needs an NVIDIA card, and PyTorch sees none here; use physx_cpu")
    camera = {"width": size, "height": size}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # registers the tasks
        import mani_skill.envs  # noqa: F401  # pyright: ignore[reportMissingImports]
        from mani_skill.utils.logging_utils import logger  # pyright: ignore[reportMissingImports]

        logger.setLevel(logging.ERROR)
        try:
            # Observations of the state: no sensor is drawn, so that the wrist camera of some robots costs nothing.
            return gymnasium.make(
                task,
                num_envs=count,
                obs_mode="state",
                control_mode=control_mode,
                reward_mode=reward_mode,
                sensor_configs=dict(camera),
                human_render_camera_configs=dict(camera),
                render_backend=render_backend,
                sim_backend=sim_backend,
            ).unwrapped
        except (AssertionError, KeyError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{task} cannot be made with control_mode {control_mode!r} and reward_mode {reward_mode!r} "
                f"({type(error).__name__}: {reason}); {CONTROL_MODE} and pd_joint_delta_pos are control modes"
            ) from error


if __name__ == "__main__":  # python -m ivideogpt.envs.maniskill
    print(rendering_problem() or "ManiSkill can draw here with render_backend=sapien_cpu")
