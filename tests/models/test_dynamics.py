"""A new action conditioning is a function and a row of a registry; every pass of the model uses it."""

from dataclasses import replace

import pytest
import torch
from einops import repeat

from ivideogpt import Sampling, UserError, WorldModel
from ivideogpt.models.dynamics import ACTION_CONDITIONING, Heads, HeadsConfig


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
