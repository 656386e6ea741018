"""``ivideogpt predict`` on tiny checkpoints: every kind of input, what is written, and what is printed last."""

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ivideogpt import Sampling, WorldModel
from ivideogpt.data.media import read_episode
from ivideogpt.metrics.image import psnr, ssim

KEYS = {"psnr", "psnr_copy_last", "ssim", "frames_per_second", "output"}
PICTURES = {"imagined.mp4", "imagined.png", "imagined.gif"}


@pytest.fixture
def figures(run, monkeypatch):
    """``figures(words...)``: the JSON line of a command that draws no pictures."""
    monkeypatch.setattr("ivideogpt.commands.predict.write_pictures", lambda *_, **__: [])

    def call(*words):
        done = run("predict", *words)
        assert done.code == 0, done.err
        return done.json

    return call


def frames_in(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("name", ["plain.npz", "wide.npz", "video.mp4", "video.gif", "images", "episodes.safetensors"])
def test_every_kind_of_recording_is_continued(run, checkpoints, inputs, tmp_path, name):
    done = run("predict", checkpoints["action_free"], "--input", inputs[name], "--horizon", 4, "--output", "out")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES
    assert frames_in(tmp_path / "out" / "imagined.mp4") == 6
    assert set(done.json) == KEYS and done.json["output"] == "out"
    assert done.json["frames_per_second"] > 0 and done.json["psnr"] > 0
    assert "copy of the last frame" in done.out and "frames/s" in done.out
    for picture in PICTURES:
        assert f"out/{picture}" in done.out


@pytest.mark.parametrize(("kind", "name"), [("conditional", "actions3.npz"), ("plain", "actions2.npz")])
def test_recorded_actions_lead_the_imagination(figures, checkpoints, inputs, kind, name):
    found = figures(checkpoints[kind], "--input", inputs[name], "--seed", 3)
    model, episode = WorldModel.from_pretrained(checkpoints[kind]), read_episode(inputs[name], size=16)
    # One model was trained on every second recorded frame, and its checkpoint says so.
    stride = {"conditional": 1, "plain": 2}[kind]
    frames = torch.from_numpy(episode.frames[::stride]).permute(0, 3, 1, 2)[None]
    horizon = min(model.segment_frames(), frames.shape[1] - 2)
    actions = model.normalize_actions(torch.from_numpy(episode.actions[::stride][1 : 1 + horizon]))[None]
    imagined = model.imagine(frames[:, :2], actions, seed=3, sampling=Sampling(top_k=100))
    true = frames[:, 2 : 2 + horizon].float() / 255
    assert found["psnr"] == pytest.approx(psnr(imagined.frames, true).mean().item(), abs=1e-3)
    assert found["ssim"] == pytest.approx(ssim(imagined.frames, true).mean().item(), abs=1e-3)
    copy = (frames[:, 1:2].float() / 255).expand_as(true)
    assert found["psnr_copy_last"] == pytest.approx(psnr(copy, true).mean().item(), abs=1e-3)


def test_other_actions_give_another_imagination(figures, checkpoints, inputs, tmp_path):
    with np.load(inputs["actions3.npz"]) as stored:
        np.savez(tmp_path / "other.npz", image=stored["image"], action=-stored["action"])
    one, other = (
        figures(checkpoints["conditional"], "--input", path, "--greedy")["psnr"]
        for path in (inputs["actions3.npz"], tmp_path / "other.npz")
    )
    assert one != other


def test_a_goal_conditioned_model_sees_the_last_frame_first(run, checkpoints, inputs, tmp_path):
    done = run("predict", checkpoints["goal"], "--input", inputs["actions3.npz"], "--output", "out", "--greedy")
    assert done.code == 0, done.err
    model, episode = WorldModel.from_pretrained(checkpoints["goal"]), read_episode(inputs["actions3.npz"], size=16)
    frames = torch.from_numpy(episode.frames[:5]).permute(0, 3, 1, 2)
    actions = torch.from_numpy(episode.actions[:4])[None]
    imagined = model.imagine(frames[[4, 0]][None], actions, sampling=Sampling(greedy=True))
    true = frames[None, 1:].float() / 255
    assert done.json["psnr"] == pytest.approx(psnr(imagined.frames, true).mean().item(), abs=1e-3)
    copy = (frames[None, :1].float() / 255).expand_as(true)
    assert done.json["psnr_copy_last"] == pytest.approx(psnr(copy, true).mean().item(), abs=1e-3)
    assert frames_in(tmp_path / "out" / "imagined.mp4") == 6


def test_fewer_context_frames_leave_more_to_imagine(run, checkpoints, inputs, tmp_path):
    for count in (1, 2):
        done = run(
            "predict",
            checkpoints["conditional"],
            "--input",
            inputs["actions3.npz"],
            "--context-frames",
            count,
            "--output",
            "out",
        )
        assert done.code == 0, done.err
        assert f"{6 - count} frames" in done.out
        assert frames_in(tmp_path / "out" / "imagined.mp4") == 6


def test_several_futures_are_shown_and_the_best_is_reported(run, figures, checkpoints, inputs, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "ivideogpt.commands.predict.write_pictures", lambda _, __, rows, *___: shown.append(list(rows)) or []
    )
    words = (checkpoints["action_free"], "--input", inputs["plain.npz"])
    one, three = figures(*words), run("predict", *words, "--repeat", 3)
    assert shown == [["true", "imagined"], ["true", "imagined 1", "imagined 2", "imagined 3"]]
    assert "imagined, best of 3" in three.out and "imagined, mean of 3" in three.out
    assert three.json["psnr"] >= one["psnr"], "the first of the three futures is the one future"
    assert three.json["psnr_copy_last"] == one["psnr_copy_last"]


def test_a_seed_makes_a_command_repeatable(figures, checkpoints, inputs):
    def found(*options):
        return {**figures(checkpoints["action_free"], "--input", inputs["plain.npz"], *options), "frames_per_second": 0}

    first = found()
    assert found() == first and found("--seed", 0) == first
    assert found("--seed", 1) != first
    assert found("--greedy") == found("--greedy", "--seed", 5) == found("--top-k", 1)


def test_beyond_the_recording_only_what_happened_is_measured(run, checkpoints, inputs, tmp_path):
    done = run(
        "predict", checkpoints["action_free"], "--input", inputs["plain.npz"], "--horizon", 20, "--output", "out"
    )
    assert done.code == 0 and done.json["psnr"] > 0
    assert frames_in(tmp_path / "out" / "imagined.mp4") == 22
    np.savez(tmp_path / "short.npz", image=np.load(inputs["plain.npz"])["image"][:2])
    done = run("predict", checkpoints["action_free"], "--input", "short.npz", "--horizon", 3)
    assert done.code == 0 and done.json["psnr"] is None and done.json["ssim"] is None


def test_the_json_line_is_plain_json(run, figures, checkpoints, inputs):
    done = run("predict", checkpoints["action_free"], "--input", inputs["plain.npz"])
    line = done.out.splitlines()[-1]
    values = json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert all(isinstance(value, str) or math.isfinite(value) for value in values.values())


def test_results_lie_in_a_folder_of_their_own_by_default(run, checkpoints, inputs, tmp_path):
    done = run("predict", checkpoints["action_free"], "--input", inputs["video.mp4"])
    assert done.json["output"] == "outputs/predict/video"
    assert {path.name for path in (tmp_path / "outputs" / "predict" / "video").iterdir()} == PICTURES


def test_the_dataset_says_camera_and_stride(figures, checkpoints, inputs, tmp_path):
    slow = np.load(inputs["plain.npz"])["image"].repeat(3, axis=0)
    np.savez(tmp_path / "kuka.npz", image=slow, other=slow[::-1])
    model = checkpoints["action_free"]
    expected = figures(model, "--input", inputs["plain.npz"], "--greedy")
    named = figures(model, "--input", "kuka.npz", "--dataset-name", "kuka", "--greedy")
    asked = figures(model, "--input", "kuka.npz", "--camera-key", "image", "--stride", 3, "--greedy")
    assert named["psnr"] == asked["psnr"] == expected["psnr"] and named["ssim"] == expected["ssim"]


def test_start_stride_and_episode_choose_the_clip(figures, checkpoints, inputs, tmp_path):
    np.savez(tmp_path / "part.npz", image=np.load(inputs["plain.npz"])["image"][1::2])
    part = figures(checkpoints["action_free"], "--input", "part.npz", "--greedy")
    options = ("--greedy", "--start", 1, "--stride", 2)
    assert figures(checkpoints["action_free"], "--input", inputs["plain.npz"], *options)["psnr"] == part["psnr"]
    words = (checkpoints["conditional"], "--input", inputs["episodes.safetensors"], "--episode")
    assert figures(*words, 0)["psnr"] != figures(*words, 1)["psnr"]


def test_reanchoring_can_be_asked_for(figures, checkpoints, inputs):
    words = (checkpoints["conditional"], "--input", inputs["actions3.npz"], "--horizon", 6, "--greedy")
    ratios = [figures(*words, *more)["psnr"] for more in ((), ("--reanchor-every", 4), ("--reanchor-every", 1))]
    assert ratios[0] == ratios[1] != ratios[2]


def test_nothing_is_printed_on_stderr_where_nobody_watches(run, checkpoints, inputs):
    assert run("predict", checkpoints["action_free"], "--input", inputs["plain.npz"]).err == ""


def test_official_samples_are_read(figures, checkpoints):
    samples = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "samples"
    if not samples.is_dir():
        pytest.skip(f"the official samples are not here ({samples})")
    for name, dataset in (("bair_sample.npz", "bair_robot_pushing"), ("fractal_sample.npz", "fractal20220817_data")):
        words = (checkpoints["action_free"], "--input", samples / name, "--dataset-name", dataset)
        assert set(figures(*words)) == KEYS
