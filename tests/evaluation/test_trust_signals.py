import math

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.evaluation.intervals import Bootstrap
from ivideogpt.evaluation.trust_signals import correlation, measure_trust


@pytest.fixture
def error() -> torch.Tensor:
    """``[40 5]``: later frames are worse."""
    random = np.random.default_rng(0)
    return torch.from_numpy(random.random((40, 5)) + 2 * np.arange(5))


def test_a_signal_that_grows_with_the_error_is_perfect_by_rank(error) -> None:
    told = measure_trust(error**3, error, Bootstrap(40))
    assert told.spearman.value == pytest.approx(1) and told.same_frame.value == pytest.approx(1)
    assert told.pearson.value < 0.99, "but it is not linear"
    assert told.tail_ratio.value > 5


def test_a_signal_that_is_only_the_frame_number_tells_nothing_at_the_same_frame(error) -> None:
    noise = torch.from_numpy(np.random.default_rng(1).random((40, 5)))
    told = measure_trust(noise + 2 * torch.arange(5), error, Bootstrap(40))
    assert told.spearman.value > 0.9
    assert abs(told.same_frame.value) < 0.2
    assert told.same_frame.low < 0 < told.same_frame.high


def test_a_signal_without_meaning_is_found_out(error) -> None:
    noise = torch.from_numpy(np.random.default_rng(2).random((40, 5)))
    told = measure_trust(noise, error, Bootstrap(40))
    assert abs(told.spearman.value) < 0.2 and told.spearman.low < 0 < told.spearman.high
    assert told.tail_ratio.value == pytest.approx(1, abs=0.3)


def test_correlations_are_those_of_numpy_and_equal_values_share_a_rank() -> None:
    a, b = np.random.default_rng(3).random((2, 30))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert math.isnan(correlation(np.ones(5), np.arange(5.0)))
    told = measure_trust(torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([[1.0], [2.0], [3.0]]), Bootstrap(3))
    assert told.spearman.value == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])


def test_signal_and_error_must_be_of_the_same_frames(error) -> None:
    with pytest.raises(UserError, match="expected the same"):
        measure_trust(error[:, :3], error, Bootstrap(40))
