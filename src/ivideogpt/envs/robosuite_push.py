"""Pushing two cubes on a table with a Panda arm, after the package robosuite: a task in the style of VP2's.

VP2's own scene, renderer and camera are of a fork of robosuite that no package registry has, so that results are not
comparable with published ones.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np

from ivideogpt.core.errors import MissingExtraError, UserError
from ivideogpt.envs.goal_environment import GoalEnvironment
from ivideogpt.envs.mujoco_rendering import OffscreenCamera, choose_gl

if importlib.util.find_spec("robosuite") is None:
    raise MissingExtraError("robosuite", "vp2")
choose_gl()
# It recommends a private file of macros, and packages of other robots, each time.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno > logging.WARNING)

import robosuite  # noqa: E402  # pyright: ignore[reportMissingImports]

try:
    from robosuite.controllers import load_composite_controller_config  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError("robosuite is older than 1.5; run: pip install 'ivideogpt[vp2]', or make vp2") from error

#: Joints of the cubes, which are small and large, in robosuite's task Stack.
_CUBES = ("cubeA_joint0", "cubeB_joint0")
#: Largest movement of the hand's target in an action, in m, and actions a second.
_REACH, _RATE = 0.05, 5
#: Group of the collision meshes in robosuite's scenes.
_COLLISION_GROUP = 0
#: Script: distance in m behind the cube and above the table, how far it is pushed, and speed for each m of distance.
_BEHIND, _CLEARANCE, _PUSH, _SCRIPT_GAIN = 0.08, 0.07, 0.16, 25.0
#: Weight of the hand's distance from behind a cube in the reward.
_APPROACH = 0.25
#: Least distance of a cube from its start in a goal, in m.
_GOAL_DISTANCE = 0.1


class RobosuitePush(GoalEnvironment):
    """Two cubes on a table, to be pushed to where a goal has them; see `GoalEnvironment`.

    Action: float32 ``[4]``: where the hand is to go, along x, y and z (1: 5 cm), and the fingers (1: close).
    Reward: minus the score, minus a quarter of the distance in m of the hand from where it could push the cube that is
    farthest from its place; 0 without a goal.
    State: float64 ``[45]``: time, positions and speeds of all joints.
    Score: largest distance of a cube from its place in the goal, in m, as in VP2; success: less than 0.05.
    """

    cameras = ("agentview", "agentview_shift_2")
    solved_score = 0.05

    def __init__(
        self,
        *,
        seed: int | None = None,
        size: int = 64,
        steps: int = 15,
        shadow_size: int = 1024,
        samples: int = 4,
        render_mode: str | None = None,
    ) -> None:
        """Build the environment; ``reset`` must come next.

        Args:
            seed: of the first reset that gives none.
            size: side of the picture in pixels.
            steps: actions of an episode.
            shadow_size: side of the shadow map in pixels (robosuite's own: 4096); 0: no shadows.
            samples: for each pixel, against jagged edges; 0: one.
            render_mode: "rgb_array" (``render()`` returns the last observation) or None.

        Raises:
            UserError: a number is out of range, or it cannot be drawn here.
        """
        super().__init__(4, seed=seed, size=size, steps=steps, render_mode=render_mode)
        controller = load_composite_controller_config(robot="Panda")
        arm = controller["body_parts"]["right"]
        arm.update(type="OSC_POSITION", output_max=[_REACH] * 3, output_min=[-_REACH] * 3)
        self._simulator: Any = robosuite.make(
            "Stack",
            robots="Panda",
            controller_configs=controller,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=_RATE,
            ignore_done=True,
            hard_reset=False,
            seed=0,
        )
        self._camera = OffscreenCamera(
            self._simulator.sim.model._model,
            "agentview",
            size=size,
            shadow_size=shadow_size,
            samples=samples,
            hidden_groups=(_COLLISION_GROUP,),
        )
        self._script: tuple[int, np.ndarray] = 0, np.zeros(2)
        self._is_pushing = False

    def simulate(self, action: np.ndarray) -> float:
        """Take an action without a picture; see `GoalEnvironment`."""
        self._simulator.step(np.clip(action, -1.0, 1.0))
        if self.goal_state is None:
            return 0.0
        pairs = zip(self._cubes(), self._cubes(self.goal_state), strict=True)
        cube, place = max(pairs, key=lambda pair: np.linalg.norm(pair[0] - pair[1]))
        way = cube - place
        behind = cube + _BEHIND * way / max(float(np.linalg.norm(way)), 1e-6)
        return -float(np.linalg.norm(way) + _APPROACH * np.linalg.norm(self._hand() - behind))

    def picture(self) -> np.ndarray:
        """Draw the present state; see `GoalEnvironment`."""
        return np.ascontiguousarray(self._camera.draw(self._simulator.sim.data._data)[::-1])

    def save_state(self) -> np.ndarray:
        """Return the state, float64 ``[45]``; see the class."""
        return np.asarray(self._simulator.sim.get_state().flatten(), np.float64)

    def restore_state(self, state: np.ndarray) -> None:
        """Go to a state; the fingers go on from where they are in it.

        Raises:
            UserError: it has another number of numbers.
        """
        expected = len(self.save_state())
        if state.shape != (expected,):
            raise UserError(f"a state has the shape {list(state.shape)}; robosuite/push has {expected} numbers")
        simulator, robot = self._simulator.sim, self._simulator.robots[0]
        simulator.set_state_from_flattened(np.asarray(state, np.float64))
        simulator.forward()
        self._reset_arm()
        gripper = robot.gripper["right"]
        actuators = [simulator.model.actuator_name2id(name) for name in gripper.actuators]
        low, high = simulator.model.actuator_ctrlrange[actuators].T
        fingers = simulator.data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        gripper.current_action = np.clip((fingers - (high + low) / 2) / ((high - low) / 2), -1.0, 1.0)

    def score(self) -> float:
        """Return the largest distance in m of a cube from its place in ``goal_state``; NaN without a goal.

        Source: VP2, ``RobosuiteEnv.compute_score``; same.
        """
        if self.goal_state is None:
            return float("nan")
        return self._distance(self.goal_state)

    def is_goal(self, start: np.ndarray) -> bool:
        """Return whether a cube has moved far enough."""
        return self._distance(start) > _GOAL_DISTANCE

    def scene(self) -> str:
        """Return the scene as MJCF; see `GoalEnvironment`."""
        return self._simulator.sim.model.get_xml()

    def _distance(self, state: np.ndarray) -> float:
        return max(float(np.linalg.norm(a - b)) for a, b in zip(self._cubes(), self._cubes(state), strict=True))

    def close(self) -> None:
        """Free the simulator and the OpenGL context."""
        self._camera.close()
        self._simulator.close()

    def scripted_action(self) -> np.ndarray:
        """Return the next action of a script that pushes one cube in a direction drawn by the reset."""
        cube, direction = self._script
        place, hand = self._cubes()[cube], self._hand()
        start = place - [*(_BEHIND * direction), 0.0]
        self._is_pushing |= bool(np.linalg.norm(hand - start) < 0.025)
        if self._is_pushing:
            target = place + [*(_PUSH * direction), 0.0]
        elif np.linalg.norm((hand - start)[:2]) > 0.03:
            target = start + [0.0, 0.0, _CLEARANCE]
        else:
            target = start
        return np.array([*np.clip(_SCRIPT_GAIN * (target - hand), -1.0, 1.0), 1.0])

    def _place(self, seed: int) -> None:
        generator = np.random.default_rng([seed, 1])
        simulator = self._simulator
        simulator.rng = simulator.placement_initializer.rng = np.random.default_rng(seed)
        simulator.reset()
        self._reset_arm()
        angle = generator.uniform(-np.pi, np.pi)
        self._script = int(generator.integers(2)), np.array([np.cos(angle), np.sin(angle)])
        self._is_pushing = False

    def _reset_arm(self) -> None:
        """Let the controller of the arm begin at the present pose; its posture at rest is that of no reset."""
        robot = self._simulator.robots[0]
        robot.composite_controller.update_state()
        robot.composite_controller.part_controllers["right"].update_initial_joints(robot.init_qpos)
        robot.composite_controller.reset()

    def _hand(self) -> np.ndarray:
        simulator = self._simulator
        return np.array(simulator.sim.data.site_xpos[simulator.robots[0].eef_site_id["right"]])

    def _cubes(self, state: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the places of the cubes, ``[3]`` each in m, now or in a state."""
        simulator = self._simulator.sim
        positions = simulator.data.qpos if state is None else state[1 : 1 + simulator.model.nq]
        starts = [simulator.model.get_joint_qpos_addr(name)[0] for name in _CUBES]
        return [np.array(positions[start : start + 3]) for start in starts]
