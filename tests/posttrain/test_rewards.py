"""Rewards of imagined futures: signs, exact values, weights, functions of a user, and what is refused."""

import sys

import pytest
import torch

from ivideogpt.core.errors import UserError
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.posttrain import rewards
from ivideogpt.posttrain.rewards import REWARDS, BuiltInReward, RewardSum, Rollouts, parse_reward
from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED


def rollouts_of(imagined: torch.Tensor, real: torch.Tensor, **values) -> Rollouts:
    """Rollouts of given frames; tokens are zeros unless they are given."""
    ids = torch.zeros(*imagined.shape[:2], 4, dtype=torch.long)
    real_ids = torch.zeros(*real.shape[:2], 4, dtype=torch.long)
    return Rollouts(**({"imagined": imagined, "real": real, "ids": ids, "real_ids": real_ids} | values))


@pytest.fixture(scope="module")
def noise() -> Rollouts:
    """Two prompts with three futures each: the recorded one with more and more noise."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(2, 2, 3, 32, 32, generator=generator)
    strength = torch.tensor([0.0, 0.2, 0.6]).repeat(2)[:, None, None, None, None]
    imagined = real.repeat_interleave(3, dim=0)
    imagined = (imagined + strength * (torch.rand(imagined.shape, generator=generator) - 0.5)).clamp(0, 1)
    return rollouts_of(imagined, real)


@pytest.mark.parametrize("name", ["mae", "mse", "psnr", "ssim"])
def test_a_closer_future_is_rewarded_more(name, noise) -> None:
    total, values = RewardSum(parse_reward(name))(noise)
    assert total.shape == (6, 2) and torch.equal(total, values[name])
    by_strength = total.mean(dim=1).unflatten(0, (2, 3))
    assert (by_strength.diff(dim=1) < 0).all()
    assert (total[0] == {"mae": 0, "mse": 0, "psnr": 100, "ssim": 1}[name]).all()


def test_the_perceptual_reward_compares_each_future_with_its_own_prompt(noise) -> None:
    pytest.importorskip("stlpips_pytorch")
    total, _ = RewardSum(parse_reward("perceptual"), network="alex")(noise)
    assert total.shape == (6, 2) and total[[0, 3]].abs().max() < 1e-6
    assert (total.mean(dim=1).unflatten(0, (2, 3)).diff(dim=1) < 0).all()


def test_a_sum_has_weights(noise) -> None:
    terms = parse_reward("mae + 0.5*ssim+-2*mse")
    assert [(term.name, term.weight) for term in terms] == [("mae", 1.0), ("ssim", 0.5), ("mse", -2.0)]
    total, values = RewardSum(terms)(noise)
    assert torch.allclose(total, values["mae"] + 0.5 * values["ssim"] - 2 * values["mse"])


def test_repetition_counts_what_the_recorded_future_does_not_repeat() -> None:
    frames = torch.zeros(1, 3, 3, 8, 8)
    previous, moving = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[[1, 2, 3, 5], [1, 2, 6, 5], [1, 2, 6, 5]]])
    frozen = previous[:, None].expand(1, 3, 4)
    values = {"real_ids": moving, "previous_ids": previous}
    total, _ = RewardSum(parse_reward("repetition"))(rollouts_of(frames, frames, ids=frozen, **values))
    assert total[0].tolist() == pytest.approx([-0.25, -0.25, 0.0])  # all repeats; the truth repeats 3, 3 and 4 of 4
    same, _ = RewardSum(parse_reward("repetition"))(rollouts_of(frames, frames, ids=moving, **values))
    assert not same.any()
    values["previous_ids"] = None  # another grid: the first frame has nothing to compare with
    total, _ = RewardSum(parse_reward("repetition"))(rollouts_of(frames, frames, ids=frozen, **values))
    assert total[0].tolist() == pytest.approx([0.0, -0.25, 0.0])


def test_following_needs_actions(noise) -> None:
    reward = RewardSum(parse_reward("following"))
    assert reward.needs_following and not RewardSum(parse_reward("mae")).needs_following
    with pytest.raises(UserError, match="needs a model with actions"):
        reward(noise)


def test_the_block_of_pusht_is_rewarded_where_it_is_right() -> None:
    episode = load_episodes(SHIPPED["pusht-64-tokens"] / EPISODES_FILE)[0]
    real = torch.from_numpy(episode.frames[:2]).permute(0, 3, 1, 2)[None].float() / 255
    moved = real.roll(3, dims=-1)
    futures = torch.cat([real, moved])
    total, _ = RewardSum(parse_reward("block_position"))(rollouts_of(futures, real))
    assert total[0].abs().max() < 1e-4 and total[1].tolist() == pytest.approx([-3, -3], abs=0.5)
    total, _ = RewardSum(parse_reward("block_angle"))(rollouts_of(futures, real))
    assert total.abs().max() < 0.1
    total, _ = RewardSum(parse_reward("block_shape"))(rollouts_of(torch.cat([real, real * 0 + 1]), real))
    assert (total[0] > 0.7).all() and (total[1] < 0.2).all()


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of a user in the current folder."""
    (tmp_path / "my_rewards.py").write_text(
        "def bright(imagined, real):\n    return imagined.mean(dim=(1, 2, 3, 4))\n"
        "def by_frame(imagined, real):\n    return -(imagined - real).abs().mean(dim=(2, 3, 4))\n"
        "def wrong(imagined, real):\n    return imagined.mean()\n"
        "def endless(imagined, real):\n    return imagined.mean(dim=(1, 2, 3, 4)) / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "my_rewards"
    sys.modules.pop("my_rewards", None)


def test_a_function_of_a_user_is_a_reward(own_module, noise) -> None:
    total, values = RewardSum(parse_reward(f"{own_module}:bright+{own_module}:by_frame"))(noise)
    bright = noise.imagined.mean(dim=(1, 2, 3, 4))
    assert torch.allclose(values[f"{own_module}:bright"], bright[:, None].expand(6, 2))
    assert torch.equal(values[f"{own_module}:by_frame"], RewardSum(parse_reward("mae"))(noise)[0])
    assert torch.allclose(total, sum(values.values()))
    with pytest.raises(UserError, match="returned shape"):
        RewardSum(parse_reward(f"{own_module}:wrong"))(noise)
    with pytest.raises(UserError, match="not finite"):
        RewardSum(parse_reward(f"{own_module}:endless"))(noise)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("maee", "did you mean 'mae'"),
        ("mae++ssim", "'' is no term"),
        ("mae*2", "'mae\\*2' is no term"),
        ("mae+mae", "mae occurs twice"),
        ("", "'' is no term"),
    ],
)
def test_a_sum_that_cannot_be_read_gets_one_sentence(text, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_reward(text)


def test_a_function_that_is_not_there_gets_one_sentence() -> None:
    with pytest.raises(UserError, match="cannot be imported"):
        RewardSum(parse_reward("no_such_module:f"))
    with pytest.raises(UserError, match="cannot be imported"):
        RewardSum(parse_reward("math:no_such_function"))


def test_a_new_reward_is_one_entry_of_a_registry(noise, monkeypatch) -> None:
    dummy = BuiltInReward(lambda rollouts: rollouts.imagined.amax(dim=(2, 3, 4)), "brightest number of a frame")
    monkeypatch.setattr(rewards, "REWARDS", {**REWARDS, "dummy": dummy})
    total, _ = RewardSum(parse_reward("2*dummy"))(noise)
    assert torch.equal(total, 2 * noise.imagined.amax(dim=(2, 3, 4)))


def test_every_reward_says_what_it_means() -> None:
    assert all(reward.meaning and not reward.meaning.endswith(".") for reward in REWARDS.values())
