"""Flow matching: samplers keep the distribution, and probabilities are those of the samples."""

import math

import pytest
import torch

from ivideogpt.policies.vla.flow import (
    denoise,
    noisy_actions,
    normal_divergence,
    normal_log_prob,
    sample_chunk,
    step_distribution,
    training_times,
)

#: Actions of the linear-Gaussian flow: mean and deviation.
MEAN, SPREAD = 0.7, 0.3


def gaussian_velocity(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return E[noise - action | x_t] where actions are normal."""
    t = times[:, None, None].to(x.dtype)
    variance = t**2 + (1 - t) ** 2 * SPREAD**2
    centred = x - (1 - t) * MEAN
    return t / variance * centred - (MEAN + (1 - t) * SPREAD**2 / variance * centred)


def moments(level: float, steps: int) -> list[tuple[float, float, float]]:
    """Return time, mean and variance after each step, by the linear maps of the sampler itself, without sampling."""
    mean, variance, after = 0.0, 1.0, []
    for number in range(steps):
        times = torch.tensor([1 - number / steps], dtype=torch.float64)
        at = [torch.tensor([[[value]]], dtype=torch.float64) for value in (0.0, 1.0)]
        (zero, deviation), (unit, _) = (denoise(x, gaussian_velocity(x, times), times, 1 / steps, level) for x in at)
        slope = (unit - zero).item()
        mean = zero.item() + slope * mean
        variance = slope**2 * variance + deviation.item() ** 2
        after.append((1 - (number + 1) / steps, mean, variance))
    return after


@pytest.mark.parametrize("level", [0.0, 0.1, 0.2])
def test_stochastic_steps_keep_the_marginals_of_the_deterministic_flow(level: float) -> None:
    for time, mean, variance in moments(level, 400):
        assert mean == pytest.approx((1 - time) * MEAN, abs=0.01)
        assert variance == pytest.approx(time**2 + (1 - time) ** 2 * SPREAD**2, rel=0.03)


def test_without_the_correction_of_the_mean_the_marginals_would_be_lost() -> None:
    """The check above is able to fail: noise alone makes the distribution wider."""
    steps, level, variance = 400, 0.2, 1.0
    for number in range(steps):
        times = torch.tensor([1 - number / steps], dtype=torch.float64)
        zero, unit = (torch.tensor([[[value]]], dtype=torch.float64) for value in (0.0, 1.0))
        plain = [denoise(x, gaussian_velocity(x, times), times, 1 / steps)[0] for x in (zero, unit)]
        deviation = denoise(zero, gaussian_velocity(zero, times), times, 1 / steps, level)[1]
        variance = (plain[1] - plain[0]).item() ** 2 * variance + deviation.item() ** 2
    assert variance > 1.05 * SPREAD**2


def test_a_small_level_is_the_deterministic_flow_and_the_last_step_ends_at_an_action() -> None:
    x, times = torch.randn(3, 2, 2), torch.full((3,), 0.25)
    velocity = gaussian_velocity(x, times)
    plain, none = denoise(x, velocity, times, 0.25)
    noisy, small = denoise(x, velocity, times, 0.25, 1e-4)
    assert torch.allclose(plain, noisy, atol=1e-6) and (none == 0).all() and (small < 1e-4).all()
    assert torch.allclose(plain, x - velocity * 0.25, atol=1e-6)


def test_the_deterministic_flow_of_many_steps_ends_in_the_distribution_of_actions() -> None:
    start = torch.randn(4000, 2, 1, generator=torch.Generator().manual_seed(0))
    actions = sample_chunk(gaussian_velocity, start, 100).actions
    assert actions.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert actions.std().item() == pytest.approx(SPREAD, rel=0.05)


def test_the_log_probability_is_that_of_a_density_by_numerical_integration() -> None:
    mean, deviation = torch.tensor([[[0.3]]]), torch.tensor([[[0.2]]])
    grid = torch.linspace(-2, 2, 4001)
    density = normal_log_prob(grid[:, None, None], mean, deviation).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)
    assert torch.trapezoid(density * grid, grid).item() == pytest.approx(0.3, abs=1e-4)
    other = torch.tensor([[[0.5]]])
    log_ratio = normal_log_prob(grid[:, None, None], mean, deviation) - normal_log_prob(
        grid[:, None, None], other, deviation
    )
    integral = torch.trapezoid(density * log_ratio, grid).item()
    assert integral == pytest.approx(normal_divergence(mean, other, deviation).item(), abs=1e-4)


def test_the_log_probability_of_a_chunk_is_the_sum_over_its_numbers() -> None:
    x, mean, deviation = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.full((3, 1, 1), 0.4)
    single = torch.distributions.Normal(mean, deviation).log_prob(x)
    assert torch.allclose(normal_log_prob(x, mean, deviation), single.sum(dim=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_chain_holds_its_stochastic_step_whose_ratio_is_exactly_one_at_first(index: int) -> None:
    start, noise = torch.randn(5, 4, 2), torch.randn(5, 4, 2)
    chain = sample_chunk(gaussian_velocity, start, 4, index=index, level=0.5, noise=noise)
    indices = torch.full((5,), index)
    mean, deviation = step_distribution(gaussian_velocity, chain.before, indices, 4, 0.5)
    assert torch.equal(chain.after, mean + deviation * noise)
    first = normal_log_prob(chain.after, mean, deviation)
    again = step_distribution(gaussian_velocity, chain.before, indices, 4, 0.5)
    assert torch.equal((normal_log_prob(chain.after, *again) - first).exp(), torch.ones(5))
    # the noise at the first step has the deviation `level`, see the head of the function
    expected = 0.5 if index == 0 else 0.5 * math.sqrt((1 - index / 4) / (index / 4) / 4)
    assert deviation.flatten().tolist() == pytest.approx([expected] * 5)


def test_times_of_training_prefer_noise_and_mix_actions_linearly() -> None:
    times = training_times(20_000, torch.Generator().manual_seed(0))
    assert times.min() >= 0.001 and times.max() <= 1
    assert times.mean().item() == pytest.approx(0.6 * 0.999 + 0.001, abs=0.01)  # mean of Beta(1.5, 1)
    mixed = noisy_actions(torch.ones(2, 1, 1), torch.zeros(2, 1, 1), torch.tensor([0.25, 1.0]))
    assert mixed.flatten().tolist() == [0.75, 0.0]
