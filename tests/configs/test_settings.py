"""Settings that official scripts need: no clipping, a constant rate, weight decay of the tokenizer; a new preset."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from ivideogpt.cli import main
from ivideogpt.commands.training_stages import find_tokenizer
from ivideogpt.configs.registry import PRESETS, find_preset
from ivideogpt.models.tokenizer import CompressiveTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data of the preset debug, and a tokenizer."""
    folder = tmp_path_factory.mktemp("settings")
    assert main(["train-tokenizer", "debug", "--run", f"{folder}/tok", "--steps", "2"]) == 0
    return folder


def train(folder, run, *settings, command="train-tokenizer", steps=2):
    words = [command, "debug", "--data", f"{folder}/tok-data", "--run", str(run), "--steps", str(steps)]
    words += ["--tokenizer", f"{folder}/tok"] if command == "train-transformer" else []
    assert main([*words, *settings]) == 0


def test_a_new_preset_is_a_function_and_a_row(folder, tmp_path, monkeypatch):
    def dummy():
        debug = find_preset("debug")
        return replace(debug, tokenizer=replace(debug.tokenizer, batch_size=3))

    module = ModuleType("ivideogpt.configs.dummy")
    module.dummy = dummy
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(PRESETS["training"], "my-preset", "dummy:dummy")
    words = ["train-tokenizer", "my-preset", "--data", f"{folder}/tok-data", "--run", str(tmp_path / "run")]
    assert main([*words, "--steps", "1", "--tokenizer.learning-rate", "2e-3"]) == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["preset"], settings["tokenizer.batch_size"]) == ("my-preset", 3)
    assert settings["tokenizer.learning_rate"] == 0.002


def test_the_quick_preset_has_a_tenth_of_every_training():
    whole, quick = find_preset("robot-64"), find_preset("robot-64-quick")
    trainings = [(whole.tokenizer, quick.tokenizer), (whole.transformer, quick.transformer)]
    trainings += zip(whole.forecasts, quick.forecasts, strict=True)
    for before, after in trainings:
        assert after.steps * 10 == before.steps and 0 < after.warmup_steps < after.steps / 10
    assert quick.tokenizer.continuous_steps * 10 == whole.tokenizer.continuous_steps
    assert (quick.model, quick.tokenizer.tokenizer) == (whole.model, whole.tokenizer.tokenizer)


@pytest.mark.parametrize("command", ["train-tokenizer", "train-transformer"])
def test_gradients_are_not_clipped_where_there_is_no_norm(command, folder, tmp_path, monkeypatch):
    called = []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *given, **named: (called.append(1), clip(*given, **named)))
    part = command.removeprefix("train-")
    train(folder, tmp_path / "none", f"{part}.clip_norm=null", "forecasts=[]", "model.heads.forecast_grid=0",
          "transformer.imagined_share=0", command=command)  # fmt: skip
    assert not called
    train(folder, tmp_path / "some", f"{part}.clip_norm=1.0", "forecasts=[]", "model.heads.forecast_grid=0",
          "transformer.imagined_share=0", command=command)  # fmt: skip
    assert called


def test_a_constant_rate_of_the_transformer_stays_at_its_peak(folder, tmp_path):
    settings = ("transformer.schedule=constant", "transformer.learning_rate=1e-3", "transformer.steps=5")
    train(folder, tmp_path / "run", *settings, command="train-transformer", steps=5)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in lines]
    assert rates[2:] == pytest.approx([1e-3] * 3)  # after the two updates of the warm-up


def test_weights_of_a_tokenizer_decay_where_it_is_told_to(folder, tmp_path):
    for name, decay in (("without", 0), ("with", 100)):
        train(folder, tmp_path / name, f"tokenizer.weight_decay={decay}")
    norms = {}
    for name in ("without", "with"):
        tokenizer = CompressiveTokenizer.from_pretrained(find_tokenizer(str(tmp_path / name)))
        norms[name] = torch.cat([weight.flatten() for weight in tokenizer.encoder.parameters()]).norm()
    assert norms["with"] < 0.99 * norms["without"]
