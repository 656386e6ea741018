"""A reward is read from one picture."""

from functools import partial

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


def test_the_readout_by_places_tells_a_patch_at_one_place_from_the_same_at_another() -> None:
    torch.manual_seed(0)
    model = FrameReward(FrameRewardConfig(patch=4, width=8, blocks=1, readout="places", resolution=16, symlog=True))
    frames = torch.zeros(2, 3, 16, 16)
    frames[0, :, :4, :4] = frames[1, :, 12:, 12:] = 1.0
    rewards, background = torch.tensor([20.0, -5.0]), torch.zeros(1, 3, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (model.value(frames, background) - model.target(rewards)).square().mean().backward()
        optimizer.step()
    assert torch.allclose(model(frames, background), rewards, rtol=0.1)


def test_a_readout_by_places_needs_the_size_of_a_frame() -> None:
    places, summed = (partial(FrameRewardConfig, readout=readout) for readout in ("places", "sum"))
    for config in (places, partial(places, resolution=18), partial(summed, resolution=16)):
        with pytest.raises(UserError, match="expected 0 for 'sum' and a multiple of 4 px for 'places'"):
            config()
