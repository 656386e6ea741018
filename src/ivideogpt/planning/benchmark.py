"""Shared parts of planning benchmarks: an agent's trial in an instance, its result, and what a benchmark gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ivideogpt.core.protocols import Policy
from ivideogpt.evaluation.intervals import Bootstrap, Estimate, share_estimate
from ivideogpt.planning.models import ImaginedFutures, PlanningModel
from ivideogpt.planning.planner import Decision, Planner
from ivideogpt.worldmodel.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class InstanceResult:
    """Result of an agent in an instance.

    Attributes:
        number: of the instance, from 0 on.
        success: a visited state solved it.
        solved_at_start: the state before the first action did.
        steps: taken by the agent.
        decisions: searches.
        seconds: of all searches.
    """

    number: int
    success: bool
    solved_at_start: bool
    steps: int
    decisions: int
    seconds: float


@dataclass(frozen=True)
class Recording:
    """Pictures of an instance, uint8.

    Attributes:
        goal: ``[h w 3]``.
        frames: ``[t h w 3]``, what happened, the start first.
        planned: ``[t h w 3]``, what the plan in force expected at the same time; the true frame where there was none.
    """

    goal: np.ndarray
    frames: np.ndarray
    planned: np.ndarray


@dataclass(frozen=True)
class Figure:
    """A column of the table of agents, beside the success.

    Attributes:
        name: in the last line of JSON.
        heading: of the column; with "%" the estimate is a share.
        note: meaning, for the page.
        estimate: of the results of an agent.
    """

    name: str
    heading: str
    note: str
    estimate: Callable[[Sequence[Any]], Estimate]


class Benchmark(Protocol):
    """Instances in a simulator, each a start and a goal picture."""

    @property
    def agents(self) -> Sequence[str]:
        """Names of what can act."""
        ...

    @property
    def result_type(self) -> type[InstanceResult]:
        """Dataclass of the results."""
        ...

    @property
    def success_note(self) -> str:
        """Meaning of the success, for the page."""
        ...

    @property
    def figures(self) -> Sequence[Figure]:
        """Columns beside the success."""
        ...

    @property
    def first_action(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """The action that an episode begins with, see `Planner`."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Return lines on the instances for the page."""
        ...

    def instances(self, count: int) -> Sequence[Any]:
        """Return instances, each with a ``number``."""
        ...

    def imagined(self, model: WorldModel, seed: int) -> ImaginedFutures:
        """Return a world model as a model to plan in; raises UserError where it is of another world."""
        ...

    def planning_model(self, agent: str) -> PlanningModel:
        """Return what the agents "simulator" and "repeat-last-frame" plan in."""
        ...

    def baseline(self, agent: str) -> Policy:
        """Return an agent that does not plan."""
        ...

    def run(
        self, instance: Any, policy: Policy, seed: int = 0, *, pictures: bool = True
    ) -> tuple[InstanceResult, Recording]:
        """Let an agent act in an instance.

        Args:
            instance: one of `instances`.
            policy: the agent; a `Planner` is given the goal.
            seed: added to that of the instance, of the agent's random numbers.
            pictures: predict what each plan expects; False: the recording has the true frames in its place.
        """
        ...


@dataclass(frozen=True)
class Trial:
    """An agent's way through an instance.

    Attributes:
        recording: its pictures.
        decisions: its searches.
    """

    recording: Recording
    decisions: list[Decision]

    @property
    def costs(self) -> dict[str, Any]:
        """The fields ``decisions`` and ``seconds`` of an `InstanceResult`."""
        return {"decisions": len(self.decisions), "seconds": sum(decision.seconds for decision in self.decisions)}


def attempt(
    policy: Policy,
    goal: np.ndarray,
    frames: list[np.ndarray],
    advance: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int,
    steps: int,
    is_over: Callable[[], bool],
    state: Callable[[], np.ndarray],
    pictures: bool,
) -> Trial:
    """Let an agent act until an instance is over.

    Args:
        policy: the agent; a `Planner` is given the goal.
        goal: picture uint8 ``[h w 3]``.
        frames: that the agent has seen, the start last; later ones are appended.
        advance: takes an action ``[a]`` and returns the next frame.
        seed: of the agent.
        steps: most actions.
        is_over: whether to stop before the next action.
        state: float ``[s]`` at the time, for scripts.
        pictures: see `Benchmark.run`.
    """
    if isinstance(policy, Planner):
        policy.set_goals([goal])
    policy.reset([seed])
    first, planned, decisions = len(frames) - 1, [frames[-1]], []
    expected: list[np.ndarray] = []
    while len(planned) <= steps and not is_over():
        # All frames: a model with a longer context reads more of them than another one.
        action = policy.act({"frames": np.stack(frames)[None], "state": state()[None]})[0]
        decision = policy.decisions[0] if isinstance(policy, Planner) else None
        if decision is not None:
            decisions.append(decision)
            expected = list(decision.frames()) if pictures else []
        frames.append(advance(action))
        planned.append(expected.pop(0) if expected else frames[-1])
    return Trial(Recording(goal, np.stack(frames[first:]), np.stack(planned)), decisions)


@dataclass(frozen=True)
class AgentSummary:
    """Figures of one agent over its instances.

    Attributes:
        agent: its name.
        instances: their number.
        success: share of successes, with its 95 % interval.
        not_solved: share of successes among the instances that were not solved at the start.
        solved_at_start: share of instances solved before the first action.
        seconds_per_decision: of a search; NaN for agents that do not search.
        steps: mean number of steps.
        figures: of the benchmark, by name.
    """

    agent: str
    instances: int
    success: Estimate
    not_solved: Estimate
    solved_at_start: float
    seconds_per_decision: float
    steps: float
    figures: Mapping[str, Estimate]


def summarise(agent: str, results: Sequence[InstanceResult], figures: Sequence[Figure]) -> AgentSummary:
    """Return the figures of an agent."""
    count = max(len(results), 1)
    decisions = sum(result.decisions for result in results)
    return AgentSummary(
        agent=agent,
        instances=len(results),
        success=share([result.success for result in results]),
        not_solved=share([result.success for result in results if not result.solved_at_start]),
        solved_at_start=sum(result.solved_at_start for result in results) / count,
        seconds_per_decision=sum(r.seconds for r in results) / decisions if decisions else float("nan"),
        steps=sum(result.steps for result in results) / count,
        figures={figure.name: figure.estimate(results) for figure in figures},
    )


def share(values: Sequence[bool]) -> Estimate:
    """Return the share of True with its 95 % interval."""
    return share_estimate(sum(values), len(values))


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % interval over instances."""
    return Bootstrap(len(values)).mean(torch.tensor(values))
