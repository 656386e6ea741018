"""A long rollout is measured block by block beside the recorded future."""

import json
from dataclasses import replace

import long
import numpy as np
import pytest
import torch

from ivideogpt import UserError
from ivideogpt.core.episode import Episode
from ivideogpt.data.episode_files import load_episodes, save_episodes

CPU = torch.device("cpu")


@pytest.fixture
def measure(capsys):
    """``measure(**options)``: the JSON of the last line that the script prints."""

    def call(**options):
        long.main(long.LongOptions(device="cpu", **options))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


@pytest.fixture
def checkpoint(build, tmp_path):
    """A folder with a tiny model that takes 16 px."""
    build("conditional").save_pretrained(tmp_path / "conditional")
    return str(tmp_path / "conditional")


@pytest.fixture
def long_episodes(tmp_path):
    """``long_episodes(count, frames, meta)``: a file of pictures of 16 px that move."""

    def make(count, frames, meta=None):
        random = np.random.default_rng(0)
        made = [
            Episode(
                frames=random.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8),
                actions=random.standard_normal((frames, 3)).astype(np.float32),
                meta=meta or {},
            )
            for _ in range(count)
        ]
        save_episodes(tmp_path / "long.safetensors", made)
        return tmp_path / "long.safetensors"

    return make


def test_a_long_rollout_is_measured_block_by_block(measure, checkpoint, long_episodes, tmp_path, monkeypatch):
    monkeypatch.setattr(long, "BLOCK", 4)
    monkeypatch.setattr(long, "STRETCHES", (3, 5))
    out = tmp_path / "kept"
    figures = measure(source=checkpoint, data=long_episodes(2, 14), steps=12, periods=(2, 4), threads=1, out=out)
    kept, picture = sorted(out.iterdir())
    assert json.loads(kept.read_text(encoding="utf-8")).keys() == figures.keys()
    assert picture.suffix == ".png" and picture.stat().st_size > 1000
    assert figures["runs"].keys() == {"2", "4"} and figures["steps"] == 12
    assert figures["threads"] == 1 and figures["device"] == "cpu"
    for run in figures["runs"].values():
        assert len(run["milliseconds_per_step"]) == 3 and min(run["milliseconds_per_step"]) > 0
        assert run["slowest_to_fastest_block"] >= 1
        assert len(run["growth_mb"]) in (0, 2)
        assert [(x["first"], x["last"]) for x in run["drift"]] == [(1, 3), (4, 5), (6, 12)]
        assert all(x["missing"] is None and 0 < x["psnr"] < 20 for x in run["drift"])


def test_a_long_rollout_is_that_of_a_session(build, long_episodes):
    model = build("conditional")
    options = long.LongOptions(source="mine", data=long_episodes(2, 9), steps=7)
    truth = long.read_truth(model, options)
    found = long.run_long(model, truth, 3, seed=5)
    expected = model.imagine(truth.frames[:, :2], truth.actions, seed=5, reanchor_every=3).frames
    assert len(found.milliseconds) == 1 and found.period == 3
    torch.testing.assert_close(found.frames, expected[0], atol=0.5 / 255 + 1e-6, rtol=0)
    difference = (expected.mul(255).round() - truth.frames[:, 2:]).square().mean(dim=(2, 3, 4)) / 255**2
    assert found.drift[0].psnr == pytest.approx(float(-10 * difference.log10().mean()), abs=1e-3)


def test_drift_knows_where_the_agent_of_pusht_is():
    true = torch.full((1, 6, 3, 64, 64), 255, dtype=torch.uint8)
    for index in range(6):
        true[0, index, :, 30:34, 8 * index + 8 : 8 * index + 12] = torch.tensor([72, 116, 241])[:, None, None]
    imagined = true.clone()
    imagined[0, 2] = 255
    imagined[0, 3] = true[0, 5]
    (found,) = long.drift(true, imagined, true[:, 0], pusht=True)
    assert (found.first, found.last) == (1, 6)
    assert found.missing == pytest.approx(1 / 6) and found.right == pytest.approx(4 / 6)
    (same,) = long.drift(true, true, true[:, 0], pusht=True)
    assert same.missing == 0 and same.right == 1 and same.psnr > same.still


def test_drift_knows_where_the_block_of_pusht_is_and_that_it_vanished():
    true = torch.full((1, 4, 3, 64, 64), 255, dtype=torch.uint8)
    for index in range(4):
        left = 10 + 6 * index
        true[0, index, :, 30:34, left : left + 16] = torch.tensor([135, 154, 173])[:, None, None]
        true[0, index, :, 34:46, left + 6 : left + 10] = torch.tensor([135, 154, 173])[:, None, None]
        true[0, index, :, 5:9, 5:9] = torch.tensor([72, 116, 241])[:, None, None]
    shifted = true.roll(3, dims=-1)
    (found,) = long.drift(true, shifted, true[:, 0], pusht=True)
    assert found.block_missing == 0 and found.block == pytest.approx(3, abs=0.01)
    assert found.block_still == pytest.approx((0 + 6 + 12 + 18) / 4, abs=0.01)
    gone = true.clone()
    gone[0, 2:, :, 20:] = 255
    (found,) = long.drift(true, gone, true[:, 0], pusht=True)
    assert found.block_missing == 0.5 and found.missing == 0 and found.right == 1


def test_the_agent_is_looked_for_in_recorded_episodes_of_pusht_alone(model_of, long_episodes, monkeypatch):
    model, environment = model_of("conditional"), {"environment": "ivideogpt/PushT-v0"}
    monkeypatch.setattr(long, "IMAGE_SIZE", 16)
    for meta, expected in ((environment, True), ({}, False)):
        options = long.LongOptions(source="mine", data=long_episodes(2, 9, meta), steps=7)
        assert long.read_truth(model, options).pusht == expected


@pytest.mark.parametrize(("kind", "stride", "wanted"), [("conditional", 2, 17), ("goal", 1, 8), ("action_free", 1, 9)])
def test_the_truth_has_the_stride_the_goal_and_the_actions_of_the_model(build, long_episodes, kind, stride, wanted):
    model, file = build(kind, frame_stride=stride), long_episodes(2, wanted + 3)
    truth = long.read_truth(model, long.LongOptions(source="mine", data=file, steps=7))
    episode = load_episodes(file)[1]
    frames = torch.from_numpy(episode.frames[:wanted:stride].copy()).permute(0, 3, 1, 2)
    goal = kind == "goal"
    assert truth.frames.shape == (2, 9, 3, 16, 16)
    assert torch.equal(truth.frames[1, goal:], frames)
    if goal:
        assert torch.equal(truth.frames[1, 0], frames[-1])
    if kind == "action_free":
        assert truth.actions is None
    else:
        expected = model.normalize_actions(torch.from_numpy(episode.actions[: wanted - 1 : stride].copy()))
        torch.testing.assert_close(truth.actions[1], expected[1 - goal :])


def test_the_memory_of_each_run_is_its_own(build, long_episodes, monkeypatch):
    held = iter([100, 150, 230])
    monkeypatch.setattr(long, "BLOCK", 2)
    monkeypatch.setattr(long, "process_memory", lambda label: next(held))
    resets = []
    monkeypatch.setattr(long, "reset_peak_memory", resets.append)
    model, options = build("conditional"), long.LongOptions(source="mine", data=long_episodes(2, 9), steps=7)
    found = long.run_long(model, long.read_truth(model, options), 3, seed=0)
    assert found.growth == (50, 80) and len(found.milliseconds) == 3 and resets == [CPU]
    assert found._replace(milliseconds=(2.0, 3.0, 2.5)).slowest == 1.5


def test_episodes_without_actions_are_refused_where_the_model_needs_them(build, long_episodes, tmp_path):
    episodes = [replace(episode, actions=None) for episode in load_episodes(long_episodes(2, 9))]
    save_episodes(tmp_path / "plain.safetensors", episodes)
    options = long.LongOptions(source="mine", data=tmp_path / "plain.safetensors", steps=7)
    with pytest.raises(UserError, match="without actions; the model needs 3 numbers"):
        long.read_truth(build("conditional"), options)


def test_episodes_that_are_too_short_or_missing_are_refused(measure, checkpoint, long_episodes):
    with pytest.raises(UserError, match="has 0 episodes of at least 9 frames; expected 2"):
        measure(source=checkpoint, data=long_episodes(2, 8), steps=7)
    with pytest.raises(UserError, match="add --data with some of 9 frames"):
        measure(source=checkpoint, steps=7)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 1}, "steps is 1; expected at least 2"),
        ({"episodes": 0}, "episodes is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"periods": (4, 99)}, "reanchor_every is 99; expected 1 to 14"),
        ({"source": "no-such-folder"}, "no-such-folder"),
    ],
)
def test_options_that_cannot_be_measured_are_one_sentence(measure, options, sentence):
    with pytest.raises(UserError, match=sentence):
        measure(**options)


def test_the_shipped_model_is_measured_on_recorded_episodes(measure):
    pytest.importorskip("gym_pusht", reason="PushT comes with: pip install 'ivideogpt[pusht]'")
    figures = measure(steps=4, episodes=1, periods=(3,), threads=1)
    (stretch,) = figures["runs"]["3"]["drift"]
    assert stretch["psnr"] > 25 and stretch["missing"] == stretch["block_missing"] == 0
    assert 0 < stretch["block"] < 5
