"""Meta-World with the meaning that the official wrapper gives it."""

import gc
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("metaworld", reason="Meta-World needs its package: pip install 'ivideogpt[metaworld]'")

from ivideogpt.core.errors import UserError
from ivideogpt.envs import mujoco_rendering, registry

try:
    from ivideogpt.envs.metaworld import TASKS, MetaWorld, metaworld, task_name
except UserError as error:
    pytest.skip(f"no pictures can be drawn here: {error}", allow_module_level=True)

from ivideogpt.policies.scripted import metaworld_scripts

DEMONSTRATIONS = Path(__file__).parents[2] / "../shared/data/metaworld-demos"
ROUGH = {"size": 16, "shadow_size": 0, "samples": 0}


@pytest.fixture(scope="module")
def made_once():
    made = MetaWorld("plate-slide", steps=6, **ROUGH)
    yield made
    made.close()


@pytest.fixture
def environment(made_once):
    """Plate-slide in the roughest pictures, after a reset with seed 3."""
    made_once.reset(seed=3)
    return made_once


@pytest.fixture(scope="module")
def simulator():
    """The same, one simulator step at a time and without a bonus."""
    made = MetaWorld("plate-slide", action_repeat=1, success_bonus=0.0, **ROUGH)
    yield made
    made.close()


def play(environment, seed, steps=3):
    """Frames, states and rewards of random actions."""
    frame, info = environment.reset(seed=seed)
    frames, states, rewards = [frame], [info["state"]], []
    random = np.random.default_rng(0)
    for _ in range(steps):
        frame, reward, _, _, info = environment.step(random.uniform(-1, 1, 4))
        frames.append(frame)
        states.append(info["state"])
        rewards.append(reward)
    return np.stack(frames), np.stack(states), np.array(rewards)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_accepts_the_environment(environment):
    check_env(environment, skip_render_check=True)


def test_short_names_make_the_six_official_tasks_and_any_other(monkeypatch):
    monkeypatch.setattr(gymnasium, "make", lambda id, **options: (id, options))
    assert registry.ALL_METAWORLD_TASKS == TASKS
    assert set(registry.METAWORLD_TASKS) < set(TASKS)
    for task in (*registry.METAWORLD_TASKS, "reach"):
        assert task in TASKS
        assert registry.make(f"metaworld/{task}") == ("ivideogpt/MetaWorld-v0", {"task": task})
    assert registry.make("metaworld/hammer", seed=3)[1] == {"task": "hammer", "seed": 3}


def test_a_task_has_one_name_and_official_spellings_lead_to_it():
    assert {task_name(name) for name in ("plate-slide", "plate_slide", "plate-slide-v3")} == {"plate-slide"}
    with pytest.raises(UserError, match="no Meta-World task 'plate-slid'; did you mean 'plate-slide'"):
        task_name("plate-slid")


def test_every_task_has_a_script():
    assert set(metaworld_scripts()) == set(TASKS)


def test_frames_are_drawn_as_in_the_official_demonstrations():
    files = sorted((DEMONSTRATIONS / "plate-slide").glob("*.npz"))
    if not files:
        pytest.skip("the official demonstrations are not at hand")
    with np.load(files[0], allow_pickle=False) as archive:
        official = np.moveaxis(archive["observation"][0, -3:], 0, -1).astype(int)
    made = metaworld("plate-slide", seed=0)
    frame, _ = made.reset()
    made.close()
    assert (frame.shape, frame.dtype) == ((64, 64, 3), np.uint8)
    # Another goal, and textures of another version.
    assert np.abs(frame - official).mean() < 5
    for turned in (frame[::-1], frame[:, ::-1], frame[::-1, ::-1]):
        assert np.abs(turned - official).mean() > 20


def test_a_step_is_two_of_the_simulator_with_their_rewards_added(environment, simulator):
    _, first = environment.reset(seed=5)
    _, same = simulator.reset(seed=5)
    np.testing.assert_array_equal(first["state"], same["state"])
    action = np.float32([0.5, -0.3, 0.2, 1.0])
    _, reward, _, _, info = environment.step(action)
    (_, one, *_), (_, two, _, _, last) = simulator.step(action), simulator.step(action)
    assert reward == pytest.approx(one + two) and one != two
    np.testing.assert_array_equal(info["state"], last["state"])
    np.testing.assert_array_equal(info["object_position"], info["state"][4:7])
    assert (environment.metadata["render_fps"], simulator.metadata["render_fps"]) == (40, 80)


def test_one_idle_simulator_step_follows_a_reset(environment):
    assert environment._simulator.curr_path_length == 1
    environment.step(np.zeros(4))
    assert environment._simulator.curr_path_length == 3


@pytest.mark.parametrize(
    ("successes", "reward"), [((0.0, 0.0), 3.0), ((1.0, 0.0), 13.0), ((0.0, 1.0), 13.0), ((1.0, 1.0), 13.0)]
)
def test_the_bonus_is_paid_once_where_a_repeat_succeeds(environment, monkeypatch, successes, reward):
    left = list(successes)

    def step(action):
        return np.zeros(39), 1.5, False, False, {"success": left.pop(0)}

    monkeypatch.setattr(environment._simulator, "step", step)
    _, paid, terminated, _, info = environment.step(np.zeros(4))
    assert (paid, info["success"], terminated) == (reward, any(successes), False)


def test_an_episode_is_cut_off_after_its_steps_and_does_not_go_on(environment):
    ends = [environment.step(np.zeros(4))[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(False, True)]
    with pytest.raises(UserError, match="over after 6 steps"):
        environment.step(np.zeros(4))


def test_a_step_before_a_reset_is_refused():
    made = MetaWorld("hammer", **ROUGH)
    with pytest.raises(UserError, match="has not begun; call reset first"):
        made.step(np.zeros(4))
    made.close()


def test_the_same_seed_gives_the_same_episode_frame_by_frame_whatever_came_before(environment):
    first = play(environment, seed=7)
    play(environment, seed=8)
    fresh = MetaWorld("plate-slide", **ROUGH)
    for one, again, other in zip(first, play(environment, seed=7), play(fresh, seed=7), strict=True):
        np.testing.assert_array_equal(one, again)
        np.testing.assert_array_equal(one, other)
    fresh.close()


def test_every_reset_draws_another_goal_and_global_random_numbers_stay(environment):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    goals = {tuple(environment.reset()[1]["state"][-3:]) for _ in range(3)}
    assert len(goals) == 3
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_actions_are_clipped(environment):
    _, _, _, _, far = environment.step(np.array([9.0, -9.0, 0.5, 9.0]))
    environment.reset(seed=3)
    _, _, _, _, limit = environment.step(np.array([1.0, -1.0, 0.5, 1.0]))
    np.testing.assert_array_equal(far["state"], limit["state"])


@pytest.mark.parametrize("action", [[0, 0, 0], [0, 0, 0, np.nan], [[0, 0, 0, 0]]])
def test_an_action_of_another_kind_is_refused(environment, action):
    with pytest.raises(UserError, match="expected four finite numbers"):
        environment.step(np.array(action, np.float64))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "size is 0; expected a whole number of at least 1"),
        ({"action_repeat": 1.5}, "action_repeat is 1.5"),
        ({"steps": True}, "steps is True"),
        ({"shadow_size": -1}, "shadow_size is -1; expected a whole number of at least 0"),
        ({"success_bonus": float("nan")}, "success_bonus is nan"),
        ({"shadow_size": 100_000}, "64 x 64 pixels with 4 samples and shadows of 100000 cannot be drawn"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        MetaWorld("plate-slide", **options)


def test_two_environments_do_not_disturb_each_others_pictures(environment):
    alone, _ = environment.reset(seed=1)
    other = MetaWorld("hammer", size=24, shadow_size=0, samples=0)
    between, _ = other.reset(seed=1)
    beside, _ = environment.reset(seed=1)
    other.close()
    after, _ = environment.reset(seed=1)
    assert between.shape == (24, 24, 3)
    np.testing.assert_array_equal(beside, alone)
    np.testing.assert_array_equal(after, alone)


def test_an_environment_that_is_dropped_gives_its_context_back_when_another_draws(environment):
    alone, _ = environment.reset(seed=1)
    dropped = MetaWorld("hammer", **ROUGH)
    dropped.reset(seed=1)
    del dropped
    gc.collect()
    assert mujoco_rendering._DROPPED
    beside, _ = environment.reset(seed=1)
    assert not mujoco_rendering._DROPPED
    np.testing.assert_array_equal(beside, alone)


def test_an_environment_made_by_name_takes_a_seed_and_renders_what_was_observed(environment):
    made = registry.make("metaworld/plate-slide", seed=3, render_mode="rgb_array", **ROUGH)
    assert made.unwrapped.render() is None
    frame, _ = made.reset()
    np.testing.assert_array_equal(made.render(), frame)
    np.testing.assert_array_equal(environment.reset(seed=3)[0], frame)
    made.close()


def test_missing_package_names_the_extra():
    """In a fresh interpreter, for the package is imported by then in this one."""
    code = "import sys; sys.modules['metaworld'] = None\nimport ivideogpt.envs.metaworld"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'ivideogpt[metaworld]'" in done.stderr


def test_a_program_that_closes_nothing_ends_quietly():
    code = "from ivideogpt.envs.metaworld import MetaWorld\nmade = MetaWorld('hammer', size=16)\nmade.reset(seed=0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
