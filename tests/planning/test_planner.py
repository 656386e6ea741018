"""The planner: searched actions and steps, warm start, goals, and two rows that do not disturb each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.planning.models import ImaginedFutures
from ivideogpt.planning.objectives import Goal, make_objective
from ivideogpt.planning.optimizers import ActionNoise, OptimizerConfig
from ivideogpt.planning.planner import Planner, PlannerConfig
from ivideogpt.policies.registry import make_policy

SETTINGS = PlannerConfig(
    horizon=4,
    replan_every=2,
    optimizer=OptimizerConfig(candidates=32, iterations=4, elites=6),
    noise=ActionNoise(std=(0.5, 0.5)),
)


class PointRollout:
    """Positions ``[k t 2]`` as frames ``[k t 1 1 2]``."""

    rewards = None

    def __init__(self, places: torch.Tensor) -> None:
        self.places, self.horizon = places, places.shape[1]

    def frames_at(self, steps):
        return self.places[:, list(steps), None, None]


class PointModel:
    """A point that actions move by a tenth; its position is the first two values of the frame, from 0 to 255."""

    action_dim, resolution = 2, 4

    def __init__(self) -> None:
        self.rollouts: list[torch.Tensor] = []

    def root(self, observation):
        self.place = torch.from_numpy(observation["frames"][-1, 0, 0, :2]).float() / 255
        return self

    def rollout(self, actions):
        self.rollouts.append(actions)
        return PointRollout(self.place + 0.1 * actions.cumsum(dim=1))

    def draft(self, actions):
        return PointRollout((self.place + 0.1 * actions.cumsum(dim=1)).round(decimals=1))


def objective(rollout, goal: Goal) -> torch.Tensor:
    return -(rollout.frames_at([-1])[:, 0, 0, 0] - goal.frame[:2, 0, 0]).norm(dim=1)


def picture(x: float, y: float) -> np.ndarray:
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[0, 0, :2] = round(255 * x), round(255 * y)
    return frame


def play(planner: Planner, places: np.ndarray, steps: int) -> np.ndarray:
    """Positions ``[b 2]`` after some steps of the true world."""
    for _ in range(steps):
        actions = planner.act({"frames": np.stack([picture(*place)[None] for place in places])})
        assert actions.shape == (len(places), 2) and actions.dtype == np.float32
        places = places + 0.1 * actions
    return places


@pytest.mark.parametrize("speed", ["full", "both"])
@pytest.mark.parametrize(("name", "most"), [("random-shooting", 0.15), ("cem", 0.06), ("mppi", 0.06)])
def test_the_planner_reaches_the_goals_of_its_rows(name: str, most: float, speed: str) -> None:
    optimizer = OptimizerConfig(name=name, candidates=128, iterations=4, elites=12, sharpness=100)
    settings = replace(SETTINGS, optimizer=optimizer, speed=speed, score_every=1)
    planner = Planner(PointModel(), objective, settings, goals=[picture(0.8, 0.2), picture(0.3, 0.9)])
    planner.reset([0, 1])
    places = play(planner, np.array([[0.5, 0.5], [0.5, 0.5]]), 8)
    assert np.abs(places - [[0.8, 0.2], [0.3, 0.9]]).max() < most


def test_a_row_does_not_depend_on_the_others() -> None:
    goals = [picture(0.8, 0.2), picture(0.3, 0.9)]
    both, alone = (Planner(PointModel(), objective, SETTINGS, goals=chosen) for chosen in (goals, goals[1:]))
    both.reset([4, 7])
    alone.reset([7])
    start = np.array([[0.5, 0.5]])
    assert np.array_equal(play(both, start.repeat(2, 0), 5)[1:], play(alone, start, 5))


def test_a_plan_is_followed_for_some_steps_and_the_rest_starts_the_next_search() -> None:
    model = PointModel()
    planner = Planner(model, objective, SETTINGS, goals=[picture(0.9, 0.5)])
    planner.reset([0])
    frame = {"frames": picture(0.5, 0.5)[None, None]}
    planned = []
    for _ in range(4):
        planner.act(frame)
        planned.append(planner.decisions[0])
    assert [decision is not None for decision in planned] == [True, False, True, False]
    first_mean = model.rollouts[4][0]  # the first candidate of the second search
    assert len(model.rollouts) == 8 and torch.equal(first_mean[2:], first_mean[1:2].expand(2, 2))
    cold = Planner(PointModel(), objective, replace(SETTINGS, warm_start=False), goals=[picture(0.9, 0.5)])
    cold.reset([0])
    for _ in range(3):
        action = cold.act(frame)
    assert cold.model.rollouts[4][0].unique(dim=0).shape[0] == 1 and action.any()


def test_a_planner_that_rates_the_end_alone_waits_and_one_that_rates_every_step_does_not() -> None:
    def left(score_every: int | None) -> float:
        settings = replace(SETTINGS, score_every=score_every, replan_every=1)
        planner = Planner(PointModel(), objective, settings, goals=[picture(0.8, 0.5)])
        planner.reset([0])
        return 0.8 - float(play(planner, np.array([[0.5, 0.5]]), 3)[0, 0])

    assert left(1) < 0.08 < 0.12 < left(None)


def test_searched_actions_last_several_steps_held_or_interpolated() -> None:
    searched, last = torch.tensor([[[1.0, 0.0], [0.0, -1.0]]]), torch.tensor([0.0, 0.0])
    held = Planner(PointModel(), objective, replace(SETTINGS, action_repeat=2)).expand(searched, last)
    assert held[0].tolist() == [[1, 0], [1, 0], [0, -1], [0, -1]]
    moved = Planner(PointModel(), objective, replace(SETTINGS, action_repeat=2, interpolate=True))
    assert moved.expand(searched, last)[0].tolist() == [[0.5, 0], [1, 0], [0.5, -0.5], [0, -1]]


def test_the_first_plan_begins_at_the_first_action() -> None:
    model = PointModel()
    planner = Planner(
        model, objective, SETTINGS, goals=[picture(1, 1)], first_action=lambda frame: np.array([0.25, -0.5])
    )
    planner.reset([0])
    planner.act({"frames": picture(0.5, 0.5)[None, None]})
    assert model.rollouts[0][0].tolist() == [[0.25, -0.5]] * 4


def test_a_planner_is_a_policy_with_a_name_and_plans_in_a_world_model(model_of) -> None:
    model = model_of("plain")
    goal = np.full((16, 16, 3), 90, np.uint8)
    settings = replace(SETTINGS, optimizer=OptimizerConfig(candidates=4, iterations=1, elites=2))
    options = {"objective": make_objective({"last-pixels": 1.0}, model), "settings": settings, "goals": [goal]}
    planner = make_policy("planner", model=ImaginedFutures(model), **options)
    planner.reset([3])
    action = planner.act({"frames": np.zeros((1, 2, 16, 16, 3), np.uint8)})
    assert action.shape == (1, 2) and np.isfinite(action).all()
    decision = planner.decisions[0]
    assert decision.frames().shape == (4, 16, 16, 3) and decision.seconds > 0


def test_wrong_goals_and_settings_are_refused_in_one_sentence() -> None:
    planner = Planner(PointModel(), objective, SETTINGS)
    with pytest.raises(UserError, match=r"a goal is uint8 of shape \[5, 4, 3\]; expected a picture uint8 \[4 4 3\]"):
        planner.set_goals([np.zeros((5, 4, 3), np.uint8)])
    with pytest.raises(UserError, match="there are 0 goals for 2 rows"):
        planner.reset([0, 1])
    with pytest.raises(UserError, match="replan_every is 9 and horizon is 4"):
        replace(SETTINGS, replan_every=9)
    with pytest.raises(UserError, match="horizon is 4 and action_repeat is 3"):
        replace(SETTINGS, action_repeat=3)
