"""The command that trains a picture model: from a store to a checkpoint, going on, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.cli import main
from ivideogpt.commands.train_pictures import _read_episodes
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.core.config import from_dict, to_dict
from ivideogpt.core.errors import UserError
from ivideogpt.worldmodel.world_model import WorldModel


def run(*words: object) -> int:
    return main([str(word) for word in words])


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "a"
    assert run("train-pictures", "debug", "--run", folder, "--tracker", "none") == 0
    return folder


def test_debug_trains_a_model_that_imagines(trained: Path) -> None:
    model = WorldModel.from_pretrained(trained)
    assert not model.has_tokens and model.action_dim == 1 and model.config.clip_frames == 6
    assert model.config.action_mean[0] == pytest.approx(1.5, abs=0.2)
    imagined = model.imagine(torch.rand(1, 2, 3, 16, 16), torch.zeros(1, 3, 1))
    assert imagined.frames.shape == (1, 3, 3, 16, 16) and imagined.rewards is not None
    assert model.pictures is not None and model.pictures.background.mean() > 0.9  # white, without the square


def test_a_stopped_run_goes_on_without_options_as_if_it_had_never_stopped(trained: Path, tmp_path: Path) -> None:
    words = ("train-pictures", "--run", tmp_path / "b", "--tracker", "none")
    assert run(*words, "debug", "--data", trained.parent / "a-data", "--steps", 7) == 0
    assert len(losses(tmp_path / "b")) == 7
    assert run(*words) == 0
    assert losses(tmp_path / "b") == losses(trained)


def test_a_model_starts_from_another_one(trained: Path, tmp_path: Path) -> None:
    words = ("train-pictures", "debug", "--data", trained.parent / "a-data", "--run", tmp_path / "c", "--steps", 1)
    options = ("training.dynamics.forecast.net.width=16", "training.learning-rate=0", "--tracker", "none")
    assert run(*words, "--init", trained, *options) == 0
    first, second = (WorldModel.from_pretrained(folder).pictures for folder in (trained, tmp_path / "c"))
    assert first is not None and second is not None and first.config == second.config
    assert torch.equal(first.forecast.net.stem.weight, second.forecast.net.stem.weight)

    # stopped before the first checkpoint, it still begins from that model
    shutil.rmtree(tmp_path / "c" / "checkpoints")
    assert run("train-pictures", "--run", tmp_path / "c", "--steps", 1, "--tracker", "none") == 0
    again = WorldModel.from_pretrained(tmp_path / "c").pictures
    assert again is not None and torch.equal(first.forecast.net.stem.weight, again.forecast.net.stem.weight)


def test_episodes_of_other_sizes_and_lengths_are_resized_and_cut(store_of, tmp_path: Path) -> None:
    store, recipe = store_of((4, 6, 14), dim=1, size=(32, 32), split="train"), find_preset("debug", "pictures")
    windows, _, _ = _read_episodes(str(store.folder), recipe)
    assert [len(window) for window in windows] == [6] * 4 and {x.frames.shape[1] for x in windows} == {16}
    np.testing.assert_array_equal(windows[-1].actions[:-1], store[2].actions[8:13])

    # without recorded rewards the model has none
    words = ("debug", "--data", store.folder, "--run", tmp_path / "run", "--steps", 1, "--tracker", "none")
    assert run("train-pictures", *words) == 0
    pictures = WorldModel.from_pretrained(tmp_path / "run").pictures
    assert pictures is not None and pictures.reward is None

    # the preset for any robot reads as many numbers as there are
    for dim in (3, 0):
        data = store_of((17,), dim=dim, split="train").folder
        small = ("training.dynamics.forecast.net.width=8", "--steps", 1)
        words = ("train-pictures", "robot-64", "--data", data, "--run", tmp_path / f"robot-{dim}", *small)
        assert run(*words, "--tracker", "none") == 0
        model = WorldModel.from_pretrained(tmp_path / f"robot-{dim}")
        assert model.action_dim == dim and model.resolution == 64

    with pytest.raises(UserError, match="has no episodes of at least 6 frames"):
        _read_episodes(str(store_of((3, 4), split="train").folder), recipe)


@pytest.mark.parametrize("name", PRESETS["pictures"])
def test_presets_survive_json(name: str) -> None:
    recipe = find_preset(name, "pictures")
    assert from_dict(type(recipe), json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nothing", "--run", "{new}"), "there is no preset 'nothing' for train-pictures"),
        (("--run", "{new}"), "a new run needs a preset; expected one of debug, robot-64"),
        (("pusht-64", "--run", "{new}"), "needs data; give --data"),
        (("metaworld-64", "--run", "{new}", "--data", "{data}"), "have 1 numbers and the forecast reads 4; set"),
        (("debug", "--run", "{new}", "--data", "{data}", "--init", "pusht-64-tokens"), "is a token model"),
        (("debug", "--run", "{new}", "--data", "{data}", "training.dynamics.forecast.action-dim=3"), "have 1 numbers"),
        (("pusht-64", "--run", "{run}"), "was begun with the preset debug, not pusht-64"),
        (("debug", "--run", "{run}", "training.learning-rate=0.5"), "was begun with training.learning_rate 0.001"),
        (("debug", "--run", "{new}", "--data", "{data}", "world=mars"), "there is no world 'mars' for picture models"),
        (("debug", "--run", "{new}", "--data", "{data}", "world=pusht"), "has no state or no actions"),
        (("debug", "--run", "{new}", "--steps", "0"), "steps is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(trained, tmp_path, capsys, words, sentence) -> None:
    places = {"{new}": tmp_path / "new", "{run}": trained, "{data}": trained.parent / "a-data"}
    assert run("train-pictures", *(places.get(word, word) for word in words)) == 2
    assert sentence in capsys.readouterr().err
