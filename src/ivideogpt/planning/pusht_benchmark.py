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
from ivideogpt.planning.benchmark import Figure, InstanceResult, Recording, Trial, attempt, mean, share
from ivideogpt.planning.config import EPISODE_STEPS, PushTGoals
from ivideogpt.planning.models import ImaginedFutures, PlanningModel, RepeatedFrame, SimulatedFutures
from ivideogpt.planning.planner import FirstAction
from ivideogpt.policies.registry import make_policy
from ivideogpt.worldmodel.world_model import WorldModel

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
class PushTResult(InstanceResult):
    """Result of an agent in an instance; the errors are those of the visited state nearest to the goal.

    Success: at some visited state, agent and block were within 20 px of the goal in all four coordinates together, and
    the block within 20 degrees (the criterion of DINO-WM).

    Attributes:
        seed, start: of the instance.
        block_success: the block alone was, at some visited state.
        covered_success: the block covered 95 % of the goal at some visited state.
        block_at_start: ``block_success`` held before the first action.
        coverage: largest covered share of the goal, 0 to 1.
        coverage_at_start: covered share before the first action.
        position_error: px of 512 of the block.
        angle_error: rad of the block.
    """

    seed: int
    start: int
    block_success: bool
    covered_success: bool
    block_at_start: bool
    coverage: float
    coverage_at_start: float
    position_error: float
    angle_error: float


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


class PushTBenchmark:
    """The simulator with an instance in it, and the record of what an agent does there; a `Benchmark`."""

    agents = ("model", "simulator", "repeat-last-frame", "random", "script")
    result_type = PushTResult
    success_note = "agent and block within 20 px of the goal together and the block within 20 degrees, at some step"
    figures = (
        Figure(
            "block_success",
            "block, %",
            "the same for the block alone",
            lambda rows: share([r.block_success for r in rows]),
        ),
        Figure(
            "covered",
            "covered, %",
            "the block covered 95 % of its place in the goal picture at some step",
            lambda rows: share([r.covered_success for r in rows]),
        ),
        Figure(
            "coverage",
            "coverage",
            "largest covered share of that place, mean over instances",
            lambda rows: mean([r.coverage for r in rows]),
        ),
    )

    def __init__(self, goals: PushTGoals) -> None:
        """Make the simulator."""
        self.goals = goals
        self.environment = PushT(terminate_on_success=False)
        self._twin = PushT(terminate_on_success=False)
        self._twin.reset(seed=0)

    @property
    def first_action(self) -> FirstAction:
        """The action that leaves the agent where it is."""
        return agent_place

    def facts(self) -> dict[str, str]:
        """Return lines on the instances for the page."""
        goals = self.goals
        kind = "in which the block moves 64 px or more" if goals.moving else "of any kind"
        return {
            "goals": f"{goals.goal_steps} steps ahead in recorded episodes from seed {goals.first_seed} on, {kind}",
            "most steps": str(goals.max_steps),
        }

    def instances(self, count: int) -> list[Instance]:
        """Record episodes and cut one instance from each; see `pusht_instances`."""
        return pusht_instances(self.goals, count)

    def imagined(self, model: WorldModel, seed: int) -> ImaginedFutures:
        """Return a world model as a model to plan in.

        Raises:
            UserError: it is of another world.
        """
        if model.action_dim != ACTION_DIM or model.resolution != IMAGE_SIZE:
            raise UserError(
                f"{model.config.name} has frames of {model.resolution} px and actions of {model.action_dim} numbers; "
                f"PushT needs {IMAGE_SIZE} px and {ACTION_DIM}: use pusht-64, or a model that was trained on PushT"
            )
        return ImaginedFutures(model, seed=seed)

    def planning_model(self, agent: str) -> PlanningModel:
        """Return the simulator, or the repeated frame, as a model to plan in."""
        if agent == "simulator":
            return SimulatedFutures(self.environment, self._twin, ACTION_DIM)
        return RepeatedFrame(ACTION_DIM, IMAGE_SIZE)

    def baseline(self, agent: str) -> Policy:
        """Return an agent that knows no goal: "random" actions, or the "script" that recorded the episodes."""
        if agent == "random":
            return make_policy("random", action_dim=ACTION_DIM)
        return make_policy("pusht-drag")

    def run(
        self, instance: Instance, policy: Policy, seed: int = 0, *, pictures: bool = True
    ) -> tuple[PushTResult, Recording]:
        """Let an agent act until the goal is reached or its steps are used up; see `Benchmark`."""
        frames, info = self._begin(instance)
        states, coverages = [info["state"]], [self.environment.covered_share(instance.goal_state[2:])]

        def advance(action: np.ndarray) -> np.ndarray:
            frame, _, _, _, info = self.environment.step(action)
            states.append(info["state"])
            coverages.append(self.environment.covered_share(instance.goal_state[2:]))
            return frame

        trial = attempt(
            policy,
            instance.goal,
            frames,
            advance,
            seed=instance.seed + seed,
            steps=self.goals.max_steps,
            is_over=lambda: reached(states[-1], instance.goal_state),
            state=lambda: states[-1],
            pictures=pictures,
        )
        return _result(instance, np.stack(states), coverages, trial), trial.recording

    def _begin(self, instance: Instance) -> tuple[list[np.ndarray], dict]:
        """Replay the episode up to the start; return its frames and the last info."""
        frame, info = self.environment.reset(seed=instance.seed)
        frames = [frame]
        for action in instance.actions:
            frame, _, _, _, info = self.environment.step(action)
            frames.append(frame)
        return frames, info


def _result(instance: Instance, states: np.ndarray, coverages: Sequence[float], trial: Trial) -> PushTResult:
    position, angle = block_errors(states, instance.goal_state)
    nearest = int((position / NEAR_PX + angle / NEAR_ANGLE).argmin())
    block = [bool(p < NEAR_PX and a < NEAR_ANGLE) for p, a in zip(position, angle, strict=True)]
    return PushTResult(
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
        **trial.costs,
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
