"""ivideogpt posttrain: from a command line to an improved checkpoint, going on, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.cli import main
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.worldmodel.world_model import WorldModel


def posttrain(*words: object) -> int:
    return main(["posttrain", *map(str, words), "--tracker", "none", "--device", "cpu", "--precision", "float32"])


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A debug run, with the start model and the data that it made."""
    folder = tmp_path_factory.mktemp("posttrain")
    assert posttrain("debug", "--run", folder / "run") == 0
    return folder


def test_debug_ends_with_the_rewards_before_and_after(finished, tmp_path, capsys) -> None:
    words = ("debug", finished / "run-start", "--data", finished / "run-data", "--run", tmp_path / "run")
    assert posttrain(*words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 3 and result["reward_before"] < 0 and result["reward_after"] < 0
    lines, others = lines_of(tmp_path / "run"), lines_of(finished / "run")
    names = [name for name in lines[1] if not name.startswith("seconds")]
    assert [[line.get(name) for name in names] for line in lines] == [
        [line.get(name) for name in names] for line in others
    ]
    measured = [
        line["step"] for line in lines if "validation_psnr" in line and "validation_repetition_imagined" in line
    ]
    assert measured == [0, 2, 3]
    samples = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert samples == [f"step-0000000{step}.{kind}" for step in measured for kind in ("mp4", "png")]


def test_the_result_is_a_checkpoint_that_says_where_it_comes_from(finished) -> None:
    start, model = (WorldModel.from_pretrained(finished / name) for name in ("run-start", "run"))
    about = model.config.metadata["post_training"]
    assert about["method"] == "GRPO" and about["started_from"] == str(finished / "run-start")
    assert about["reward"] == "mae" and about["group"] == 4 and len(about["start_weights"]) == 16
    assert "held_out_results" not in model.config.metadata
    assert not torch.equal(start.transformer.embed.weight, model.transformer.embed.weight)
    assert model.tokenizer.fingerprint() == start.tokenizer.fingerprint()
    imagined = model.imagine(torch.rand(1, 2, 3, 16, 16), torch.zeros(1, 4, 1), horizon=4)
    assert imagined.frames.shape == (1, 4, 3, 16, 16)


def test_a_run_goes_on_to_more_steps_exactly(finished, tmp_path, capsys) -> None:
    words = ("debug", finished / "run-start", "--data", finished / "run-data", "--run", tmp_path / "run")
    assert posttrain(*words, "--steps", 1) == 0
    assert posttrain("--run", tmp_path / "run", "--steps", 3) == 0  # model, data and settings are those of the run
    numbers = [name for name in lines_of(finished / "run")[1] if not name.startswith("seconds")]
    whole, parts = (
        [[line[name] for name in numbers] for line in lines_of(folder)[1:]]
        for folder in (finished / "run", tmp_path / "run")
    )
    assert parts == whole
    capsys.readouterr()
    assert posttrain("--run", tmp_path / "run", "--group", 2) == 2
    assert "was begun with group 4, not 2" in capsys.readouterr().err
    assert posttrain("cpu", "--run", tmp_path / "run") == 2
    assert "was begun with the preset debug, not cpu" in capsys.readouterr().err
    assert posttrain("--run", tmp_path / "run", "--held-out", tmp_path / "others") == 2
    assert "measured on the held-out split of its data so far" in capsys.readouterr().err


def test_the_reward_following_is_measured_on_held_out_clips_too(finished, tmp_path, capsys) -> None:
    words = ("debug", finished / "run-start", "--data", finished / "run-data", "--steps", 1)
    assert posttrain(*words, "--reward", "following", "--run", tmp_path / "run") == 0
    before, after = (line["validation_reward"] for line in lines_of(tmp_path / "run"))
    assert np.isfinite(before) and before != 0 and after != before
    options = ("--reward", "following", "--prompts", 1, "--minibatch-prompts", 1)
    assert posttrain(*words, *options, "--run", tmp_path / "single") == 2
    assert "compares the actions of two clips, and there is one" in capsys.readouterr().err


def test_a_reward_that_cannot_be_imported_is_refused_before_anything_is_written(tmp_path, capsys) -> None:
    assert posttrain("debug", "--reward", "no_such_module:reward", "--run", tmp_path / "run") == 2
    assert "no_such_module" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_two_processes_improve_as_one(finished, tmp_path) -> None:
    pytest.importorskip("accelerate", reason="several processes need the extra train")
    words = ("debug", finished / "run-start", "--data", finished / "run-data", "--minibatch-prompts", 4, "--steps", 2)
    assert posttrain(*words, "--run", tmp_path / "one") == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [f"run={tmp_path / 'two'}", "--tracker", "none", "--device", "cpu", "--precision", "float32"]
    command = [*launcher, "-m", "ivideogpt", "posttrain", *map(str, words), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    for one, two in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        same = {"reward", "reward_spread", "validation_reward", "kl", "entropy", "gradient_norm"} & one.keys()
        expected = {name: one[name] for name in same}
        assert {name: two[name] for name in same} == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "a new run needs a preset"),
        (("cpuu",), "there is no preset 'cpuu' for posttrain"),
        (("cpu",), "needs a CHECKPOINT and episodes"),
        (("cpu", "pusht-64", "--data", "DATA"), "pusht-64 is a picture model without tokens"),
        (("debug", "START", "--data", "DATA", "--clip-frames", "90"), "clip_frames is 90; expected 3 to"),
        (("debug", "START", "--data", "DATA", "--reward", "lpips"), "there is no reward 'lpips'"),
        (("debug", "START", "--data", "DATA", "--gradient-accumulation", "3"), "gradient_accumulation is 3"),
    ],
)
def test_what_cannot_be_gets_one_sentence(words, sentence, finished, tmp_path, capsys) -> None:
    places = {"DATA": finished / "run-data", "START": finished / "run-start"}
    assert posttrain(*(places.get(word, word) for word in words), "--run", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert sentence in error and error.splitlines()[-1].startswith("ivideogpt: ")


def test_the_presets_are_those_of_the_paper_and_smaller_ones() -> None:
    published = find_preset("rlvr-world", "posttrain")
    assert (published.group, published.prompts, published.minibatch_prompts, published.steps) == (16, 128, 32, 200)
    assert (published.learning_rate, published.kl_weight, published.clip_low, published.clip_high) == (
        5e-5,
        1e-3,
        0.2,
        0.2,
    )
    assert (published.weight_decay, published.clip_norm, published.dual_clip, published.epochs) == (0.01, 1.0, 3.0, 1)
    assert published.reward == "perceptual+mae" and published.temperature == 1.0
    assert all(find_preset(name, "posttrain").prompts <= 128 for name in PRESETS["posttrain"])
