"""Many frames are encoded and decoded in pieces of bounded size, with the same numbers."""

import pytest
import torch
from torch import nn

from ivideogpt.models.tokenizer_config import TokenizerConfig
from ivideogpt.worldmodel import chunked_tokenizer

ROWS, HORIZON = 5, 4


@pytest.fixture(params=["conditional", "plain"])
def model(request, model_of):
    return model_of(request.param)


@pytest.fixture
def sizes(monkeypatch):
    """``sizes(model)``: frames of each call of the tokenizer."""

    def watch(model):
        found = []
        for name in ("encode_context", "encode_future", "decoder_features", "decode_future"):
            monkeypatch.setattr(model.tokenizer, name, counting(getattr(model.tokenizer, name), found))
        return found

    return watch


def counting(call, found):
    def counted(given, *rest):
        found.append(given.shape[0] * given.shape[1])
        return call(given, *rest)

    return counted


def small_pieces(monkeypatch, model, most):
    """Lets at most so many frames into a piece."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(
        chunked_tokenizer, "CPU_MAP_BYTES", most * chunked_tokenizer.largest_map(model.tokenizer.config) * 4
    )


def test_the_largest_map_is_the_largest_that_the_networks_make(any_model, frames_for):
    tokenizer, found = any_model.tokenizer, []
    hooks = [
        layer.register_forward_hook(lambda layer, given, made: found.append(made[0].numel()))
        for network in (tokenizer.encoder, tokenizer.decoder)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        codes, _ = tokenizer.encode_context(frames_for(any_model, rows=1))
        tokenizer.decode_context(codes)
    finally:
        for hook in hooks:
            hook.remove()
    largest = chunked_tokenizer.largest_map(tokenizer.config)
    assert max(found) <= largest <= 2 * max(found)


def test_the_official_tokenizers_largest_map_is_counted():
    assert chunked_tokenizer.largest_map(TokenizerConfig()) == 64 * 64 * 256


def test_more_threads_take_larger_pieces_and_one_frame_is_the_least(model_of, monkeypatch):
    tokenizer = model_of("plain").tokenizer
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = chunked_tokenizer.frames_at_once(tokenizer)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert chunked_tokenizer.frames_at_once(tokenizer) == 4 * one > 4
    monkeypatch.setattr(chunked_tokenizer, "CPU_MAP_BYTES", 1)
    assert chunked_tokenizer.frames_at_once(tokenizer) == 1


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_no_piece_is_larger_than_asked(model, frames_for, actions_for, monkeypatch, sizes, most):
    small_pieces(monkeypatch, model, most)
    found, frames, actions = sizes(model), frames_for(model, ROWS, 3), actions_for(model, ROWS, HORIZON)
    session = model.session(frames[:, :2])
    session.observe(frames[:, 2], actions[:, 0])
    child = session.fork(2)
    for index in range(1, HORIZON):
        child.advance(actions[:, index].repeat_interleave(2, dim=0))
    child.imagination().frames  # noqa: B018
    session.step(actions[:, 1])
    assert max(found) <= max(most, 2), "a context is never divided"
    assert max(found) >= min(most, HORIZON - 1)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 12])
def test_pieces_give_what_one_batch_gives(model, frames_for, actions_for, monkeypatch, most):
    frames, actions, k = frames_for(model, ROWS, 3), actions_for(model, ROWS, 2 * HORIZON), 3

    def everything():
        session = model.session(frames[:, :2], seed=1)
        seen = session.observe(frames[:, 2], actions[:, 0])
        child = session.fork(k)
        for index in range(1, 2 * HORIZON):
            child.advance(actions[:, index].repeat_interleave(k, dim=0))
        made = child.imagination()
        return seen, made, made.frames, child.frames

    seen, made, late, kept = everything()
    small_pieces(monkeypatch, model, most)
    other_seen, other, other_late, other_kept = everything()
    assert torch.equal(other_seen.ids, seen.ids) and torch.equal(other.ids, made.ids)
    torch.testing.assert_close(other_late, late, atol=1e-4, rtol=0)
    torch.testing.assert_close(other_kept, kept, atol=1e-4, rtol=0)
    torch.testing.assert_close(other_kept[:, 2:], other_late, atol=1e-4, rtol=0)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_each_child_is_coded_against_the_context_of_its_row(model, frames_for, monkeypatch, most):
    tokenizer, context = model.tokenizer, frames_for(model, 2)
    frames = frames_for(model, 2 * 3, 2, seed=5).unflatten(0, (2, 3))
    small_pieces(monkeypatch, model, most)
    with torch.inference_mode():
        known, encoder = tokenizer.encode_context(context)
        decoder = tokenizer.decoder_features(known)
        codes, out = chunked_tokenizer.encode_future(tokenizer, frames, encoder), torch.empty_like(frames)
        chunked_tokenizer.decode_future(tokenizer, codes, chunked_tokenizer.row_selector(decoder), out)
        for child in range(3):
            alone = tokenizer.encode_future(frames[:, child], encoder)
            assert torch.equal(codes[:, child], alone)
            expected = tokenizer.decode_future(alone, decoder).clamp(0, 1)
            torch.testing.assert_close(out[:, child], expected, atol=1e-4, rtol=0)
