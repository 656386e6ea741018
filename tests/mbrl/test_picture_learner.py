"""A picture model that learns with its agent: its losses fall, it imagines the episodes, and a killed run goes on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.core.checkpoint import load_tensors, step_folder
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.core.run import Run
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.picture_learner import PictureLearner
from ivideogpt.mbrl.replay_buffer import ReplayBuffer
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.frame_reward import FrameRewardConfig
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.worldmodel.config import WorldModelConfig
from ivideogpt.worldmodel.world_model import WorldModel


def picture_model(*, reward: bool = True) -> WorldModel:
    """A new model of two scenes, a black and a white one, with actions of two numbers."""
    torch.manual_seed(0)
    net = PictureNetConfig(width=8, deep_width=8, blocks_deep=1, copies=True, flow=True)
    pictures = PictureDynamics(
        PictureDynamicsConfig(
            resolution=16,
            scenes=2,
            forecast=PictureForecastConfig(net=net, action="numbers", action_dim=2),
            reward=FrameRewardConfig(width=8, blocks=1) if reward else None,
        )
    )
    pictures.background[1] = 1.0
    return WorldModel.from_pictures(WorldModelConfig(heads=HeadsConfig(action_dim=2, reward=reward)), pictures)


@pytest.fixture
def pictures_config(config: MbrlConfig, tmp_path: Path) -> MbrlConfig:
    picture_model().save_pretrained(tmp_path / "model")
    training = replace(config.world_model, checkpoint=str(tmp_path / "model"), initial_updates=2)
    return replace(config, world_model=training)


def test_an_update_trains_forecast_and_reward_on_segments(config: MbrlConfig, tmp_path: Path) -> None:
    """Bright frames, worth 1, follow an action of 1, dark ones any other: both networks can learn it."""
    random = np.random.default_rng(0)
    actions = random.choice([-1.0, 1.0], (20, 2)).astype(np.float32)
    bright = np.concatenate([[False], actions[:-1, 0] > 0])
    frames = np.where(bright[:, None, None, None], 200, 40).astype(np.uint8) * np.ones((1, 16, 16, 3), np.uint8)
    rewards = np.append(bright[1:], False).astype(np.float32)
    replay = ReplayBuffer(100)
    replay.add(Episode(frames=frames, actions=actions, rewards=rewards))
    training = replace(config.world_model, learning_rate=1e-2, batch_size=8, segment_frames=5)
    learner = PictureLearner(training, Run(tmp_path, device="cpu"), picture_model())
    losses = [learner.update(replay, random, tokenizer=False) for _ in range(80)]
    for name in ("world_forecast", "world_reward"):
        values = [float(loss[name]) for loss in losses]
        assert np.mean(values[-10:]) < 0.3 * np.mean(values[:3]), name


def test_a_killed_run_with_a_picture_model_goes_on_exactly(pictures_config: MbrlConfig, tmp_path: Path, go) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    straight = go(pictures_config, whole)
    assert straight.imagined_transitions > 0 and straight.world_model_updates == 10
    shutil.copytree(whole, killed)
    shutil.rmtree(step_folder(killed, 80))
    resumed = go(pictures_config, killed)
    assert [e["returns"] for e in straight.evaluations] == [e["returns"] for e in resumed.evaluations]
    for part in ("agent", "world_model", "imagined"):
        expected, again = (
            load_tensors(step_folder(folder, 80) / "training" / f"{part}.safetensors") for folder in (whole, killed)
        )
        assert expected.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in expected.items()), part
    before = WorldModel.from_pretrained(tmp_path / "model").state_dict()
    after = WorldModel.from_pretrained(whole).state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_a_picture_model_without_rewards_is_refused(pictures_config: MbrlConfig, tmp_path: Path, go) -> None:
    picture_model(reward=False).save_pretrained(tmp_path / "blind")
    training = replace(pictures_config.world_model, checkpoint=str(tmp_path / "blind"))
    with pytest.raises(UserError, match="has no reward head; use a checkpoint with one"):
        go(replace(pictures_config, world_model=training), tmp_path / "run")
