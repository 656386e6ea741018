"""ManiSkill: five tasks with the sizes of action that each has, one drawn camera, and a goal that can be seen."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("mani_skill", reason="ManiSkill needs its package: make maniskill")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.envs import maniskill  # noqa: E402
from ivideogpt.envs.maniskill import ManiSkill, ManiSkillVector, choose_render_backend, maniskill_id, rendering_problem  # noqa: E402
from ivideogpt.envs.registry import MANISKILL_TASKS, make  # noqa: E402
from ivideogpt.envs.vector import make_vector  # noqa: E402

draws = pytest.mark.skipif(bool(rendering_problem()), reason=rendering_problem() or "drawn")
ACTIONS = {"pick-cube": 7, "lift-peg-upright": 7, "peg-insertion-side": 8, "push-t": 6, "stack-cube": 7}


@draws
@pytest.mark.parametrize("name", MANISKILL_TASKS)
def test_every_task_steps_and_shows_pictures_of_the_size_asked_for(name: str) -> None:
    environment = make(f"maniskill/{name}", size=32, steps=2)
    assert environment.action_space.shape == (ACTIONS[name],)
    frame, info = environment.reset(seed=0)
    assert frame.shape == (32, 32, 3) and frame.std() > 20 and info["state"].ndim == 1
    ends = [environment.step(environment.action_space.sample())[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]
    environment.close()


@draws
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_accepts_the_environment() -> None:
    environment = ManiSkill("push_t", size=16, steps=3)
    check_env(environment, skip_render_check=True)
    environment.close()


@draws
@pytest.mark.parametrize("camera", ["render", "base"])
def test_the_goal_of_pick_cube_is_seen_by_the_camera(camera: str) -> None:
    def green(show_goal: bool) -> int:
        environment = ManiSkill("pick_cube", camera=camera, show_goal=show_goal, size=96)
        counts = []
        for seed in range(3):
            frame = environment.reset(seed=seed)[0].astype(int)
            counts.append(int(((frame[..., 1] > frame[..., 0] + 60) & (frame[..., 1] > frame[..., 2] + 60)).sum()))
        environment.close()
        return sum(counts)

    assert green(True) > 10 and green(False) == 0


@draws
def test_a_recorded_state_gives_back_the_same_picture() -> None:
    environment = ManiSkill("stack_cube", size=32)
    environment.reset(seed=1)
    for _ in range(3):
        frame, *_ = environment.step(np.array([0.5, 0.2, -0.5, 0, 0, 0, 1], np.float32))
    state = environment.simulator_state()
    environment.reset(seed=2)
    again = environment.set_simulator_state(state)
    assert np.abs(again.astype(int) - frame).max() <= 1
    with pytest.raises(UserError, match="a recorded state does not fit StackCube-v1"):
        environment.set_simulator_state({"actors": {"unknown": np.zeros(13)}, "articulations": {}})
    environment.close()


@draws
def test_rewards_of_repeated_actions_are_added_and_a_bonus_is_paid_with_success(monkeypatch) -> None:
    action = np.array([0.3, 0, -0.3, 0, 0, 0, 1], np.float32)
    single, double = (ManiSkill("pick_cube", size=16, action_repeat=repeat, success_bonus=10) for repeat in (1, 2))
    for environment in (single, double):
        environment.reset(seed=3)
    expected = sum(single.step(action)[1] for _ in range(2))
    assert double.step(action)[1] == pytest.approx(expected, abs=1e-5)
    simulator = single._scene.simulator
    step = simulator.step

    def succeed(action):
        *results, info = step(action)
        return *results, info | {"success": info["success"] | True}

    monkeypatch.setattr(simulator, "step", succeed)
    _, reward, terminated, _, info = single.step(action)
    assert reward > 10 and info["success"] and not terminated
    single.close()
    double.close()


@draws
def test_several_environments_step_together_in_a_vector() -> None:
    environments = make_vector("maniskill/push_t", 2, frame_stack=3, size=16)
    observations, info = environments.reset(seed=[0, 1])
    assert observations.shape == (2, 3, 16, 16, 3) and info["state"].shape[0] == 2
    environments.close()


@draws
def test_the_vector_of_one_simulator_steps_as_the_single_environment(monkeypatch) -> None:
    """A processor steps one scene only, so one row stands for the many of a graphics card."""
    single = make("maniskill/pick_cube", size=16, steps=2, sim_backend="physx_cpu")
    vector = ManiSkillVector("pick_cube", 1, frame_stack=2, size=16, steps=2, sim_backend="physx_cpu")
    frame, info = single.reset(seed=5)
    stacked, infos = vector.reset(seed=[5])
    assert stacked.shape == vector.observation_space.shape == (1, 2, 16, 16, 3)
    assert (stacked[0, 0] == frame).all() and (stacked[0, 1] == frame).all()
    np.testing.assert_array_equal(infos["state"][0], info["state"])
    action = np.array([0.3, 0, -0.3, 0, 0, 0, 1], np.float32)
    for ends in (False, True):
        last = frame
        frame, reward, _, truncated, info = single.step(action)
        stacked, rewards, terminated, truncations, infos = vector.step(action[None])
        assert (stacked[0, 0] == last).all() and (stacked[0, 1] == frame).all()
        assert rewards[0] == reward and infos["success"].tolist() == [info["success"]] == terminated.tolist() == [False]
        assert truncations.tolist() == [truncated] == [ends]
    with pytest.raises(UserError, match=r"the episodes of rows \[0\] are over"):
        vector.step(action[None])
    again, _ = vector.reset(seed=[5], options={"reset_mask": np.array([True])})
    assert (again[0, 1] == stacked[0, 1]).mean() < 1
    with pytest.raises(UserError, match="expected 7 finite numbers"):
        vector.step(action[None, :3])
    single.close()
    vector.close()


@draws
def test_several_environments_in_one_simulator_need_a_graphics_card(monkeypatch) -> None:
    import torch

    with pytest.raises(UserError, match="4 environments in one simulator need sim_backend=physx_cuda"):
        ManiSkillVector("pick_cube", 4, sim_backend="physx_cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sim_backend=physx_cuda needs an NVIDIA card"):
        make_vector("maniskill/pick_cube", 4, image_size=16, sim_backend="physx_cuda")
    with pytest.raises(UserError, match="does not take the options .*'wheels'"):
        make_vector("maniskill/pick_cube", 2, sim_backend="physx_cuda", wheels=4)
    with pytest.raises(UserError, match="there is no sim_backend 'gpu'"):
        ManiSkill("pick_cube", sim_backend="gpu")


def test_names_of_tasks_are_understood_as_people_write_them() -> None:
    assert {maniskill_id(name) for name in ("pick_cube", "PickCube-v1", "maniskill/pick-cube")} == {"PickCube-v1"}
    with pytest.raises(UserError, match="there is no ManiSkill task 'pick_cub' here; did you mean 'pick-cube'"):
        maniskill_id("pick_cub")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "size is 0; expected a whole number of at least 1"),
        ({"camera": "top"}, "there is no camera 'top'; expected one of: base, hand, render"),
        ({"reward_mode": "large"}, "there is no reward_mode 'large'"),
        ({"render_backend": "software"}, "there is no render_backend 'software'"),
        ({"success_bonus": float("nan")}, "success_bonus is nan"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ManiSkill("pick_cube", **options)


@draws
def test_a_control_mode_of_another_robot_is_one_sentence() -> None:
    with pytest.raises(UserError, match="cannot be made with control_mode 'pd_wheels'.*are control modes"):
        ManiSkill("pick_cube", control_mode="pd_wheels")


def test_a_machine_without_vulkan_is_told_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(maniskill, "rendering_problem", lambda backend: f"no {backend} here")
    with pytest.raises(UserError, match="no sapien_cuda here"):
        choose_render_backend("gpu")
    with pytest.raises(UserError, match="no sapien_cpu here"):
        choose_render_backend("auto")
    assert "mesa-vulkan-drivers" in maniskill._INSTALL
