"""The loop: what it writes, that it goes on exactly, that imagination can be left out, and what expires."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.core.checkpoint import load_tensors, step_folder
from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.mbrl.config import MbrlConfig
from ivideogpt.mbrl.loop import is_passed
from ivideogpt.policies.drqv2 import DrQv2
from ivideogpt.worldmodel.world_model import WorldModel


def tensors(folder, step: int, part: str) -> dict[str, torch.Tensor]:
    return load_tensors(step_folder(folder, step) / "training" / f"{part}.safetensors")


def test_a_run_leaves_a_world_model_its_evaluations_pictures_and_figures(tmp_path, config, go) -> None:
    progress = go(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert lines == progress.evaluations
    assert [line["env_frames"] for line in lines] == [0, 80]
    assert all(len(line["returns"]) == len(line["successes"]) == len(line["lengths"]) == 1 for line in lines)
    assert lines[-1]["imagined_transitions"] == progress.imagined_transitions > 0
    assert progress.agent_updates == 41 and progress.world_model_updates == 8
    assert {"agent", "environment", "evaluation", "imagination", "world_model"} == set(progress.seconds)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "evaluation-000000000.gif",
        "evaluation-000000080.gif",
        "imagined-000000080.gif",
    ]
    model = WorldModel.from_pretrained(tmp_path)
    assert model.config.heads.reward and model.config.heads.termination
    assert [len(load_episodes(path)[0]) for path in sorted((tmp_path / "replay").iterdir())] == [11] * 8


@pytest.mark.parametrize("imagine", [True, False, "overlap"])
def test_a_killed_run_goes_on_to_exactly_what_it_would_have_been(tmp_path, config, go, imagine) -> None:
    """Agent, world model, both buffers, optimizers, random numbers and open episodes: all as if never stopped."""
    config = replace(config, use_world_model=bool(imagine), environment_options={"size": 16, "steps": 7})
    config = replace(config, imagination=replace(config.imagination, overlap=imagine == "overlap"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    straight = go(config, whole)
    shutil.copytree(whole, killed)
    for step in (80,):
        shutil.rmtree(step_folder(killed, step))  # as if killed after update 60, in the midst of an episode
    resumed = go(config, killed)
    plain = {"seconds", "evaluations", "random"}
    assert {k: v for k, v in vars(straight).items() if k not in plain} == {
        k: v for k, v in vars(resumed).items() if k not in plain
    }
    assert [e["returns"] for e in straight.evaluations] == [e["returns"] for e in resumed.evaluations]
    for part in ("agent", "collector", *(["world_model", "imagined"] if imagine else [])):
        expected, resumed_tensors = tensors(whole, 80, part), tensors(killed, 80, part)
        assert expected.keys() == resumed_tensors.keys()
        for name, value in expected.items():
            assert torch.equal(value, resumed_tensors[name]), f"{part}: {name}"
    assert sorted(path.name for path in (whole / "replay").iterdir()) == sorted(
        path.name for path in (killed / "replay").iterdir()
    )


def test_a_run_that_is_killed_while_the_world_model_is_made_goes_on(tmp_path, config, go) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    straight = go(config, whole)
    shutil.copytree(whole, killed)
    for step in (40, 60, 80):
        shutil.rmtree(step_folder(killed, step))
    shutil.rmtree(killed / "world-model" / "transformer")
    resumed = go(config, killed)
    assert [e["returns"] for e in straight.evaluations] == [e["returns"] for e in resumed.evaluations]


def test_without_imagination_there_is_no_world_model_and_the_agent_learns_the_same_way(tmp_path, config, go) -> None:
    progress = go(replace(config, use_world_model=False), tmp_path)
    assert progress.imagined_transitions == progress.world_model_updates == 0 and progress.agent_updates == 41
    with pytest.raises(UserError):
        WorldModel.from_pretrained(tmp_path)


def test_several_environments_count_the_same_frames(tmp_path, config, go) -> None:
    progress = go(replace(config, num_envs=4, use_world_model=False), tmp_path)
    assert progress.evaluations[-1]["env_frames"] == 80
    assert progress.agent_updates == 4 * 11


def test_environments_in_processes_of_their_own_change_nothing(tmp_path, config, go) -> None:
    config = replace(config, num_envs=2, use_world_model=False, total_env_steps=50)
    together, apart = go(config, tmp_path / "here"), go(replace(config, env_processes=True), tmp_path / "there")
    assert [e["returns"] for e in together.evaluations] == [e["returns"] for e in apart.evaluations]


def test_imagined_episodes_of_old_rollouts_leave_unless_all_are_kept(tmp_path, config, go) -> None:
    kept = {}
    for rollouts in (2, 0):
        changed = replace(config, imagination=replace(config.imagination, kept_rollouts=rollouts))
        changed = replace(changed, world_model=replace(changed.world_model, tokenizer_update_every_steps=0))
        go(changed, tmp_path / str(rollouts))
        state = tensors(tmp_path / str(rollouts), 80, "imagined")
        kept[rollouts] = len({name.split(".")[1] for name in state if name.startswith("episodes.")})
    # Four episodes a rollout, and more where some of them terminate.
    assert 2 * 4 <= kept[2] < kept[0] / 2 and kept[0] >= 6 * 4


def test_the_horizon_grows_with_the_steps(config) -> None:
    imagination = replace(config.imagination, initial_horizon=1, horizon=9, horizon_growth_steps=80)
    assert [imagination.horizon_at(steps) for steps in (0, 40, 80, 200)] == [1, 5, 9, 9]


@pytest.fixture
def demo() -> Episode:
    """Six black frames."""
    return Episode(
        frames=np.zeros((6, 16, 16, 3), np.uint8),
        actions=np.zeros((6, 2), np.float32),
        rewards=np.zeros(6, np.float32),
        terminated=np.zeros(6, bool),
        key="demo",
    )


def test_demonstrations_join_at_the_start_and_stay(tmp_path, config, go, demo) -> None:
    go(replace(config, use_world_model=False, replay_capacity=25), tmp_path, demos=[demo])
    names = [load_episodes(path)[0].key for path in sorted((tmp_path / "replay").iterdir())]
    assert names[0] == "demo" and len(names) < 8


def test_an_agent_learns_from_demonstrations_first_and_keeps_their_share(
    tmp_path, config, go, demo, monkeypatch
) -> None:
    shares = []
    learn = DrQv2.learn
    monkeypatch.setattr(DrQv2, "learn", lambda *a: shares.append(float(a[1].demonstrated.float().mean())) or learn(*a))
    agent = replace(config.agent, cloning_weight=1.0)
    config = replace(config, agent=agent, num_demos=-1, demonstration_updates=3, demonstration_share=0.5)
    progress = go(config, tmp_path, demos=[demo])
    assert shares[:3] == [1.0] * 3 and progress.evaluations[0]["agent_updates"] == 3
    assert len(shares) == 3 + 41 and 0.2 <= min(shares) <= 0.3  # half of the real half; a few more by chance


def test_learning_from_demonstrations_without_any_is_refused() -> None:
    with pytest.raises(UserError, match="demo=true"):
        MbrlConfig(demonstration_share=0.5)


@pytest.mark.parametrize(("count", "steps"), [(1, [5, 10, 15]), (4, [8, 12, 16])])
def test_a_cadence_strikes_once_each_time_it_is_passed(count: int, steps: list[int]) -> None:
    assert [step for step in range(count, 19, count) if is_passed(step, 5, count)] == steps
    assert not is_passed(count, 0, count)


def test_a_new_world_model_that_would_never_place_codes_is_refused_at_the_start(config) -> None:
    tokenizer = replace(config.world_model.scratch.tokenizer, continuous_steps=10, steps=10)
    scratch = replace(config.world_model.scratch, tokenizer=tokenizer)
    with pytest.raises(UserError, match="continuous_steps is 10 of 10 steps"):
        replace(config, world_model=replace(config.world_model, scratch=scratch))
