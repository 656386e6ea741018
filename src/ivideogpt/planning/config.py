"""Settings of ``ivideogpt plan``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError
from ivideogpt.envs.record.pusht_episodes import FIRST_TEST_SEED
from ivideogpt.planning.planner import PlannerConfig

if TYPE_CHECKING:
    from typing_extensions import Self

#: Frames of the recorded episodes that instances are cut from.
EPISODE_STEPS = 48


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
class PlanningConfig(ABC):
    """Settings of a planning benchmark.

    Attributes:
        checkpoint: the world model: a folder, a run, a shipped model or a Hub id.
        objective: weight of each objective by its name; see docs/planning.md.
        classifier: folder of the success classifier that the objective "classifier" needs; "": none.
        planner: the search.
        seed: added to the seed of an instance, of the random numbers of an agent.
    """

    checkpoint: str = ""
    objective: dict[str, float] = field(default_factory=lambda: {"last-pixels": 1.0})
    classifier: str = ""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    seed: int = 0

    @property
    @abstractmethod
    def task(self) -> str:
        """Name of the task that a success classifier must be of."""

    def with_budget(self, candidates: int, iterations: int, elites: int) -> Self:
        """Return the settings with another number of candidates."""
        optimizer = replace(self.planner.optimizer, candidates=candidates, iterations=iterations, elites=elites)
        return replace(self, planner=replace(self.planner, optimizer=optimizer))


@dataclass(frozen=True, kw_only=True)
class PushTPlanning(PlanningConfig):
    """Settings of the PushT benchmark.

    Attributes:
        checkpoint: the world model: a folder, a run, a shipped model or a Hub id.
        objective: weight of each objective by its name; see docs/planning.md.
        goals: the instances.
    """

    checkpoint: str = "pusht-64"
    objective: dict[str, float] = field(default_factory=lambda: {"pusht-block": 1.0, "pusht-agent": 0.3})
    goals: PushTGoals = field(default_factory=PushTGoals)

    @property
    def task(self) -> str:
        """Name of the task that a success classifier must be of."""
        return "pusht"


@dataclass(frozen=True, kw_only=True)
class VP2Goals:
    """Settings of the instances of a benchmark in the style of VP2.

    Attributes:
        file: goal file of VP2 (HDF5), or of ``plan goals``; "": the script of the task records goals.
        first_seed: of the recorded goals.
        max_steps: steps that an agent takes; the first action is 0, as in VP2.
    """

    file: str = ""
    first_seed: int = 0
    max_steps: int = 15

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of range.
        """
        check_at_least(self, first_seed=0, max_steps=2)


@dataclass(frozen=True, kw_only=True)
class VP2Planning(PlanningConfig):
    """Settings of a benchmark in the style of VP2.

    Attributes:
        environment: name of a `GoalEnvironment`.
        goals: the instances.
    """

    environment: str = "robodesk/push_red"
    goals: VP2Goals = field(default_factory=VP2Goals)

    @property
    def task(self) -> str:
        """Name of the task that a success classifier must be of."""
        return self.environment
