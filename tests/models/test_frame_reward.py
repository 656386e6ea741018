"""A reward is read from one picture."""

import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.models.frame_reward import FrameReward, FrameRewardConfig


def test_a_new_network_promises_nothing() -> None:
    model = FrameReward(FrameRewardConfig(width=8))
    assert model(torch.rand(3, 3, 16, 24), torch.rand(1, 3, 16, 24)).tolist() == [0, 0, 0]


def test_success_is_a_reward_above_the_bar() -> None:
    model = FrameReward(FrameRewardConfig(width=8, success_above=0.9))
    assert model.success(torch.tensor([0.5, 0.95])).tolist() == [False, True]


def test_success_needs_a_bar() -> None:
    with pytest.raises(UserError, match="success_above is None"):
        FrameReward(FrameRewardConfig(width=8)).success(torch.zeros(1))


def test_sides_must_fit_the_patches() -> None:
    with pytest.raises(UserError, match="multiples of 4 px"):
        FrameReward(FrameRewardConfig(width=8))(torch.rand(1, 3, 18, 16), torch.rand(1, 3, 18, 16))
