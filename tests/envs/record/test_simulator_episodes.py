"""Recording of simulators by their script or by random actions."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.data.store.reader import EpisodeStore  # noqa: E402
from ivideogpt.envs.record import simulator_episodes  # noqa: E402
from ivideogpt.envs.record.simulator_episodes import (  # noqa: E402
    SimulatorRecording,
    collect_simulator,
    record_simulator,
)


class Counter(gymnasium.Env):
    """Its picture and reward are the sum of all actions; it succeeds above 1."""

    metadata = {"render_fps": 20}

    def __init__(self, size: int, steps: int) -> None:
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.size, self.total = size, 0.0

    def reset(self, *, seed=None, options=None):
        self.total = float(seed or 0)
        return self._seen()

    def step(self, action):
        self.total += float(action.sum())
        frame, info = self._seen()
        return frame, self.total, False, False, info

    def _seen(self):
        frame = np.full((self.size, self.size, 3), abs(int(10 * self.total)) % 256, np.uint8)
        return frame, {"success": self.total > 1, "state": np.array([self.total])}


class Scripted(Counter):
    def scripted_action(self) -> np.ndarray:
        return np.array([0.5, 0.25])


@pytest.fixture
def environments(monkeypatch) -> None:
    kinds = {"counter": Counter, "scripted": Scripted}
    monkeypatch.setattr(simulator_episodes, "make", lambda name, size=8, steps=4: kinds[name](size, steps))


def test_random_actions_are_smooth_and_the_same_for_a_seed(environments) -> None:
    recording = SimulatorRecording(length=400, size=8, smoothness=0.9)
    first, again, other = record_simulator("counter", [3, 3, 4], recording)
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions) and not first.actions[-1].any()
    moves = first.actions[:-1]
    assert abs(moves).max() == 1 and moves.std() > 0.4
    assert np.corrcoef(moves[1:, 0], moves[:-1, 0])[0, 1] > 0.7
    np.testing.assert_allclose(first.state[1:, 0] - first.state[:-1, 0], moves.sum(axis=1), atol=1e-4)
    np.testing.assert_array_equal(first.arrays["success"][:-1], first.state[1:, 0] > 1)


def test_a_script_acts_with_noise(environments) -> None:
    (exact,) = record_simulator("scripted", [0], SimulatorRecording(length=5, size=8, noise=0))
    assert exact.actions[:-1].tolist() == [[0.5, 0.25]] * 4 and exact.meta["success"]
    (noisy,) = record_simulator("scripted", [0], SimulatorRecording(length=5, size=8, noise=0.1))
    assert 0 < abs(noisy.actions[:-1] - [0.5, 0.25]).max() < 0.6


def test_a_store_holds_an_episode_for_each_seed(environments, tmp_path) -> None:
    collect_simulator("counter", [0, 10_000], tmp_path / "store", SimulatorRecording(length=4, size=8), workers=0)
    store = EpisodeStore(tmp_path / "store")
    assert store.splits == ["train", "test"] and [len(episode) for episode in (store[0], store[1])] == [4, 4]


def test_actions_that_never_change_are_refused() -> None:
    with pytest.raises(UserError, match="smoothness is 1.0; expected less than 1"):
        SimulatorRecording(smoothness=1.0)
