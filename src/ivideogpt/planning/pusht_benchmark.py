"""PushT to a goal picture: held-out instances, the control loop, and what counts as a success.

An instance is a moment of a recorded episode; its goal is the picture some steps later. The episode shows that the goal
can be reached in so many steps. Positions are in px of the 512 px plane, angles in rad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.protocols import Policy
from ivideogpt.envs.pusht import PushT, normalised_action
from ivideogpt.envs.record.pusht_episodes import collect_pusht
from ivideogpt.evaluation.pusht_metrics import IMAGE_SIZE, locate_agent
from ivideogpt.evaluation.pusht_protocol import moving_starts
from ivideogpt.planning.config import EPISODE_STEPS, PushTGoals
from ivideogpt.planning.models import ImaginedFutures, PlanningModel, RepeatedFrame, SimulatedFutures
from ivideogpt.planning.planner import Decision, Planner
from ivideogpt.policies.registry import make_policy

#: A goal is reached within this distance in px, of 512, and this angle: those of DINO-WM.
NEAR_PX, NEAR_ANGLE = 20.0, math.pi / 9
#: Covered share of the goal from which gym-pusht calls its own task solved.
COVERED = 0.95
ACTION_DIM = 2
#: Recorded episodes in a row that may lack a fitting window; with the default settings it is one of three.
_MOST_UNFIT = 100


@dataclass(frozen=True)
class Instance:
    """A start and its goal.

    Attributes:
        number: of the instance.
        seed: of the recorded episode.
        start: frame of the episode.
        actions: float32 ``[start 2]`` of the environment that lead to the start.
        frames: uint8 ``[goal_steps + 1 h w 3]``, as recorded: the first one is the start, the last one the goal.
        goal_state: float ``[5]``: agent x, y, block x, y, angle.
    """

    number: int
    seed: int
    start: int
    actions: np.ndarray
    frames: np.ndarray
    goal_state: np.ndarray

    @property
    def goal(self) -> np.ndarray:
        """The goal picture, uint8 ``[h w 3]``."""
        return self.frames[-1]


@dataclass(frozen=True, kw_only=True)
class InstanceResult:
    """Result of an agent in an instance; the errors are those of the visited state nearest to the goal.

    Attributes:
        number, seed, start: of the instance.
        success: at some visited state, agent and block were within 20 px of the goal in all four coordinates together,
            and the block within 20 degrees (the criterion of DINO-WM).
        block_success: the block alone was, at some visited state.
        covered_success: the block covered 95 % of the goal at some visited state.
        solved_at_start: ``success`` held before the first action.
        block_at_start: ``block_success`` held before the first action.
        coverage: largest covered share of the goal, 0 to 1.
        coverage_at_start: covered share before the first action.
        position_error: px of 512 of the block.
        angle_error: rad of the block.
        steps: taken by the agent.
        decisions: searches.
        seconds: of all searches.
    """

    number: int
    seed: int
    start: int
    success: bool
    block_success: bool
    covered_success: bool
    solved_at_start: bool
    block_at_start: bool
    coverage: float
    coverage_at_start: float
    position_error: float
    angle_error: float
    steps: int
    decisions: int
    seconds: float


@dataclass(frozen=True)
class Recording:
    """Pictures of an instance, uint8 ``[t h w 3]``.

    Attributes:
        frames: what happened, the start first.
        planned: what the plan in force expected at the same time; the true frame where there was no plan yet.
    """

    frames: np.ndarray
    planned: np.ndarray


def pusht_instances(goals: PushTGoals, count: int) -> list[Instance]:
    """Record episodes and cut one instance from each; episodes without a fitting window are left out.

    Raises:
        UserError: hardly any episode has a fitting window.
    """
    instances: list[Instance] = []
    seed, unfit = goals.first_seed, 0
    while len(instances) < count:
        (episode,) = collect_pusht([seed], EPISODE_STEPS)
        starts = _starts(episode, goals)
        unfit = 0 if starts else unfit + 1
        if unfit == _MOST_UNFIT:
            raise UserError(
                f"in {unfit} recorded episodes in a row the block never moves 64 px within {goals.goal_steps} steps; "
                "give another goal_steps, such as 25, or --goals.no-moving"
            )
        if starts:
            start = int(np.random.default_rng([seed, 2]).choice(starts))
            instances.append(_instance(len(instances), seed, start, episode, goals.goal_steps))
        seed += 1
    return instances


def _starts(episode: Episode, goals: PushTGoals) -> Sequence[int]:
    length = goals.goal_steps + 1
    # The agent has known the scene for two frames.
    starts = moving_starts(episode, length) if goals.moving else range(len(episode) - length + 1)
    return [start for start in starts if start >= 1]


def _instance(number: int, seed: int, start: int, episode: Episode, goal_steps: int) -> Instance:
    assert episode.actions is not None and episode.state is not None
    stop = start + goal_steps
    actions = normalised_action(episode.actions[:start])
    return Instance(number, seed, start, actions, episode.frames[start : stop + 1], episode.state[stop])


class PushTControl:
    """The simulator with an instance in it, and the record of what an agent does there."""

    def __init__(self, goals: PushTGoals) -> None:
        """Make the simulator."""
        self.goals = goals
        self.environment = PushT(terminate_on_success=False)
        self._twin = PushT(terminate_on_success=False)
        self._twin.reset(seed=0)

    def simulated(self) -> SimulatedFutures:
        """Return the simulator as a model to plan in."""
        return SimulatedFutures(self.environment, self._twin, ACTION_DIM)

    def run(
        self, instance: Instance, policy: Policy, seed: int = 0, *, pictures: bool = True
    ) -> tuple[InstanceResult, Recording]:
        """Let an agent act until the goal is reached or its steps are used up.

        Args:
            instance: the start and the goal.
            policy: the agent; a `Planner` is given the goal.
            seed: added to that of the instance, of the agent's random numbers.
            pictures: predict what each plan expects; False: the recording has the true frames in its place.
        """
        frames, info = self._begin(instance)
        if isinstance(policy, Planner):
            policy.set_goals([instance.goal])
        policy.reset([instance.seed + seed])
        states, coverages = [info["state"]], [self.environment.covered_share(instance.goal_state[2:])]
        shown, planned, decisions = [frames[-1]], [frames[-1]], []
        expected: list[np.ndarray] = []
        while len(states) <= self.goals.max_steps and not reached(states[-1], instance.goal_state):
            # All frames: a model with a longer context reads more of them than another one.
            action = policy.act({"frames": np.stack(frames)[None], "state": states[-1][None]})[0]
            decision = policy.decisions[0] if isinstance(policy, Planner) else None
            if decision is not None:
                decisions.append(decision)
                expected = list(decision.frames()) if pictures else []
            frame, _, _, _, info = self.environment.step(action)
            frames.append(frame)
            shown.append(frame)
            planned.append(expected.pop(0) if expected else frame)
            states.append(info["state"])
            coverages.append(self.environment.covered_share(instance.goal_state[2:]))
        result = _result(instance, np.stack(states), coverages, decisions)
        return result, Recording(np.stack(shown), np.stack(planned))

    def _begin(self, instance: Instance) -> tuple[list[np.ndarray], dict]:
        """Replay the episode up to the start; return its frames and the last info."""
        frame, info = self.environment.reset(seed=instance.seed)
        frames = [frame]
        for action in instance.actions:
            frame, _, _, _, info = self.environment.step(action)
            frames.append(frame)
        return frames, info


def _result(
    instance: Instance, states: np.ndarray, coverages: Sequence[float], decisions: Sequence[Decision]
) -> InstanceResult:
    position, angle = block_errors(states, instance.goal_state)
    nearest = int((position / NEAR_PX + angle / NEAR_ANGLE).argmin())
    block = [bool(p < NEAR_PX and a < NEAR_ANGLE) for p, a in zip(position, angle, strict=True)]
    return InstanceResult(
        number=instance.number,
        seed=instance.seed,
        start=instance.start,
        success=any(reached(state, instance.goal_state) for state in states),
        block_success=any(block),
        covered_success=max(coverages) > COVERED,
        solved_at_start=reached(states[0], instance.goal_state),
        block_at_start=block[0],
        coverage=max(coverages),
        coverage_at_start=coverages[0],
        position_error=float(position[nearest]),
        angle_error=float(angle[nearest]),
        steps=len(states) - 1,
        decisions=len(decisions),
        seconds=sum(decision.seconds for decision in decisions),
    )


def block_errors(states: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance in px and the angle in rad, 0 to pi, of the block ``[t]`` in states ``[t 5]`` to a goal."""
    angle = np.abs((states[:, 4] - goal[4] + np.pi) % (2 * np.pi) - np.pi)
    return np.linalg.norm(states[:, 2:4] - goal[2:4], axis=1), angle


def reached(state: np.ndarray, goal: np.ndarray) -> bool:
    """Return whether a state ``[5]`` is at the goal: agent and block within 20 px together, the block in 20 degrees.

    Source: DINO-WM, ``eval_state`` of its PushT environment; same.
    """
    _, (angle,) = block_errors(state[None], goal)
    return bool(np.linalg.norm(state[:4] - goal[:4]) < NEAR_PX and angle < NEAR_ANGLE)


def agent_place(frame: np.ndarray) -> np.ndarray:
    """Return the action float32 ``[2]`` that leaves the agent of a picture uint8 ``[64 64 3]`` where it is."""
    place = locate_agent(rearrange(torch.from_numpy(frame.copy()), "h w c -> c h w")).xy
    return (place / (IMAGE_SIZE / 2) - 1).numpy()


def baseline_policy(name: str) -> Policy:
    """Return the agent that knows no goal: "random" actions, or the "script" that recorded the episodes."""
    return make_policy("random", action_dim=ACTION_DIM) if name == "random" else make_policy("pusht-drag")


def planning_model(name: str, control: PushTControl, futures: ImaginedFutures | None) -> PlanningModel:
    """Return the model that an agent plans in: a world model, the simulator, or the repeated frame."""
    if name == "simulator":
        return control.simulated()
    if name == "repeat-last-frame":
        return RepeatedFrame(ACTION_DIM, IMAGE_SIZE)
    assert futures is not None
    return futures
