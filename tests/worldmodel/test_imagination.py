"""Frames are decoded when somebody looks at them, and are then what they would have been at once."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from ivideogpt.decoding import decode
from ivideogpt.worldmodel.imagination import Imagination

KINDS = ["conditional", "plain", "goal", "action_free"]


@pytest.fixture(params=KINDS)
def model(request, model_of):
    return model_of(request.param)


@pytest.fixture
def decoded(monkeypatch):
    """``decoded(model)``: the names of the tokenizer's calls that decode something, and the frames of each."""

    def watch(model):
        calls = []
        for name in ("decode_context", "decoder_features", "decode_future"):
            monkeypatch.setattr(model.tokenizer, name, counting(model.tokenizer, name, calls))
        return calls

    return watch


def counting(tokenizer, name, calls):
    call = getattr(tokenizer, name)

    def counted(codes, *rest):
        calls.append((name, codes.shape[0] * codes.shape[1]))
        return call(codes, *rest)

    return counted


def advance(session, actions, start, stop):
    for index in range(start, stop):
        session.advance(None if actions is None else actions[:, index])


def frames_decoded(calls):
    return sum(count for name, count in calls if name == "decode_future")


# When


def test_nothing_is_decoded_until_frames_are_looked_at_and_then_once(model, frames_for, actions_for, decoded):
    calls, size = decoded(model), model.segment_frames()
    imagined = model.imagine(frames_for(model), actions_for(model, horizon=size), horizon=size)
    assert imagined.ids.shape[1] == size and (imagined.log_probs < 0).all()
    assert calls == []
    frames = imagined.frames
    assert frames_decoded(calls) == 2 * size
    assert imagined.frames is frames and frames_decoded(calls) == 2 * size


def test_a_re_anchoring_decodes_its_context_alone(model, frames_for, actions_for, decoded):
    calls, size = decoded(model), model.segment_frames()
    context = 1 if model.config.goal_conditioned else 2
    horizon = 3 * size
    imagined = model.imagine(frames_for(model), actions_for(model, horizon=horizon), horizon=horizon)
    assert frames_decoded(calls) == 2 * 2 * context, "two rows, two re-anchorings"
    imagined.frames  # noqa: B018
    assert frames_decoded(calls) == 2 * horizon


def test_a_step_decodes_its_own_frame_and_the_context_once_a_segment(model_of, frames_for, actions_for, decoded):
    model = model_of("conditional")
    calls, actions = decoded(model), actions_for(model, horizon=4)
    session = model.session(frames_for(model))
    assert calls == []
    advance(session, actions, 0, 2)
    session.step(actions[:, 2])
    session.step(actions[:, 3])
    assert [name for name, _ in calls] == ["decoder_features", "decode_future", "decode_future"]
    assert frames_decoded(calls) == 2 * 2
    session.frames  # noqa: B018
    assert [name for name, _ in calls].count("decoder_features") == 1 and frames_decoded(calls) == 2 * 4


def test_a_fork_decodes_what_its_parent_made_once_for_all_children(model, frames_for, actions_for, decoded):
    actions, k = actions_for(model, horizon=3), 3
    session = model.session(frames_for(model))
    advance(session, actions, 0, 2)
    calls = decoded(model)
    child = session.fork(k)
    assert calls == []
    advance(child, None if actions is None else actions.repeat_interleave(k, dim=0), 2, 3)
    frames = child.frames
    assert frames_decoded(calls) == 2 * 2 + 2 * k
    assert torch.equal(frames[:, :-1], session.frames.repeat_interleave(k, dim=0))
    assert frames_decoded(calls) == 2 * 2 + 2 * k
    assert sum(count for name, count in calls if name == "decoder_features") <= 2 * 2, "of the parent's rows"


# What


def test_frames_looked_at_late_are_those_of_steps_looked_at_at_once(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, horizon=10)
    session = model.session(context, seed=2)
    steps = [session.step(None if actions is None else actions[:, index]).frames for index in range(10)]
    imagined = model.imagine(context, actions, horizon=10, seed=2)
    torch.testing.assert_close(imagined.frames, torch.stack(steps, dim=1), atol=1e-4, rtol=0)
    assert imagined.frames.is_contiguous() and imagined.frames.dtype == torch.float32


def test_what_a_session_does_later_changes_nothing(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, horizon=8)
    expected = model.imagine(context, None if actions is None else actions[:, :3], horizon=3, seed=1).frames

    def later(session):
        advance(session, actions, 3, 8)  # beyond a re-anchoring
        session.fork(2).rewind(6)
        session.rewind(7)
        advance(session, None if actions is None else -actions, 1, 4)
        return session.frames

    session = model.session(context, seed=1)
    advance(session, actions, 0, 3)
    early, late = session.imagination(), session.imagination()
    torch.testing.assert_close(early.frames, expected, atol=1e-5, rtol=0)
    early.frames.zero_()  # its own memory
    later(session)
    torch.testing.assert_close(late.frames, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(session.frames[:, 2:3], expected[:, :1], atol=1e-5, rtol=0)


def test_children_of_children_show_their_own_frames(model, frames_for, actions_for):
    actions = actions_for(model, horizon=8)

    def rows(k):
        return None if actions is None else actions.repeat_interleave(k, dim=0)

    parent = model.session(frames_for(model), seed=3)
    advance(parent, actions, 0, 1)
    child = parent.fork(2)
    advance(child, rows(2), 1, 2)
    grandchild = child.fork(3)
    advance(grandchild, rows(6), 2, 7)
    expected = []
    for session, start, stop in ((parent, 0, 1), (child, 1, 2), (grandchild, 2, 7)):
        expected.append(session.imagination(start).frames[:, : stop - start])
    found = grandchild.imagination().frames
    torch.testing.assert_close(found[:, :1], expected[0].repeat_interleave(6, dim=0), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 1:2], expected[1].repeat_interleave(3, dim=0), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 2:], expected[2], atol=1e-4, rtol=0)
    # The same rows without a family: each is decoded against its own context.
    step = grandchild._past[2].ids
    context = frames_for(model).repeat_interleave(6, dim=0)
    codes, _ = model.tokenizer.encode_context(context)
    alone = model.tokenizer.decode_future(model.dynamics.codes(step)[:, None], model.tokenizer.decoder_features(codes))
    torch.testing.assert_close(found[:, 2], alone[:, 0].clamp(0, 1), atol=1e-4, rtol=0)


def test_observing_after_a_fork_reads_each_child_against_its_parents_context(model, frames_for, actions_for):
    frames, actions = frames_for(model, count=4), actions_for(model, horizon=2)
    k = 3
    session = model.session(frames[:, :2])
    child = session.fork(k)
    pixels = torch.stack([frames[:, 2], frames[:, 3], frames[:, 1]], dim=1).flatten(0, 1)
    action = None if actions is None else actions[:, 0]
    seen = child.observe(pixels, None if action is None else action.repeat_interleave(k, dim=0))
    for index, frame in enumerate((frames[:, 2], frames[:, 3], frames[:, 1])):
        alone = model.session(frames[:, :2]).observe(frame, action)
        assert torch.equal(seen.ids[index::k], alone.ids)
        torch.testing.assert_close(seen.log_probs[index::k], alone.log_probs, atol=1e-4, rtol=0)


def test_looking_inside_inference_mode_leaves_frames_that_networks_can_be_trained_on(model_of, frames_for, actions_for):
    model = model_of("conditional")
    imagined = model.imagine(frames_for(model), actions_for(model))
    with torch.inference_mode():
        assert imagined.frames.shape[1] == 3
    weight = torch.ones(3, requires_grad=True)
    (imagined.frames.mean(dim=(0, 1, 3, 4)) * weight).sum().backward()
    assert weight.grad.any()


def test_weights_are_those_of_the_moment_somebody_looks(build, frames_for, actions_for):
    model = build("conditional")
    context, actions = frames_for(model), actions_for(model)
    early, late = model.imagine(context, actions), model.imagine(context, actions)
    frames = early.frames
    model.to(torch.bfloat16)
    assert late.frames.dtype == torch.float32 and late.frames.shape == frames.shape
    torch.testing.assert_close(late.frames, frames, atol=0.1, rtol=0)
    assert torch.equal(early.frames, frames)


def test_features_that_a_session_keeps_are_made_again_for_weights_of_another_type(build, frames_for, actions_for):
    model = build("conditional")
    session, actions = model.session(frames_for(model)), actions_for(model, horizon=4)
    session.step(actions[:, 0])
    advance(session, actions, 1, 4)
    early, late = session.imagination(), session.imagination()
    frames = early.frames
    model.to(torch.bfloat16)
    torch.testing.assert_close(late.frames, frames, atol=0.1, rtol=0)


# What is held


def test_an_imagination_holds_no_cache(model_of, frames_for, actions_for):
    model = model_of("conditional")
    session = model.session(frames_for(model))
    advance(session, actions_for(model), 0, 3)
    cache, decoder = weakref.ref(session._segment.cache), weakref.ref(session._segment.decoder)
    imagined = session.imagination()
    del session
    gc.collect()
    assert cache() is None and decoder() is not None
    imagined.frames  # noqa: B018
    gc.collect()
    assert decoder() is None, "once decoded, frames are all that is held"


def test_a_re_anchoring_frees_the_old_cache_before_it_fills_a_new_one(model_of, frames_for, actions_for, monkeypatch):
    model = model_of("plain")
    size, actions = model.segment_frames(), actions_for(model, horizon=5)
    session = model.session(frames_for(model))
    advance(session, actions, 0, size)
    old, prefill, alive = weakref.ref(session._segment.cache), decode.prefill, []
    monkeypatch.setattr(decode, "prefill", lambda *a: (gc.collect(), alive.append(old() is not None), prefill(*a))[-1])
    advance(session, actions, size, size + 1)
    assert alive == [False]


def test_a_re_anchoring_that_failed_can_be_made_again(model_of, frames_for, actions_for, monkeypatch):
    model = model_of("plain")
    size, actions = model.segment_frames(), actions_for(model, horizon=6)
    straight = model.session(frames_for(model))
    advance(straight, actions, 0, 6)
    session = model.session(frames_for(model))
    advance(session, actions, 0, size)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(decode, "prefill", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        session.advance(actions[:, size])
    assert session.steps == size
    advance(session, actions, size, 6)
    assert torch.equal(session.imagination().ids, straight.imagination().ids)


def test_features_of_a_segment_that_is_over_are_forgotten(model_of, frames_for, actions_for):
    model = model_of("conditional")
    size, actions = model.segment_frames(), actions_for(model, horizon=5)
    session = model.session(frames_for(model))
    advance(session, actions, 0, 1)
    session.step(actions[:, 1])
    decoder = session._segment.decoder
    assert decoder._features is not None
    advance(session, actions, 2, size + 1)
    assert session._segment.decoder is not decoder and decoder._features is None
    assert torch.isfinite(session.frames).all()


# Copies and files


def test_it_can_be_copied_and_pickled(model_of, frames_for, actions_for):
    model = model_of("plain")
    context, actions = frames_for(model), actions_for(model)
    expected = model.imagine(context, actions)
    copies = [
        copy.copy(model.imagine(context, actions)),
        copy.deepcopy(model.imagine(context, actions)),
        pickle.loads(pickle.dumps(model.imagine(context, actions))),
    ]
    for imagined in copies:
        assert torch.equal(imagined.ids, expected.ids) and torch.equal(imagined.frames, expected.frames)
    assert len(pickle.dumps(model.imagine(context, actions))) < 2 * expected.frames.nbytes, "no tokenizer inside"


def test_it_is_made_of_frames_too_and_needs_them(model_of, frames_for, actions_for, decoded):
    model = model_of("plain")
    imagined = model.imagine(frames_for(model), actions_for(model))
    calls = decoded(model)
    black = torch.zeros(2, 3, 3, 16, 16)
    made = Imagination(black, imagined.ids, imagined.log_probs, imagined.entropies, imagined.rewards)
    assert made.frames is black and calls == []
    with pytest.raises(TypeError, match="frames"):
        Imagination(ids=imagined.ids, log_probs=imagined.log_probs, entropies=imagined.entropies, rewards=None)
    with pytest.raises(AttributeError):
        imagined.frames = black
    assert repr(imagined) == "Imagination(2 rows, 3 frames, rewards)" and calls == [], "nothing is decoded for it"
    assert "<img" in imagined._repr_html_()
