"""RoboDesk: a Panda arm at a desk with buttons, a drawer, a slide and blocks; after the package robodesk.

Physics and rewards are the package's own, with the corrections of VP2: positions of blocks at the start of an episode
are copied (the package keeps a view, so that no block ever moves), and positions of objects are no speeds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from typing import Any

import numpy as np
import PIL.Image

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.envs.goal_environment import GoalEnvironment, seeded_numpy
from ivideogpt.envs.mujoco_rendering import FreeView, OffscreenCamera, choose_gl
from ivideogpt.envs.registry import ROBODESK_TASKS

if importlib.util.find_spec("robodesk") is None:
    raise MissingExtraError("RoboDesk", "vp2")
choose_gl()
with contextlib.redirect_stderr(io.StringIO()):  # gym says that it is no longer maintained
    import robodesk  # pyright: ignore[reportMissingImports]

#: Camera of the package's pictures, their side in px, and the left, upper, right and lower edge of what is kept.
_VIEW = FreeView(lookat=(0.0, 0.535, 1.1), distance=1.8, azimuth=90.0, elevation=-60.0)
_RENDER_SIZE, _CROP = 120, (16.75, 25.0, 105.0, 88.75)
_ROBOT, _OBJECT_POSITIONS, _OBJECT_SPEEDS = 9, 29, 26
#: Numbers of a state in files of VP2, without and with the position of the hand at their end.
_STATE, _STATE_WITH_HAND = 2 * _ROBOT + _OBJECT_POSITIONS + _OBJECT_SPEEDS, 2 * _ROBOT + 58
_BLOCKS = ("ball", "upright_block", "flat_block")
#: Simulator steps of 2 ms of a control step.
_SUBSTEPS = 10
#: Speed of the scripts for each m of distance, and height in m at which they push blocks.
_SCRIPT_GAIN, _PUSH_HEIGHT = 8.0, 0.785
#: Angle of the wrist, in rad, at which the hand is narrow along y.
_DRAWER_WRIST = -0.66
#: Place from an object, in m, and the distance along each axis at which it is reached; None: the last one.
_Waypoint = tuple[tuple[float, float, float], tuple[float, float, float] | None]


class RoboDesk(GoalEnvironment):
    """One task of RoboDesk, seen from above as in VP2; see `GoalEnvironment`.

    Action: float32 ``[5]``: speed of the hand along x, y and z (1: to where it is 1 cm further, each control step of
    20 ms), of the wrist, and the fingers (1: open).
    Reward: the package's dense one, 0 to 1 a control step, summed over the ``action_repeat`` of them.
    State: float64 ``[85]``: positions and speeds of the robot (9 each), positions (29) and speeds (26) of the objects,
    the hand (3), as in VP2's files; then the places of the three blocks at the start of the episode (9).
    Score: -1 where the task is solved, else 0, as in VP2.
    """

    cameras = ("camera",)
    solved_score, lowest_score = -0.5, -1.0

    def __init__(
        self,
        task: str = "push_red",
        *,
        seed: int | None = None,
        size: int = 64,
        steps: int = 15,
        action_repeat: int = 50,
        shadow_size: int = 1024,
        samples: int = 4,
        render_mode: str | None = None,
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            task: one of ``ROBODESK_TASKS``.
            seed: of the first reset that gives none.
            size: side of the picture in pixels.
            steps: actions of an episode.
            action_repeat: control steps of 20 ms of an action; 50 in VP2.
            shadow_size: side of the shadow map in pixels (the package's own: 4096); below 256 the scene gets dark.
            samples: for each pixel, against jagged edges; 0: one.
            render_mode: "rgb_array" (``render()`` returns the last observation) or None.

        Raises:
            UserError: there is no such task, a number is out of range, or it cannot be drawn here.
        """
        if task not in ROBODESK_TASKS:
            raise UserError(f"there is no task {task!r} of RoboDesk here; {suggestion(task, ROBODESK_TASKS)}")
        if action_repeat < 1:
            raise UserError(f"action_repeat is {action_repeat}; expected a whole number of at least 1")
        super().__init__(5, seed=seed, size=size, steps=steps, render_mode=render_mode)
        self.task, self.action_repeat = task, action_repeat
        self.metadata = self.metadata | {"render_fps": 50 / action_repeat}
        package: Any = robodesk
        self._simulator: Any = package.RoboDesk(task, reward="dense", action_repeat=1, episode_length=0)
        self._render_size = max(_RENDER_SIZE, size)
        self._camera = OffscreenCamera(
            self._physics.model.ptr, _VIEW, size=self._render_size, shadow_size=shadow_size, samples=samples
        )
        self._script_phase = 0

    @property
    def _physics(self) -> Any:
        return self._simulator.physics

    def simulate(self, action: np.ndarray) -> float:
        """Take an action without a picture; see `GoalEnvironment`."""
        simulator, physics, reward = self._simulator, self._physics, 0.0
        action = np.clip(action, -1.0, 1.0)
        for _ in range(self.action_repeat):
            joints = simulator._convert_action(action)[:_ROBOT].copy()
            for _ in range(_SUBSTEPS):
                physics.data.ctrl[:_ROBOT] = joints
                physics.data.qfrc_applied[:_ROBOT] = physics.data.qfrc_bias[:_ROBOT]  # gravity compensation
                physics.step()
            simulator.physics_copy.data.qpos[:] = physics.data.qpos
            reward += float(simulator._get_task_reward(self.task, "dense_reward"))
        return reward

    def picture(self) -> np.ndarray:
        """Draw the present state; see `GoalEnvironment`."""
        whole = PIL.Image.fromarray(self._camera.draw(self._physics.data.ptr)[::-1])
        left, upper, right, lower = (edge * self._render_size / _RENDER_SIZE for edge in _CROP)
        return np.asarray(
            whole.crop((left, upper, right, lower)).resize((self.size, self.size), PIL.Image.Resampling.LANCZOS)  # type: ignore[arg-type]
        )

    def save_state(self) -> np.ndarray:
        """Return the state, float64 ``[85]``; see the class."""
        data, starts = self._physics.data, self._simulator.original_pos
        robot, objects = slice(None, _ROBOT), slice(_ROBOT, None)
        parts = [data.qpos[robot], data.qvel[robot], data.qpos[objects], data.qvel[objects], self._hand()]
        return np.concatenate([*parts, *(starts[name] for name in _BLOCKS)])

    def restore_state(self, state: np.ndarray) -> None:
        """Go to a state; one of VP2's files (73 or 76 numbers) begins an episode there.

        Raises:
            UserError: it has another number of numbers.
        """
        whole = _STATE_WITH_HAND + 3 * len(_BLOCKS)
        if state.shape not in ((_STATE,), (_STATE_WITH_HAND,), (whole,)):
            raise UserError(f"a state has the shape {list(state.shape)}; RoboDesk's have {_STATE}, 76 or 85 numbers")
        data, widths = self._physics.data, (_ROBOT, _ROBOT, _OBJECT_POSITIONS, _OBJECT_SPEEDS)
        robot, robot_speed, objects, speeds = np.split(state[:_STATE], np.cumsum(widths)[:-1])
        self._physics.reset()
        data.qpos[:], data.qvel[:] = np.concatenate([robot, objects]), np.concatenate([robot_speed, speeds])
        self._begin()
        if state.shape == (whole,):
            starts = state[_STATE_WITH_HAND:].reshape(len(_BLOCKS), 3)
            self._simulator.original_pos = dict(zip(_BLOCKS, starts.copy(), strict=True))

    def score(self) -> float:
        """Return -1 where the task is solved, else 0; whether other blocks have moved is not looked at.

        Source: VP2, ``RoboDeskEnv.compute_score``, which forgets where blocks were at the start; same.
        """
        if self.task.endswith("_off_table"):
            solved = self._physics.named.data.qpos[self.task.removesuffix("_off_table")][2] < 0.6
        else:
            solved = np.all(self._simulator._get_task_reward(self.task, "success"))
        return -float(solved)

    def close(self) -> None:
        """Free the OpenGL context."""
        self._camera.close()

    def _place(self, seed: int) -> None:
        with seeded_numpy(seed):
            self._simulator.render = lambda **_: None  # its own picture of a reset is not used
            self._simulator.reset()
        self._begin()

    def _begin(self) -> None:
        """Make all that follows from positions and speeds, as at the start of an episode."""
        self._physics.forward()
        simulator, places = self._simulator, self._physics.named.data.xpos
        simulator.physics_copy.data.qpos[:] = self._physics.data.qpos
        simulator.original_pos = {name: places[name].copy() for name in _BLOCKS}
        simulator.drawer_opened = simulator.success = False
        self._script_phase = 0

    def _hand(self) -> np.ndarray:
        return self._physics.named.data.site_xpos["end_effector"].copy()

    def scripted_action(self) -> np.ndarray:
        """Return the next action of the task's script, the fingers closed; see `GoalEnvironment`."""
        place, waypoints = self._waypoints()
        if self.task.endswith("_off_table") and self._script_phase == 2 and self._hand()[0] > place[0] - 0.02:
            self._script_phase = 0  # the hand has passed the block
        offset, tolerance = waypoints[self._script_phase]
        if tolerance is not None and (np.abs(place + offset - self._hand()) < tolerance).all():
            self._script_phase += 1
            offset, _ = waypoints[self._script_phase]
        speed = np.clip(_SCRIPT_GAIN * (place + offset - self._hand()), -1.0, 1.0)
        wrist = 0.0
        if self.task == "open_drawer":  # so that the hand fits behind the handle
            wrist = np.clip((_DRAWER_WRIST - self._physics.data.qpos[6]) / 2, -1.0, 1.0)
        return np.array([*speed, wrist, -1.0])

    def is_goal(self, start: np.ndarray) -> bool:
        """Return whether the task is solved."""
        return self.success()

    def _waypoints(self) -> tuple[np.ndarray, list[_Waypoint]]:
        """Return the place of the object in m, and the way of the hand around it."""
        names = self._physics.named.data
        if self.task.startswith("push_"):
            button = names.xpos[f"{self.task.removeprefix('push_')}_button"]
            return button.copy(), [((0, 0, 0.18), (0.05, 0.05, 0.2)), ((0, 0, 0), None)]
        if self.task == "open_slide":
            behind = [((-0.16, -0.15, 0.02), (0.06, 0.06, 0.1)), ((-0.1, 0, 0), (0.05, 0.035, 0.1))]
            return names.site_xpos["slide_handle"].copy(), [*behind, ((0.4, 0.02, 0), None)]
        if self.task == "open_drawer":
            behind = [((0, 0.02, 0.16), (0.05, 0.025, 0.2)), ((0, 0.02, -0.04), (0.2, 0.2, 0.04))]
            return names.geom_xpos["drawer_handle"].copy(), [*behind, ((0, -0.3, -0.075), None)]
        block = names.xpos[self.task.removesuffix("_off_table")].copy()
        low = _PUSH_HEIGHT - block[2]
        behind = [((-0.16, 0, 0.14), (0.06, 0.05, 0.2)), ((-0.13, 0, low), (0.3, 0.05, 0.04))]
        return block, [*behind, ((0.25, 0, low), None)]
