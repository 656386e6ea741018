"""Agreement of the world model with the simulator on which policies are better.

Each policy has one score a start in the simulator and one in the imagination. Figures compare the means of policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.intervals import RESAMPLES, Bootstrap, Estimate
from ivideogpt.evaluation.trust_signals import correlation, ranks

#: Fewest policies that can be compared.
MIN_POLICIES = 3


@dataclass(frozen=True)
class Agreement:
    """Agreement of the means of policies in the simulator and in the imagination.

    Attributes:
        pearson: linear correlation.
        spearman: rank correlation.
        rank_violation: mean over policies of the largest true difference to a policy that the imagination ranks on the
            wrong side; 0: all ranks are right. In units of the score.
    """

    pearson: Estimate
    spearman: Estimate
    rank_violation: Estimate


def compare_worlds(real: np.ndarray, imagined: np.ndarray, *, seed: int = 0) -> Agreement:
    """Compare scores of policies.

    Intervals are over starts, which are drawn together for all policies and both worlds. They tell nothing of other
    policies.

    Args:
        real: float ``[policies starts]``.
        imagined: the same.
        seed: of the resamples.

    Raises:
        UserError: shapes differ, or there are fewer than three policies.
    """
    if real.shape != imagined.shape or real.ndim != 2 or len(real) < MIN_POLICIES:
        raise UserError(
            f"scores have shapes {list(real.shape)} and {list(imagined.shape)}; expected the same [policies starts] "
            f"with at least {MIN_POLICIES} policies"
        )
    bootstrap = Bootstrap(real.shape[1], seed)

    def over(figure) -> Estimate:
        def chosen(starts: np.ndarray) -> float:
            return figure(real[:, starts].mean(axis=1), imagined[:, starts].mean(axis=1))

        return bootstrap.over(chosen, RESAMPLES)

    return Agreement(
        pearson=over(correlation),
        spearman=over(lambda a, b: correlation(ranks(a), ranks(b))),
        rank_violation=over(mean_maximum_rank_violation),
    )


def mean_maximum_rank_violation(real: Sequence[float] | np.ndarray, imagined: Sequence[float] | np.ndarray) -> float:
    """Return the mean maximum rank violation of scores ``[n]`` of n policies.

    Source: Li et al. 2024, "Evaluating real-world robot manipulation policies in simulation", eq. 1; same.
    """
    true, other = np.asarray(real, np.float64), np.asarray(imagined, np.float64)
    gaps = np.abs(true[:, None] - true)
    wrong = (true[:, None] < true) != (other[:, None] < other)
    return float((gaps * wrong).max(axis=1).mean())
