"""Real episodes: whole ones, from seeds of their own, played again after a stop; and what an evaluation plays."""

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.vector import make_vector  # noqa: E402
from ivideogpt.mbrl.agent_evaluation import evaluate  # noqa: E402
from ivideogpt.mbrl.collector import Collector, episode_seed  # noqa: E402
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
    return Collector(make_vector("test/Uneven-v0", count, frame_stack=2, **options), seed=4, stack=2)


def actions(number: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(number).uniform(-1, 1, (count, 1)).astype(np.float32)


def test_episodes_are_given_whole_and_rows_lead_from_frame_to_frame() -> None:
    one, found = collector(), []
    done = [[] for _ in range(3)]
    for number in range(12):
        moves = actions(number)
        for row in range(3):
            done[row].append(float(moves[row, 0]))
        for episode in one.step(moves):
            row, count = int(episode.key.split("-")[1]), len(episode) - 1
            assert 2 <= count <= 5
            assert episode.actions[:-1, 0].tolist() == done[row][-count:] and not episode.actions[-1].any()
            np.testing.assert_allclose(episode.rewards[:-1], episode.actions[:-1, 0])
            assert episode.frames[0, 0, 0, 0] == 0 and episode.meta["success"]
            assert episode.meta["return"] == pytest.approx(sum(done[row][-count:]), rel=1e-5)
            found.append(episode.key)
    assert len(found) == len(set(found)) > 6


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_a_collector_goes_on_in_the_midst_of_episodes_of_several_lengths(stop: int) -> None:
    whole, before = collector(), collector()
    for number in range(stop):
        whole.step(actions(number))
        before.step(actions(number))
    after = collector()
    after.load_state_dict(before.state_dict())
    assert np.array_equal(after.observations[:, -1], whole.observations[:, -1])
    for number in range(stop, stop + 8):
        mine, theirs = after.step(actions(number)), whole.step(actions(number))
        assert [episode.key for episode in mine] == [episode.key for episode in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert np.array_equal(one.frames, other.frames) and np.array_equal(one.actions, other.actions)


def test_an_environment_with_moods_of_its_own_is_told_apart() -> None:
    one = collector(moody=True)
    one.step(actions(0))
    with pytest.raises(UserError, match="randomness of its own"):
        collector(moody=True).load_state_dict(one.state_dict())
    with pytest.raises(UserError, match="has 3 environments, not 2"):
        collector(2).load_state_dict(one.state_dict())


def test_seeds_of_episodes_differ_between_runs_environments_and_episodes() -> None:
    seeds = {episode_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125


def test_an_evaluation_plays_the_same_episodes_each_time_as_many_in_each_environment() -> None:
    torch.manual_seed(2)  # with most others it stands still
    agent = DrQv2(16, 2, 1, AgentConfig(channels=2, hidden_size=8, feature_size=4))
    environments = make_vector("test/Uneven-v0", 2, frame_stack=2)
    first, again = (evaluate(agent, environments, 6, seed=0, stack=2) for _ in range(2))
    assert len(first.returns) == len(first.lengths) == 6 and first.success == 1
    assert first.returns == again.returns and first.lengths == again.lengths
    assert len(first.frames) == first.lengths[0] + 1
    one_by_one = evaluate(agent, make_vector("test/Uneven-v0", 1, frame_stack=2), 3, seed=0, stack=2)
    assert one_by_one.lengths == first.lengths[::2]  # those of the first environment
    # Convolutions and products of another number of rows add in another order: up to 4e-7 in an action of size 1 was
    # measured (AVX2), and an episode has up to 5 actions.
    assert one_by_one.returns == pytest.approx(first.returns[::2], abs=5 * 4e-7)
    assert len({round(total, 3) for total in one_by_one.returns}) == len(set(one_by_one.lengths)) > 1
