"""The shipped model and the commands around it."""

import json
from pathlib import Path

import pytest

from ivideogpt import WorldModel
from ivideogpt.cli import main
from ivideogpt.data.episode_files import load_episodes
from ivideogpt.evaluation.pusht_protocol import HORIZON, MOVED, block_travel, contact_windows
from ivideogpt.worldmodel.shipped import EPISODES_FILE, SHIPPED

SHIPPED_FOLDER = SHIPPED["pusht-64"]


def last_line(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def test_the_demo_imagines_a_held_out_episode_better_than_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--output", str(tmp_path)]) == 0
    line = last_line(capsys.readouterr().out)
    assert set(line) == {"psnr", "psnr_copy_last", "ssim", "frames_per_second", "output"}
    assert line["psnr"] > line["psnr_copy_last"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.mp4", "demo.png"]
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_the_demo_refuses_an_episode_or_horizon_that_it_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--episode", "99"], ["--horizon", "0"], ["--horizon", "500"]):
        assert main(["demo", *option, "--output", str(tmp_path / "none")]) == 2
        assert option[1] in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_an_output_that_is_a_file_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    assert main(["demo", "--output", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_shipped_model_is_small_and_knows_its_units() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_FOLDER.rglob("*") if path.is_file()) <= 16 * 2**20
    model = WorldModel.from_pretrained("pusht-64")
    assert (model.action_dim, model.context_frames) == (2, 2)
    assert model.config.action_mean == (256.0, 256.0)
    assert "held_out_results" in model.config.metadata


def test_the_shipped_episodes_are_held_out_and_show_contact() -> None:
    episodes = load_episodes(SHIPPED_FOLDER / EPISODES_FILE)
    assert len(episodes) >= 4
    assert all(int(episode.meta["seed"]) >= 10_000 for episode in episodes)
    moved = [block_travel(e, e.meta["start"] + 1, e.meta["start"] + 1 + HORIZON) >= MOVED for e in episodes]
    assert all(moved)


def test_windows_show_the_block_moving_where_it_moves() -> None:
    episodes = load_episodes(SHIPPED_FOLDER / EPISODES_FILE)
    windows = contact_windows(episodes, 2 + HORIZON)
    assert [len(window) for window in windows] == [2 + HORIZON] * len(episodes)
    assert all(block_travel(window, 1, 1 + HORIZON) >= MOVED for window in windows)


def test_fresh_episodes_are_measured_beside_what_they_are_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gym_pusht", reason="collecting needs the extra pusht")
    words = ["evaluate", "pusht-64", "--protocol", "pusht", "--seeds", "20000:20003", "--output", str(tmp_path)]
    assert main([*words, "--metrics", "following"]) == 0
    line = last_line(capsys.readouterr().out)
    rows = {"imagined", "copy_last", "permuted_actions", "zero_actions"}  # a picture model reconstructs nothing
    assert set(line["objects"]) == rows and line["objects"]["imagined"]["agent_near"] > 0.5
    assert line["clips"] == 3 and line["clip_frames"] == 16 and line["temperature"] == 1.0
    assert line["objects"]["imagined"]["changed_psnr"] > line["objects"]["copy_last"]["changed_psnr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.parametrize("option", [("--stride", "2"), ("--camera", "top")])
def test_options_of_a_store_are_refused_where_episodes_are_recorded(tmp_path: Path, capsys, option) -> None:
    assert main(["evaluate", "pusht-64", "--protocol", "pusht", "--output", str(tmp_path / "out"), *option]) == 2
    assert "leave out --stride and --camera" in capsys.readouterr().err and not (tmp_path / "out").exists()
