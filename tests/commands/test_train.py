"""The commands of training: from stores to a checkpoint, going on, and what they refuse."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ivideogpt.cli import main
from ivideogpt.commands.arguments import assign
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store
from ivideogpt.data.tokens import TokenStore
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
    assert samples == [f"step-0000000{step}.{kind}" for step in (2, 6) for kind in ("mp4", "png")]


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
    assert run(*words, "--tokenizer", trained / "tok", "--run", tmp_path / "a", "model.actions=false") == 0
    assert WorldModel.from_pretrained(tmp_path / "a").action_dim == 0
    assert run(*words, "--init", tmp_path / "a", "--run", tmp_path / "b", "transformer.learning_rate=0") == 0
    first, second = (WorldModel.from_pretrained(tmp_path / name) for name in "ab")
    assert second.action_dim == 1  # the head that the first lacks is new
    assert torch.equal(first.transformer.embed.weight, second.transformer.embed.weight)
    assert torch.equal(first.heads.reward_linear.weight, second.heads.reward_linear.weight)


def test_a_model_keeps_the_shape_of_the_one_it_starts_from(trained, tmp_path) -> None:
    words = ("train-transformer", "debug", "--data", trained / "t", "--steps", 1)
    assert run(*words, "--tokenizer", trained / "tok", "--run", tmp_path / "a") == 0
    other = (
        "model.heads.slots=0",
        "model.heads.forecast_grid=0",
        "model.heads.forecast_blocks=2",
        "model.symlog_rewards=true",
    )
    assert run(*words, "--init", tmp_path / "a", "--run", tmp_path / "b", *other) == 0
    first, second = (WorldModel.from_pretrained(tmp_path / name) for name in "ab")
    assert first.config.heads == second.config.heads and not second.config.symlog_rewards


def test_an_action_layer_that_is_taken_over_keeps_its_units_and_a_reward_head_stays(trained, tmp_path) -> None:
    words = ("train-transformer", "debug", "--steps", 1, "transformer.learning_rate=0")
    assert run(*words, "--data", trained / "t", "--tokenizer", trained / "tok", "--run", tmp_path / "a") == 0

    def other():
        random = np.random.default_rng(0)
        for index in range(4):
            frames = random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
            actions = 5 + random.normal(size=(12, 1)).astype(np.float32)
            yield SourceEpisode(key=f"e{index}", cameras={"image": frames}, actions=actions)

    convert_to_store([ShardTask("all", other)], tmp_path / "s", facts=StoreFacts(name="other"), workers=0)
    assert run(*words, "--data", tmp_path / "s", "--init", tmp_path / "a", "--run", tmp_path / "b") == 0
    first, second = (WorldModel.from_pretrained(tmp_path / name) for name in "ab")
    assert second.config.action_mean == first.config.action_mean and second.config.action_mean[0] < 3
    assert second.config.heads.reward, "though these episodes have no rewards"
    raw = torch.tensor([[[1.0], [2.0]]])
    assert torch.equal(first.normalize_actions(raw), second.normalize_actions(raw))


def test_a_tokenizer_starts_from_another_one(trained, tmp_path) -> None:
    words = ("train-tokenizer", "debug", "--data", trained / "tok-data", "--init", trained / "tok", "--steps", 1)
    settings = ("tokenizer.learning_rate=0", "tokenizer.codebook_decay=1.0")
    assert run(*words, "--run", tmp_path / "a", *settings) == 0
    assert run("tokenize", tmp_path / "a", "--data", trained / "tok-data", "--out", tmp_path / "t", "--frames", 6) == 0
    assert torch.equal(
        TokenStore(tmp_path / "t").clip(0, 0, 6).context, TokenStore(trained / "t").clip(0, 0, 6).context
    )


@pytest.mark.parametrize("name", PRESETS["training"])
def test_a_preset_fits_itself(name: str) -> None:
    recipe = find_preset(name)
    layout = recipe.tokenizer.tokenizer.layout
    clip = layout.length(recipe.tokenizer.tokenizer.context_frames, recipe.transformer.clip_frames - 2)
    assert recipe.model.transformer.vocab_size == layout.vocab_size
    assert clip <= recipe.model.transformer.max_positions


def test_settings_change_one_thing() -> None:
    recipe = assign(find_preset("debug"), {"transformer.batch_size": "9", "stride": "null", "forecasts.0.steps": "1"})
    assert (recipe.transformer.batch_size, recipe.stride, recipe.forecasts[0].steps) == (9, None, 1)
    assert recipe.tokenizer == find_preset("debug").tokenizer


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("transformer.batchsize=9", "did you mean 'batch_size'"),
        ("transformer.batch_size=many", "batch_size is 'many'; expected int"),
        ("forecasts.3.steps=1", "none of 0 to 0"),
    ],
)
def test_wrong_settings_are_explained(setting, said) -> None:
    with pytest.raises(UserError, match=said):
        assign(find_preset("debug"), dict([setting.split("=")]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train-tokenizer", "debug", "stride"), "unexpected 'stride' on the command line"),
        (("train-tokenizer", "bug"), "no preset 'bug'; did you mean 'debug'"),
        (("train-tokenizer", "robot-64"), "needs data; give --data"),
        (("train-tokenizer", "robot-64", "--data", "nothing"), "nothing"),
        (("train-tokenizer", "debug", "--tracker", "tensorbord"), "did you mean 'tensorboard'"),
        (("train-transformer", "debug"), "needs a trained tokenizer; give --tokenizer"),
        (("train-tokenizer", "debug", "--steps", "0"), "steps is 0; expected at least 1"),
        (("train-tokenizer", "debug", "--seed", "-1"), "seed is -1; expected at least 0"),
        (("train-tokenizer", "debug", "tokenizer.learning_rate=-1"), "learning_rate is -1"),
        (("train-tokenizer", "debug", "tokenizer.steps=3"), "no code would ever be placed"),
        (("train-transformer", "debug", "transformer.batch_size=0"), "batch_size is 0; expected at least 1"),
        (("train-tokenizer", "debug", "tokenizer.clip_norm=-1"), "clip_norm is -1"),
        (("train-tokenizer", "debug", "tokenizer.codebook_decay=1.5"), "codebook_decay is 1.5; expected at"),
        (("train-transformer", "debug", "transformer.betas=[0.9,1.5]"), "betas is [0.9, 1.5]; expected two"),
        (("train-transformer", "debug", "model.transformer.attention_dropout=2"), "attention_dropout is 2"),
        (("train-transformer", "debug", "transformer.weight_decay=-1"), "weight_decay is -1.0; expected at"),
        (("train-transformer", "debug", "forecasts.0.unroll=-1"), "unroll is -1; expected at least 0"),
        (
            ("train-transformer", "debug", "--tokenizer", "{tok}", "--data", "{t}", "stride=2"),
            "tokens of stride 1",
        ),
        (("train-transformer", "debug", "--data", "{t}", "--mixture", "OXE_SELECT"), "holds tokens, whose stores are"),
        (("train-transformer", "debug", "--tokenizer", "nothing"), "nothing holds no tokenizer"),
        (("train-transformer", "debug", "--init", "pusht-64", "--data", "{t}"), "pusht-64 is a picture model"),
        (
            ("train-transformer", "debug", "--tokenizer", "pusht-64-tokens", "--data", "{t}"),
            "a clip of 6 frames takes 389",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(trained, tmp_path, capsys, words, said) -> None:
    words = [word.format(t=trained / "t", tok=trained / "tok") for word in words]
    assert run(*words, "--run", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]


def test_a_run_goes_on_with_the_settings_it_began_with(trained, tmp_path, capsys) -> None:
    words = ("train-transformer", "debug", "--tokenizer", trained / "tok", "--data", trained / "t", "--steps", 1)
    assert run(*words, "--run", tmp_path / "wm") == 0
    assert run(*words, "--run", tmp_path / "wm", "transformer.batch_size=3") == 2
    assert "was begun with transformer.batch_size 4, not 3" in capsys.readouterr().err


def test_a_run_that_began_before_there_was_a_setting_goes_on(trained, tmp_path) -> None:
    words = ("train-transformer", "debug", "--tokenizer", trained / "tok", "--data", trained / "t", "--steps", 1)
    assert run(*words, "--run", tmp_path / "wm") == 0
    kept = json.loads((tmp_path / "wm" / "settings.json").read_text())
    del kept["transformer.gradient_accumulation"]
    (tmp_path / "wm" / "settings.json").write_text(json.dumps(kept))
    assert run(*words, "--run", tmp_path / "wm") == 0
    del kept["transformer.batch_size"]  # that of debug is not the default
    (tmp_path / "wm" / "settings.json").write_text(json.dumps(kept))
    assert run(*words, "--run", tmp_path / "wm") == 2


def test_curves_are_drawn_where_tracker_says(trained, tmp_path, monkeypatch) -> None:
    begun, sent = [], []

    def init(**arguments: object) -> SimpleNamespace:
        begun.append(arguments)
        return SimpleNamespace(log=sent.append, define_metric=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__name__="wandb", init=init, Image=str))
    words = ("train-transformer", "debug", "--tokenizer", trained / "tok", "--data", trained / "t", "--steps", 2)
    assert run(*words, "--run", tmp_path / "wm", "--tracker", "wandb") == 0
    assert [arguments["name"] for arguments in begun] == ["wm-forecast-1", "wm"]
    settings = json.loads((tmp_path / "wm" / "settings.json").read_text())
    assert begun[1]["config"] == settings and settings["transformer.batch_size"] == 4
    assert sent[-1]["update"] == 2 and sent[-1]["validation_tokens"] > 0
    assert {"update": 2, "samples": str(tmp_path / "wm" / "samples" / "step-00000002.png")} in sent
    assert not (tmp_path / "wm" / "tensorboard").exists()


def test_curves_are_tensorboards_by_default_and_none_draws_none(trained, tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="curves need the extra train")
    words = ("train-tokenizer", "debug", "--data", trained / "tok-data", "--steps", 1)
    assert run(*words, "--run", tmp_path / "a") == 0 and run(*words, "--run", tmp_path / "b", "--tracker", "none") == 0
    assert len(list((tmp_path / "a" / "tensorboard").iterdir())) == 1
    assert not (tmp_path / "b" / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run("train-tokenizer", "debug", "--run", tmp_path / "tok", "--tracker", "wandb") == 2
    assert "pip install 'ivideogpt[wandb]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_adapters_start_from_a_model_go_on_and_leave_an_ordinary_one(trained, tmp_path, capsys, monkeypatch) -> None:
    pytest.importorskip("peft", reason="adapters need the extra train")
    words = ("train-transformer", "debug", "--data", trained / "t")
    assert run(*words, "--tokenizer", trained / "tok", "--run", tmp_path / "a", "--steps", 1) == 0
    words = (*words, "transformer.lora.rank=2", 'transformer.lora.targets=["q_proj","v_proj"]')
    assert run(*words, "--tokenizer", trained / "tok", "--run", tmp_path / "b") == 2
    assert "lora.rank is 2, but adapters need trained weights" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    for name, steps in (("b", 2), ("b", 4), ("c", 4)):
        assert run(*words, "--init", tmp_path / "a", "--run", tmp_path / name, "--steps", steps) == 0
        assert "adapters of rank 2: " in capsys.readouterr().err
    assert losses(tmp_path / "b") == losses(tmp_path / "c")
    monkeypatch.setitem(sys.modules, "peft", None)
    first, second = (WorldModel.from_pretrained(tmp_path / name).transformer for name in "ac")
    changed = {name for name, x in first.named_parameters() if not torch.equal(x, second.get_parameter(name))}
    assert changed == {f"layers.{index}.attention.qkv.weight" for index in range(first.config.num_layers)}


def test_actions_of_pusht_are_in_the_units_of_its_environment() -> None:
    pytest.importorskip("gym_pusht", reason="the environment needs the extra pusht")
    from ivideogpt.commands.training_stages import ACTION_UNITS
    from ivideogpt.envs.pusht import ACTION_MEAN, ACTION_STD

    assert ACTION_UNITS["pusht"] == (ACTION_MEAN, ACTION_STD)
