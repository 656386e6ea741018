"""Optimizers: a quadratic, a toy pusher, coloured noise, and two speeds."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.planning.optimizers import (
    OPTIMIZERS,
    ActionNoise,
    ActionPlan,
    OptimizerConfig,
    cem,
    mppi,
    random_shooting,
    two_speed_score,
)
from ivideogpt.planning.planner import Planner, PlannerConfig

NOISE = ActionNoise(std=(0.5, 0.5))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(target: torch.Tensor):
    return lambda actions: -((actions - target) ** 2).sum(dim=(1, 2))


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (OptimizerConfig(name="random-shooting", candidates=2000, iterations=1), 0.3),
        (OptimizerConfig(name="cem", candidates=200, iterations=8, elites=20, momentum=0.0), 0.03),
        (OptimizerConfig(name="mppi", candidates=400, iterations=12, sharpness=40.0), 0.06),
    ],
    ids=lambda value: value.name if isinstance(value, OptimizerConfig) else "",
)
def test_every_optimizer_finds_the_maximum_of_a_quadratic(config: OptimizerConfig, most: float) -> None:
    target = torch.tensor([[0.6, -0.4], [0.1, 0.3]])
    for seed in range(3):
        plan = OPTIMIZERS[config.name](quadratic(target), torch.zeros(2, 2), NOISE, config, generator(seed))
        assert (plan.actions - target).abs().max() < most
        assert plan.candidates.shape == (config.candidates, 2, 2) and plan.scores.shape == (config.candidates,)


def test_a_new_optimizer_is_a_function_and_a_row(monkeypatch) -> None:
    def keep_mean(score, mean, noise, config, generator):
        return ActionPlan(mean, mean, mean[None], score(mean[None]), float(score(mean[None])))

    monkeypatch.setitem(OPTIMIZERS, "keep-mean", keep_mean)
    planner = Planner(
        SimpleNamespace(resolution=8),
        None,
        PlannerConfig(horizon=2, optimizer=OptimizerConfig(name="keep-mean"), noise=NOISE),
    )
    mean = torch.tensor([[0.2, 0.1], [0.0, 0.3]])
    monkeypatch.setattr(planner, "_score", lambda rollout, goal: -rollout.square().sum(dim=(1, 2)))
    plan = planner.search(SimpleNamespace(rollout=lambda actions: actions), None, mean[0], mean, generator())
    assert torch.equal(plan.actions, mean) and plan.best == pytest.approx(-float(mean.square().sum()))
    with pytest.raises(UserError, match="expected one of random-shooting, cem, mppi, keep-mean"):
        OptimizerConfig(name="ces")


def push(actions: torch.Tensor) -> torch.Tensor:
    """Positions of a block ``[k]`` on a line that a hand pushes: it moves only while the hand is behind it."""
    hand, block = torch.zeros(len(actions)), torch.full((len(actions),), 0.5)
    for step in actions.unbind(dim=1):
        hand = hand + 0.3 * step[:, 0]
        block = torch.maximum(block, hand)
    return block


@pytest.mark.parametrize(("optimize", "most"), [(cem, 0.02), (mppi, 0.1)])
def test_a_toy_pusher_brings_the_block_to_its_goal(optimize, most) -> None:
    config = OptimizerConfig(candidates=128, iterations=6, elites=12, sharpness=50.0)
    noise = ActionNoise(std=(0.6,), smoothing=0.5)
    plan = optimize(lambda actions: -(push(actions) - 1.0).abs(), torch.zeros(8, 1), noise, config, generator())
    assert abs(float(push(plan.actions[None])) - 1.0) < most


def test_mppi_weighs_candidates_as_vp2_does() -> None:
    config = OptimizerConfig(name="mppi", candidates=50, iterations=1, sharpness=0.05)
    target = torch.tensor([[0.6, -0.4]])
    plan = mppi(quadratic(target), torch.zeros(1, 2), NOISE, config, generator())
    weights = (0.05 * (plan.scores - plan.scores.max())).exp()
    expected = (weights[:, None, None] * plan.candidates).sum(0) / weights.sum()
    torch.testing.assert_close(plan.actions, expected)


def test_cem_never_returns_less_than_the_best_candidate_it_saw() -> None:
    seen = []

    def score(actions):
        values = quadratic(torch.tensor([[0.9, 0.9]]))(actions)
        seen.append(float(values.max()))
        return values

    plan = cem(score, torch.zeros(1, 2), NOISE, OptimizerConfig(candidates=16, elites=4), generator())
    assert plan.best == max(seen) == seen[-1]


def test_the_same_generator_gives_the_same_plan() -> None:
    config = OptimizerConfig(candidates=16, elites=4)
    plans = [
        cem(quadratic(torch.tensor([[0.2, 0.1]])), torch.zeros(1, 2), NOISE, config, generator(7)) for _ in range(2)
    ]
    assert torch.equal(plans[0].actions, plans[1].actions)


def test_smoothed_noise_is_correlated_in_time_and_clipped() -> None:
    def correlation(smoothing: float) -> float:
        noise = ActionNoise(std=(0.1,), smoothing=smoothing)
        samples = noise.sample(torch.zeros(4, 1), torch.full((4, 1), 0.1), 4000, generator())[..., 0]
        return float(torch.corrcoef(samples.T)[2, 3])

    assert abs(correlation(0.0)) < 0.05 and correlation(0.8) > 0.7
    for equal, last in ((True, 1.0), (False, 0.58)):
        noise = ActionNoise(std=(1.0,), equal_std=equal, low=-9, high=9)
        deviations = noise.sample(torch.zeros(4, 1), torch.ones(4, 1), 8000, generator()).std(dim=0)
        assert abs(float(deviations[0]) - 1) < 0.03 and abs(float(deviations[-1]) - last) < 0.03
    clipped = ActionNoise(std=(5.0,), low=-0.5, high=0.25).sample(
        torch.zeros(3, 1), torch.full((3, 1), 5.0), 100, generator()
    )
    assert clipped.min() == -0.5 and clipped.max() == 0.25


def test_two_speeds_rate_all_candidates_cheaply_and_the_best_of_them_in_full() -> None:
    counts = []

    def full(actions):
        counts.append(len(actions))
        return quadratic(torch.tensor([[0.5, 0.5]]))(actions)

    score = two_speed_score(quadratic(torch.tensor([[0.4, 0.5]])), full, kept=8)
    config = OptimizerConfig(candidates=200, iterations=4, elites=20)
    for optimize in (cem, mppi):
        plan = optimize(score, torch.zeros(1, 2), NOISE, replace(config, sharpness=50.0), generator())
        assert plan.scores.isfinite().sum() == 8
        assert (plan.actions - 0.5).abs().max() < 0.15
    assert set(counts) == {8}


def test_impossible_settings_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"noise.std has 2 numbers and an action 3"):
        random_shooting(lambda a: a.sum((1, 2)), torch.zeros(2, 3), NOISE, OptimizerConfig(), generator())
    with pytest.raises(UserError, match="no candidate has a finite score"):
        cem(lambda a: torch.full((len(a),), torch.nan), torch.zeros(1, 2), NOISE, OptimizerConfig(), generator())
    with pytest.raises(UserError, match="elites is 9 of 4 candidates"):
        OptimizerConfig(candidates=4, elites=9)
    with pytest.raises(UserError, match="optimizer.name is 'ga'; expected one of random-shooting, cem, mppi"):
        OptimizerConfig(name="ga")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="noise.smoothing is 1"):
        ActionNoise(std=(1.0,), smoothing=1)
