"""Rewards of picture models that are predicted as changes from the last reward that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ivideogpt import Episode, UserError, WorldModel
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.envs.start_states import EpisodeStarts
from ivideogpt.evaluation.evaluate import evaluate
from ivideogpt.evaluation.held_out import Clips
from ivideogpt.evaluation.protocols import PROTOCOLS, settle
from ivideogpt.models.dynamics import HeadsConfig
from ivideogpt.models.frame_reward import FrameRewardConfig, KnownReward
from ivideogpt.models.picture_dynamics import PictureDynamics, PictureDynamicsConfig
from ivideogpt.models.picture_forecast import PictureForecastConfig, PictureNetConfig
from ivideogpt.planning.models import ImaginedFutures
from ivideogpt.worldmodel.config import WorldModelConfig

NAN = float("nan")


def build(*, trained: bool = True, change: bool = True) -> WorldModel:
    """A tiny picture model; ``trained``: its reward networks have random last layers in place of zeros."""
    torch.manual_seed(0)
    net = PictureNetConfig(width=8, deep_width=8, blocks_deep=1)
    reward = FrameRewardConfig(width=8, readout="places", resolution=16, change=change)
    pictures = PictureDynamics(
        PictureDynamicsConfig(
            resolution=16,
            forecast=PictureForecastConfig(net=net, action="numbers", action_dim=2),
            reward=reward,
        )
    )
    for network in (pictures.reward, pictures.reward_change):
        if trained and network is not None:
            torch.nn.init.normal_(network.head[-1].weight)
    settings = WorldModelConfig(name="tiny", clip_frames=5, heads=HeadsConfig(action_dim=2, reward=True))
    return WorldModel.from_pictures(settings, pictures).eval()


def frames(count: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(2, count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def actions(horizon: int = 6) -> Tensor:
    return torch.randn(2, horizon, 2, generator=torch.Generator().manual_seed(2))


def rewards_of(session, applied: Tensor) -> Tensor:
    return torch.stack([session.step(action).rewards for action in applied.unbind(1)], dim=1)


def test_before_training_a_known_reward_is_repeated_and_an_unknown_one_is_read_from_the_frame() -> None:
    model = build(trained=False)
    torch.nn.init.normal_(model.pictures.reward.head[-1].weight)
    alone = model.imagine(frames(), actions()).rewards
    mixed = model.imagine(frames(), actions(), last_rewards=torch.tensor([2.5, NAN])).rewards
    assert (mixed[0] == 2.5).all() and not (alone[0] == 2.5).any()
    torch.testing.assert_close(mixed[1], alone[1])


def test_a_reward_is_the_known_one_plus_the_change_between_the_two_frames() -> None:
    model, context, last = build(), frames(), torch.tensor([3.0, -1.0])
    imagined = model.imagine(context, actions(), last_rewards=last)
    for step in range(6):
        change = model.pictures.reward_change(
            imagined.frames[:, step], KnownReward(context[:, -1], last), model.pictures.background
        )
        torch.testing.assert_close(imagined.rewards[:, step], last + change)
    assert (imagined.rewards.diff(dim=1) != 0).all()


def test_a_model_without_a_change_network_ignores_the_known_reward() -> None:
    model = build(change=False)
    expected = model.imagine(frames(), actions()).rewards
    assert torch.equal(model.imagine(frames(), actions(), last_rewards=torch.tensor([5.0, 6.0])).rewards, expected)


def test_forks_selected_rows_rewound_steps_and_new_segments_keep_the_known_reward() -> None:
    model, last = build(), torch.tensor([3.0, -1.0])
    expected = model.imagine(frames(), actions(), last_rewards=last).rewards
    session = model.session(frames(), last_rewards=last, reanchor_every=2)
    torch.testing.assert_close(rewards_of(session, actions()), expected)
    session.rewind(5)
    torch.testing.assert_close(rewards_of(session, actions()[:, 1:]), expected[:, 1:])
    session.rewind(4)
    twice = session.fork(2)
    torch.testing.assert_close(
        rewards_of(twice, actions()[:, 2:].repeat_interleave(2, dim=0)), expected[:, 2:].repeat_interleave(2, dim=0)
    )
    swapped = session.select([1, 0, 1])
    torch.testing.assert_close(rewards_of(swapped, actions()[[1, 0, 1], 2:]), expected[[1, 0, 1], 2:])


def test_an_observed_reward_is_what_later_ones_change_from_until_it_is_rewound() -> None:
    model, last, real = build(), torch.tensor([3.0, -1.0]), frames(1, seed=5)[:, 0]
    session = model.session(frames(), last_rewards=last)
    before = session.fork()
    step = session.observe(real, actions()[:, 0], torch.tensor([7.0, NAN]))
    assert step.rewards[0] == 7.0
    reference = KnownReward(torch.stack([real[0], frames()[1, -1]]), torch.tensor([7.0, -1.0]))
    after = session.step(actions()[:, 1])
    change = model.pictures.reward_change(after.frames, reference, model.pictures.background)
    torch.testing.assert_close(after.rewards, reference.rewards + change)
    session.rewind(2)
    torch.testing.assert_close(rewards_of(session, actions()), rewards_of(before, actions()))


def test_a_saved_model_has_its_change_network(tmp_path) -> None:
    model, last = build(), torch.tensor([3.0, -1.0])
    model.save_pretrained(tmp_path / "model")
    again = WorldModel.from_pretrained(tmp_path / "model")
    expected = model.imagine(frames(), actions(), last_rewards=last).rewards
    torch.testing.assert_close(again.imagine(frames(), actions(), last_rewards=last).rewards, expected)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (torch.zeros(3), r"last_rewards came with shape \[3\]; expected \[2\]"),
        (torch.tensor([1.0, float("inf")]), "last_rewards came with infinity"),
        ([1.0, 2.0], "last_rewards came as list"),
    ],
)
def test_bad_rewards_are_refused(last, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build().imagine(frames(), actions(), last_rewards=last)


def test_imagined_environments_begin_with_the_rewards_of_their_start_states() -> None:
    model = build(trained=False)
    torch.nn.init.normal_(model.pictures.reward.head[-1].weight)
    recorded = [Episode(frames=np.zeros((4, 16, 16, 3), np.uint8), rewards=np.arange(1, 5, dtype=np.float32) / 4)]
    starts = EpisodeStarts(recorded, model.context_frames)
    environments = ImaginedVectorEnv(model, starts, num_envs=2, horizon=3)
    environments.reset(seed=0, options={"indices": [0, 1]})
    for _ in range(3):
        rewards = environments.step(np.zeros((2, 2), np.float32))[1]
        assert rewards.tolist() == [0.25, 0.5]  # of the transitions to frames 1 and 2


def test_an_evaluation_starts_from_the_recorded_reward() -> None:
    model = build(trained=False)
    rewards = torch.arange(14.0).view(2, 7)
    held_out = Clips((frames(7) * 255).byte(), torch.zeros(2, 7, 2), rewards=rewards)
    rows = evaluate(model, held_out, settle(replace(PROTOCOLS["single"], clip_frames=7), model)).reward_rows
    assert torch.equal(rows["imagined"], rewards[:, :1].expand(2, 5))
    assert torch.equal(rows["imagined"], rows["last_known"])


def test_a_planner_searches_from_the_last_reward_of_the_environment() -> None:
    futures, picture = ImaginedFutures(build(trained=False)), np.zeros((2, 16, 16, 3), np.uint8)
    root = futures.root({"frames": picture, "reward": np.float32(2.5)})
    assert (root.rollout(torch.randn(3, 4, 2)).rewards == 2.5).all()
    assert (futures.root({"frames": picture}).rollout(torch.randn(3, 4, 2)).rewards == 0).all()
