"""``ivideogpt train-policy`` and ``ivideogpt wm-rl``: the whole pipeline on toy push, resume, and names of forks."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ivideogpt.commands.wm_rl import load_wm_rl_settings  # noqa: E402
from ivideogpt.commands.wm_rl_improvers import evaluation_seeds, training_seeds  # noqa: E402
from ivideogpt.configs.registry import find_preset  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.policies.vla.tiny_flow import TinyFlow  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wm-rl")


def test_a_policy_is_trained_resumed_and_evaluated(run, folder: Path) -> None:
    demos, policy = folder / "demos", folder / "policy"
    run("collect", "toy-push", "--episodes", 4, "--workers", 0, "--out", demos)
    first = run("train-policy", "debug", "--data", demos, "--out", policy, "--steps", 10)
    assert first.code == 0 and first.json["steps"] == 10 and first.json["demonstrations"] == 4
    again = run("train-policy", "--out", policy)
    assert again.json["steps"] == 20 and len((policy / "metrics.jsonl").read_text().splitlines()) == 20
    other = run("train-policy", "--out", policy, "--training.batch-size", 4)
    assert other.code == 2 and "was begun with training.batch_size 8" in other.err
    few = run("train-policy", "debug", "--data", demos, "--out", folder / "few", "--episodes", 9)
    assert few.code == 2 and "4 demonstrations" in few.err and not (folder / "few").exists()
    measured = run(
        "evaluate-policy", "toy-push", "--policy", policy, "--trials", 2, "--workers", 0, "--out", folder / "measured"
    )
    assert measured.code == 0 and measured.json["trials"] == 2


@pytest.mark.slow
def test_debug_runs_the_whole_pipeline_and_the_same_command_does_nothing_twice(run, folder: Path) -> None:
    done = run("wm-rl", "debug", "--run", folder / "debug")
    assert done.code == 0, done.err
    assert {"success_before", "success_after", "agreement"} <= done.json.keys() and len(done.out.splitlines()) == 1
    assert (Path(done.json["output"]) / "policy.safetensors").is_file()
    again = run("wm-rl", "debug", "--run", folder / "debug")
    assert {**again.json, "seconds": 0} == {**done.json, "seconds": 0}
    longer = run("wm-rl", "--run", folder / "debug", "--rl.iterations", 9)
    assert longer.code == 2 and "rl.iterations 3" in longer.err


def test_a_correction_of_a_policy_is_learned_and_is_a_policy_itself(run, folder: Path) -> None:
    TinyFlow(find_preset("debug", "policies").policy).save_pretrained(folder / "start")
    words = ("--rl.algorithm", "residual_drq", "--rl.iterations", 2, "--rl.minibatch", 8, "--rl.bc-updates", 2)
    words += ("--rl.evaluation-episodes", 4, "--rl.horizon", 4, "--no-imagination", "--policy", folder / "start")
    words += ("--run", folder / "corrected")
    done = run("wm-rl", "debug", *words)
    assert done.code == 0 and 0 <= done.json["success_after"] <= 1, done.err
    assert {"evaluation before", "improvement", "evaluation after"} == set(done.json["stages"])
    assert {**run("wm-rl", "debug", *words).json, "seconds": 0} == {**done.json, "seconds": 0}
    measure = ("evaluate-policy", "toy-push", "--trials", 2, "--workers", 0)
    measured = run(*measure, "--policy", done.json["output"], "--out", folder / "of-corrected")
    assert measured.code == 0 and measured.json["trials"] == 2, measured.err
    changed = run("wm-rl", "debug", "--policy", "pusht-goal", "--no-imagination", "--run", folder / "script")
    assert changed.code == 2 and "learn a correction of it: --rl.algorithm residual_drq" in changed.err


def test_names_of_configurations_of_forks_mean_a_suite() -> None:
    for name, suite in (
        ("libero_spatial_mbpo_openpi_pi05_config", "libero_spatial"),
        ("libero_10_mbpo_openpi_pi05", "libero_10"),
        ("libero_object_mbpo_openpi", "libero_object"),
    ):
        assert load_wm_rl_settings({"config_name": name}).rl.task == suite
    with pytest.raises(UserError, match="there is no configuration 'nonsense'"):
        load_wm_rl_settings({"config_name": "nonsense"})
    with pytest.raises(UserError, match="expected one of toy-push"):
        load_wm_rl_settings({})


def test_a_missing_simulator_is_named_before_anything_is_written(run, folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "libero", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "ivideogpt.envs.libero", raising=False)
    config = "libero_spatial_mbpo_openpi_pi05_config"
    done = run("wm-rl", "--config-name", config, "task_name=libero_spatial", "demo=true", "--run", folder / "libero")
    assert done.code == 2 and "LIBERO is not installed; run: pip install 'ivideogpt[libero]'" in done.err
    assert not (folder / "libero").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("toy-push", "--policy", "nowhere"), "nowhere is no policy that filtered_bc can change"),
        (("toy-push", "--world", "nowhere"), "nowhere"),
        (("toy-push", "--recordings", "nowhere"), "nowhere"),
        (("toy-push", "--world", "pusht-64"), "policy 32 px, world model 64 px"),
        (("toy-push", "--task-name", "pusht"), "recording of pusht has an unknown key 'noise'"),
        (("toy-push", "--recording-options", '{"wind": 1}'), "wind"),
        (("libero", "--task-name", "toy-push"), "actions of 7 numbers and toy-push takes 2"),
        (("toy-push", "--device", "cuda:77"), "cuda:77"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_is_written(words, reason, run, folder: Path) -> None:
    done = run("wm-rl", *words, "--run", folder / "refused")
    assert done.code == 2 and reason in done.err, done.err
    assert not (folder / "refused").exists()


def test_an_evaluation_in_libero_begins_at_held_out_states_of_every_task() -> None:
    quick = load_wm_rl_settings({"preset": "libero-quick", "config_name": "libero_spatial_mbpo_openpi_pi05_config"})
    assert quick.rl.task == "libero_spatial/0" and quick.policy_preset == "libero-quick"
    assert evaluation_seeds(replace(quick.rl, evaluation_episodes=12)) == [*range(40, 50), 40, 41]
    suite = load_wm_rl_settings({"preset": "libero"}).rl
    seeds = np.array(evaluation_seeds(suite))
    assert set(seeds % 50) == set(range(40, 50)) and np.bincount(seeds // 50).tolist() == [10] * 10
    assert not set(training_seeds(suite)) & set(seeds) and len(training_seeds(suite)) == 400
    toy = load_wm_rl_settings({"preset": "debug"}).rl
    assert evaluation_seeds(toy)[:2] == [20_000, 20_001] and min(training_seeds(toy)) == 10**6


def test_a_policy_is_needed_where_demonstrations_are_refused(run, folder: Path) -> None:
    done = run("wm-rl", "toy-push", "--no-demo", "--run", folder / "none")
    assert done.code == 2 and "give one with --policy" in done.err and not (folder / "none").exists()


def test_the_pipeline_script_honours_the_variables_of_the_forks(tmp_path: Path) -> None:
    import os
    import subprocess

    script = Path(__file__).parents[2] / "runs" / "wm_rl_vla.sh"
    log, program = tmp_path / "log", tmp_path / "ivideogpt"
    program.write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES|$*" >> {log}\n')
    program.chmod(0o755)
    variables = {
        "MBPO_TASK_NAME": "libero_object",
        "MBPO_CONFIG": "libero_object_mbpo_openpi_pi05_config",
        "MBPO_FRAMES": "5000",
        "MBPO_DEMO": "false",
        "MBPO_GPU": "0",
        "VLA_GPUS": "1",
        "MBPO_EXTRA_ARGS": "seed=3",
        "VLA_EXTRA_ARGS": "--rl.iterations 7",
    }
    places = {"IVIDEOGPT": str(program), "RUNS": str(tmp_path / "runs")}

    def lines(**more: str) -> list[str]:
        log.unlink(missing_ok=True)
        subprocess.run(["bash", str(script)], env=os.environ | variables | places | more, check=True, timeout=20)
        return log.read_text().splitlines()

    model, policy = lines()
    assert model.startswith("0|mbrl task=libero_object num_train_frames=5000") and model.endswith("seed=3")
    assert "demo=true" not in model
    assert policy.startswith("1|wm-rl --config-name libero_object_mbpo_openpi_pi05_config task_name=libero_object")
    assert policy.endswith("--rl.iterations 7") and f"--world {tmp_path}/runs/world" in policy
    assert len(lines(SKIP_MBRL="1")) == 1 and "mbrl task" in lines(SKIP_VLA="1")[0]
