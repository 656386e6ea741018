"""Presets of ``ivideogpt plan``, and the planners of VP2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ivideogpt.core.config import suggestion
from ivideogpt.core.errors import UserError
from ivideogpt.planning.config import PushTPlanning, VP2Planning
from ivideogpt.planning.optimizers import ActionNoise, OptimizerConfig
from ivideogpt.planning.planner import PlannerConfig


class Budget(NamedTuple):
    """Size of a search: candidates of an iteration, iterations of a decision, and elites of CEM."""

    candidates: int
    iterations: int
    elites: int


#: Sizes of a search by name.
BUDGETS: Mapping[str, Budget] = {
    "small": Budget(16, 1, 4),
    "medium": Budget(24, 2, 4),
    "large": Budget(96, 4, 10),
}


def find_budget(name: str) -> Budget:
    """Return a budget by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in BUDGETS:
        raise UserError(f"there is no budget {name!r}; {suggestion(name, BUDGETS)}")
    return BUDGETS[name]


def pusht_planning() -> PushTPlanning:
    """Return PushT: smooth paths of three way points over 1.5 s, searched again every half second."""
    planner = PlannerConfig(
        horizon=15,
        replan_every=5,
        action_repeat=5,
        interpolate=True,
        noise=ActionNoise(std=(0.4, 0.4), smoothing=0.5),
    )
    return PushTPlanning(planner=planner).with_budget(*BUDGETS["medium"])


def robodesk_planning(task: str) -> VP2Planning:
    """Return one of VP2's seven tasks of RoboDesk with VP2's search."""
    candidates = 800 if task in ("open_slide", "open_drawer") else 200
    return VP2Planning(
        environment=f"robodesk/{task}",
        objective={"pixels": 0.5, "classifier": 10.0},
        planner=vp2_robodesk_mppi(candidates),
    )


def robosuite_planning() -> VP2Planning:
    """Return a robosuite push in the style of VP2 with VP2's search."""
    return VP2Planning(environment="robosuite/push", objective={"pixels": 1.0}, planner=vp2_robosuite_mppi())


def vp2_robosuite_mppi() -> PlannerConfig:
    """Return VP2's MPPI on robosuite; its objective is ``{"pixels": 1}``."""
    return _vp2_mppi(ActionNoise(std=(0.5, 0.5, 0.5, 0.0), smoothing=0.5, equal_std=False))


def vp2_robodesk_mppi(candidates: int = 200) -> PlannerConfig:
    """Return VP2's MPPI on RoboDesk; open_slide and open_drawer have 800 candidates."""
    return _vp2_mppi(ActionNoise(std=(0.5, 0.5, 0.5, 0.1, 0.1), smoothing=0.5, equal_std=False), candidates)


def vp2_cem() -> PlannerConfig:
    """Return VP2's CEM on robosuite: 3 iterations of 200 candidates, of which 5 % are elites."""
    noise = ActionNoise(std=(0.5, 0.5, 0.0, 0.0), smoothing=0.5, equal_std=False)
    optimizer = OptimizerConfig(name="cem", candidates=200, iterations=3, elites=10, momentum=0.0)
    return PlannerConfig(horizon=10, replan_every=1, optimizer=optimizer, noise=noise)


def _vp2_mppi(noise: ActionNoise, candidates: int = 200) -> PlannerConfig:
    optimizer = OptimizerConfig(name="mppi", candidates=candidates, iterations=1, sharpness=0.05)
    return PlannerConfig(horizon=10, replan_every=1, optimizer=optimizer, noise=noise)
