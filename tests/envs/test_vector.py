"""Vectors of environments: ours and gymnasium's, in one process or several, and what they all promise."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402
from gymnasium.vector import AutoresetMode  # noqa: E402

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs.registry import METAWORLD_TASKS, make  # noqa: E402
from ivideogpt.envs.vector import make_vector  # noqa: E402


class Bars(gymnasium.Env):
    """A user's own: grey pictures, bounds of its own, no success."""

    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gymnasium.spaces.Box(0.0, 10.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action):
        self.left -= 1
        return np.full((16, 16, 3), int(action[0] * 10), np.uint8), 1.0, self.left == 0, False, {}


class Numbers(Bars):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)


gymnasium.register("test/Bars-v0", entry_point=lambda **_: Bars())
gymnasium.register("test/Numbers-v0", entry_point=lambda **_: Numbers())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["reacher", "pusht"])
def test_our_environments_pass_gymnasiums_own_check(name: str) -> None:
    if name == "pusht":
        pytest.importorskip("gym_pusht")
    environment = make(name, render_mode="rgb_array").unwrapped
    check_env(environment)
    environment.close()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "task", ["plate-slide", *(pytest.param(t, marks=pytest.mark.slow) for t in METAWORLD_TASKS[:5])]
)
def test_metaworld_passes_gymnasiums_own_check(task: str) -> None:
    check_env(_drawn(f"metaworld/{task}", render_mode="rgb_array").unwrapped)


def _drawn(name: str, **options):
    pytest.importorskip("metaworld")
    try:
        return make(name, **options)
    except UserError as error:
        pytest.skip(f"Meta-World cannot be drawn here: {error}")


@pytest.mark.parametrize("workers", [False, True])
def test_rows_are_stacked_and_reset_one_by_one_with_seeds_of_their_own(workers: bool) -> None:
    environments = make_vector("reacher", 2, frame_stack=3, workers=workers, size=16, steps=4)
    try:
        assert environments.metadata["autoreset_mode"] == AutoresetMode.DISABLED
        first, _ = environments.reset(seed=[5, 6])
        first = first.copy()
        assert first.shape == (2, 3, 16, 16, 3) and first.dtype == np.uint8
        assert (first[:, 0] == first[:, 2]).all() and not (first[0] == first[1]).all()
        for _ in range(4):
            seen, _, _, cut, info = environments.step(np.ones((2, 2), np.float32))
        assert cut.all() and info["success"].dtype == bool and info["success"].shape == (2,)
        seen = seen.copy()
        again, _ = environments.reset(seed=[None, 5], options={"reset_mask": np.array([False, True])})
        assert (again[0] == seen[0]).all() and (again[1] == first[0]).all()
    finally:
        environments.close()


def test_metaworld_draws_in_processes_of_its_own_what_it_draws_here() -> None:
    _drawn("metaworld/plate-slide").close()
    shown = []
    for workers in (False, True):
        environments = make_vector("metaworld/plate-slide", 1, workers=workers)
        environments.reset(seed=[3])
        shown.append(environments.step(np.full((1, 4), 0.5, np.float32))[0].copy())
        environments.close()
    assert np.array_equal(*shown) and shown[0].std() > 5


def test_an_environment_that_gymnasium_knows_is_taken_with_actions_in_one_range() -> None:
    environments = make_vector("test/Bars-v0", 1)
    environments.reset(seed=[0])
    space = environments.single_action_space
    assert space.low.tolist() == [-1] and space.high.tolist() == [1]
    for action, shown in ((-1.0, 0), (0.0, 50), (1.0, 100)):
        seen, _, ended, _, info = environments.step(np.array([[action]], np.float32))
        assert int(seen[0, 0, 0, 0]) == shown
    assert ended.all() and not info["success"].any()  # the end of an episode is no success


class Odd(Bars):
    """A user's own with a constant number in its action, a reward of shape (1,), flags of NumPy and a state."""

    action_space = gymnasium.spaces.Box(np.float32([0.0, 2.0, -1.0]), np.float32([10.0, 2.0, 1.0]))
    reward: object = np.array([0.5], np.float32)

    def step(self, action):
        assert np.isfinite(action).all()
        picture, *_ = super().step(action[:1])
        info = {"is_success": np.array([True]), "state": np.float32(action), "note": "free text"}
        return picture, self.reward, np.array([self.left == 0]), np.bool_(False), info


gymnasium.register("test/Odd-v0", entry_point=lambda reward=None, **_: _odd(reward))


def _odd(reward: object) -> Odd:
    environment = Odd()
    if reward is not None:
        environment.reward = reward
    return environment


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_constant_action_a_reward_of_one_number_and_a_state_are_taken_as_they_are() -> None:
    environments = make_vector("test/Odd-v0", 2)
    environments.reset(seed=[0, 1])
    actions = np.float32([[1.0, -1.0, 0.25], [-1.0, 1.0, -3.0]])
    seen, rewards, terminated, truncated, info = environments.step(actions)
    np.testing.assert_allclose(info["state"], [[10, 2, 0.25], [0, 2, -1]])
    assert seen[:, 0, 0, 0].tolist() == [100, 0] and rewards.tolist() == [0.5, 0.5]
    assert info["success"].tolist() == [True, True] and set(info) == {"success", "_success", "state", "_state"}
    assert not terminated.any() and not truncated.any()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("reward", [np.zeros(2), float("nan"), "much"])
def test_a_reward_that_is_not_one_finite_number_is_refused(reward: object) -> None:
    environments = make_vector("test/Odd-v0", 1, reward=reward)
    environments.reset(seed=[0])
    with pytest.raises(UserError, match="gives the reward .*expected one finite number"):
        environments.step(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("reachr", {}, "there is no environment 'reachr'; did you mean 'reacher'"),
        ("CartPole-v1", {}, "expected pictures"),
        ("test/Numbers-v0", {}, "expected pictures"),
        ("reacher", {"sise": 3}, "does not take the options"),
        ("reacher", {"size": 0}, "size is 0"),
        ("reacher", {"goal": (3, 3)}, "goal is"),
        ("reacher", {"reward": "none"}, "expected distance or action"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(name: str, options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        make_vector(name, 1, **options)
    assert "\n" not in str(error.value)


def test_an_unknown_task_of_metaworld_names_the_closest() -> None:
    pytest.importorskip("metaworld")
    with pytest.raises(UserError, match="plate-slide"):
        make_vector("metaworld/plate-slid", 1)
