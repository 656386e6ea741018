"""Search for the actions with the highest score: random shooting, CEM and MPPI.

    plan = cem(score, mean, ActionNoise(std=(0.5, 0.5)), OptimizerConfig(), generator)

An optimizer is a pure function of ``score``, which rates candidates ``[k n a]``, and of a random generator. It knows no
model, no goal and no environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from einops import repeat
from torch import Tensor

from ivideogpt.core.config import check_at_least
from ivideogpt.core.errors import UserError

#: Score of candidates: actions float32 ``[k n a]`` to float ``[k]``, higher is better; -inf: not to be chosen.
Score = Callable[[Tensor], Tensor]
#: Smallest standard deviation of CEM, as a share of the first one: below it, no candidate would differ.
_LEAST_STD = 0.05


@dataclass(frozen=True, kw_only=True)
class ActionNoise:
    """Normal noise around a mean action sequence; neighbouring actions have similar noise.

    Noise i is ``smoothing * noise[i-1] + gain * normal``, and noise 0 is normal.

    Attributes:
        std: standard deviation of each number of an action.
        smoothing: 0: independent noise in each step; near 1: almost the same noise in all steps.
        equal_std: the gain is such that every step has the same deviation; False: it is ``1 - smoothing``, as in VP2,
            where later steps have less noise than the first. CEM, which fits the deviation again, needs the former.
        low, high: range of every number of an action; candidates are clipped to it.
    """

    std: tuple[float, ...]
    smoothing: float = 0.5
    equal_std: bool = True
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of range.
        """
        if not self.std or min(self.std) < 0 or max(self.std) == 0:
            raise UserError(f"noise.std is {list(self.std)}; expected a number for each number of an action, not all 0")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"noise.smoothing is {self.smoothing}; expected at least 0 and less than 1")
        if not self.low < self.high:
            raise UserError(f"noise.low is {self.low} and noise.high is {self.high}; expected low < high")

    def sample(self, mean: Tensor, std: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw candidates float32 ``[count n a]`` around ``mean`` ``[n a]`` with deviations ``std`` ``[n a]``."""
        steps, size = mean.shape
        gain = math.sqrt(1 - self.smoothing**2) if self.equal_std else 1 - self.smoothing
        normal = torch.randn(count, steps, size, generator=generator)
        noise = [normal[:, 0]]
        for step in range(1, steps):
            noise.append(self.smoothing * noise[-1] + gain * normal[:, step])
        return (mean + std * torch.stack(noise, dim=1)).clamp(self.low, self.high)

    def initial_std(self, mean: Tensor) -> Tensor:
        """Return the deviations ``[n a]`` of every step.

        Raises:
            UserError: ``mean`` has another number of numbers in an action.
        """
        if mean.shape[1] != len(self.std):
            raise UserError(
                f"noise.std has {len(self.std)} numbers and an action {mean.shape[1]}; expected one for each number"
            )
        return repeat(torch.tensor(self.std), "a -> n a", n=len(mean))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of an optimizer.

    Attributes:
        name: a key of ``OPTIMIZERS``: random-shooting, cem or mppi.
        candidates: action sequences of an iteration.
        iterations: searches around the result of the one before; random-shooting has one.
        elites: candidates that CEM fits its distribution to.
        momentum: part of CEM's mean and deviation that stays in an iteration, 0 to 1.
        sharpness: MPPI weighs a candidate by ``exp(sharpness * (score - best score))``; VP2 calls it gamma.
        return_mean: return the mean of the last distribution instead of the best candidate; MPPI always does.
    """

    name: str = "cem"
    candidates: int = 64
    iterations: int = 3
    elites: int = 8
    momentum: float = 0.1
    sharpness: float = 10.0
    return_mean: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: a number is out of range.
        """
        if self.name not in OPTIMIZERS:
            raise UserError(f"optimizer.name is {self.name!r}; expected one of {', '.join(OPTIMIZERS)}")
        check_at_least(self, candidates=2, iterations=1, elites=1)
        if self.elites > self.candidates:
            raise UserError(f"elites is {self.elites} of {self.candidates} candidates; expected at most as many")
        if not 0 <= self.momentum < 1 or self.sharpness <= 0:
            raise UserError(
                f"momentum is {self.momentum} and sharpness is {self.sharpness}; expected 0 to 1, and more than 0"
            )


class ActionPlan(NamedTuple):
    """Result of a search.

    Attributes:
        actions: float32 ``[n a]``, to be executed.
        mean: float32 ``[n a]``, the mean of the last distribution, from which the next search starts.
        candidates: float32 ``[k n a]`` of the last iteration.
        scores: float32 ``[k]`` of them; -inf where a candidate was given up early.
        best: score of the best candidate of all iterations.
    """

    actions: Tensor
    mean: Tensor
    candidates: Tensor
    scores: Tensor
    best: float


class Optimizer(Protocol):
    """A search for the actions with the highest score."""

    def __call__(
        self, score: Score, mean: Tensor, noise: ActionNoise, config: OptimizerConfig, generator: torch.Generator
    ) -> ActionPlan:
        """Search around ``mean`` float32 ``[n a]``, which is one of the first candidates."""
        ...


def random_shooting(
    score: Score, mean: Tensor, noise: ActionNoise, config: OptimizerConfig, generator: torch.Generator
) -> ActionPlan:
    """Return the best of ``candidates`` draws around ``mean``; see `Optimizer`."""
    candidates = _candidates(mean, noise.initial_std(mean), noise, config, generator)
    scores = _checked(score(candidates), len(candidates))
    best = int(scores.argmax())
    return ActionPlan(candidates[best], candidates[best], candidates, scores, float(scores[best]))


def cem(
    score: Score, mean: Tensor, noise: ActionNoise, config: OptimizerConfig, generator: torch.Generator
) -> ActionPlan:
    """Fit a normal distribution to the best candidates, again and again; see `Optimizer`.

    The best candidate so far takes part in every later iteration, so that the result never gets worse.

    Source: Rubinstein 1999, the cross-entropy method; VP2 keeps no candidate from one iteration to the next.
    """
    first = noise.initial_std(mean)
    std, best, best_score = first, mean, -torch.inf
    candidates, scores = mean[None], mean.new_full((1,), -torch.inf)
    for iteration in range(config.iterations):
        candidates = _candidates(mean, std, noise, config, generator)
        if iteration:
            candidates[-1] = best
        scores = _checked(score(candidates), len(candidates))
        order = scores.argsort(descending=True)
        if scores[order[0]] > best_score:
            best, best_score = candidates[order[0]], float(scores[order[0]])
        # a candidate that was given up early is no elite
        elites = candidates[order[: min(config.elites, int(scores.isfinite().sum()))]]
        mean = config.momentum * mean + (1 - config.momentum) * elites.mean(dim=0)
        spread = elites.std(dim=0, correction=0)
        std = (config.momentum * std + (1 - config.momentum) * spread).clamp(min=_LEAST_STD * first)
    return ActionPlan(mean if config.return_mean else best, mean, candidates, scores, best_score)


def mppi(
    score: Score, mean: Tensor, noise: ActionNoise, config: OptimizerConfig, generator: torch.Generator
) -> ActionPlan:
    """Weigh all candidates by their scores; the deviation stays; see `Optimizer`.

    Source: Williams et al. 2017; VP2's form of it: ``softmax(gamma * (score - max))``, one iteration a decision.
    """
    std, best = noise.initial_std(mean), -torch.inf
    candidates, scores = mean[None], mean.new_full((1,), -torch.inf)
    for _ in range(config.iterations):
        candidates = _candidates(mean, std, noise, config, generator)
        scores = _checked(score(candidates), len(candidates))
        best = max(best, float(scores.max()))
        weights = torch.softmax(config.sharpness * (scores - scores.max()), dim=0)
        mean = torch.einsum("k,kna->na", weights, candidates)
    return ActionPlan(mean, mean, candidates, scores, best)


#: Every optimizer by name. A new one is a function and a row.
OPTIMIZERS: dict[str, Optimizer] = {"random-shooting": random_shooting, "cem": cem, "mppi": mppi}


def two_speed_score(draft: Score, full: Score, kept: int) -> Score:
    """Return a score that rates all candidates cheaply and only the best of them by the full model.

    Args:
        draft: the cheap score, of all candidates.
        full: the score of the best ``kept`` of them by the draft.
        kept: number of candidates that the full model rates; all others score -inf.
    """

    def score(actions: Tensor) -> Tensor:
        count = min(kept, len(actions))
        chosen = _checked(draft(actions), len(actions)).topk(count).indices
        scores = torch.full((len(actions),), -torch.inf)
        scores[chosen] = _checked(full(actions[chosen]), count)
        return scores

    return score


def _candidates(
    mean: Tensor, std: Tensor, noise: ActionNoise, config: OptimizerConfig, generator: torch.Generator
) -> Tensor:
    """Draw candidates ``[k n a]``; the first is the mean itself."""
    candidates = noise.sample(mean, std, config.candidates, generator)
    candidates[0] = mean.clamp(noise.low, noise.high)
    return candidates


def _checked(scores: Tensor, count: int) -> Tensor:
    """Return scores as float32 ``[count]`` on the CPU; NaN, of a model whose numbers overflowed, counts as -inf.

    Raises:
        UserError: none of them is finite.
    """
    scores = scores.detach().float().cpu()
    assert scores.shape == (count,), f"scores have shape {list(scores.shape)}, not [{count}]"
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    if not scores.isfinite().any():
        raise UserError("no candidate has a finite score; the model's numbers overflow, use a smaller noise.std")
    return scores
