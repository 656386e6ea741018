"""Agents of stable-baselines3 live in the imagined world."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from ivideogpt.core.episode import Episode  # noqa: E402
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
