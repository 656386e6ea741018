"""Visual planning in the style of VP2: an agent has 15 steps to bring RoboDesk or robosuite to a goal picture.

Source: s-tian/vp2 ``run_control.py`` and ``mpc/agent.py``. Same: a first step without an action, whose frame is seen
twice; 15 scored steps, of which the first has no action either and each later one comes from a new search; the score is
the lowest of all visited states; a trial with black or white pictures is run again. Differs: a trial ends at the
lowest possible score; the random numbers of an agent are those of its instance, so that a benchmark can be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.core.protocols import Policy
from ivideogpt.envs.goal_environment import GoalEnvironment
from ivideogpt.envs.registry import make
from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.planning.benchmark import Figure, InstanceResult, Recording, attempt, mean, share
from ivideogpt.planning.config import VP2Planning
from ivideogpt.planning.models import ImaginedFutures, PlanningModel, RepeatedFrame, SimulatedFutures
from ivideogpt.planning.vp2_goals import GoalInstance, goal_instance, read_goals, record_goals
from ivideogpt.policies.registry import make_policy
from ivideogpt.worldmodel.world_model import WorldModel

#: Trials of an instance until one has pictures.
_TRIALS = 3
#: Other scores in m that count as a success, for the curve of distances.
_DISTANCES = (0.02, 0.1)


@dataclass(frozen=True, kw_only=True)
class VP2Result(InstanceResult):
    """Result of an agent in an instance.

    Attributes:
        scores: of the visited states; lower is better.
    """

    scores: list[float]


class VP2Benchmark:
    """A simulator with goals in it; a `Benchmark`."""

    agents = ("model", "simulator", "repeat-last-frame", "random")
    result_type = VP2Result
    first_action = None

    def __init__(self, settings: VP2Planning) -> None:
        """Make the simulator.

        Raises:
            UserError: there is no such environment, or it has no goals.
            MissingExtraError: its package is not installed.
        """
        self.settings, self.goals = settings, settings.goals
        self.environment = self._make()

    def _make(self) -> GoalEnvironment:
        environment = make(self.settings.environment, steps=self.goals.max_steps + 1).unwrapped
        if not isinstance(environment, GoalEnvironment):
            raise UserError(f"{self.settings.environment} has no goals; expected one such as robodesk/push_red")
        return environment

    @cached_property
    def _twin(self) -> GoalEnvironment:
        """Copy of the simulator to plan in."""
        twin = self._make()
        twin.reset(seed=0)
        return twin

    @property
    def _action_dim(self) -> int:
        return self.environment.action_space.shape[0]  # type: ignore[index]

    @property
    def _is_distance(self) -> bool:
        return self.environment.solved_score > 0

    @property
    def success_note(self) -> str:
        """Meaning of the success, for the page."""
        if self._is_distance:
            return f"at some step no object was {100 * self.environment.solved_score:.0f} cm or more from its place"
        return "the task was solved at some step"

    @property
    def figures(self) -> Sequence[Figure]:
        """Columns beside the success: where the score is a distance, other thresholds of it."""
        if not self._is_distance:
            return ()
        distance = Figure(
            "distance",
            "distance, cm",
            "of the object that is farthest from its place, at the best step, mean over instances",
            lambda rows: mean([100 * min(row.scores) for row in rows]),
        )
        return [distance, *(_within(limit) for limit in _DISTANCES)]

    def facts(self) -> dict[str, str]:
        """Return lines on the instances for the page."""
        goals = self.goals
        recorded = f"recorded by the script of the task from seed {goals.first_seed} on"
        return {
            "environment": self.settings.environment,
            "goals": f"of {goals.file}" if goals.file else recorded,
            "steps": f"{goals.max_steps}, the first without an action; VP2-style",
        }

    def instances(self, count: int) -> list[GoalInstance]:
        """Read or record instances.

        Raises:
            UserError: the goal file is none, has too few goals, or states of another scene.
        """
        environment, goals = self.environment, self.goals
        if goals.file:
            episodes = read_goals(goals.file, environment.cameras)[:count]
            if len(episodes) < count:
                raise UserError(
                    f"{goals.file} has {len(episodes)} goals and instances is {count}; give at most as many"
                )
            environment.reset(seed=0)
            for episode in episodes:
                environment.restore_state(episode.states[-1])
        else:
            episodes = islice(record_goals(environment, goals.first_seed, all_frames=False), count)
        return [goal_instance(number, episode, environment.size) for number, episode in enumerate(episodes)]

    def imagined(self, model: WorldModel, seed: int) -> ImaginedFutures:
        """Return a world model as a model to plan in, for actions of the simulator.

        Raises:
            UserError: it is of another world.
        """
        size = self.environment.size
        if model.action_dim != self._action_dim or model.resolution != size:
            raise UserError(
                f"{model.config.name} has frames of {model.resolution} px and actions of {model.action_dim} numbers; "
                f"{self.settings.environment} needs {size} px and {self._action_dim}: train a model on it"
            )
        return ImaginedFutures(model, raw_actions=True, seed=seed)

    def planning_model(self, agent: str) -> PlanningModel:
        """Return the simulator, or the repeated frame, as a model to plan in."""
        if agent == "simulator":
            return SimulatedFutures(self.environment, self._twin, self._action_dim)
        return RepeatedFrame(self._action_dim, self.environment.size)

    def baseline(self, agent: str) -> Policy:
        """Return random actions."""
        return make_policy("random", action_dim=self._action_dim)

    def run(
        self, instance: GoalInstance, policy: Policy, seed: int = 0, *, pictures: bool = True
    ) -> tuple[VP2Result, Recording]:
        """Let an agent act for 15 steps, or until the score cannot get lower; see `Benchmark`.

        Raises:
            UserError: the simulator draws black or white pictures.
        """
        for _ in range(_TRIALS):
            result, recording = self._trial(instance, policy, seed, pictures)
            if not any(frame.max() == 0 or frame.min() == 255 for frame in recording.frames):
                return result, recording
        raise UserError(f"{self.settings.environment} draws black or white pictures here; look at MUJOCO_GL")

    def _trial(self, instance: GoalInstance, policy: Policy, seed: int, pictures: bool) -> tuple[VP2Result, Recording]:
        environment = self.environment
        environment.goal_state = instance.goal_state
        if "_twin" in vars(self):
            self._twin.goal_state = instance.goal_state
        environment.reset(seed=0, options={"simulator_state": instance.start})
        idle = np.zeros(self._action_dim)
        first, *_ = environment.step(idle)
        scores, frames = [environment.score()], [first, first]

        def advance(action: np.ndarray) -> np.ndarray:
            frame, *_ = environment.step(action)
            scores.append(environment.score())
            return frame

        if scores[0] > environment.lowest_score:
            frames.append(advance(idle))
        trial = attempt(
            policy,
            instance.goal,
            frames,
            advance,
            seed=instance.number + seed,
            steps=self.goals.max_steps - 1,
            is_over=lambda: scores[-1] <= environment.lowest_score,
            state=environment.save_state,
            pictures=pictures,
        )
        solved = [score < environment.solved_score for score in scores]
        result = VP2Result(
            number=instance.number,
            success=any(solved),
            solved_at_start=solved[0],
            steps=len(scores) - 1,
            scores=[float(score) for score in scores],
            **trial.costs,
        )
        return result, trial.recording


def _within(limit: float) -> Figure:
    centimetres = f"{100 * limit:.0f}"
    return Figure(
        f"within_{centimetres}_cm",
        f"{centimetres} cm, %",
        f"share of instances whose distance was less than {centimetres} cm at some step",
        partial(_share_within, limit=limit),
    )


def _share_within(rows: Sequence[VP2Result], limit: float) -> Estimate:
    return share([min(row.scores) < limit for row in rows])
