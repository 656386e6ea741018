"""PushT is gym-pusht with another picture and normalised actions."""

import gymnasium
import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="PushT needs gym-pusht: pip install 'ivideogpt[pusht]'")

from gymnasium.utils.env_checker import check_env

from ivideogpt.core.errors import UserError
from ivideogpt.envs import registry
from ivideogpt.envs.pusht import PushT, normalised_action, raw_action


def _drive(steps: int = 50, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Frames and states of a run that drags the agent across the block."""
    environment = PushT()
    frame, info = environment.reset(seed=seed)
    frames, states = [frame], [info["state"]]
    for step in range(steps):
        angle = step / 5
        raw = info["state"][2:4] + 90 * np.array([np.cos(angle), np.sin(angle)])
        frame, _, _, _, info = environment.step(np.clip(normalised_action(raw), -1, 1))
        frames.append(frame)
        states.append(info["state"])
    return np.stack(frames), np.stack(states)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_accepts_the_environment():
    check_env(registry.make("pusht").unwrapped, skip_render_check=True)


def test_states_equal_those_of_gym_pusht_over_50_steps():
    from gym_pusht.envs.pusht import PushTEnv

    ours, original = PushT(), PushTEnv(obs_type="state")
    _, info = ours.reset(seed=5)
    state, _ = original.reset(seed=5)
    random = np.random.default_rng(0)
    moved = 0.0
    for _ in range(50):
        raw = np.float32(state[2:4] + random.normal(0, 60, 2)).clip(0, 512)
        action = normalised_action(raw)
        before = state
        _, reward, _, _, info = ours.step(action)
        state, expected_reward, _, _, expected = original.step(raw_action(action).astype(np.float64))
        moved += np.linalg.norm(state[2:4] - before[2:4])
        np.testing.assert_array_equal(info["state"][:4], state[:4].astype(np.float32))
        np.testing.assert_allclose(info["state"][4] % (2 * np.pi), state[4], atol=1e-5)
        assert (reward, info["coverage"]) == (expected_reward, expected["coverage"])
        assert info["n_contacts"] == expected["n_contacts"]
    assert moved > 50, "the run must touch the block to mean anything"


def test_picture_is_the_original_one_averaged_over_8_px_without_the_target():
    environment = PushT(render_mode="rgb_array")
    environment.reset(seed=1)
    frame, *_ = environment.step(np.float32([0.9, -0.9]))
    plane = environment.render()
    blocks = plane.astype(np.float64).reshape(64, 8, 64, 8, 3).mean((1, 3))
    assert np.abs(frame - blocks).max() <= 1
    red = (plane[..., 0] > 200) & (plane[..., 1] < 60)
    assert not red.any()


def test_same_seed_gives_the_same_run():
    first, second = _drive(steps=10), _drive(steps=10)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_seeds_give_other_starts():
    environment = PushT()
    assert not np.array_equal(environment.reset(seed=1)[1]["state"], environment.reset(seed=2)[1]["state"])


def test_agent_goes_where_the_action_says():
    environment = PushT()
    _, info = environment.reset(seed=0)
    for _ in range(30):
        _, _, _, _, info = environment.step(normalised_action(np.array([40.0, 470.0])))
    np.testing.assert_allclose(info["state"][:2], [40, 470], atol=2)


def test_raw_and_normalised_actions_undo_each_other():
    np.testing.assert_allclose(normalised_action(np.array([[0.0, 512.0]])), [[-1, 1]])
    raw = np.random.default_rng(0).uniform(0, 512, (100, 2)).astype(np.float32)
    np.testing.assert_allclose(raw_action(normalised_action(raw)), raw, atol=1e-4)


def test_gymnasium_makes_the_registered_id():
    registry.register()
    registry.register()
    assert isinstance(gymnasium.make("ivideogpt/PushT-v0").unwrapped, PushT)


def test_unknown_environment_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'pusht'"):
        registry.make("push-t")


def test_missing_package_names_the_extra():
    """In a fresh interpreter, for the package is imported by then in this one."""
    import subprocess
    import sys

    code = "import sys; sys.modules['gym_pusht'] = None\nimport ivideogpt.envs.pusht"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'ivideogpt[pusht]'" in result.stderr
