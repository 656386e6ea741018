"""``ivideogpt evaluate-policy``: from a name to a table, videos and one line of JSON."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from ivideogpt.evaluation.imagined_trials import STATE_ESTIMATORS  # noqa: E402
from ivideogpt.models.success_classifier import (  # noqa: E402
    ClassifierConfig,
    ClassifierFacts,
    SuccessClassifier,
)

OPTIONS = ("--environment-options", '{"size": 16, "steps": 5}', "--workers", 0, "--out", "results")


def test_random_actions_are_measured_and_the_same_command_goes_on(run, tmp_path) -> None:
    done = run("evaluate-policy", "reacher", "--policy", "random", "--trials", 3, "--videos", 1, *OPTIONS)
    assert done.code == 0, done.err
    assert done.json["trials"] == 3 and done.json["interval"][0] <= done.json["success"] <= done.json["interval"][1]
    assert len(list((tmp_path / "results" / "trials").iterdir())) == 3
    assert [path.suffix for path in (tmp_path / "results" / "videos").iterdir()] == [".mp4"]
    more = run("evaluate-policy", "reacher", "--policy", "random", "--trials", 5, *OPTIONS)
    assert more.json["trials"] == 5
    other = run("evaluate-policy", "reacher", "--policy", "reacher-script", "--trials", 5, *OPTIONS)
    assert other.code == 2 and "holds results of another evaluation; give another folder with --out" in other.err


def test_a_script_succeeds_where_random_actions_do_not(run) -> None:
    options = ("--environment-options", '{"size": 16}', "--workers", 0, "--videos", 0, "--trials", 5)
    script = run("evaluate-policy", "reacher", "--policy", "reacher-script", *options)
    assert script.code == 0, script.err
    assert script.json["success"] == 1.0


def test_an_agent_of_a_run_is_a_policy(run, tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="stores need pyarrow: pip install 'ivideogpt[data]'")
    trained = run("mbrl", "debug", "--no-imagination", "--run", "agent")
    assert trained.code == 0, trained.err
    # The size of the pictures is that of the run's environment.
    words = ("evaluate-policy", "reacher", "--policy", "agent", "--workers", 0, "--out", "results", "--trials")
    done = run(*words, 2)
    assert done.code == 0, done.err
    assert done.json["trials"] == 2 and done.json["policy"] == "agent"
    other_size = run(*words[:-3], "--image-size", 32, "--trials", 1)
    assert other_size.code == 2 and "does not fit actions of 2 numbers and pictures of 32 pixels" in other_size.err

    # An agent that has learned on is another policy.
    newest = max((tmp_path / "agent" / "checkpoints").iterdir())
    newest.rename(newest.with_name("step-99999999"))
    later = run(*words, 3)
    assert later.code == 2 and "holds results of another evaluation; give another folder with --out" in later.err
    # a checkpoint can be named itself
    named = ("evaluate-policy", "reacher", "--policy", "agent/checkpoints/step-99999999", "--workers", 0, "--trials", 2)
    same = run(*named, "--out", "named")
    assert same.code == 0 and same.json["return"] == done.json["return"], same.err


@pytest.fixture
def judge(tmp_path) -> Path:
    """A classifier that counts nearly half of all frames."""
    torch.manual_seed(1)
    facts = ClassifierFacts(task="reacher", labels="frames at the goal", threshold=0.5)
    SuccessClassifier(ClassifierConfig(resolution=16, width=8, hidden=8), facts).save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


SMALL = ("--environment-options", '{"size": 16}', "--steps", 4, "--workers", 0)


def test_a_policy_is_measured_in_the_world_model_with_a_classifier_as_the_judge(run, tmp_path, checkpoints, judge):
    words = ("evaluate-policy", "reacher", "--world", checkpoints["plain"], "--classifier", judge, *SMALL)
    done = run(*words, "--trials", 3, "--videos", 1, "--out", "imagined")
    assert done.code == 0, done.err
    assert done.json["trials"] == 3 and done.json["steps"] <= 4 and done.json["trust"]["signal"].startswith("token")
    assert done.json["classifier"] == {"threshold": 0.5, "target_precision": 0.95, "real": None, "imagined": None}
    assert "success classifier of reacher: frames at the goal" in done.out and "trust: mean token entropy" in done.out
    (video,) = (tmp_path / "imagined" / "videos").iterdir()
    again = run(*words, "--trials", 3, "--videos", 1, "--out", "imagined")
    assert {**again.json, "seconds": 0} == {**done.json, "seconds": 0}
    other = run(*words[:-2], "--steps", 5, "--trials", 3, "--out", "imagined")
    assert other.code == 2 and "holds results of another evaluation" in other.err

    # without a judge, and with one of another task
    assert "predicts no success; give a success classifier" in run(*words[:4], *SMALL, "--out", "x").err
    wrong = run("evaluate-policy", "pusht", *words[2:], "--out", "x")
    assert wrong.code == 2 and "is of the task 'reacher', not 'pusht'" in wrong.err


def test_a_planner_searches_for_reward_in_a_world_model(run, checkpoints, judge) -> None:
    planner = f"planner:world={checkpoints['plain']},horizon=2,candidates=4,iterations=1"
    words = ("evaluate-policy", "reacher", "--policy", planner, *SMALL, "--trials", 2, "--videos", 0)
    real = run(*words, "--out", "real")
    assert real.code == 0 and real.json["trials"] == 2, real.err
    imagined = run(*words, "--world", checkpoints["plain"], "--classifier", judge, "--out", "imagined")
    assert imagined.code == 0 and imagined.json["trials"] == 2, imagined.err
    wrong = run("evaluate-policy", "reacher", "--policy", planner, "--trials", 1, "--workers", 0, "--out", "wrong")
    assert wrong.code == 2 and "shows 64 px and takes 2: give a world model of it" in wrong.err


def test_imagined_episodes_begin_with_recorded_frames(run, checkpoints, judge, store_of) -> None:
    words = ("evaluate-policy", "reacher", "--world", checkpoints["plain"], "--classifier", judge, *SMALL)
    done = run(*words, "--data", store_of((6, 1, 7), dim=2).folder, "--out", "recorded")
    assert done.code == 0, done.err
    assert done.json["trials"] == 2  # one is shorter than the context
    sizes = run(*words, "--data", store_of((6,), dim=2, size=(8, 8)).folder, "--out", "sizes")
    assert sizes.code == 2 and "has frames of 8 px and plain imagines 16 px" in sizes.err


def test_policies_are_compared_in_both_worlds(run, tmp_path, checkpoints, judge, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    policies = ("random", "reacher-script:speed=0.5", "reacher-script:speed=-0.25")
    words = ("evaluate-policy", "reacher", "--compare", "--world", checkpoints["plain"], "--classifier", judge)
    # the state of Reacher cannot be read from pictures
    done = run(*words, *SMALL, "--trials", 3, "--policy", *policies, "--out", "both")
    assert done.code == 2 and "reads the simulator's state, and this environment gives none" in done.err
    module = ModuleType("a_reader_of_states")
    module.make = lambda: lambda frames: np.resize(frames.mean(axis=(1, 2)) / 255, (len(frames), 4))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(STATE_ESTIMATORS, "reacher", f"{module.__name__}:make")
    done = run(*words, *SMALL, "--trials", 3, "--policy", *policies, "--out", "both")
    assert done.code == 0, done.err
    assert done.json["policies"] == ["random", "reacher-script-speed0.5", "reacher-script-speed-0.25"]
    for score in ("success", "final_reward", "mean_reward"):
        assert len(done.json[score]["real"]) == len(done.json[score]["imagined"]) == 3
        assert done.json[score]["rank_violation"]["value"] is not None
    saved = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert saved["final_reward"] == done.json["final_reward"]
    assert (tmp_path / "both" / "comparison.png").stat().st_size > 5000
    assert len(list((tmp_path / "both").glob("*/*/trials/*.json"))) == 18


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "name one environment, such as --suite libero_spatial or maniskill/pick_cube"),
        (
            "reacher --policy magic",
            "there is no policy 'magic'; expected one of lerobot, metaworld-script",
        ),
        ("reacher --policy random --trials 0", "trials is 0 and videos is 2; expected at least 1 and 0"),
        ("reacher --policy replay", "demos/reacher is no episode store; give demonstrations of reacher"),
        ("reacher --policy random --demos d", "demos is for the policy replay, and the policy is 'random'"),
        ("reacher --environment-options 3", "environment_options is '3'; expected JSON"),
        ("reacher --policy random reacher-script", "2 policies were given; give one, or compare them with --compare"),
        ("reacher --classifier c", "are for the imagination; give --world CHECKPOINT"),
        ("reacher --compare --world w --policy random", "needs --world CHECKPOINT and at least 3 policies"),
        ("reacher --world nowhere", "checkpoint 'nowhere' is no folder"),
        ("pusht --policy pusht-goal:20", "expected options such as pusht-goal:noise=20"),
        ("reacher --policy planner", "the policy 'planner' has no 'world'"),
        ("reacher --policy planner:world=w,horizn=2", "has an unknown key 'horizn'; did you mean 'horizon'?"),
        ("--suite libero_space", "there is no environment 'libero_space'; did you mean 'libero_spatial'"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, words, sentence) -> None:
    done = run("evaluate-policy", *words.split())
    assert done.code == 2 and sentence in done.err and done.err.count("\n") == 1


def test_a_missing_simulator_is_named_before_anything_is_written(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mani_skill", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "ivideogpt.envs.maniskill", raising=False)
    done = run("evaluate-policy", "maniskill/pick_cube", "--trials", 1, "--workers", 0, "--out", tmp_path / "out")
    sentence = "mani-skill is not installed; run: pip install 'ivideogpt[maniskill]'"
    assert done.code == 2 and done.err == f"ivideogpt: {sentence}\n"
    assert not (tmp_path / "out").exists()
