"""A planner: a `Policy` that searches for actions in a model, executes the first ones and searches again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.planning.gradients import check_gradients, refined
from ivideogpt.planning.models import PlanningModel, Rollout, RolloutStart, Root
from ivideogpt.planning.objectives import Goal, Objective
from ivideogpt.planning.optimizers import OPTIMIZERS, ActionNoise, ActionPlan, OptimizerConfig, Score, two_speed_score

#: The action of a row before its first one, float ``[a]``, from the first frame uint8 ``[h w 3]``.
FirstAction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """Settings of a planner.

    Attributes:
        horizon: steps of the environment that a candidate looks ahead.
        replan_every: steps that are executed before the next search.
        action_repeat: steps that one searched action lasts.
        interpolate: move evenly from one searched action to the next; False: hold it.
        warm_start: begin a search with what is left of the last plan; False: with the last action, held.
        score_every: the score is the mean over futures that end after this many steps, twice as many, ... and the
            horizon: the goal is approached sooner, but detours are avoided; None: the score at the horizon alone.
        speed: full: rate candidates by the model; draft: by the forecast of tokens alone; both: by the draft, and the
            best ``full_candidates`` by the model.
        full_candidates: candidates that the model rates with speed both.
        gradient_steps: steps of gradient descent from the plan of a search through the pictures of a picture model; the
            result is taken where its score is higher. 0: none.
        gradient_rate: largest change of a number of an action in a step, about.
        optimizer: the search.
        noise: the candidates.
    """

    horizon: int = 10
    replan_every: int = 1
    action_repeat: int = 1
    interpolate: bool = False
    warm_start: bool = True
    score_every: int | None = None
    speed: Literal["full", "draft", "both"] = "full"
    full_candidates: int = 16
    gradient_steps: int = 0
    gradient_rate: float = 0.02
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    noise: ActionNoise = field(default_factory=lambda: ActionNoise(std=(0.5,)))

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of range.
        """
        check_at_least(self, horizon=1, replan_every=1, action_repeat=1, full_candidates=1, gradient_steps=0)
        if not self.gradient_rate > 0:
            raise UserError(f"gradient_rate is {self.gradient_rate}; expected more than 0")
        if self.replan_every > self.horizon:
            raise UserError(
                f"replan_every is {self.replan_every} and horizon is {self.horizon}; expected at most the horizon"
            )
        if self.score_every is not None and not 1 <= self.score_every <= self.horizon:
            raise UserError(f"score_every is {self.score_every}; expected 1 to {self.horizon}, the horizon")
        if self.horizon % self.action_repeat:
            raise UserError(
                f"horizon is {self.horizon} and action_repeat is {self.action_repeat}; expected a horizon of whole "
                "actions"
            )
        if self.speed not in ("full", "draft", "both"):
            raise UserError(f"speed is {self.speed!r}; expected full, draft or both")


@dataclass(frozen=True)
class Decision:
    """One search.

    Attributes:
        actions: float32 ``[horizon a]`` of the chosen plan.
        score: of the best candidate.
        seconds: that the search took.
        root: the moment at which it began, for pictures of the plan.
    """

    actions: np.ndarray
    score: float
    seconds: float
    root: Root

    def frames(self) -> np.ndarray:
        """Return what the model expects of the plan, uint8 ``[horizon h w 3]``; it is predicted now."""
        rollout = self.root.rollout(torch.from_numpy(self.actions)[None])
        frames = rearrange(rollout.frames_at(range(rollout.horizon)), "1 t c h w -> t h w c")
        return (frames.clamp(0, 1) * 255).round().byte().cpu().numpy()


@dataclass
class _Row:
    """A controlled environment: its goal, its random numbers, the plan in force, and what comes after it."""

    generator: torch.Generator
    goal: Goal
    last_action: Tensor | None = None
    queue: list[Tensor] = field(default_factory=list)
    mean: Tensor | None = None


class Planner:
    """A `Policy` that plans each row on its own, as its decisions take most of the time.

    Attributes:
        decisions: of each row in the last call of `act`; None where the plan in force went on.
    """

    def __init__(
        self,
        model: PlanningModel,
        objective: Objective,
        settings: PlannerConfig,
        *,
        goals: Sequence[np.ndarray] = (),
        first_action: FirstAction | None = None,
    ) -> None:
        """Plan in ``model``.

        Args:
            model: predicts what comes of actions.
            objective: rates it.
            settings: of the search.
            goals: a picture uint8 ``[h w 3]`` a row; see `set_goals`.
            first_action: the action that an episode begins with; None: 0.
        """
        self.model, self.objective, self.settings, self.first_action = model, objective, settings, first_action
        self.decisions: list[Decision | None] = []
        self._goals: list[Goal] = []
        self._rows: list[_Row] = []
        self.set_goals(goals)
        if settings.gradient_steps:
            check_gradients(model)

    def set_goals(self, goals: Sequence[np.ndarray]) -> None:
        """Give each row a goal, a picture uint8 ``[h w 3]``, for the episodes that `reset` begins.

        Raises:
            UserError: a picture is of another size than the model's frames.
        """
        side = self.model.resolution
        for goal in goals:
            if goal.dtype != np.uint8 or goal.shape != (side, side, 3):
                raise UserError(
                    f"a goal is {goal.dtype} of shape {list(goal.shape)}; expected a picture uint8 "
                    f"[{side} {side} 3], the size of the model's frames: resize it"
                )
        frames = [torch.from_numpy(np.ascontiguousarray(goal)).float() / 255 for goal in goals]
        self._goals = [Goal(rearrange(frame, "h w c -> c h w")) for frame in frames]

    def reset(self, seeds: Sequence[int | None], instructions: Sequence[str] | None = None) -> None:
        """Begin new episodes; see `Policy`.

        Raises:
            UserError: there is another number of goals.
        """
        if len(self._goals) != len(seeds):
            raise UserError(f"there are {len(self._goals)} goals for {len(seeds)} rows; give each row one by set_goals")
        self._rows = [
            self._rows[row] if seed is None else _Row(torch.Generator().manual_seed(seed), self._goals[row])
            for row, seed in enumerate(seeds)
        ]

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next action of each row, float32 ``[b a]``; a row plans where its last plan is used up."""
        actions, self.decisions = [], []
        for index, row in enumerate(self._rows):
            decision = None
            if not row.queue:
                decision = self._decide(row, {name: values[index] for name, values in observation.items()})
            row.last_action = row.queue.pop(0)
            actions.append(row.last_action.numpy())
            self.decisions.append(decision)
        return np.stack(actions).astype(np.float32)

    def _decide(self, row: _Row, observation: Mapping[str, np.ndarray]) -> Decision:
        """Search for a plan, and queue its first actions."""
        start, settings = time.perf_counter(), self.settings
        if row.last_action is None:
            size = self.model.action_dim
            first = np.zeros(size) if self.first_action is None else self.first_action(observation["frames"][-1])
            row.last_action = torch.as_tensor(first, dtype=torch.float32)
        last_action, root = row.last_action, self.model.root(observation)
        plan = self.search(root, row.goal, last_action, self._initial_mean(row), row.generator)
        if settings.gradient_steps:
            plan = self.refine(root, row.goal, last_action, plan)
        actions = self.expand(plan.actions[None], last_action)[0]
        row.queue = list(actions[: settings.replan_every])
        row.mean = self._shifted(self.expand(plan.mean[None], last_action)[0])
        return Decision(actions.numpy(), plan.best, time.perf_counter() - start, root)

    def search(
        self,
        root: Root,
        goal: Goal,
        last_action: Tensor,
        mean: Tensor,
        generator: torch.Generator,
        *,
        wrap: Callable[[Score], Score] = lambda score: score,
    ) -> ActionPlan:
        """Search from ``root`` for the searched actions ``[n a]`` with the highest score.

        Args:
            root: where candidates begin.
            goal: what they are rated by.
            last_action: ``[a]``, from which interpolated candidates start.
            mean: ``[n a]`` of the first candidates.
            generator: of the noise.
            wrap: replaces the score by another one, for example one that works in pieces.
        """
        settings = self.settings

        def full(candidates: Tensor) -> Tensor:
            return self._score(root.rollout(self.expand(candidates, last_action)), goal)

        def draft(candidates: Tensor) -> Tensor:
            return self._score(root.draft(self.expand(candidates, last_action)), goal)

        scores = {"full": wrap(full), "draft": wrap(draft)}
        scores["both"] = two_speed_score(scores["draft"], scores["full"], settings.full_candidates)
        optimize = OPTIMIZERS[settings.optimizer.name]
        return optimize(scores[settings.speed], mean, settings.noise, settings.optimizer, generator)

    def refine(self, root: Root, goal: Goal, last_action: Tensor, plan: ActionPlan) -> ActionPlan:
        """Return ``plan``, or its actions after gradient steps where their score is higher; see ``gradient_steps``."""
        steps, rate = self.settings.gradient_steps, self.settings.gradient_rate

        def expand(points: Tensor) -> Tensor:
            return self.expand(points, last_action)

        better = refined(root, expand, plan.actions, goal, steps=steps, rate=rate)
        before, after = self._score(root.rollout(expand(torch.stack([plan.actions, better]))), goal).tolist()
        return plan._replace(actions=better, best=after) if after > before else plan

    def _score(self, rollout: Rollout, goal: Goal) -> Tensor:
        """Return the score ``[k]`` of futures; see ``score_every``."""
        every = self.settings.score_every or rollout.horizon
        ends = [*range(every, rollout.horizon, every), rollout.horizon]
        return torch.stack([self.objective(RolloutStart(rollout, end), goal) for end in ends]).mean(dim=0)

    def expand(self, searched: Tensor, last_action: Tensor) -> Tensor:
        """Return the actions ``[k horizon a]`` of each step for searched actions ``[k n a]``.

        Args:
            searched: each is held, or reached by an even movement, over ``action_repeat`` steps.
            last_action: ``[a]``, where the movement starts.
        """
        repeat = self.settings.action_repeat
        if not self.settings.interpolate:
            return searched.repeat_interleave(repeat, dim=1)
        starts = torch.cat([last_action.expand(len(searched), 1, -1), searched[:, :-1]], dim=1)
        share = torch.arange(1, repeat + 1) / repeat
        steps = starts[:, :, None] + share[:, None] * (searched - starts)[:, :, None]
        return rearrange(steps, "k n r a -> k (n r) a")

    def _initial_mean(self, row: _Row) -> Tensor:
        """Return the searched actions ``[n a]`` that the first candidates lie around."""
        assert row.last_action is not None
        if self.settings.warm_start and row.mean is not None:
            return row.mean
        return row.last_action.repeat(self.settings.horizon // self.settings.action_repeat, 1)

    def _shifted(self, actions: Tensor) -> Tensor:
        """Return the searched actions ``[n a]`` of the actions ``[horizon a]`` after those that are executed."""
        settings = self.settings
        left = actions[settings.replan_every :]
        actions = torch.cat([left, actions[-1:].expand(settings.replan_every, -1)])
        return actions[settings.action_repeat - 1 :: settings.action_repeat]
