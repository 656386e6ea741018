import math

import numpy as np
import pytest
import torch

from ivideogpt.evaluation.intervals import Bootstrap


def test_intervals_hold_the_true_mean_in_about_95_of_100_cases() -> None:
    random, bootstrap, inside = np.random.default_rng(0), Bootstrap(60, resamples=500), 0
    for _ in range(400):
        found = bootstrap.mean(torch.from_numpy(random.normal(3.0, 2.0, 60)))
        inside += found.low <= 3.0 <= found.high
    assert 0.91 <= inside / 400 <= 0.98


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(0, 1, 1000))
    found = Bootstrap(1000).mean(values)
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * float(values.std()) / math.sqrt(1000), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_one_clip_gives_none() -> None:
    values = torch.arange(40.0) ** 2
    assert Bootstrap(40).mean(values) == Bootstrap(40).mean(values) != Bootstrap(40, seed=1).mean(values)
    alone = Bootstrap(1).mean(torch.tensor([5.0]))
    assert alone.value == 5 and math.isnan(alone.low) and math.isnan(alone.high)


def test_clips_without_a_number_are_left_out() -> None:
    found = Bootstrap(4).mean(torch.tensor([1.0, torch.nan, 3.0, torch.nan]))
    assert found.value == 2 and 1 <= found.low <= found.high <= 3
    assert math.isnan(Bootstrap(2).mean(torch.tensor([torch.nan, torch.nan])).value)


def test_a_ratio_is_of_sums_and_any_figure_can_be_drawn_again() -> None:
    above, below = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 8.0])
    assert Bootstrap(3).ratio(above, below).value == pytest.approx(0.5)
    found = Bootstrap(3).over(lambda clips: float(above.numpy()[clips].max()))
    assert found.value == 3 and found.low == 1 and found.high == 3
