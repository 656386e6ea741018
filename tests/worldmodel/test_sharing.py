"""Sessions that were forked read their common past in one place; what they imagine is what copies of it give."""

import pytest
import torch

from ivideogpt.models.kv_cache import KVCache

KINDS = ["conditional", "plain", "goal", "action_free"]


def copied(cache, k):
    """A fork of a cache that shares nothing."""
    assert not cache.prefixes
    keys, values, ids = (
        x.repeat_interleave(k, dim=dim) for x, dim in ((cache.keys, 1), (cache.values, 1), (cache.ids, 0))
    )
    return KVCache(keys, values, ids, cache.length)


def at(actions, index, k=1):
    return None if actions is None else actions[:, index].repeat_interleave(k, dim=0)


def fork_of_a_fork(session, actions, frames):
    yield session.step(at(actions, 0))
    child = session.fork(3)
    yield child.step(at(actions, 1, 3))
    grandchild = child.fork(2, common_random=True)
    yield grandchild.step(at(actions, 2, 6))
    yield child.step(at(actions, 2, 3))
    yield session.step(at(actions, 1))
    yield grandchild.fork(2).step(at(actions, 3, 12))


def child_goes_back_before_its_birth(session, actions, frames):
    yield session.step(at(actions, 0))
    yield session.step(at(actions, 1))
    child = session.fork(3)
    yield child.step(at(actions, 2, 3))
    child.rewind(2)
    yield child.step(at(actions, 2, 3))
    child.rewind(2)
    yield child.step(at(actions, 1, 3))
    yield session.step(at(actions, 2))


def parent_goes_back_and_on(session, actions, frames):
    yield session.step(at(actions, 0))
    yield session.step(at(actions, 1))
    child = session.fork(2)
    yield session.step(at(actions, 2))
    session.rewind(3)
    yield session.step(at(actions, 3))
    yield session.step(at(actions, 2))
    yield child.step(at(actions, 2, 2))


def both_observe(session, actions, frames):
    child = session.fork(3)
    yield child.observe(frames[:, 2].repeat_interleave(3, dim=0), at(actions, 0, 3))
    yield session.observe(frames[:, 3], at(actions, 1))
    yield child.step(at(actions, 1, 3))
    yield session.step(at(actions, 2))


def child_goes_on_from_a_new_context(session, actions, frames):
    yield session.step(at(actions, 0))
    child = session.fork(2)
    for index in range(1, 6):
        yield child.step(at(actions, index, 2))
    child.rewind(4)
    yield child.step(at(actions, 2, 2))
    grandchild = child.fork(2)
    for index in range(3, 6):
        yield grandchild.step(at(actions, index, 4))


def only_child(session, actions, frames):
    yield session.step(at(actions, 0))
    child = session.fork(1)
    yield child.step(at(actions, 1))
    session.rewind(1)
    yield session.step(at(actions, 2))
    yield child.step(at(actions, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "play",
    [
        fork_of_a_fork,
        child_goes_back_before_its_birth,
        parent_goes_back_and_on,
        both_observe,
        child_goes_on_from_a_new_context,
        only_child,
    ],
)
def test_sharing_changes_nothing(model_of, frames_for, actions_for, monkeypatch, kind, play):
    model = model_of(kind)
    frames, actions = frames_for(model, count=4), actions_for(model, horizon=7)
    found = list(play(model.session(frames[:, :2], seed=3), actions, frames))
    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "repeat", copied)
        expected = list(play(model.session(frames[:, :2], seed=3), actions, frames))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.frames, other.frames, atol=1e-4, rtol=0)


def test_a_child_takes_memory_only_for_the_frames_to_come(model_of, frames_for):
    model = model_of("official")
    session = model.session(frames_for(model, rows=1), reanchor_every=4)
    whole = session._segment.cache
    child = session.fork(16)._segment.cache
    frames, context = 4 * model.layout.frame_length, model.layout.context_length(model.context_frames)
    assert whole.keys.shape[3] == context + frames and child.keys.shape[3] == frames
    assert child.keys.nbytes * (context + frames) == 16 * whole.keys.nbytes * frames
    assert [prefix.keys.data_ptr() for prefix in child.prefixes] == [whole.keys.data_ptr()]
