"""Trajectory files of ManiSkill, written here by h5py: what their description says, and what is refused."""

import json

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.maniskill import read_trajectories, read_trajectory_file

h5py = pytest.importorskip("h5py")
STEPS, ACTION = 4, 7


def write(folder, *, episodes=3, states=True, task="StackCube-v1"):
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for index in range(episodes):
            group = file.create_group(f"traj_{index}")
            group["actions"] = np.full((STEPS, ACTION), index / 10, np.float32)
            if states:
                group["env_states/actors/cubeA"] = np.arange((STEPS + 1) * 13.0).reshape(STEPS + 1, 13) + index
                group["env_states/articulations/panda"] = np.zeros((STEPS + 1, 31))
    rows = [
        {"episode_id": index, "episode_seed": 40 + index, "control_mode": "pd_ee_delta_pose", "success": index != 1}
        for index in range(episodes)
    ]
    options = {"control_mode": "pd_ee_delta_pose", "sim_backend": "physx_cuda"}
    tree = {"env_info": {"env_id": task, "env_kwargs": options, "max_episode_steps": 50}, "episodes": rows}
    (folder / "trajectory.json").write_text(json.dumps(tree))
    return folder / "trajectory.h5"


def test_a_file_says_its_task_control_mode_seeds_and_successes(tmp_path) -> None:
    source = read_trajectory_file(write(tmp_path))
    assert (source.task, source.control_mode) == ("StackCube-v1", "pd_ee_delta_pose")
    assert [(info.episode_id, info.seed, info.success) for info in source.trajectories] == [
        (0, 40, True),
        (1, 41, False),
        (2, 42, True),
    ]


def test_a_trajectory_has_a_state_before_each_action_and_one_after_the_last(tmp_path) -> None:
    source = read_trajectory_file(write(tmp_path))
    (trajectory,) = read_trajectories(source, source.trajectories[2:])
    assert trajectory.actions.shape == (STEPS, ACTION) and trajectory.actions[0, 0] == pytest.approx(0.2)
    assert trajectory.state(0)["actors"]["cubeA"].tolist() == (np.arange(13.0) + 2).tolist()
    assert trajectory.state(STEPS)["articulations"]["panda"].shape == (31,)


def test_the_seed_of_several_environments_and_of_older_files_is_understood(tmp_path) -> None:
    path = write(tmp_path, episodes=2)
    tree = json.loads((tmp_path / "trajectory.json").read_text())
    tree["episodes"][0]["episode_seed"] = [7]
    tree["episodes"][1] = {"episode_id": 1, "reset_kwargs": {"seed": 8}, "control_mode": "pd_ee_delta_pose"}
    (tmp_path / "trajectory.json").write_text(json.dumps(tree))
    assert [info.seed for info in read_trajectory_file(path).trajectories] == [7, 8]


def test_a_file_without_states_has_none(tmp_path) -> None:
    source = read_trajectory_file(write(tmp_path, states=False))
    assert next(read_trajectories(source, source.trajectories)).states is None


def test_what_is_no_file_of_maniskill_is_one_sentence(tmp_path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none.h5; give the .h5 file of ManiSkill's demonstrations"):
        read_trajectory_file(tmp_path / "none.h5")
    path = write(tmp_path / "a")
    with pytest.raises(UserError, match="there is no file .*other.json, which describes trajectory.h5"):
        read_trajectory_file(path, tmp_path / "other.json")
    (tmp_path / "a" / "trajectory.json").write_text(json.dumps({"episodes": []}))
    with pytest.raises(UserError, match="is no description of ManiSkill's trajectories .KeyError: 'env_info'"):
        read_trajectory_file(path)


def test_states_of_another_length_and_a_missing_trajectory_are_one_sentence(tmp_path) -> None:
    path = write(tmp_path)
    source = read_trajectory_file(path)
    with h5py.File(path, "a") as file:
        del file["traj_0/env_states/actors/cubeA"], file["traj_2"]
        file["traj_0/env_states/actors/cubeA"] = np.zeros((STEPS, 13))
    with pytest.raises(UserError, match="actors/cubeA of traj_0 .* has 4 states for 4 actions; expected one more"):
        list(read_trajectories(source, source.trajectories[:1]))
    with pytest.raises(UserError, match="traj_2 is missing; it holds traj_0, traj_1"):
        list(read_trajectories(source, source.trajectories[2:]))
