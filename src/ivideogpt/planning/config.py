"""Settings of ``ivideogpt plan``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.envs.record.pusht_episodes import FIRST_TEST_SEED
from ivideogpt.planning.planner import PlannerConfig

#: Frames of the recorded episodes that instances are cut from.
EPISODE_STEPS = 48
#: What can act: a planner in the world model, in the simulator or in a world that stands still; random actions; the
#: script that recorded the episodes.
AGENTS = ("model", "simulator", "repeat-last-frame", "random", "script")


@dataclass(frozen=True, kw_only=True)
class PushTGoals:
    """Settings of the instances.

    Attributes:
        first_seed: of the recorded episodes, one instance an episode; from 10000 on they were never trained on.
        goal_steps: steps from the start to the goal picture in the recorded episode.
        max_steps: steps that an agent may take.
        moving: only windows in which the block moves 64 px or more; False: any window.
    """

    first_seed: int = 20_000
    goal_steps: int = 25
    max_steps: int = 50
    moving: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of range.
        """
        check_at_least(self, goal_steps=1, max_steps=1)
        if self.first_seed < FIRST_TEST_SEED:
            raise UserError(
                f"first_seed is {self.first_seed}; expected at least {FIRST_TEST_SEED}: the model was trained on "
                "episodes of smaller seeds"
            )
        # A start is frame 1 or a later one; windows in which the block moves begin at frame 4, 8 and so on.
        most = EPISODE_STEPS - 1 - (4 if self.moving else 1)
        if self.goal_steps > most:
            raise UserError(f"goal_steps is {self.goal_steps}; expected at most {most}: episodes are not longer")


@dataclass(frozen=True, kw_only=True)
class PlanningConfig:
    """Settings of a planning benchmark.

    Attributes:
        checkpoint: the world model: a folder, a run, a shipped model or a Hub id.
        objective: weight of each objective by its name; see docs/planning.md.
        planner: the search.
        goals: the instances.
        seed: added to the seed of an instance, of the random numbers of an agent.
    """

    checkpoint: str = "pusht-64"
    objective: dict[str, float] = field(default_factory=lambda: {"pusht-block": 1.0, "pusht-agent": 0.3})
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    goals: PushTGoals = field(default_factory=PushTGoals)
    seed: int = 0

    def with_budget(self, candidates: int, iterations: int, elites: int) -> PlanningConfig:
        """Return the settings with another number of candidates."""
        optimizer = replace(self.planner.optimizer, candidates=candidates, iterations=iterations, elites=elites)
        return replace(self, planner=replace(self.planner, optimizer=optimizer))
