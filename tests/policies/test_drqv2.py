"""The agent: what it sees, how it acts, that it learns, and that its state comes back."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from ivideogpt.core.errors import UserError
from ivideogpt.policies.drqv2 import AgentConfig, DrQv2, Transitions, random_shift

SMALL = AgentConfig(encoder_channels=4, feature_size=8, hidden_size=32, batch_size=16, learning_rate=1e-3)


def agent(config: AgentConfig = SMALL) -> DrQv2:
    torch.manual_seed(0)
    return DrQv2(24, 2, 3, config)


def batch(size: int = 16) -> Transitions:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, size, 24, 24, 6), dtype=torch.uint8, generator=random)
    actions = torch.rand(size, 3, generator=random) * 2 - 1
    rewards, discounts = torch.rand(size, generator=random), torch.full((size,), 0.9)
    return Transitions(pixels[0], actions, rewards, discounts, pixels[1], torch.arange(size) < size // 2)


def observations(count: int = 4) -> dict[str, np.ndarray]:
    return {"frames": np.random.default_rng(0).integers(0, 256, (count, 2, 24, 24, 3), dtype=np.uint8)}


def test_only_bytes_come_in_so_real_and_imagined_pixels_cannot_differ_in_range() -> None:
    """The official policy divided imagined frames by 255 twice and saw black."""
    with pytest.raises(AssertionError, match="expected bytes"):
        agent().act({"frames": observations()["frames"].astype(np.float32) / 255})
    assert np.ptp(agent().act(observations()), axis=0).max() > 0.02


def test_actions_stay_inside_the_range_whatever_the_noise() -> None:
    policy, generator = agent(), torch.Generator().manual_seed(0)
    noisy = policy.explore(observations(64), 5.0, generator)
    assert np.abs(noisy).max() <= 1 and np.abs(noisy).max() > 0.99
    np.testing.assert_array_equal(policy.act(observations()), policy.act(observations()))


def test_a_row_does_not_depend_on_the_rows_around_it() -> None:
    frames = observations(5)["frames"]
    alone = agent().act({"frames": frames[2:3]})
    np.testing.assert_allclose(agent().act({"frames": frames})[2:3], alone, atol=1e-6)


def test_the_shift_is_that_of_the_paper_which_interpolates_between_whole_pixels() -> None:
    pixels = torch.rand(8, 24, 24, 6, generator=torch.Generator().manual_seed(0))
    ours = random_shift(pixels, 4, torch.Generator().manual_seed(3))
    moves = torch.randint(-4, 5, (2, 8, 1), generator=torch.Generator().manual_seed(3))
    padded = F.pad(pixels.permute(0, 3, 1, 2), (4, 4, 4, 4), mode="replicate")
    for row in range(8):
        down, right = int(moves[0, row]) + 4, int(moves[1, row]) + 4
        expected = padded[row, :, down : down + 24, right : right + 24].permute(1, 2, 0)
        torch.testing.assert_close(ours[row], expected)
    assert random_shift(pixels, 0, torch.Generator()) is pixels


def test_the_critic_learns_a_reward_and_the_actor_follows_it() -> None:
    """Reward is the first number of the action: the actor is to make it large."""
    learner, generator, data = agent(), torch.Generator().manual_seed(0), batch(64)
    data = data._replace(rewards=data.actions[:, 0].clone(), discounts=torch.zeros(64))
    first = learner.learn(data, 0.2, generator)
    for _ in range(150):
        last = learner.learn(data, 0.2, generator)
    assert last["critic_loss"] < 0.2 * first["critic_loss"]
    assert learner.act(observations())[:, 0].min() > 0.5


def test_the_slow_copy_follows_by_its_rate() -> None:
    learner = agent()
    before = [weight.clone() for weight in learner.target.parameters()]
    learner.learn(batch(), 0.2, torch.Generator().manual_seed(0))
    for old, new, critic in zip(before, learner.target.parameters(), learner.critic.parameters(), strict=True):
        torch.testing.assert_close(new, old + SMALL.target_update_rate * (critic - old))
        assert not new.requires_grad


def test_updates_after_a_resume_are_those_that_would_have_been() -> None:
    straight, generator = agent(), torch.Generator().manual_seed(0)
    straight.learn(batch(), 0.2, generator)
    resumed = agent()
    resumed.load_training_state(deepcopy(straight.training_state()))  # a file shares no memory either
    place = generator.get_state()
    expected = straight.learn(batch(), 0.2, generator)
    generator.set_state(place)
    losses = resumed.learn(batch(), 0.2, generator)
    assert all(expected[name] == losses[name] for name in expected)


def test_noise_falls_in_a_straight_line_and_stays() -> None:
    config = AgentConfig(exploration_noise_start=1.0, exploration_noise_end=0.2, exploration_decay_steps=100)
    assert [config.exploration_noise(steps) for steps in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_the_policy_comes_near_the_actions_of_demonstrations_and_of_nothing_else() -> None:
    data = batch()
    learner = agent(replace(SMALL, cloning_weight=10.0, random_shift=0))
    for _ in range(150):
        learner.learn(data, 0.1, torch.Generator().manual_seed(0))
    frames = rearrange(data.observations, "b h w (k c) -> b k h w c", c=3).numpy()
    distances = (torch.from_numpy(learner.act({"frames": frames})) - data.actions).square().mean(dim=1)
    assert distances[data.demonstrated].mean() < 0.1 < distances[~data.demonstrated].mean()


def test_rewards_are_scaled_in_an_update() -> None:
    data = batch()._replace(discounts=torch.zeros(16))
    targets = [
        agent(replace(SMALL, reward_scale=scale)).learn(data, 0.0, torch.Generator())["target"] for scale in (1, 2)
    ]
    assert float(targets[1]) == pytest.approx(2 * float(targets[0]))


def test_larger_strides_make_smaller_features_of_the_same_kind() -> None:
    small, large = agent(replace(SMALL, encoder_strides=(2, 2, 1, 1))), agent()
    assert small.encoder.features < large.encoder.features
    assert small.act(observations()).shape == large.act(observations()).shape


def test_features_in_bfloat16_change_an_update_by_rounding_alone() -> None:
    exact, rounded = (
        agent(replace(SMALL, bfloat16=low)).learn(batch(), 0.2, torch.Generator().manual_seed(0))
        for low in (False, True)
    )
    assert float(rounded["critic_loss"]) == pytest.approx(float(exact["critic_loss"]), rel=0.02)
    assert float(rounded["critic_loss"]) != float(exact["critic_loss"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"discount": 1.1},
        {"batch_size": 1},
        {"n_step": 0},
        {"learning_rate": -1.0},
        {"encoder_strides": (2, 1)},
        {"cloning_weight": -1.0},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        AgentConfig(**wrong)


def test_frames_that_are_too_small_are_refused() -> None:
    with pytest.raises(UserError, match="at least 15"):
        DrQv2(12, 1, 2, SMALL)
