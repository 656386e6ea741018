"""Agents of stable-baselines3 live in the imagined world."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from ivideogpt.core.episode import Episode  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.imagined import as_bytes  # noqa: E402
from ivideogpt.envs.sb3 import ImaginedVecEnv  # noqa: E402
from ivideogpt.envs.start_states import EpisodeStarts  # noqa: E402


@pytest.fixture
def environments(model_of, frames_for) -> ImaginedVecEnv:
    model = model_of("plain")
    starts = EpisodeStarts([Episode(frames=as_bytes(frames_for(model, rows=1, count=8)[0]))], 2)
    return ImaginedVecEnv(model, starts, num_envs=4, horizon=3, frame_stack=2, raw_actions=False, seed=1)


def test_rows_begin_again_by_themselves_and_tell_what_they_ended_with(environments) -> None:
    first = environments.reset()
    assert first.shape == (4, 16, 16, 6) and environments.observation_space.contains(first[0])
    for number in range(3):
        seen, rewards, over, infos = environments.step(np.zeros((4, 2), np.float32))
        assert rewards.dtype == np.float32 and over.tolist() == [number == 2] * 4
    assert all(info["TimeLimit.truncated"] for info in infos)
    ended = infos[0]["terminal_observation"]
    assert ended.shape == (16, 16, 6) and not np.array_equal(ended, seen[0])
    assert environments.get_attr("horizon", [0, 1]) == [3, 3] and environments.env_is_wrapped(object) == [False] * 4


def test_ppo_trains_in_it(environments) -> None:
    from stable_baselines3 import PPO
    from torch import nn

    net = {"net_arch": [16], "activation_fn": nn.Tanh, "normalize_images": True}
    agent = PPO("MlpPolicy", environments, n_steps=64, batch_size=64, n_epochs=1, seed=0, policy_kwargs=net)
    before = agent.policy.action_net.weight.clone()
    agent.learn(300)
    assert agent.num_timesteps >= 300 and not (before == agent.policy.action_net.weight).all()


def test_options_are_those_of_the_next_reset_and_of_no_later_one(environments) -> None:
    seen = {}
    for index in (1, 4):
        environments.set_options({"indices": [index] * 4})
        seen[index] = environments.reset()
        environments.set_options([{"indices": index} for _ in range(4)])
        np.testing.assert_array_equal(environments.reset(), seen[index])
    expected, _ = environments.rows.reset(options={"indices": [1] * 4})
    np.testing.assert_array_equal(seen[1], environments._pictures(expected))
    assert not np.array_equal(seen[1], seen[4])
    environments.set_options({"group_size": 4})
    assert len(np.unique(environments.reset(), axis=0)) == 1  # all rows begin alike, once
    with pytest.raises(UserError, match="one {'indices': i} a row"):
        environments.set_options([{"indices": 0}, {}, {}, {}])
    environments.set_options({"index": 3})
    with pytest.raises(UserError, match="knows no option"):
        environments.reset()


def test_an_attribute_is_set_in_the_rows_that_were_asked_for_and_in_no_other(environments) -> None:
    environments.set_attr("horizon", 1, indices=[0, 2])
    assert environments.get_attr("horizon") == [1, 3, 1, 3] and environments.get_attr("horizon", 1) == [3]
    environments.reset()
    *_, over, _ = environments.step(np.zeros((4, 2), np.float32))
    assert over.tolist() == [True, False, True, False]
    environments.set_attr("level", "hard", indices=3)
    assert environments.get_attr("level") == [None, None, None, "hard"]
    environments.set_attr("level", "easy")
    assert environments.get_attr("level") == ["easy"] * 4
    with pytest.raises(UserError, match="all rows share sampling"):
        environments.set_attr("sampling", None if environments.rows.sampling else object(), indices=[1])
    with pytest.raises(UserError, match="horizon is 0"):
        environments.set_attr("horizon", 0)
    assert len(environments.env_method("get_attr", "horizon", indices=[0, 1])) == 2
