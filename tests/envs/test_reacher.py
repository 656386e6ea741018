"""Reacher: the rules it states, and that its script and its pictures agree with them."""

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.reacher import CELL, NEAR, Reacher  # noqa: E402
from ivideogpt.policies.scripted import ReacherPolicy  # noqa: E402


def straight(state: np.ndarray) -> np.ndarray:
    """Return the action of the script."""
    policy = ReacherPolicy()
    policy.reset([0])
    return policy.act({"state": state[None]})[0]


def test_the_same_seed_and_actions_give_the_same_episode() -> None:
    def episode() -> list[np.ndarray]:
        environment = Reacher(size=32)
        frames = [environment.reset(seed=4)[0]]
        return frames + [environment.step(np.array([0.3, -0.9]))[0] for _ in range(5)]

    assert np.array_equal(episode(), episode())
    other = Reacher(size=32).reset(seed=5)[0]
    assert not np.array_equal(other, episode()[0])


def test_the_script_reaches_the_goal_of_every_episode() -> None:
    environment = Reacher()
    for seed in range(20):
        _, info = environment.reset(seed=seed)
        assert np.linalg.norm(info["state"][:2] - info["state"][2:]) >= 0.5
        total, over = 0.0, False
        while not over:
            _, reward, _, over, info = environment.step(straight(info["state"]))
            total += reward
        assert info["success"] and total > 30


def test_the_reward_falls_with_the_distance_and_success_earns_one_more() -> None:
    environment = Reacher(goal=(0.0, 0.0))
    _, info = environment.reset(seed=0)
    while True:
        _, reward, _, _, info = environment.step(straight(info["state"]))
        distance = np.linalg.norm(info["state"][:2] - info["state"][2:])
        assert reward == pytest.approx(max(0, 1 - distance) + (distance < NEAR))
        if info["success"]:
            break


def test_a_reward_of_the_action_alone_knows_nothing_of_the_picture() -> None:
    environment = Reacher(reward="action")
    for seed in range(3):
        environment.reset(seed=seed)
        assert environment.step(np.array(Reacher.BEST_ACTION))[1] == 1
        assert environment.step(np.array([0.0, 0.0]))[1] == pytest.approx(0.5)


def test_it_ends_at_the_goal_only_where_asked() -> None:
    for ends in (False, True):
        environment = Reacher(terminate_at_goal=ends)
        _, info = environment.reset(seed=0)
        for _ in range(25):
            _, _, terminated, truncated, info = environment.step(straight(info["state"]))
            if terminated or truncated:
                break
        assert (terminated, truncated) == (ends, not ends)
        with pytest.raises(UserError, match="call reset first"):
            environment.step(np.zeros(2))


def test_discs_are_drawn_where_the_state_says() -> None:
    environment = Reacher()
    seen, info = environment.reset(seed=1)
    for place, channel in ((info["state"][:2], 0), (info["state"][2:], 1)):
        rows, columns = np.nonzero(seen[..., channel] > 190)
        middle = (np.array([columns.mean(), rows.mean()]) + 0.5) / 64 * 2 - 1
        assert np.abs(middle - place).max() < CELL / 2


@pytest.mark.parametrize("action", [[0.0], [np.nan, 0.0], [0.0, 0.0, 0.0]])
def test_an_action_that_is_none_is_refused(action: list[float]) -> None:
    environment = Reacher()
    environment.reset(seed=0)
    with pytest.raises(UserError, match="expected two finite numbers"):
        environment.step(np.array(action))
