"""The loop: what it writes, that it goes on exactly, that imagination can be left out, and what expires."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.core.checkpoint import load_tensors, step_folder
from ivideogpt.core.errors import UserError
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.mbrl.loop import _Cadences
from ivideogpt.worldmodel.world_model import WorldModel


def tensors(folder, step: int, part: str) -> dict[str, torch.Tensor]:
    return load_tensors(step_folder(folder, step) / "training" / f"{part}.safetensors")


def test_a_run_leaves_a_world_model_its_evaluations_pictures_and_figures(tmp_path, config, go) -> None:
    found = go(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert lines == found.evaluations
    assert [line["env_frames"] for line in lines] == [0, 80]
    assert all(len(line["returns"]) == len(line["successes"]) == len(line["lengths"]) == 1 for line in lines)
    assert lines[-1]["imagined_transitions"] == found.imagined > 0
    assert found.agent_updates == 41 and found.world_updates == 8
    assert {"agent", "environment", "evaluation", "imagination", "world_model"} == set(found.seconds)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "evaluation-000000000.gif",
        "evaluation-000000080.gif",
        "imagined-000000080.gif",
    ]
    model = WorldModel.from_pretrained(tmp_path)
    assert model.config.heads.reward and model.config.heads.termination
    assert [len(load_episodes(path)[0]) for path in sorted((tmp_path / "replay").iterdir())] == [11] * 8


@pytest.mark.parametrize("imagine", [True, False])
def test_a_killed_run_goes_on_to_exactly_what_it_would_have_been(tmp_path, config, go, imagine: bool) -> None:
    """Agent, world model, both buffers, optimizers, random numbers and open episodes: all as if never stopped."""
    config = replace(config, imagine=imagine, environment={"size": 16, "steps": 7})
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
    for part in ("agent", "collector", *(["imagined"] if imagine else [])):
        mine, theirs = tensors(whole, 80, part), tensors(killed, 80, part)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), f"{part}: {name}"
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
    found = go(replace(config, imagine=False), tmp_path)
    assert found.imagined == found.world_updates == 0 and found.agent_updates == 41
    with pytest.raises(UserError):
        WorldModel.from_pretrained(tmp_path)


def test_several_environments_count_the_same_frames(tmp_path, config, go) -> None:
    found = go(replace(config, environments=4, imagine=False), tmp_path)
    assert found.evaluations[-1]["env_frames"] == 80
    assert found.agent_updates == 4 * 11


def test_environments_in_processes_of_their_own_change_nothing(tmp_path, config, go) -> None:
    config = replace(config, environments=2, imagine=False, frames=50)
    here, there = go(config, tmp_path / "here"), go(replace(config, workers=True), tmp_path / "there")
    assert [e["returns"] for e in here.evaluations] == [e["returns"] for e in there.evaluations]


def test_imagined_episodes_expire_and_only_the_official_mistake_keeps_them(tmp_path, config, go) -> None:
    kept = {}
    for compat in ("none", "official"):
        some = replace(config, imagination=replace(config.imagination, retained=2), compat=compat)
        some = replace(some, world_model=replace(some.world_model, tokenizer_every=0))
        go(some, tmp_path / compat)
        state = tensors(tmp_path / compat, 80, "imagined")
        kept[compat] = len({name.split(".")[2] for name in state if name.startswith("replay.episodes.")})
    # Four rows an imagination, and more episodes where some of them terminate.
    assert 2 * 4 <= kept["none"] < 4 * 4 and kept["official"] >= 6 * 4


def test_the_horizon_grows_with_the_frames(config) -> None:
    imagination = replace(config.imagination, first_horizon=1, horizon=9, horizon_frames=80)
    assert [imagination.horizon_at(frames) for frames in (0, 40, 80, 200)] == [1, 5, 9, 9]


def test_demonstrations_join_at_the_start_and_stay(tmp_path, config, go) -> None:
    from ivideogpt.core.episode import Episode

    demo = Episode(
        frames=np.zeros((6, 16, 16, 3), np.uint8),
        actions=np.zeros((6, 2), np.float32),
        rewards=np.zeros(6, np.float32),
        terminated=np.zeros(6, bool),
        key="demo",
    )
    go(replace(config, imagine=False, capacity=25), tmp_path, demos=[demo])
    names = [load_episodes(path)[0].key for path in sorted((tmp_path / "replay").iterdir())]
    assert names[0] == "demo" and len(names) < 8


@pytest.mark.parametrize(("count", "steps"), [(1, [5, 10, 15]), (4, [8, 12, 16])])
def test_a_cadence_strikes_once_each_time_it_is_passed(count: int, steps: list[int]) -> None:
    every = _Cadences(count)
    assert [step for step in range(count, 19, count) if every(step, 5)] == steps
    assert not every(count, 0)
