"""Drafts change how often the transformer is asked, and nothing of what it says."""

import pytest
import torch

from ivideogpt import Sampling
from ivideogpt.models.transformer import KVCache
from ivideogpt.worldmodel import embeddings, engine

KINDS = {
    "greedy": Sampling(greedy=True),
    "all tokens": Sampling(top_k=None),
    "top-k": Sampling(top_k=5, temperature=0.7),
    "top-p": Sampling(top_p=0.8),
    "any id": Sampling(legal_only=False),
    "free separators": Sampling(free_separators=True),
}


@pytest.fixture
def model(build):
    return build("plain")


@pytest.fixture
def passes(monkeypatch):
    """Positions the transformer was given, pass by pass."""
    counts = []
    advance = KVCache.advance
    monkeypatch.setattr(KVCache, "advance", lambda cache, count: (counts.append(count), advance(cache, count))[1])
    return counts


def quiet(model):
    """The same model with layers that say little: it nearly says what its forecast says."""
    with torch.no_grad():
        for layer in model.transformer.layers:
            layer.attention.out.weight.mul_(0.02)
            layer.feed_forward.down.weight.mul_(0.02)
        model.transformer.embed.weight.mul_(0.02)
        model.heads.slot_embedding.weight.mul_(0.02)
        model.heads.action_linear.weight.mul_(0.02)
    return model


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("good", [False, True], ids=["poor drafts", "good drafts"])
def test_drafts_give_what_one_token_after_another_gives(
    model, frames_for, actions_for, monkeypatch, passes, name, rows, good
):
    model = quiet(model) if good else model
    context, actions = frames_for(model, rows=rows), actions_for(model, rows=rows, horizon=6)
    drafted = model.imagine(context, actions, sampling=KINDS[name], seed=3)
    asked = len(passes)
    passes.clear()
    monkeypatch.setattr(engine, "DRAFT_ROWS", 0)
    single = model.imagine(context, actions, sampling=KINDS[name], seed=3)
    assert torch.equal(drafted.ids, single.ids)
    for field in ("log_probs", "entropies", "frames", "rewards"):
        torch.testing.assert_close(getattr(drafted, field), getattr(single, field), atol=2e-4, rtol=1e-3)
    assert len(passes) == 6 * 17 + 2  # the context is read twice: a clip has 4 future frames
    assert asked <= (0.85 if good else 1.0) * len(passes)


def test_more_rows_than_pay_are_decoded_one_token_after_another(model, frames_for, actions_for, monkeypatch, passes):
    monkeypatch.setattr(engine, "DRAFT_ROWS", 2)
    model.imagine(frames_for(model, rows=3), actions_for(model, rows=3, horizon=1))
    assert passes[1:] == [1] * 17


def test_a_model_without_a_forecast_has_no_drafts(build, frames_for, actions_for, passes):
    model = build("conditional")
    model.imagine(frames_for(model), actions_for(model, horizon=1))
    assert passes[1:] == [1] * model.layout.frame_length


def test_a_perfect_draft_is_one_pass(model, frames_for, actions_for, monkeypatch, passes):
    context, actions = frames_for(model)[:1], actions_for(model, horizon=1)[:1]
    expected = model.imagine(context, actions, sampling=Sampling(greedy=True))
    codes = model.codes(expected.ids[:, 0])

    def oracle(x, ids):
        return 50.0 * torch.nn.functional.one_hot(codes, len(ids)).float()

    monkeypatch.setattr(model.transformer, "guess_logits", oracle)
    passes.clear()
    found = model.imagine(context, actions, sampling=Sampling(greedy=True))
    assert torch.equal(found.ids, expected.ids)
    assert passes[1:] == [model.layout.frame_length]
    assert embeddings.history(model, model.layout.join(codes[:, None], codes[:, None]), 1).equal(codes[:, None])
