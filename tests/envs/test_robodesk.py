"""RoboDesk: the package's own physics, VP2's corrections, copies of a state, and goals."""

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("robodesk", reason="RoboDesk needs its package: make vp2")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs import mujoco_rendering  # noqa: E402

try:
    mujoco_rendering.choose_gl()
except UserError as error:
    pytest.skip(f"no pictures can be drawn here: {error}", allow_module_level=True)

from ivideogpt.envs.registry import ROBODESK_TASKS, make  # noqa: E402
from ivideogpt.envs.robodesk import RoboDesk  # noqa: E402

FORWARD = np.array([0.5, 0.5, -1.0, 0.1, 0.0])


@pytest.fixture(scope="module")
def environment():
    made = RoboDesk("push_red", steps=2, action_repeat=5, samples=0)
    yield made
    made.close()


def test_two_steps_are_those_of_the_package(environment) -> None:
    environment.reset(seed=3)
    package = environment._simulator
    start = package.physics.get_state()
    rewards, states = [], []
    for _ in range(2):
        _, reward, terminated, truncated, info = environment.step(FORWARD)
        rewards.append(reward)
        states.append(info["state"])
    assert (terminated, truncated, info["success"]) == (False, True, False)
    with pytest.raises(UserError, match="the episode is over after 2 steps"):
        environment.step(FORWARD)
    # The package's own step, from the same state.
    with package.physics.reset_context():
        package.physics.set_state(start)
    package.physics_copy.data.qpos[:] = package.physics.data.qpos
    package.action_repeat = 5
    for reward, state in zip(rewards, states, strict=True):
        _, expected, _, _ = package.step(FORWARD)
        assert abs(reward - expected) < 1e-3
        assert np.abs(environment.save_state()[:76] - state[:76]).max() < 1e-3
    package.action_repeat = 1


def test_a_state_is_that_of_vp2_and_can_be_put_into_another_simulator(environment) -> None:
    environment.reset(seed=1)
    environment.simulate(FORWARD)
    state = environment.save_state()
    data = environment._physics.data
    assert (
        state.shape == (85,)
        and np.array_equal(state[18:47], data.qpos[9:])
        and np.array_equal(state[9:18], data.qvel[:9])
    )
    twin = RoboDesk("push_red", steps=2, action_repeat=5, samples=0)
    twin.reset(seed=2)
    twin.restore_state(state)
    assert np.allclose(twin.save_state(), state, atol=1e-6)
    assert abs(twin.simulate(FORWARD) - environment.simulate(FORWARD)) < 1e-3
    assert np.abs(twin.save_state() - environment.save_state()).max() < 1e-2
    twin.close()
    environment.restore_state(state[:76])  # of a file of VP2: the blocks begin where they are
    assert np.allclose(environment.save_state()[76:79], environment._physics.named.data.xpos["ball"])
    with pytest.raises(UserError, match="RoboDesk's have 73, 76 or 85 numbers"):
        environment.restore_state(state[:50])


def test_places_of_blocks_at_the_start_are_copies(environment) -> None:
    environment.reset(seed=0)
    state = environment.save_state()
    moved = state[:76].copy()
    moved[18 + environment._physics.named.data.qpos._convert_key("ball").start - 9] += 0.1  # x of the ball
    environment._physics.data.qpos[9:] = moved[18:47]
    environment._physics.forward()
    assert not environment._simulator._did_not_move("ball") and environment._simulator._did_not_move("flat_block")


def test_a_seed_gives_the_same_picture_and_leaves_numpys_generator_alone(environment) -> None:
    np.random.seed(5)
    expected = np.random.RandomState(5).random()
    first, _ = environment.reset(seed=4)
    again, _ = environment.reset(seed=4)
    other, _ = environment.reset(seed=5)
    assert np.random.random() == expected
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (64, 64, 3) and 60 < first.mean() < 200


def test_the_script_presses_a_button() -> None:
    made = make("robodesk/push_red", shadow_size=0, samples=0).unwrapped
    made.reset(seed=0)
    start = made.save_state()
    assert not made.is_goal(start) and made.score() == 0
    steps = 0
    while not made.is_goal(start) and steps < 15:
        made.simulate(made.scripted_action())
        steps += 1
    assert made.score() == -1 and steps < 10
    made.close()


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(UserError, match="there is no task 'push_rad' of RoboDesk here; did you mean 'push_red'"):
        RoboDesk("push_rad")
    with pytest.raises(UserError, match="action_repeat is 0"):
        RoboDesk("push_red", action_repeat=0)
    assert len(ROBODESK_TASKS) == 7


def test_recorded_episodes_tell_where_they_succeed() -> None:
    from ivideogpt.envs.record.simulator_episodes import SimulatorRecording, record_simulator

    recording = SimulatorRecording(length=6, noise=0.0)
    (episode,) = record_simulator("robodesk/push_red", [0], recording)
    success = episode.arrays["success"]
    assert episode.cameras["image"].shape == (6, 64, 64, 3) and episode.actions.shape == (6, 5)
    assert success.any() and not success[0] and not success[-1] and episode.meta["success"]
    assert episode.rewards[:-1].min() > 0 and episode.rewards[-1] == 0 and episode.state.shape == (6, 85)
