"""The robosuite push: seeds, copies of a state, the distance to a goal, and the script that records goals."""

import numpy as np
import pytest

pytest.importorskip("gymnasium")
robosuite = pytest.importorskip("robosuite", reason="the robosuite push needs its package: make vp2")
if tuple(map(int, robosuite.__version__.split(".")[:2])) < (1, 5):
    pytest.skip("the robosuite push needs robosuite 1.5: make vp2", allow_module_level=True)

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs import mujoco_rendering  # noqa: E402

try:
    mujoco_rendering.choose_gl()
except UserError as error:
    pytest.skip(f"no pictures can be drawn here: {error}", allow_module_level=True)

from ivideogpt.envs.robosuite_push import RobosuitePush  # noqa: E402

ROUGH = {"size": 32, "shadow_size": 0, "samples": 0}


@pytest.fixture(scope="module")
def environment():
    made = RobosuitePush(steps=2, **ROUGH)
    yield made
    made.close()


def test_an_episode(environment) -> None:
    first, info = environment.reset(seed=1)
    again, _ = environment.reset(seed=1)
    other, _ = environment.reset(seed=2)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert info["state"].shape == (45,) and not info["success"]
    assert environment.step(np.zeros(4))[1:4] == (0.0, False, False)
    assert environment.step(np.zeros(4))[3]


def test_a_script_pushes_a_cube_and_the_goal_is_a_distance(environment) -> None:
    environment.reset(seed=0)
    start = environment.save_state()
    for _ in range(20):
        environment.simulate(environment.scripted_action())
        if environment.is_goal(start):
            break
    assert environment.is_goal(start)
    environment.goal_state = start
    assert environment.score() > 0.1 and not environment.success()
    assert environment.simulate(np.zeros(4)) < -environment.score()
    environment.restore_state(start)
    assert environment.score() < 1e-9 and environment.success()
    environment.goal_state = None


def test_a_state_goes_on_alike_in_another_simulator(environment) -> None:
    environment.reset(seed=3)
    for _ in range(5):
        environment.simulate(environment.scripted_action())
    twin = RobosuitePush(**ROUGH)
    twin.reset(seed=9)
    twin.restore_state(environment.save_state())
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 4))
    for action in actions:
        environment.simulate(action)
        twin.simulate(action)
    difference = np.abs(environment.save_state() - twin.save_state())
    assert difference[1:24].max() < 0.01  # m and rad
    twin.close()
    with pytest.raises(UserError, match="robosuite/push has 45 numbers"):
        environment.restore_state(np.zeros(3))
