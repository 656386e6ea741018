"""The reward of pictures is learned and its training resumes exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.models.frame_reward import FrameReward, FrameRewardConfig
from ivideogpt.training.frame_reward import FrameRewardTraining, train_frame_reward

BACKGROUND = torch.ones(3, 16, 16)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Squares of many sizes; the reward is the covered share of the picture."""
    random = np.random.default_rng(0)
    frames = np.full((64, 16, 16, 3), 255, np.uint8)
    sides = random.integers(0, 13, 64)
    for frame, side in zip(frames, sides, strict=True):
        frame[2 : 2 + side, 1 : 1 + side] = 100
    return frames, (sides**2 / 256).astype(np.float32)


def train(folder: Path, steps: int, until: int | None = None) -> FrameReward:
    torch.manual_seed(0)
    model = FrameReward(FrameRewardConfig(width=8, blocks=1))
    run = Run(folder, device="cpu", log_every=0, save_every=0)
    config = FrameRewardTraining(steps=steps, batch_size=16, warmup_steps=5, learning_rate=5e-3)
    return train_frame_reward(config, model, *pictures(), BACKGROUND, run, until=until)


def test_a_reward_that_is_a_sum_over_places_is_learned(tmp_path: Path) -> None:
    model, (frames, rewards) = train(tmp_path, 150), pictures()
    with torch.no_grad():
        read = model(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255, BACKGROUND[None])
    assert np.corrcoef(read.numpy(), rewards)[0, 1] > 0.98


def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 6, until=3)
    parts = train(tmp_path / "parts", 6)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_rewards_must_fit_the_frames(tmp_path: Path) -> None:
    frames, _ = pictures()
    run = Run(tmp_path, device="cpu", log_every=0)
    with pytest.raises(UserError, match="one reward for each frame"):
        train_frame_reward(
            FrameRewardTraining(), FrameReward(FrameRewardConfig()), frames, np.zeros(64, np.float32), BACKGROUND, run
        )
