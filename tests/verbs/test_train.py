"""The commands of training: from stores to a checkpoint, going on, and what they refuse."""

import json
from pathlib import Path

import pytest
import torch

from ivideogpt.cli import main
from ivideogpt.core.errors import UserError
from ivideogpt.data.tokens import TokenStore
from ivideogpt.presets.recipe import changed
from ivideogpt.presets.table import PRESETS, find_preset
from ivideogpt.worldmodel.world_model import WorldModel


def run(*words: object) -> int:
    return main([str(word) for word in words])


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer (``tok``), its data and its tokens."""
    folder = tmp_path_factory.mktemp("trained")
    assert run("train-tokenizer", "debug", "--run", folder / "tok", "--steps", 6) == 0
    assert run("tokenize", folder / "tok", "--data", folder / "tok-data", "--out", folder / "t", "--frames", 6) == 0
    return folder


def test_debug_trains_two_steps_and_goes_on_as_if_it_had_never_stopped(trained, tmp_path, capsys) -> None:
    words = ("train-tokenizer", "debug", "--data", trained / "tok-data")
    assert run(*words, "--run", tmp_path / "a", "--steps", 2) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["steps"] == 2 and Path(said["output"]).is_dir()
    assert [step for step, _ in losses(tmp_path / "a")] == [1, 2]
    assert run(*words, "--run", tmp_path / "a", "--steps", 6) == 0
    assert losses(tmp_path / "a") == losses(trained / "tok")
    samples = sorted(path.name for path in (tmp_path / "a" / "samples").iterdir())
    assert samples == ["step-00000002.png", "step-00000006.png"]


@pytest.mark.parametrize("source", ["tok-data", "t"])
def test_a_world_model_trains_from_frames_or_from_tokens(trained, tmp_path, capsys, source) -> None:
    words = ("train-transformer", "debug", "--tokenizer", trained / "tok", "--data", trained / source)
    assert run(*words, "--run", tmp_path / "wm", "--steps", 3) == 0
    model = WorldModel.from_pretrained(tmp_path / "wm")
    assert model.action_dim == 1 and model.config.heads.reward and model.config.clip_frames == 6
    assert model.config.action_mean[0] == pytest.approx(1.5, abs=0.2)
    line = json.loads((tmp_path / "wm" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["validation_tokens"] > 0
    imagined = model.imagine(torch.rand(1, 2, 3, 16, 16), torch.zeros(1, 9, 1), horizon=9)
    assert imagined.frames.shape == (1, 9, 3, 16, 16) and imagined.rewards is not None


def test_a_model_starts_from_another_one(trained, tmp_path) -> None:
    words = ("train-transformer", "debug", "--data", trained / "t", "--steps", 1)
    assert run(*words, "--tokenizer", trained / "tok", "--run", tmp_path / "a", "--set", "model.actions=false") == 0
    assert WorldModel.from_pretrained(tmp_path / "a").action_dim == 0
    assert run(*words, "--init", tmp_path / "a", "--run", tmp_path / "b", "--set", "transformer.learning_rate=0") == 0
    first, second = (WorldModel.from_pretrained(tmp_path / name) for name in "ab")
    assert second.action_dim == 1  # the head that the first lacks is new
    assert torch.equal(first.transformer.embed.weight, second.transformer.embed.weight)
    assert torch.equal(first.heads.reward_linear.weight, second.heads.reward_linear.weight)


def test_a_tokenizer_starts_from_another_one(trained, tmp_path) -> None:
    words = ("train-tokenizer", "debug", "--data", trained / "tok-data", "--init", trained / "tok", "--steps", 1)
    settings = ("--set", "tokenizer.learning_rate=0", "tokenizer.codebook_decay=1.0")
    assert run(*words, "--run", tmp_path / "a", *settings) == 0
    assert run("tokenize", tmp_path / "a", "--data", trained / "tok-data", "--out", tmp_path / "t", "--frames", 6) == 0
    assert torch.equal(
        TokenStore(tmp_path / "t").clip(0, 0, 6).context, TokenStore(trained / "t").clip(0, 0, 6).context
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_itself(name: str) -> None:
    recipe = find_preset(name)
    layout = recipe.tokenizer.tokenizer.layout
    clip = layout.length(recipe.tokenizer.tokenizer.context_frames, recipe.transformer.clip_frames - 2)
    assert recipe.model.transformer.vocab_size == layout.vocab_size
    assert clip <= recipe.model.transformer.max_positions


def test_settings_change_one_thing() -> None:
    recipe = changed(find_preset("debug"), ["transformer.batch_size=9", "stride=null", "forecasts.0.steps=1"])
    assert (recipe.transformer.batch_size, recipe.stride, recipe.forecasts[0].steps) == (9, None, 1)
    assert recipe.tokenizer == find_preset("debug").tokenizer


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("transformer.batchsize=9", "did you mean 'batch_size'"),
        ("stride", "expected name=value"),
        ("transformer.batch_size=many", "batch_size is 'many'; expected int"),
        ("forecasts.3.steps=1", "none of 0 to 0"),
    ],
)
def test_wrong_settings_are_explained(setting, said) -> None:
    with pytest.raises(UserError, match=said):
        changed(find_preset("debug"), [setting])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train-tokenizer", "bug"), "no preset 'bug'; did you mean 'debug'"),
        (("train-tokenizer", "robot-64"), "needs data; give --data"),
        (("train-tokenizer", "robot-64", "--data", "nothing"), "nothing"),
        (("train-transformer", "debug"), "needs a trained tokenizer; give --tokenizer"),
        (("train-transformer", "debug", "--tokenizer", "nothing"), "nothing holds no tokenizer"),
        (("train-transformer", "debug", "--tokenizer", "pusht-64", "--data", "{t}"), "a clip of 6 frames takes 389"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(trained, tmp_path, capsys, words, said) -> None:
    words = [word.format(t=trained / "t") for word in words]
    assert run(*words, "--run", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]


def test_a_run_goes_on_with_the_settings_it_began_with(trained, tmp_path, capsys) -> None:
    words = ("train-transformer", "debug", "--tokenizer", trained / "tok", "--data", trained / "t", "--steps", 1)
    assert run(*words, "--run", tmp_path / "wm") == 0
    assert run(*words, "--run", tmp_path / "wm", "--set", "transformer.batch_size=3") == 2
    assert "was begun with transformer.batch_size 4, not 3" in capsys.readouterr().err
