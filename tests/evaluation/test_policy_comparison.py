"""Figures that compare policies in two worlds, by hand and beside scipy."""

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.policy_comparison import compare_worlds, mean_maximum_rank_violation


def test_the_rank_violation_is_the_largest_true_gap_on_the_wrong_side() -> None:
    assert mean_maximum_rank_violation([0.1, 0.5, 0.9], [1.0, 2.0, 3.0]) == 0
    # 0 and 2 change places: each violates a gap of .8; 1 violates .4 with both
    assert mean_maximum_rank_violation([0.1, 0.5, 0.9], [3.0, 2.0, 1.0]) == pytest.approx((0.8 + 0.4 + 0.8) / 3)
    # 0 and 1 change places
    assert mean_maximum_rank_violation([0.1, 0.5, 0.9], [2.0, 1.0, 3.0]) == pytest.approx(0.8 / 3)


def test_correlations_are_those_of_scipy_and_lie_in_their_intervals() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    quality = np.array([0.1, 0.3, 0.3, 0.6, 0.9])[:, None]
    real, imagined = (quality + 0.3 * random.normal(size=(5, 30)) for _ in range(2))
    agreement = compare_worlds(real, imagined)
    means = real.mean(1), imagined.mean(1)
    assert agreement.pearson.value == pytest.approx(stats.pearsonr(*means)[0])
    assert agreement.spearman.value == pytest.approx(stats.spearmanr(*means)[0])
    for estimate in (agreement.pearson, agreement.spearman):
        assert estimate.low <= estimate.value <= estimate.high
    assert agreement.pearson.low > 0.7


def test_starts_are_drawn_together_for_both_worlds() -> None:
    """The same scores in both worlds agree in every resample, however much starts differ."""
    scores = np.random.default_rng(0).normal(size=(4, 10))
    agreement = compare_worlds(scores, scores)
    assert agreement.pearson.low == pytest.approx(1) and agreement.rank_violation.high == 0


def test_too_few_policies_are_refused() -> None:
    with pytest.raises(UserError, match=r"shapes \[2, 5\] and \[2, 5\]; expected .* at least 3 policies"):
        compare_worlds(np.zeros((2, 5)), np.zeros((2, 5)))
