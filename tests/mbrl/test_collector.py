"""Real episodes: whole ones, from seeds of their own, played again after a stop; and what an evaluation plays."""

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from ivideogpt.core.episode import Episode  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.collector import Collector, evaluate_policy, simulator_seed  # noqa: E402
from ivideogpt.envs.vector import make_vector  # noqa: E402
from ivideogpt.policies.drqv2 import AgentConfig, DrQv2  # noqa: E402


class Uneven(gymnasium.Env):
    """Its episodes have as many steps as their seed says, 2 to 5; the picture counts them."""

    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    moods = np.random.default_rng(0)

    def __init__(self, moody: bool = False) -> None:
        self.moody = moody

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.shown = int(self.np_random.integers(2, 6)), 0
        return self._seen(), {}

    def step(self, action):
        self.left -= 1
        self.shown += 1 + int(10 * abs(action[0]))
        return self._seen(), float(action[0]), False, self.left == 0, {"success": self.left == 0}

    def _seen(self):
        return np.full((16, 16, 3), self.moods.integers(256) if self.moody else self.shown % 256, np.uint8)


gymnasium.register("test/Uneven-v0", entry_point=lambda moody=False, **_: Uneven(moody))


def collector(count: int = 3, **options) -> Collector:
    return Collector(make_vector("test/Uneven-v0", count, frame_stack=2, **options), seed=4, frame_stack=2)


def actions(number: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(number).uniform(-1, 1, (count, 1)).astype(np.float32)


def test_episodes_are_given_whole_and_rows_lead_from_frame_to_frame() -> None:
    recorder, keys = collector(), []
    taken = [[] for _ in range(3)]
    for number in range(12):
        chosen = actions(number)
        for row in range(3):
            taken[row].append(float(chosen[row, 0]))
        for episode in recorder.step(chosen):
            row, count = int(episode.key.split("-")[1]), len(episode) - 1
            assert 2 <= count <= 5
            assert episode.actions[:-1, 0].tolist() == taken[row][-count:] and not episode.actions[-1].any()
            np.testing.assert_allclose(episode.rewards[:-1], episode.actions[:-1, 0])
            assert episode.frames[0, 0, 0, 0] == 0 and episode.meta["success"]
            assert episode.meta["return"] == pytest.approx(sum(taken[row][-count:]), rel=1e-5)
            keys.append(episode.key)
    assert len(keys) == len(set(keys)) > 6


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_a_collector_goes_on_in_the_midst_of_episodes_of_several_lengths(stop: int) -> None:
    whole, before = collector(), collector()
    for number in range(stop):
        whole.step(actions(number))
        before.step(actions(number))
    after = collector()
    after.load_state_dict(before.state_dict())
    assert np.array_equal(after.observation["frames"], whole.observation["frames"])
    for number in range(stop, stop + 8):
        resumed, straight = after.step(actions(number)), whole.step(actions(number))
        assert [episode.key for episode in resumed] == [episode.key for episode in straight]
        for episode_resumed, episode_straight in zip(resumed, straight, strict=True):
            assert np.array_equal(episode_resumed.frames, episode_straight.frames) and np.array_equal(
                episode_resumed.actions, episode_straight.actions
            )


def test_an_environment_with_moods_of_its_own_is_told_apart() -> None:
    before = collector(moody=True)
    before.step(actions(0))
    with pytest.raises(UserError, match="randomness of its own"):
        collector(moody=True).load_state_dict(before.state_dict())
    with pytest.raises(UserError, match="has 3 environments, not 2"):
        collector(2).load_state_dict(before.state_dict())


def test_seeds_of_episodes_differ_between_runs_environments_and_episodes() -> None:
    seeds = {simulator_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125


def test_an_evaluation_plays_the_same_episodes_each_time_as_many_in_each_environment() -> None:
    torch.manual_seed(2)  # with most others it stands still
    agent = DrQv2(16, 2, 1, AgentConfig(encoder_channels=2, hidden_size=8, feature_size=4))
    environments = make_vector("test/Uneven-v0", 2, frame_stack=2)
    first, again = (evaluate_policy(agent, environments, 6, seed=0, frame_stack=2) for _ in range(2))
    assert len(first.returns) == len(first.lengths) == 6 and first.success == 1
    assert first.returns == again.returns and first.lengths == again.lengths
    assert len(first.frames) == first.lengths[0] + 1
    one_by_one = evaluate_policy(agent, make_vector("test/Uneven-v0", 1, frame_stack=2), 3, seed=0, frame_stack=2)
    assert one_by_one.lengths == first.lengths[::2]  # those of the first environment
    # Convolutions and products of another number of rows add in another order: up to 6e-7 in an action of size 1 was
    # measured (AVX2 and AVX-512), and an episode has up to 5 actions.
    assert one_by_one.returns == pytest.approx(first.returns[::2], abs=5 * 1e-6)
    assert len({round(total, 3) for total in one_by_one.returns}) == len(set(one_by_one.lengths)) > 1


class Planned:
    """A policy that plans three actions at once and notes which rows begin."""

    def __init__(self) -> None:
        self.begun: list[list[bool]] = []

    def reset(self, seeds, instructions=None) -> None:
        self.begun.append([seed is not None for seed in seeds])
        self.rows = len(seeds)

    def act(self, observation) -> np.ndarray:
        assert observation["frames"].shape[:2] == (self.rows, 2)
        return np.tile(np.float32([0.1, 0.2, 0.3])[None, :, None], (self.rows, 1, 1))


def test_a_policy_that_plans_ahead_plans_again_where_an_episode_ends() -> None:
    policy = Planned()
    result = evaluate_policy(policy, make_vector("test/Uneven-v0", 2, frame_stack=2), 4, seed=0, frame_stack=2)
    assert policy.begun[0] == [True, True] and all(any(rows) for rows in policy.begun)
    assert sum(map(sum, policy.begun)) >= 2 + 4  # every episode that is over begins another
    for total, length in zip(result.returns, result.lengths, strict=True):
        assert total <= 0.2 * length + 1e-6 and total >= 0.1 * length - 1e-6


def test_a_policy_is_evaluated_in_the_imagination_as_in_a_simulator(model_of, frames_for) -> None:
    from ivideogpt.envs.imagined import ImaginedVectorEnv, as_bytes
    from ivideogpt.envs.start_states import EpisodeStarts
    from ivideogpt.policies.random import RandomPolicy

    model = model_of("plain")
    starts = EpisodeStarts([Episode(frames=as_bytes(frames_for(model, rows=1, count=8)[0]))], 2)

    def bright(frames, actions, after):
        return after.mean(axis=(1, 2, 3)) >= 0

    def evaluate():
        environments = ImaginedVectorEnv(
            model,
            starts,
            num_envs=2,
            horizon=3,
            frame_stack=2,
            autoreset_mode="disabled",
            raw_actions=False,
            success=bright,
        )
        return evaluate_policy(RandomPolicy(2), environments, 4, seed=5, frame_stack=2)

    first, again = evaluate(), evaluate()
    assert first.lengths == [3, 3, 3, 3] and first.success == 1 and first.frames.shape == (4, 16, 16, 3)
    assert first.returns == again.returns and len(set(first.returns)) > 1


class Endless(Uneven):
    def step(self, action):
        return self._seen(), 0.0, False, False, {}


gymnasium.register("test/Endless-v0", entry_point=lambda **_: Endless())


def test_an_episode_without_an_end_is_refused_in_one_sentence(monkeypatch) -> None:
    from ivideogpt.envs import collector as module

    monkeypatch.setattr(module, "MOST_STEPS", 20)
    endless = Collector(make_vector("test/Endless-v0", 1), seed=0, frame_stack=1)
    with pytest.raises(UserError, match="not over after 20 steps; give the environment a limit"):
        for number in range(30):
            endless.step(actions(number, 1))
