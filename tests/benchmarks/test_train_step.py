"""The benchmark of training compares the same work, and says what it found; how fast anything is, is no matter here."""

import copy
import importlib
import json
from dataclasses import replace

import pytest
import torch
import tyro
from torch import nn

from ivideogpt import UserError

pytest.importorskip("transformers", reason="the baseline comes with: pip install 'ivideogpt[dev]'")


@pytest.fixture
def script():
    return importlib.import_module("train_step")


@pytest.fixture
def options(script):
    return script.Options(size="tiny", batch=1, device="cpu", steps=1, action_dim=3, memory=False)


def sides_of(script, options, part, folder):
    torch.manual_seed(0)
    make = script.transformer_sides if part == "transformer" else script.tokenizer_sides
    return make(options, {True, False}, folder)


CASES = [
    ("transformer", {"action_dim": 0}),
    ("transformer", {"action_dim": 3}),
    ("tokenizer", {"adversarial": False}),
    ("tokenizer", {"adversarial": True}),
]


@pytest.mark.parametrize(("part", "changes"), CASES)
def test_both_sides_have_one_loss_and_every_row_trains_its_own(script, options, tmp_path, part, changes):
    options = replace(options, **changes)
    sides = sides_of(script, options, part, tmp_path)
    losses = {official: side.loss() for official, side in sides.items()}
    assert script.check_losses(losses) < 1e-4
    networks = {
        ("transformer", True): lambda side: [side.network],
        ("transformer", False): lambda side: [side.learner],
        ("tokenizer", True): lambda side: [side.tokenizer, *filter(None, [side.discriminator])],
        ("tokenizer", False): lambda side: [side.tokenizer, *filter(None, [side.objective.network])],
    }
    for row in script.rows_of(options, part):
        trained = networks[part, row.official](sides[row.official])
        others = networks[part, not row.official](sides[not row.official])
        assert len(trained) == 1 + (options.adversarial and part == "tokenizer")
        before, same = copy.deepcopy([m.state_dict() for m in trained]), copy.deepcopy([m.state_dict() for m in others])
        sides[row.official].step(**row.settings(part))()
        for module, old in zip(trained, before, strict=True):
            weights = dict(module.named_parameters())
            assert all(not torch.equal(weights[name], old[name]) for name in weights if weights[name].grad is not None)
            assert any(weight.grad is not None for weight in weights.values())
        for module, old in zip(others, same, strict=True):
            assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_sides_that_differ_a_little_are_refused(script, options, tmp_path, part):
    sides = sides_of(script, options, part, tmp_path)
    with torch.no_grad():
        if part == "transformer":
            sides[True].network.action_linear.weight.zero_()
        else:
            sides[True].tokenizer.cond_decoder.conv_out.bias.add_(0.05)
    with pytest.raises(ArithmeticError, match="the losses differ"):
        script.check_losses({official: side.loss() for official, side in sides.items()})


def test_the_baseline_computes_as_the_official_code_does(script, options, tmp_path):
    sides, layouts, keys, weights = sides_of(script, options, "tokenizer", tmp_path), [], [], []
    official, frames = sides[True].tokenizer, sides[True].frames

    def watch(_, args, found):
        keys.append(len(args[1]))
        weights.append(found[1])

    for module in official.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, args: layouts.append(args[0].is_contiguous()))
        elif isinstance(module, nn.MultiheadAttention):
            module.register_forward_hook(watch)
    future = frames.shape[1] - official.config.context_frames
    official(frames)
    assert all(layouts) and len(layouts) > 10
    assert set(keys) == {future * len(frames)}, "the context is repeated for each future frame"
    assert all(one is not None for one in weights)
    ours = sides[False].tokenizer.eval()
    with torch.no_grad():
        assert torch.equal(official.eval().tokenize(frames)[0], ours.tokenize(frames)[0])


def test_the_last_line_is_json_and_is_kept_where_asked(script, capsys, tmp_path):
    words = ["--size", "tiny", "--batch", "1", "--device", "cpu", "--steps", "1", "--no-memory", "--out"]
    script.main(tyro.cli(script.Options, args=[*words, str(tmp_path)]))
    *table, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text(encoding="utf-8")) == found
    assert file.name.startswith("train_step-20")
    for name in ("ratio_transformer", "ratio_transformer_kept_tokens", "ratio_tokenizer"):
        assert found[name] > 0
    assert found["device"] == "cpu" and found["threads"] >= 1
    for part in ("transformer", "tokenizer"):
        assert found["loss_difference"][part] < script.TOLERANCE
        for name, rate in found["clips_per_second"][part].items():
            assert rate > 0 and found["peak_share"][part][name] > 0
            assert any(name in text for text in table)
    work = found["gflop"]["transformer"]
    assert work["ours, float32, kept tokens"] < work["ours, float32"] <= work["official, float32"]


def test_attention_on_a_cpu_is_counted(script):
    x = torch.rand(1, 2, 8, 4)
    attend = nn.functional.scaled_dot_product_attention
    assert script.operations(lambda: attend(x, x, x)) == 2 * (2 * 2 * 8 * 8 * 4)


def test_memory_is_that_of_a_row_in_a_process_of_its_own(script, options):
    if script.measuring.process_memory("VmRSS") is None:
        pytest.skip("this system does not say how much memory a process holds")
    assert script.in_a_process(options, "tokenizer", script.Row(False, "float32")) > 100


def test_numbers_that_cannot_be_are_refused(script):
    with pytest.raises(UserError, match="steps is 0"):
        script.Options(steps=0)
