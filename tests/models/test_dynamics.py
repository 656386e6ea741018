"""A new action conditioning, and a new loss, is a function and a row of a registry."""

import json
from dataclasses import replace

import pytest
import torch
from einops import repeat

from ivideogpt import Sampling, UserError, WorldModel
from ivideogpt.cli import main
from ivideogpt.models.dynamics import ACTION_CONDITIONING, EXTRA_LOSSES, Heads, HeadsConfig
from ivideogpt.training.transformer import TransformerTraining, total_loss


def add_to_odd_tokens(action, tokens):
    odd = (torch.arange(1 + tokens) % 2).to(action)
    return repeat(action, "b d -> b n d", n=1 + tokens) * odd[:, None]


@pytest.fixture(params=["separator", "all_tokens", "odd_tokens"])
def model(request, build, monkeypatch):
    monkeypatch.setitem(ACTION_CONDITIONING, "odd_tokens", add_to_odd_tokens)
    model = build("conditional")
    heads = replace(model.config.heads, action_conditioning=request.param)
    model.config = replace(model.config, heads=heads)
    model.heads.config = heads
    return model


def test_decoding_and_teacher_forcing_use_the_same_conditioning(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, horizon=3)
    sampling = Sampling(temperature=0.7)
    imagined = model.imagine(context, actions, sampling=sampling)
    scored = model.log_prob(context, actions, imagined.ids, sampling)
    torch.testing.assert_close(scored, imagined.log_probs, atol=1e-4, rtol=1e-4)
    others = model.log_prob(context, -actions, imagined.ids, sampling)
    assert (others - scored).abs().max() > 0.01


def test_each_conditioning_predicts_otherwise(build, frames_for, actions_for, monkeypatch):
    monkeypatch.setitem(ACTION_CONDITIONING, "odd_tokens", add_to_odd_tokens)
    model, scores = build("conditional"), []
    context, actions = frames_for(model), actions_for(model, horizon=3)
    ids = model.imagine(context, actions).ids
    for name in ACTION_CONDITIONING:
        model.heads.config = replace(model.heads.config, action_conditioning=name)
        scores.append(model.log_prob(context, actions, ids))
    assert (scores[0] - scores[1]).abs().max() > 0.01 and (scores[1] - scores[2]).abs().max() > 0.01


def test_a_checkpoint_keeps_it(model, frames_for, actions_for, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = WorldModel.from_pretrained(tmp_path / "model")
    assert again.heads.config.action_conditioning == model.heads.config.action_conditioning
    context, actions = frames_for(model), actions_for(model)
    assert torch.equal(again.imagine(context, actions).ids, model.imagine(context, actions).ids)


def test_an_unknown_one_is_refused():
    with pytest.raises(UserError, match="action_conditioning is 'nowhere'; expected one of separator, all_tokens"):
        HeadsConfig(action_dim=2, action_conditioning="nowhere")
    with pytest.raises(UserError, match="set action_dim"):
        Heads(HeadsConfig(action_conditioning="all_tokens"), hidden_size=8)


def test_a_new_loss_is_a_function_and_a_row(model_of, frames_for, actions_for, monkeypatch):
    def confidence(logits, targets):
        assert logits.shape[:-1] == targets.shape
        return logits.softmax(dim=-1).amax(dim=-1).mean()

    monkeypatch.setitem(EXTRA_LOSSES, "confidence", confidence)
    model = model_of("conditional")
    frames, actions = frames_for(model, count=5), actions_for(model, horizon=3)
    ids, _ = model.tokenizer.tokenize(frames)
    plain, config = model.dynamics.losses(ids, actions), TransformerTraining(extra_losses={"confidence": 0.5, "z": 0.1})
    losses = model.dynamics.losses(ids, actions, extra_losses=config.extra_losses)
    alone = [model.dynamics.losses(ids, actions, extra_losses={name: 1.0}).extra for name in ("confidence", "z")]
    assert plain.extra is None and 0 < alone[0] < 1 and alone[1] > 0
    torch.testing.assert_close(losses.extra, 0.5 * alone[0] + 0.1 * alone[1])
    torch.testing.assert_close(total_loss(losses, config), total_loss(plain, config) + losses.extra)
    with pytest.raises(UserError, match="extra_losses has 'confidenze'; did you mean 'confidence'"):
        TransformerTraining(extra_losses={"confidenze": 1.0})


def test_an_extra_loss_is_trained_from_the_command_line_and_resumed(tmp_path):
    data, tokenizer, run = tmp_path / "tok-data", tmp_path / "tok", tmp_path / "run"
    assert main(["train-tokenizer", "debug", "--run", str(tokenizer), "--steps", "1"]) == 0
    words = ["train-transformer", "debug", "--data", str(data), "--tokenizer", str(tokenizer), "--run", str(run)]
    words += ['transformer.extra_losses={"z": 0.01}', "forecasts=[]"]
    for steps in ("1", "2"):
        assert main([*words, "--steps", steps]) == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2 and all(line["extra"] > 0 for line in logged)
