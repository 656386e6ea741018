"""A trajectory that ManiSkill's own recorder wrote becomes the same episode again."""

import json

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("mani_skill", reason="ManiSkill needs its package: make maniskill")

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.data import EpisodeStore  # noqa: E402
from ivideogpt.envs.maniskill import ManiSkill, rendering_problem  # noqa: E402
from ivideogpt.envs.record.maniskill_replay import ReplaySettings, convert_trajectories  # noqa: E402

if rendering_problem():
    pytest.skip(rendering_problem(), allow_module_level=True)

SMALL = {"size": 16, "render_backend": "sapien_cpu"}
STEPS = 5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A file with two random episodes of PickCube, of which the description calls the second a success."""
    import mani_skill.envs  # noqa: F401
    from mani_skill.utils.wrappers import RecordEpisode

    folder = tmp_path_factory.mktemp("raw")
    simulator = gymnasium.make(
        "PickCube-v1",
        num_envs=1,
        obs_mode="none",
        control_mode="pd_ee_delta_pose",
        render_backend="sapien_cpu",
        sim_backend="physx_cpu",
    )
    simulator = RecordEpisode(simulator, str(folder), trajectory_name="trajectory", save_video=False)
    random = np.random.default_rng(0)
    for seed in (5, 6):
        simulator.reset(seed=seed)
        for _ in range(STEPS):
            simulator.step(random.uniform(-1, 1, 7).astype(np.float32))
    simulator.close()
    description = folder / "trajectory.json"
    tree = json.loads(description.read_text())
    tree["episodes"][1]["success"] = True
    description.write_text(json.dumps(tree))
    return folder / "trajectory.h5"


@pytest.mark.parametrize("replay", ["states", "first-state", "actions"])
def test_a_replay_shows_what_happened(recorded, tmp_path, replay) -> None:
    settings = ReplaySettings(replay=replay, episodes=1, **SMALL)
    convert_trajectories(recorded, tmp_path / "store", settings, task="pick_cube")
    episode = EpisodeStore(tmp_path / "store")[0]
    environment = ManiSkill("pick_cube", **SMALL)
    frame, _ = environment.reset(seed=5)
    frames, rewards = [frame], []
    for action in episode.actions[:-1]:
        frame, reward, *_ = environment.step(action)
        frames.append(frame)
        rewards.append(reward)
    environment.close()
    assert len(episode) == STEPS + 1 and not episode.terminated.any()
    assert np.abs(episode.frames.astype(int) - np.stack(frames)).mean() < 0.5
    assert np.allclose(episode.rewards[:-1], rewards, atol=1e-3)


@pytest.mark.parametrize("replay", ["states", "first-state"])
def test_the_states_are_those_of_the_pictures_though_the_seed_is_unknown(recorded, tmp_path, replay) -> None:
    description = tmp_path / "trajectory.json"
    tree = json.loads(recorded.with_suffix(".json").read_text())
    tree["episodes"][0] = {"episode_id": 0, "success": False}
    description.write_text(json.dumps(tree))
    settings = ReplaySettings(replay=replay, episodes=1, **SMALL)
    convert_trajectories(recorded, tmp_path / "store", settings, metadata_path=description)
    environment = ManiSkill("pick_cube", **SMALL)
    _, info = environment.reset(seed=5)
    environment.close()
    assert np.allclose(EpisodeStore(tmp_path / "store")[0].state[0], info["state"], atol=1e-3)


def test_a_recorded_success_is_checked_again(recorded, tmp_path) -> None:
    settings = ReplaySettings(success_only=True, **SMALL)
    with pytest.raises(UserError):  # nothing is left to store
        convert_trajectories(recorded, tmp_path / "store", settings)


def test_episodes_are_cut_and_another_task_is_refused(recorded, tmp_path) -> None:
    convert_trajectories(recorded, tmp_path / "store", ReplaySettings(max_episode_steps=2, **SMALL))
    store = EpisodeStore(tmp_path / "store")
    assert store.lengths.tolist() == [3, 3] and store.info(1)["meta"]["recorded_success"]
    with pytest.raises(UserError, match="holds trajectories of PickCube-v1, not of StackCube-v1; give --task PickCube"):
        convert_trajectories(recorded, tmp_path / "b", ReplaySettings(**SMALL), task="stack_cube")


def test_actions_of_another_control_mode_are_refused(recorded, tmp_path) -> None:
    description = tmp_path / "trajectory.json"
    tree = json.loads(recorded.with_suffix(".json").read_text())
    tree["env_info"]["env_kwargs"]["control_mode"] = "pd_joint_delta_pos"
    description.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="has actions of 7 numbers and PickCube-v1 with pd_joint_delta_pos takes 8"):
        convert_trajectories(recorded, tmp_path / "store", ReplaySettings(**SMALL), metadata_path=description)
