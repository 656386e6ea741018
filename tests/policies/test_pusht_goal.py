"""The script that solves PushT."""

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="PushT needs gym-pusht: pip install 'ivideogpt[pusht]'")

from ivideogpt.envs.pusht import PushT, normalised_action  # noqa: E402
from ivideogpt.envs.record.pusht_episodes import collect_pusht  # noqa: E402
from ivideogpt.policies.pusht_goal import _AGENT, _NORMALS, _POINTS, _TORQUES, PushToGoalScript  # noqa: E402


def played(seed: int, noise: float, steps: int = 250) -> list[float]:
    """Coverage after each step until success."""
    environment, script = PushT(), PushToGoalScript(np.random.default_rng(seed), noise)
    _, info = environment.reset(seed=seed)
    coverage = []
    for _ in range(steps):
        _, _, terminated, _, info = environment.step(normalised_action(script(info["state"])))
        coverage.append(info["coverage"])
        if terminated:
            break
    return coverage


def test_it_solves_pusht_and_noise_makes_it_worse() -> None:
    clean, noisy = ([played(seed, noise) for seed in range(40, 44)] for noise in (0.0, 40.0))
    assert all(coverage[-1] > 0.95 for coverage in clean)
    assert np.mean([max(coverage[:250]) for coverage in noisy]) < 0.9


def test_torques_have_the_sign_of_the_simulator() -> None:
    """A push at each of some points turns the block as the script expects."""
    environment, half = PushT(), 256.0
    for index in range(0, len(_POINTS), 9):
        environment.reset(seed=0)
        simulator = environment._simulator
        simulator.block.angle, simulator.block.position = 0.0, (half, half)
        start = np.array([half, half]) + _POINTS[index] - (_AGENT + 2) * _NORMALS[index]
        simulator.agent.position, simulator.agent.velocity = tuple(start), (0, 0)
        simulator.space.reindex_shapes_for_body(simulator.block)
        simulator.space.reindex_shapes_for_body(simulator.agent)
        for _ in range(3):
            environment.step(normalised_action(start + 8 * _NORMALS[index]))
        if abs(_TORQUES[index]) > 10:
            assert np.sign(simulator.block.angle) == np.sign(_TORQUES[index]), (index, simulator.block.angle)


def test_recorded_pushes_to_the_goal_succeed() -> None:
    episodes = list(collect_pusht(range(3), length=220, behaviour="goal"))
    assert [episode.meta["success"] for episode in episodes].count(True) >= 2
    assert all(episode.meta["success"] == (episode.rewards.max() >= 1) for episode in episodes)
    assert episodes[0].key == "pusht-goal_00000000"
