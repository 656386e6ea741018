"""ivideogpt mbrl: from a command line to a run, and what is refused in one sentence."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from ivideogpt.cli import main  # noqa: E402
from ivideogpt.configs.registry import PRESETS, find_preset  # noqa: E402
from ivideogpt.core.episode import Episode  # noqa: E402
from ivideogpt.core.errors import UserError  # noqa: E402
from ivideogpt.mbrl.demonstrations import check_demos, read_demonstrations, scripted_demos  # noqa: E402

QUICK = ("evaluation_episodes=1",)


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *words: str) -> str:
    assert main(["mbrl", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("ivideogpt: ")
    return captured.err


def test_the_debug_run_ends_with_its_figures_and_goes_on_to_more_frames(tmp_path, capsys) -> None:
    folder, began = tmp_path / "run", time.process_time()
    assert main(["mbrl", "debug", "--run", str(folder), *QUICK]) == 0
    assert time.process_time() - began < 30, "a debug run takes seconds"
    result = last_line(capsys)
    assert result["env_frames"] == 80 and result["imagined_transitions"] > 0 and result["evaluations"] == 2
    assert isinstance(result["return"], float) and 0 <= result["success"] <= 1
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["preset"], settings["method"], settings["task"]) == ("debug", "mbpo", "reacher")
    assert main(["mbrl", "debug", "num_train_frames=90", f"run={folder}", *QUICK]) == 0
    assert last_line(capsys)["env_frames"] == 90
    assert main(["mbrl", "plot", str(folder), "--out", str(tmp_path / "curves")]) == 0
    assert (tmp_path / "curves" / "curves.png").is_file()


def test_a_run_does_not_go_on_with_other_settings(tmp_path, capsys) -> None:
    folder = str(tmp_path / "run")
    assert main(["mbrl", "debug", "--run", folder, "--no-imagination", *QUICK]) == 0
    capsys.readouterr()
    sentence = refused(capsys, "debug", "--run", folder, "--no-imagination", *QUICK, "agent.batch_size=9")
    assert "other settings (agent)" in sentence
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "settings.json").write_text("{}")
    assert "another kind of run" in refused(capsys, "debug", "--run", str(tmp_path / "else"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("metawrold",), "there is no preset 'metawrold' for mbrl; did you mean 'metaworld'"),
        (("debug", "task=reachr"), "reachr"),
        (("debug", "task=no_such_module:Env-v0"), "'no_such_module', which cannot be imported"),
        (("debug", "agent.batch_sice=3"), "unknown option agent.batch_sice; did you mean 'agent.batch-size'?"),
        (("debug", "num_train_frames=10"), "nothing would ever be learned"),
        (("debug", "--model", "pusht-64-tokens"), "the environment shows 16; resize them: image_size=64"),
        (("debug", "--model", "pusht-64"), "sees frames of 64 pixels a side and the environment shows 16"),
        (("reacher", "--model", "metaworld-64"), "takes actions of 4 numbers and the environment of 2"),
        (("debug", "--model", "nowhere"), "no folder, no Hub id"),
        (("debug", "demo=true"), "there is no script for reacher"),
        (("debug", "--demos", "nowhere"), "there is no folder nowhere"),
        (("debug", "--device", "cuda:77"), "device 'cuda:77' cannot be used here"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tmp_path, capsys, monkeypatch, words, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, *words, "--run", "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_a_reward_head_offers_what_to_do(tmp_path, capsys, build) -> None:
    model = build("action_free")
    model.save_pretrained(tmp_path / "model")
    words = ("debug", "--run", str(tmp_path / "run"), "--model", str(tmp_path / "model"), *QUICK)
    assert "set world_model.new_heads=true" in refused(capsys, *words)
    more = ("world_model.new_heads=true", "world_model.initial_updates=1")
    assert main(["mbrl", *words[:2], str(tmp_path / "other"), *words[3:], *more]) == 0
    assert last_line(capsys)["imagined_transitions"] > 0


def test_a_missing_package_names_the_extra(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ivideogpt.envs.pusht", None)
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    monkeypatch.delitem(sys.modules, "ivideogpt.envs.pusht")
    assert "ivideogpt[pusht]" in refused(capsys, "pusht", "--run", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


OWN = """
import gymnasium
import numpy as np


class Own(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (48, 48, 3), np.uint8)
    action_space = gymnasium.spaces.Box(np.float32([0.0, 1.0]), np.float32([2.0, 1.0]))

    def __init__(self, steps=6):
        self.steps = steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.steps
        return np.full((48, 48, 3), 9, np.uint8), {}

    def step(self, action):
        assert np.isfinite(action).all() and action[1] == 1
        self.left -= 1
        picture = np.full((48, 48, 3), int(action[0] * 99), np.uint8)
        return picture, np.array([action[0]]), self.left == 0, False, {}
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """An environment of a user's own: other options, other pictures, a constant action, no success."""
    (tmp_path / "own_environment.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return "task=own_environment:Own"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("preset", PRESETS["mbrl"])
def test_an_environment_of_a_users_own_runs_in_every_preset(preset, own, capsys) -> None:
    quick = ("num_train_frames=14", "random_steps=12", "evaluation_episodes=1", "agent.batch_size=8")
    assert main(["mbrl", preset, own, *quick, "--no-imagination", 'environment_options={"steps": 3}']) == 0
    result = last_line(capsys)
    assert result["env_frames"] == 14 and result["agent_updates"] > 0
    assert result["success"] == 0, "the end of an episode is no success"
    settings = json.loads((Path(result["run"]) / "settings.json").read_text())["settings"]
    assert settings["environment_options"] == {"steps": 3} and settings["action_repeat"] == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_environment_of_a_users_own_gets_a_world_model_of_its_own(own, capsys) -> None:
    assert main(["mbrl", "debug", own, *QUICK]) == 0
    result = last_line(capsys)
    assert result["imagined_transitions"] > 0
    assert json.loads((Path(result["run"]) / "settings.json").read_text())["settings"]["image_size"] == 16


def test_a_task_of_the_same_kind_keeps_the_options_of_the_preset() -> None:
    config = find_preset("metaworld", "mbrl")
    assert config.for_task("hammer").environment_options == config.environment_options == {"action_repeat": 2}
    assert config.for_task("hammer").task == "metaworld/hammer"
    other = config.for_task("reacher")
    assert (other.environment_options, other.action_repeat, other.image_size) == ({}, 1, None)
    assert find_preset("debug", "mbrl").for_task("pusht").image_size == 16
    assert config.for_frames(100_002).total_env_steps == 50_001


def test_a_run_of_another_version_is_refused_in_one_sentence(tmp_path, capsys) -> None:
    settings = {"preset": "debug", "task": "reacher", "method": "mbpo", "seed": 0, "settings": {"frames": 80}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert "holds a run of another version" in refused(capsys, "debug", "--run", str(tmp_path))


@pytest.mark.parametrize("name", PRESETS["mbrl"])
def test_every_preset_can_be_written_and_read(name) -> None:
    from ivideogpt.core.config import from_dict, to_dict

    config = find_preset(name, "mbrl")
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_the_official_preset_has_the_published_settings() -> None:
    config = find_preset("official", "mbrl")
    agent, world, imagination = config.agent, config.world_model, config.imagination
    repeat = config.action_repeat
    assert (config.total_env_steps * repeat, config.random_steps * repeat) == (100_002, 4000)
    assert (config.frame_stack, repeat, config.agent_updates_per_step) == (3, 2, 2)
    assert (agent.batch_size, agent.learning_rate, agent.weight_decay) == (256, 1e-4, 1e-6)
    assert (agent.feature_size, agent.hidden_size, agent.encoder_channels) == (50, 1024, 32)
    assert (agent.target_update_rate, agent.n_step, agent.discount, agent.learning_noise_clip) == (0.01, 3, 0.99, 0.3)
    assert (agent.exploration_noise_start, agent.exploration_noise_end) == (1.0, 0.1)
    assert agent.exploration_decay_steps * repeat == 100_000
    assert (world.update_every_steps, world.tokenizer_update_every_steps, world.initial_updates) == (5, 20, 1000)
    assert (world.batch_size, world.segment_frames, world.tokenizer_future_frames) == (16, 12, 5)
    assert (imagination.parallel_episodes, imagination.horizon) == (32, 10)
    assert (imagination.every_steps, imagination.initial_rollouts) == (100, 20)
    assert (imagination.real_share, imagination.kept_rollouts) == (0.5, 0)
    assert (config.evaluate_every_steps * repeat, config.evaluation_episodes) == (2000, 20)


# Demonstrations


def demo(task: str = "plate-slide", size: int = 64, actions: int = 4) -> Episode:
    return Episode(
        frames=np.zeros((5, size, size, 3), np.uint8),
        actions=np.full((5, actions), 7.0, np.float32),
        rewards=np.zeros(5, np.float32),
        key="one",
        meta={"task": task},
    )


def official(folder: Path, task: str) -> None:
    (folder / task).mkdir(parents=True)
    arrays = {"observation": np.zeros((6, 9, 64, 64), np.uint8), "action": np.full((6, 4), 24.8, np.float32)}
    arrays |= {"reward": np.ones((6, 1), np.float32), "discount": np.ones((6, 1), np.float32)}
    arrays["action"][0] = arrays["reward"][0] = 0  # row t leads into frame t
    np.savez(folder / task / "20240101T000000_0_5.npz", **arrays)


def test_official_demonstrations_are_read_clipped_and_left_as_they_are(tmp_path) -> None:
    official(tmp_path, "plate-slide")
    path = next(tmp_path.rglob("*.npz"))
    before = path.read_bytes(), path.stat().st_mtime_ns
    (found,) = read_demonstrations(tmp_path, "metaworld/plate-slide")
    assert np.abs(found.actions).max() == 1 and found.frames.shape == (6, 64, 64, 3)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_official_demonstrations_are_imported_into_a_store_by_the_command(tmp_path, capsys) -> None:
    pytest.importorskip("pyarrow")
    official(tmp_path / "npz", "plate-slide")
    official(tmp_path / "npz", "hammer")
    words = ["convert", "metaworld-npz", str(tmp_path / "npz"), str(tmp_path / "demos"), "--workers", "0"]
    assert main(words) == 0
    assert sum(last_line(capsys)["episodes"].values()) == 2
    (found,) = read_demonstrations(tmp_path / "demos", "metaworld/hammer")
    assert np.abs(found.actions).max() == 1 and found.rewards.sum() == 5


def test_demonstrations_of_another_task_or_size_are_refused(tmp_path) -> None:
    official(tmp_path, "hammer")
    with pytest.raises(UserError, match="demonstrations of hammer, not of plate-slide"):
        read_demonstrations(tmp_path, "metaworld/plate-slide")
    with pytest.raises(UserError, match="no demonstrations|no .npz"):
        (tmp_path / "empty").mkdir()
        read_demonstrations(tmp_path / "empty", "metaworld/plate-slide")
    with pytest.raises(UserError, match="actions of 4 numbers and the environment takes 2"):
        check_demos([demo()], action_dim=2, image=64)
    with pytest.raises(UserError, match="frames of 32x32 pixels"):
        check_demos([demo(size=32)], action_dim=4, image=64)


def test_scripted_demonstrations_are_recorded_where_there_are_none() -> None:
    pytest.importorskip("metaworld")
    try:
        (found,) = scripted_demos("metaworld/plate-slide", 1, 0, {"action_repeat": 2, "steps": 5})
    except UserError as error:
        pytest.skip(f"Meta-World cannot be drawn here: {error}")
    assert len(found) == 6 and found.meta["task"] == "plate-slide" and np.abs(found.actions).max() <= 1
