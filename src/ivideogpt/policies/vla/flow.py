"""Flow matching of action chunks: training targets, samplers, and the probability of a stochastic sampling step.

Time runs from 1 (noise) to 0 (action): ``x_t = t * noise + (1 - t) * action``, and the velocity is noise - action. A
sampler starts from noise and takes K equal steps. A deterministic step follows the velocity. A stochastic step
(Flow-SDE) adds noise and corrects the mean, so that the distribution at each time stays the same. Its density is known,
which reinforcement learning needs. In training one step of a chain is stochastic.

Source: Lipman et al. 2023 (flow matching), Black et al. 2024 (pi0: times of training) and the formulas of RLinf's piRL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Velocity of x ``[b h a]`` at times ``[b]`` from 1 to 0.
Velocity = Callable[[Tensor, Tensor], Tensor]
# Distribution of the times of training: Beta(1.5, 1), away from 0.
_TIME_POWER, _LEAST_TIME = 1.5, 0.001


class Chain(NamedTuple):
    """Result of a sampler.

    Attributes:
        actions: float32 ``[b h a]``, the end of the chain.
        before, after: float32 ``[b h a]`` around the stochastic step; of a deterministic chain, its start and end.
        index: number of the stochastic step, or -1.
    """

    actions: Tensor
    before: Tensor
    after: Tensor
    index: int


def training_times(count: int, generator: torch.Generator) -> Tensor:
    """Draw times of training: float32 ``[count]`` in 0.001 to 1, more of them near 1."""
    uniform = torch.rand(count, generator=generator)
    return (1 - _LEAST_TIME) * uniform ** (1 / _TIME_POWER) + _LEAST_TIME


def noisy_actions(actions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Return ``x_t`` for actions and noise ``[b h a]`` and times ``[b]``."""
    t = times[:, None, None]
    return t * noise + (1 - t) * actions


def denoise(x: Tensor, velocity: Tensor, times: Tensor, step: float, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return mean ``[b h a]`` and standard deviation ``[b 1 1]`` of ``x`` after a step.

    Args:
        x: ``[b h a]`` at ``times``.
        velocity: ``[b h a]`` there.
        times: ``[b]``, above 0, at most 1.
        step: length of the step.
        level: of the noise; 0: a deterministic step, whose deviation is 0.

    The deviation would be infinite at time 1; there the denominator is that of the next time.
    """
    t = times[:, None, None]
    action, noise, after = x - velocity * t, x + velocity * (1 - t), t - step
    variance = level**2 * t / (1 - t.clamp(max=1 - step)) * step
    mean = action * (1 - after) + noise * (after - variance / (2 * t))
    return mean, variance.sqrt()


def sample_chunk(
    velocity: Velocity,
    start: Tensor,
    steps: int,
    *,
    index: int = -1,
    level: float = 0.0,
    noise: Tensor | None = None,
) -> Chain:
    """Sample action chunks.

    Args:
        velocity: of the network.
        start: ``[b h a]``, standard normal.
        steps: K.
        index: step that is stochastic, from 0 to K - 1; -1: none.
        level: of its noise.
        noise: of that step, standard normal ``[b h a]``.
    """
    x, before = start, start
    after = start
    for number in range(steps):
        times = start.new_full((len(start),), 1 - number / steps)
        is_stochastic = number == index
        mean, deviation = denoise(x, velocity(x, times), times, 1 / steps, level if is_stochastic else 0.0)
        if is_stochastic:
            assert noise is not None
            before, after = x, mean + deviation * noise
            x = after
        else:
            x = mean
    return Chain(x, before, after if index >= 0 else x, index)


def step_distribution(
    velocity: Velocity, before: Tensor, indices: Tensor, steps: int, level: float
) -> tuple[Tensor, Tensor]:
    """Return mean ``[b h a]`` and deviation ``[b 1 1]`` of stochastic steps, by the present network.

    Args:
        velocity: of the network.
        before: ``[b h a]`` before each step.
        indices: int64 ``[b]``, the number of each step.
        steps: K.
        level: of the noise.
    """
    times = 1 - indices.to(before.dtype) / steps
    return denoise(before, velocity(before, times), times, 1 / steps, level)


def normal_log_prob(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the log-density of chunks, float32 ``[b]``: the sum over their actions and the numbers of these."""
    scaled = (x - mean) / deviation
    return (-0.5 * scaled**2 - deviation.log() - 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2))


def normal_divergence(mean: Tensor, other: Tensor, deviation: Tensor) -> Tensor:
    """Return the divergence of normal chunks of equal deviation, in nats, ``[b]``."""
    return (((mean - other) / deviation) ** 2).sum(dim=(1, 2)) / 2
