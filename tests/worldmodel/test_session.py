"""The one door to imagination: stepping, observing, forking and rewinding say the same as one straight rollout."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from ivideogpt import Sampling, UserError, WorldModel
from ivideogpt.decoding import speculative
from ivideogpt.decoding.sampling import RandomStreams
from ivideogpt.models import cpu_linear
from ivideogpt.models.cpu_linear import Projection
from ivideogpt.models.transformer import KVCache
from ivideogpt.models.weight_cache import WeightCache

# Models that re-anchor after four frames, so that ten steps cross it twice.
STEPS = 10
KINDS = ["conditional", "plain", "goal", "action_free"]


@pytest.fixture(params=KINDS)
def model(request, model_of):
    return model_of(request.param)


def at(actions, index):
    return None if actions is None else actions[:, index]


def play(session, actions, start, stop):
    """Steps ``start`` to ``stop`` with their actions."""
    return [session.step(at(actions, index)) for index in range(start, stop)]


def assert_same(found, expected):
    """Two lists of steps: equal ids; equal numbers up to rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.entropies, other.entropies, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.frames, other.frames, atol=1e-4, rtol=0)
        assert (one.rewards is None) == (other.rewards is None)
        if one.rewards is not None:
            torch.testing.assert_close(one.rewards, other.rewards, atol=1e-3, rtol=1e-4)


def select(step, rows):
    return replace(
        step,
        frames=step.frames[rows],
        ids=step.ids[rows],
        log_probs=step.log_probs[rows],
        entropies=step.entropies[rows],
        rewards=None if step.rewards is None else step.rewards[rows],
    )


def at_most(actions, rows):
    return None if actions is None else actions[:rows]


def model_ids(steps):
    return torch.stack([step.ids for step in steps], dim=1)


# Stepping, imagining and scoring


def test_stepping_equals_imagine_equals_log_prob(any_model, frames_for, actions_for):
    horizon = any_model.segment_frames()
    context, actions = frames_for(any_model), actions_for(any_model, horizon=horizon)
    session = any_model.session(context, seed=5)
    steps = play(session, actions, 0, horizon)
    imagined = any_model.imagine(context, actions, horizon=horizon, seed=5)
    assert torch.equal(imagined.ids, torch.stack([step.ids for step in steps], dim=1))
    torch.testing.assert_close(imagined.frames, session.frames[:, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(imagined.frames, torch.stack([step.frames for step in steps], dim=1), atol=1e-5, rtol=0)
    log_probs = any_model.log_prob(context, actions, imagined.ids)
    torch.testing.assert_close(imagined.log_probs, log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack([step.log_probs for step in steps], dim=1), log_probs, atol=1e-4, rtol=0)
    if imagined.rewards is not None:
        torch.testing.assert_close(imagined.rewards, torch.stack([step.rewards for step in steps], dim=1))


def test_stepping_equals_imagine_beyond_a_re_anchoring(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, horizon=STEPS)
    steps = play(model.session(context, seed=5), actions, 0, STEPS)
    imagined = model.imagine(context, actions, horizon=STEPS, seed=5)
    assert torch.equal(imagined.ids, torch.stack([step.ids for step in steps], dim=1))
    torch.testing.assert_close(imagined.frames, torch.stack([step.frames for step in steps], dim=1), atol=1e-4, rtol=0)


def test_what_follows_a_re_anchoring_is_imagined_from_the_last_frames(model, frames_for, actions_for):
    size = model.segment_frames()
    context, actions = frames_for(model), actions_for(model, horizon=2 * size)
    session = model.session(context, seed=5)
    steps = play(session, actions, 0, 2 * size)
    first = 0 if model.config.goal_conditioned else size
    anchor = session.frames[:, [first, size + 1]]
    scored = model.log_prob(
        anchor, None if actions is None else actions[:, size:], torch.stack([step.ids for step in steps[size:]], dim=1)
    )
    torch.testing.assert_close(torch.stack([step.log_probs for step in steps[size:]], dim=1), scored, atol=1e-4, rtol=0)


def test_an_imagination_has_the_promised_shapes_types_and_ranges(any_model, frames_for, actions_for):
    layout, size = any_model.layout, any_model.tokenizer.config.resolution
    imagined = any_model.imagine(frames_for(any_model, rows=3), actions_for(any_model, rows=3, horizon=4), horizon=4)
    assert imagined.frames.shape == (3, 4, 3, size, size) and imagined.frames.dtype == torch.float32
    assert imagined.frames.min() >= 0 and imagined.frames.max() <= 1
    assert imagined.ids.shape == imagined.log_probs.shape == (3, 4, layout.dynamics_tokens)
    assert imagined.ids.dtype == torch.int64 and imagined.log_probs.dtype == torch.float32
    assert set(imagined.ids.flatten().tolist()) <= set(layout.dynamics_ids)
    assert (imagined.log_probs < 0).all()
    if any_model.config.heads.reward:
        assert imagined.rewards.shape == (3, 4) and imagined.rewards.dtype == torch.float32
    else:
        assert imagined.rewards is None


def test_a_step_is_an_imagination_without_the_horizon_axis(model, frames_for, actions_for):
    session = model.session(frames_for(model, rows=3))
    step = session.step(at(actions_for(model, rows=3), 0))
    assert step.frames.shape == (3, 3, 16, 16) and step.ids.shape == step.log_probs.shape == (
        3,
        model.layout.dynamics_tokens,
    )
    assert step.rewards is None or step.rewards.shape == (3,)
    assert session.frames.shape == (3, 3, 3, 16, 16) and session.steps == 1


def test_a_session_begins_with_the_context_itself(model, frames_for):
    context = frames_for(model)
    assert torch.equal(model.session(context).frames, context)


def test_without_a_horizon_there_are_as_many_frames_as_actions_else_14(model_of, frames_for, actions_for):
    model = model_of("conditional")
    assert model.imagine(frames_for(model), actions_for(model, horizon=3)).ids.shape[1] == 3
    assert model_of("action_free").imagine(frames_for(model_of("action_free"))).ids.shape[1] == 14


def test_log_prob_is_differentiable(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, horizon=3)
    ids = model.imagine(context, actions, horizon=3).ids
    log_probs = model.log_prob(context, actions, ids)
    assert log_probs.dtype == torch.float32 and log_probs.requires_grad
    wanted = {**dict(model.transformer.named_parameters()), **dict(model.heads.named_parameters())}
    gradients = torch.autograd.grad(log_probs.sum(), list(wanted.values()), allow_unused=True)
    for name, gradient in zip(wanted, gradients, strict=True):
        unused = name.startswith(("reward_linear", "action_recon_linear"))
        assert (gradient is None) if unused else gradient.any(), name


def test_log_prob_uses_the_temperature_and_the_legal_ids_of_the_sampling(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, horizon=3)
    for sampling in (Sampling(temperature=0.6, top_k=2), Sampling(legal_only=False, temperature=3.0)):
        imagined = model.imagine(context, actions, horizon=3, sampling=sampling)
        scored = model.log_prob(context, actions, imagined.ids, sampling)
        torch.testing.assert_close(imagined.log_probs, scored, atol=1e-4, rtol=0)


def test_probabilities_of_legal_ids_sum_to_one(model_of, frames_for, actions_for):
    model = model_of("conditional")
    context, actions = frames_for(model, rows=1), actions_for(model, rows=1, horizon=1)
    first = model.imagine(context, actions).ids.expand(20, -1, -1).clone()
    first[:, 0, 0] = torch.tensor(model.layout.dynamics_ids)
    scored = model.log_prob(context.expand(20, -1, -1, -1, -1), actions.expand(20, -1, -1), first)
    torch.testing.assert_close(scored[:, 0, 0].exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("kind", ["conditional", "plain", "goal"])
def test_log_prob_follows_a_session_across_re_anchorings(kind, model_of, frames_for, actions_for):
    model = model_of(kind)
    context, actions = frames_for(model), actions_for(model, horizon=10)
    for every in (None, 3):
        imagined = model.imagine(context, actions, reanchor_every=every)
        scored = model.log_prob(context, actions, imagined.ids, reanchor_every=every)
        torch.testing.assert_close(imagined.log_probs, scored, atol=1e-4, rtol=0)


# Randomness


def test_a_row_alone_equals_the_same_row_in_a_batch_of_eight(model, frames_for, actions_for):
    context, actions = frames_for(model, rows=8, seed=1), actions_for(model, rows=8, horizon=STEPS)
    seeds = list(range(20, 28))
    batch = model.imagine(context, actions, horizon=STEPS, seed=seeds)
    for row in (0, 5):
        only = slice(row, row + 1)
        alone = model.imagine(
            context[only], None if actions is None else actions[only], horizon=STEPS, seed=[seeds[row]]
        )
        assert torch.equal(alone.ids, batch.ids[only])
        torch.testing.assert_close(alone.frames, batch.frames[only], atol=1e-4, rtol=0)


def test_one_seed_gives_each_row_its_own_stream(model, frames_for, actions_for):
    context, actions = frames_for(model, rows=1).expand(4, -1, -1, -1, -1), actions_for(model, rows=1)
    actions = None if actions is None else actions.expand(4, -1, -1)
    ids = model.imagine(context, actions, horizon=3, seed=3).ids
    assert len(ids.flatten(1).unique(dim=0)) == 4
    assert torch.equal(model.imagine(context, actions, horizon=3, seed=3).ids, ids)
    assert not torch.equal(model.imagine(context, actions, horizon=3, seed=4).ids, ids)
    assert torch.equal(model.imagine(context[:2], at_most(actions, 2), horizon=3, seed=3).ids, ids[:2])


def test_each_step_draws_its_own_random_numbers(model_of, frames_for, actions_for, monkeypatch):
    asked = []
    uniforms = RandomStreams.uniforms

    def recording(streams, step, count):
        asked.append(step)
        return uniforms(streams, step, count)

    monkeypatch.setattr(RandomStreams, "uniforms", recording)
    model = model_of("conditional")
    frames, actions = frames_for(model, count=3), actions_for(model, horizon=6)
    session = model.session(frames[:, :2])
    play(session, actions, 0, 2)
    session.observe(frames[:, 2], actions[:, 2])
    play(session, actions, 3, 6)
    session.rewind(2)
    play(session, actions, 4, 5)
    assert asked == [0, 1, 2, 3, 4, 5, 4]  # step 2 is observed; its numbers are for a sampled separator


def test_the_likeliest_tokens_are_greedy_top_1_and_cold_ones(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model)
    greedy = model.imagine(context, actions, horizon=3, sampling=Sampling(greedy=True))
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6, top_k=None), Sampling(temperature=1e-4)):
        assert torch.equal(model.imagine(context, actions, horizon=3, sampling=sampling, seed=9).ids, greedy.ids)
    torch.testing.assert_close(greedy.log_probs, model.log_prob(context, actions, greedy.ids), atol=1e-4, rtol=0)


def test_sampling_follows_the_model(model_of, frames_for, actions_for):
    model, count = model_of("conditional"), 1000
    context, actions = frames_for(model, rows=1), actions_for(model, rows=1, horizon=1)
    children = model.session(context, sampling=Sampling(top_k=None)).fork(count)
    children.advance(actions[:, 0].expand(count, -1))
    first = children._past[-1].ids[:, 0]
    each = torch.tensor(model.layout.dynamics_ids)
    ids = torch.full((len(each), 1, 4), int(each[0]))
    ids[:, 0, 0] = each
    probabilities = model.log_prob(context.expand(len(each), -1, -1, -1, -1), actions.expand(len(each), -1, -1), ids)
    expected = probabilities[:, 0, 0].detach().exp() * count
    counts = (first[:, None] == each).sum(dim=0)
    likely = expected > 5
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 60


def test_actions_change_what_is_imagined(model_of, frames_for, actions_for):
    for kind in ("conditional", "plain", "goal"):
        model = model_of(kind)
        context, actions = frames_for(model), actions_for(model)
        ids = model.imagine(context, actions).ids
        other = actions.clone()
        other[:, 1] += 1
        changed = model.imagine(context, other).ids
        assert torch.equal(changed[:, 0], ids[:, 0]) and not torch.equal(changed[:, 1], ids[:, 1])


# Legal ids and separators


def test_only_legal_ids_are_drawn_unless_asked(model_of, frames_for, actions_for):
    model = model_of("conditional")
    context, actions = frames_for(model, rows=6), actions_for(model, rows=6)
    free = model.imagine(context, actions, sampling=Sampling(legal_only=False, temperature=3.0, top_k=None))
    legal = model.layout.dynamics_ids
    assert free.ids.min() < legal.start and free.ids.max() < model.layout.vocab_size
    assert torch.isfinite(free.frames).all() and torch.isfinite(free.log_probs).all()
    # Clamped for decoding only.
    kept = model.imagine(context, actions, sampling=Sampling(temperature=3.0, top_k=None))
    assert kept.ids.min() >= legal.start and kept.ids.max() < legal.stop


def test_free_separators_are_drawn_and_others_forced(model_of, frames_for, actions_for):
    for kind in ("conditional", "plain", "action_free"):
        model = model_of(kind)
        sdf = model.layout.dynamics_separator
        context, actions = frames_for(model, rows=4), actions_for(model, rows=4, horizon=STEPS)
        for sampling in (Sampling(top_k=None), Sampling(top_k=None, free_separators=True)):
            session = model.session(context, sampling=sampling)
            play(session, actions, 0, STEPS)
            opened = torch.stack([past.separators for past in session._past], dim=1)
            size = model.segment_frames()
            assert (opened[:, ::size] == sdf).all(), "the first separator of a segment belongs to the prompt"
            assert (opened == sdf).all() != sampling.free_separators


def test_free_separators_step_rewind_and_fork_alike(model_of, frames_for, actions_for):
    for kind in ("plain", "action_free"):
        model, sampling = model_of(kind), Sampling(free_separators=True, legal_only=False)
        context, actions = frames_for(model), actions_for(model, horizon=STEPS)
        straight = play(model.session(context, sampling=sampling, seed=1), actions, 0, STEPS)
        session = model.session(context, sampling=sampling, seed=1)
        play(session, actions, 0, 6)
        session.rewind(3)
        assert_same(play(session.fork(1), actions, 3, STEPS), straight[3:])
        assert_same(play(session, actions, 3, STEPS), straight[3:])


# Fork


def test_the_first_child_of_a_fork_equals_never_having_forked(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, horizon=STEPS)
    straight = play(model.session(context, seed=2), actions, 0, STEPS)
    session = model.session(context, seed=2)
    assert_same(play(session, actions, 0, 3), straight[:3])
    child = session.fork(3)
    assert child.rows == 6 and child.steps == 3
    assert torch.equal(child.frames, session.frames.repeat_interleave(3, dim=0))
    repeated = None if actions is None else actions.repeat_interleave(3, dim=0)
    grown = play(child, repeated, 3, STEPS)
    assert_same([select(step, [0, 3]) for step in grown], straight[3:])
    # The parent does not notice its children.
    assert session.steps == 3
    assert_same(play(session, actions, 3, STEPS), straight[3:])


def test_other_children_draw_for_themselves_unless_they_share(model, frames_for, actions_for):
    actions = actions_for(model)
    session = model.session(frames_for(model), seed=2)
    session.step(at(actions, 0))
    repeated = None if actions is None else actions.repeat_interleave(3, dim=0)
    ids = torch.stack([step.ids for step in play(session.fork(3), repeated, 1, 3)], dim=1)
    assert len(ids.flatten(1).unique(dim=0)) == 6
    shared = play(session.fork(3, common_random=True), repeated, 1, 3)
    for step in shared:
        assert torch.equal(step.ids, step.ids[[0, 3]].repeat_interleave(3, dim=0))
    assert_same([select(step, [0, 3]) for step in shared], play(session, actions, 1, 3))


def test_children_are_numbered(model_of, frames_for, actions_for):
    model = model_of("plain")
    session, action = model.session(frames_for(model, rows=1)), actions_for(model, rows=1)[:, 0]
    usual, later, alone = session.fork(3), session.fork(2, first=1), session.fork(1, first=2)
    expected = usual.step(action.repeat(3, 1)).ids
    assert torch.equal(later.step(action.repeat(2, 1)).ids, expected[1:])
    assert torch.equal(alone.step(action).ids, expected[2:])
    assert torch.equal(session.step(action).ids, expected[:1])
    with pytest.raises(UserError, match="first is -1"):
        session.fork(2, first=-1)


def test_children_with_common_randomness_differ_by_their_actions_alone(model_of, frames_for, actions_for):
    model = model_of("conditional")
    child = model.session(frames_for(model, rows=1)).fork(3, common_random=True)
    actions = actions_for(model, rows=1).expand(3, -1, -1).clone()
    actions[2] += 1
    ids = model_ids(play(child, actions, 0, 3))
    assert torch.equal(ids[0], ids[1]) and not torch.equal(ids[0], ids[2])


def test_a_fork_of_a_fork_and_a_fork_before_the_first_step(model_of, frames_for, actions_for):
    model = model_of("conditional")
    context, actions = frames_for(model, rows=1), actions_for(model, rows=1, horizon=4)
    straight = play(model.session(context), actions, 0, 4)
    twice = model.session(context).fork(2).fork(2)
    steps = play(twice, actions.expand(4, -1, -1), 0, 4)
    assert_same([select(step, [0]) for step in steps], straight)
    assert len(model_ids(steps).flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize("k", [0, -1])
def test_a_fork_needs_a_child(model_of, frames_for, k):
    with pytest.raises(UserError, match=f"k is {k}"):
        model_of("conditional").session(frames_for(model_of("conditional"))).fork(k)


# Rewind


@pytest.mark.parametrize(("made", "back"), [(3, 1), (4, 4), (6, 1), (6, 2), (6, 3), (9, 1), (9, 5), (9, 6), (9, 9)])
def test_rewinding_and_going_on_equals_never_having_been_there(model, frames_for, actions_for, made, back):
    context, actions = frames_for(model), actions_for(model, horizon=STEPS)
    straight = play(model.session(context, seed=4), actions, 0, STEPS)
    session = model.session(context, seed=4)
    play(session, None if actions is None else actions + (torch.arange(STEPS) >= made - back)[:, None], 0, made)
    session.rewind(back)
    assert session.steps == made - back and session.frames.shape[1] == 2 + made - back
    assert_same(play(session, actions, made - back, STEPS), straight[made - back :])
    torch.testing.assert_close(
        session.frames[:, 2:], torch.stack([step.frames for step in straight], dim=1), atol=1e-4, rtol=0
    )


def test_rewinding_a_fork_beyond_its_birth(model_of, frames_for, actions_for):
    model = model_of("conditional")
    context, actions = frames_for(model), actions_for(model, horizon=6)
    straight = play(model.session(context), actions, 0, 6)
    session = model.session(context)
    play(session, actions, 0, 5)
    child = session.fork(2)
    child.rewind(4)
    again = play(child, actions.repeat_interleave(2, dim=0), 1, 6)
    assert_same([select(step, [0, 2]) for step in again], straight[1:])
    assert not torch.equal(again[0].ids[0], again[0].ids[1]), "the other child draws for itself from here on"
    assert session.steps == 5


def test_rewinding_over_observed_frames(model, frames_for, actions_for):
    frames, actions = frames_for(model, count=9), actions_for(model, horizon=8)

    def begin():
        session = model.session(frames[:, :2], seed=3)
        steps = [session.observe(frames[:, 2 + index], at(actions, index)) for index in range(6)]
        return session, steps

    session, observed = begin()
    straight = play(session, actions, 6, 8)
    session, _ = begin()
    session.rewind(3)
    assert torch.equal(session.frames, frames[:, :5])
    again = [session.observe(frames[:, 2 + index], at(actions, index)) for index in range(3, 6)]
    assert_same(again, observed[3:])
    assert_same(play(session, actions, 6, 8), straight)


def test_rewinding_nothing_changes_nothing_and_too_far_is_refused(model_of, frames_for, actions_for):
    model = model_of("conditional")
    session = model.session(frames_for(model))
    play(session, actions_for(model), 0, 3)
    before = session.frames
    session.rewind(0)
    assert torch.equal(session.frames, before)
    for n in (-1, 4):
        with pytest.raises(UserError, match=f"cannot rewind {n} steps; expected 0 to 3"):
            session.rewind(n)
    assert session.steps == 3


# Observe


def test_observed_frames_are_scored_as_log_prob_scores_them(model, frames_for, actions_for):
    count = model.segment_frames()
    frames, actions = frames_for(model, count=2 + count), actions_for(model, horizon=count)
    ids, _ = model.tokenizer.tokenize(frames)
    _, codes = model.layout.split(ids, 2)
    session = model.session(frames[:, :2])
    steps = [session.observe(frames[:, 2 + index], at(actions, index)) for index in range(count)]
    assert torch.equal(model_ids(steps), codes + model.layout.dynamics_ids.start)
    scored = model.log_prob(frames[:, :2], actions, model_ids(steps))
    torch.testing.assert_close(torch.stack([step.log_probs for step in steps], dim=1), scored, atol=1e-4, rtol=0)
    assert torch.equal(session.frames, frames)
    for index, step in enumerate(steps):
        assert torch.equal(step.frames, frames[:, 2 + index])


def test_imagining_after_observed_frames_equals_observing_and_stepping(model, frames_for, actions_for):
    for known in (2, 5):
        frames, actions = frames_for(model, count=2 + known), actions_for(model, horizon=known + 3)
        session = model.session(frames[:, :2], seed=6)
        for index in range(known):
            session.observe(frames[:, 2 + index], at(actions, index))
        steps = play(session, actions, known, known + 3)
        imagined = model.imagine(
            frames[:, :2],
            None if actions is None else actions[:, known:],
            horizon=3,
            seed=6,
            observed=frames[:, 2:],
            observed_actions=None if actions is None else actions[:, :known],
        )
        assert torch.equal(imagined.ids, model_ids(steps))
        torch.testing.assert_close(imagined.frames, session.frames[:, -3:], atol=1e-4, rtol=0)
        assert imagined.frames.shape[1] == imagined.log_probs.shape[1] == 3


def test_observing_what_was_imagined_leads_on_alike(model_of, frames_for, actions_for):
    # Where the decoded frame is encoded to the same tokens again, both ways are one.
    model = model_of("plain")
    context, actions = frames_for(model), actions_for(model)
    session = model.session(context, seed=7)
    step = session.step(at(actions, 0))
    other = model.session(context, seed=7)
    seen = other.observe(step.frames, at(actions, 0))
    if torch.equal(seen.ids, step.ids):
        torch.testing.assert_close(seen.log_probs, step.log_probs, atol=1e-4, rtol=0)
        torch.testing.assert_close(seen.entropies, step.entropies, atol=1e-3, rtol=0)
        assert torch.equal(other.step(at(actions, 1)).ids, session.step(at(actions, 1)).ids)
    assert torch.equal(other.frames[:, 2], step.frames)


def test_an_observed_frame_counts_like_an_imagined_one_for_rewards(model_of, frames_for, actions_for):
    model = model_of("plain")
    frames, actions = frames_for(model, count=3), actions_for(model)
    step = model.session(frames[:, :2]).observe(frames[:, 2], at(actions, 0))
    assert step.rewards.shape == (2,) and torch.isfinite(step.rewards).all()


# Cost


@pytest.fixture
def fed(monkeypatch):
    """How many positions the transformer was given, pass by pass."""
    counts = []
    advance = KVCache.advance

    def counting(cache, count):
        counts.append(count)
        advance(cache, count)

    monkeypatch.setattr(KVCache, "advance", counting)
    return counts


def test_a_frame_costs_its_separator_and_its_tokens_and_the_context_is_read_once(
    any_model, frames_for, actions_for, fed, monkeypatch
):
    monkeypatch.setattr(speculative, "DRAFT_ROWS", 0)
    layout, frames, actions = any_model.layout, frames_for(any_model, count=4), actions_for(any_model, horizon=4)
    session = any_model.session(frames[:, :2])
    assert sum(fed) == layout.context_length(2)
    assert len(fed) == 1
    for index in range(2):
        fed.clear()
        session.step(at(actions, index))
        assert sum(fed) == 1 + layout.dynamics_tokens
    fed.clear()
    session.observe(frames[:, 2], at(actions, 2))
    assert sum(fed) == 1 + layout.dynamics_tokens and len(fed) == 1
    fed.clear()
    session.frames  # noqa: B018
    session.fork(3)
    session.rewind(1)
    session.step(at(actions, 2))
    assert sum(fed) == 1 + layout.dynamics_tokens


def test_the_context_is_encoded_once_a_segment(model, frames_for, actions_for, monkeypatch):
    seen = []
    encode = model.tokenizer.encode_context

    def recording(frames):
        seen.append(frames.clone())
        return encode(frames)

    monkeypatch.setattr(model.tokenizer, "encode_context", recording)
    size = model.segment_frames()
    session = model.session(frames_for(model))
    play(session, actions_for(model, horizon=2 * size + 1), 0, 2 * size + 1)
    assert len(seen) == 3
    for index, context in enumerate(seen):
        last = index * size + 1
        first = 0 if model.config.goal_conditioned else last - 1
        assert torch.equal(context, session.frames[:, [first, last]]), "[goal, last] or the last two"


def test_two_hundred_steps_run_in_bounded_memory(model_of, frames_for, actions_for):
    def held():
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        tensors = [thing for thing in tensors if not thing.is_mkldnn]  # a copy of a weight, which shows no storage
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    model = model_of("conditional")
    actions = actions_for(model, rows=1, horizon=200)
    session = model.session(frames_for(model, rows=1))
    sizes, cache = {}, set()
    for index in range(200):
        session.step(actions[:, index])
        cache.add(session._segment.cache.keys.shape)
        if index + 1 in (100, 200):
            sizes[index + 1] = held()
    assert session.frames.shape[1] == 202 and torch.isfinite(session.frames).all()
    assert len(cache) == 1
    frame, tokens = 3 * 16 * 16 * 4, 4 * (8 + 4)
    assert (sizes[200] - sizes[100]) / 100 < frame + tokens + 100, "frames, ids and a few numbers a step, nothing else"


def test_the_last_token_leaves_no_hidden_states_behind(model_of, frames_for, actions_for):
    model = model_of("plain")
    frames, actions = frames_for(model, count=3), actions_for(model)
    session = model.session(frames[:, :2])
    session.observe(frames[:, 2], actions[:, 0])
    session.step(actions[:, 1])
    for record in session._past:
        tensors = [value for value in vars(record).values() if isinstance(value, torch.Tensor)]
        # The hidden states of a frame take 17 * 32 numbers a row, the ids 17.
        assert len(tensors) >= 5 and all(value.untyped_storage().nbytes() <= 2 * 17 * 8 for value in tensors)


# Re-anchoring


def test_a_segment_is_as_long_as_training_and_positions_allow(build):
    model = build("conditional")
    assert model.segment_frames() == 4
    assert model.segment_limit == 12 and model.segment_frames(12) == 12 and model.segment_frames(1) == 1
    assert build("conditional", clip_frames=None).segment_frames() == 12
    assert build("conditional", clip_frames=40).segment_frames() == 12
    assert build("conditional", clip_frames=2).segment_frames() == 1
    for count in (0, 13):
        with pytest.raises(UserError, match=f"reanchor_every is {count}; expected 1 to 12"):
            model.segment_frames(count)


def test_reanchor_every_overrides_the_training_length(model_of, frames_for, actions_for, fed):
    model = model_of("conditional")
    context, actions = frames_for(model), actions_for(model, horizon=6)
    model.imagine(context, actions, reanchor_every=6)
    assert fed.count(model.layout.context_length(2)) == 1
    fed.clear()
    model.imagine(context, actions, reanchor_every=2)
    assert fed.count(model.layout.context_length(2)) == 3
    short = model.imagine(context, actions[:, :2], reanchor_every=2)
    assert torch.equal(short.ids, model.imagine(context, actions[:, :2], reanchor_every=6).ids)


# What goes in and comes out


def test_uint8_frames_equal_float_frames(model, frames_for, actions_for):
    pixels = (frames_for(model, count=3) * 255).round().byte()
    floats, actions = pixels.float() / 255, actions_for(model)
    one, other = model.imagine(pixels[:, :2], actions, horizon=3), model.imagine(floats[:, :2], actions, horizon=3)
    assert torch.equal(one.ids, other.ids) and torch.equal(one.frames, other.frames)
    assert torch.equal(model.log_prob(pixels[:, :2], actions, one.ids), model.log_prob(floats[:, :2], actions, one.ids))
    sessions = [model.session(x[:, :2]) for x in (pixels, floats)]
    ids = [session.observe(x[:, 2], at(actions, 0)).ids for session, x in zip(sessions, (pixels, floats), strict=True)]
    assert torch.equal(*ids) and torch.equal(sessions[0].frames, sessions[1].frames)


def test_rewards_are_in_reward_units(build, frames_for, actions_for):
    symlog, plain = build("plain"), build("plain", symlog_rewards=False)
    context, actions = frames_for(plain), actions_for(plain, horizon=4)
    one, other = (model.imagine(context, actions) for model in (symlog, plain))
    assert torch.equal(one.ids, other.ids)
    torch.testing.assert_close(one.rewards, other.rewards.sign() * (other.rewards.abs().exp() - 1))
    assert other.rewards.min() < 0 < other.rewards.max()


def test_a_reward_is_read_off_the_last_token_of_its_frame(model_of, frames_for, actions_for):
    model = model_of("conditional")
    context, actions = frames_for(model), actions_for(model, horizon=4)
    imagined = model.imagine(context, actions)
    codes, _ = model.tokenizer.encode_context(context)
    sequence = model.layout.join(codes, imagined.ids - model.layout.dynamics_ids.start)
    hidden = model.dynamics.hidden_states(sequence, actions)[0][:, model.layout.context_length(2) :]
    torch.testing.assert_close(
        model.dynamics.rewards(hidden.unflatten(1, (4, -1))[:, :, -1]), imagined.rewards, atol=1e-4, rtol=0
    )


def test_callers_may_reuse_their_buffers(model_of, frames_for, actions_for):
    model = model_of("conditional")
    frames, actions = frames_for(model, count=3), actions_for(model, horizon=STEPS)
    straight = model.session(frames[:, :2], seed=1)
    expected = [straight.observe(frames[:, 2], actions[:, 0]), *play(straight, actions, 1, STEPS)]
    context, frame, action = frames[:, :2].clone(), frames[:, 2].clone(), actions[:, 0].clone()
    session = model.session(context, seed=1)
    context.zero_()
    found = [session.observe(frame, action)]
    frame.zero_()
    for index in range(1, 6):
        action.copy_(actions[:, index])
        step = session.step(action)
        found.append(select(step, [0, 1]))
        for part in (step.frames, step.ids, step.log_probs, step.rewards):
            part.zero_()
    action.zero_()
    session.rewind(4)
    del found[2:]
    found += play(session, actions, 2, STEPS)
    assert_same(found, expected)
    torch.testing.assert_close(session.frames, straight.frames, atol=1e-4, rtol=0)


def test_networks_can_be_trained_on_what_comes_out(model_of, frames_for, actions_for):
    model = model_of("conditional")
    context, actions = frames_for(model), actions_for(model)
    policy, session = nn.Conv2d(3, 1, 16), model.session(context)
    step = session.step(actions[:, 0])
    for frames in (step.frames, session.frames[:, -1], model.imagine(context, actions).frames[:, -1]):
        policy.zero_grad()
        (policy(frames).flatten() * step.rewards).sum().backward()
        assert policy.weight.grad.any()


@pytest.mark.parametrize("kind", ["conditional", "plain"])
def test_a_bfloat16_model_steps_observes_and_scores(build, frames_for, actions_for, kind):
    model = build(kind).to(dtype=torch.bfloat16)
    frames, actions = frames_for(model, count=3), actions_for(model, horizon=6)
    session = model.session(frames[:, :2])
    steps = [session.observe(frames[:, 2], actions[:, 0]), *play(session, actions, 1, 6)]
    for step in steps:
        assert step.frames.dtype == step.log_probs.dtype == step.rewards.dtype == torch.float32
        assert torch.isfinite(step.log_probs).all() and torch.isfinite(step.frames).all()
    scored = model.log_prob(frames[:, :2], actions[:, :4], model_ids(steps[:4]))
    torch.testing.assert_close(torch.stack([step.log_probs for step in steps[:4]], dim=1), scored, atol=0.5, rtol=0)


# What is refused


def bad_calls():
    nan = float("nan")
    return {
        "too few context frames": (
            lambda m, f, a: m.session(f[:, :1]),
            "context has 1 frames; this model takes exactly 2",
        ),
        "too many context frames": (lambda m, f, a: m.imagine(f[:, :3], a), "context has 3 frames"),
        "context of another size": (lambda m, f, a: m.session(f[:, :2, :, :8]), r"expected \[b t 3 16 16\] \(resize"),
        "grey context": (lambda m, f, a: m.session(f[:, :2, :1]), r"shape \[2, 2, 1, 16, 16\]"),
        "context without rows": (lambda m, f, a: m.session(f[:0, :2]), r"shape \[0, 2, 3, 16, 16\]"),
        "context without a batch": (lambda m, f, a: m.session(f[0, :2]), r"shape \[2, 3, 16, 16\]"),
        "context of 0 to 255": (lambda m, f, a: m.session(f[:, :2] * 255), "expected numbers in"),
        "context of NaN": (lambda m, f, a: m.session(f[:, :2] * nan), "from nan to nan"),
        "context of int64": (lambda m, f, a: m.session(f[:, :2].long()), "type torch.int64; expected uint8"),
        "context of numpy": (lambda m, f, a: m.session(f[:, :2].numpy()), "came as ndarray; expected a torch tensor"),
        "no actions": (lambda m, f, a: m.imagine(f[:, :2]), "no actions came, but this model needs them"),
        "no action": (lambda m, f, a: m.session(f[:, :2]).step(), r"no action came.*\[2 3\]"),
        "actions of another dimension": (
            lambda m, f, a: m.imagine(f[:, :2], a[..., :2]),
            r"\[2, 4, 2\]; expected \[2 4 3\]",
        ),
        "actions of other rows": (lambda m, f, a: m.imagine(f[:, :2], a[:1]), r"\[1, 4, 3\]; expected \[2 4 3\]"),
        "actions of another length": (
            lambda m, f, a: m.imagine(f[:, :2], a, horizon=5),
            "horizon is 5, but there are 4 actions",
        ),
        "action of another dimension": (
            lambda m, f, a: m.session(f[:, :2]).step(a[:, 0, :2]),
            r"\[2, 2\]; expected \[2 3\]",
        ),
        "action with a time axis": (
            lambda m, f, a: m.session(f[:, :2]).step(a[:, :1]),
            r"\[2, 1, 3\]; expected \[2 3\]",
        ),
        "actions of NaN": (lambda m, f, a: m.imagine(f[:, :2], a * nan), "NaN or infinity"),
        "no horizon": (lambda m, f, a: m.imagine(f[:, :2], horizon=0), "horizon is 0; expected at least 1"),
        "frame of other rows": (
            lambda m, f, a: m.session(f[:, :2]).observe(f[:1, 2], a[:1, 0]),
            r"expected \[2 3 16 16\]",
        ),
        "frame with a time axis": (
            lambda m, f, a: m.session(f[:, :2]).observe(f[:, 2:3], a[:, 0]),
            "one frame for each row",
        ),
        "frame of NaN": (lambda m, f, a: m.session(f[:, :2]).observe(f[:, 2] * nan, a[:, 0]), "frame came with values"),
        "observed without actions": (
            lambda m, f, a: m.imagine(f[:, :2], a, observed=f[:, 2:]),
            "no observed_actions came",
        ),
        "observed actions alone": (
            lambda m, f, a: m.imagine(f[:, :2], a, observed_actions=a),
            "without observed frames",
        ),
        "nothing observed": (
            lambda m, f, a: m.imagine(f[:, :2], a, observed=f[:, :0], observed_actions=a[:, :0]),
            "observed came with shape",
        ),
        "seeds": (lambda m, f, a: m.imagine(f[:, :2], a, seed=[1, 2, 3]), "3 seeds were given for 2 rows"),
        "ids of another shape": (
            lambda m, f, a: m.log_prob(f[:, :2], a, torch.zeros(2, 4, 3).long()),
            r"expected \[2 horizon 4\]",
        ),
        "ids of floats": (lambda m, f, a: m.log_prob(f[:, :2], a, torch.full((2, 4, 4), 30.0)), "ids came with type"),
        "ids of codes": (
            lambda m, f, a: m.log_prob(f[:, :2], a, torch.zeros(2, 4, 4).long()),
            "ids range from 0 to 0; expected 24 to 43, or use",
        ),
        "ids out of vocabulary": (
            lambda m, f, a: m.log_prob(f[:, :2], a, torch.full((2, 4, 4), 46), Sampling(legal_only=False)),
            "ids range from 46 to 46; expected 0 to 45$",
        ),
        "actions of another length than ids": (
            lambda m, f, a: m.log_prob(f[:, :2], a[:, :3], torch.full((2, 4, 4), 30)),
            r"\[2, 3, 3\]; expected \[2 4 3\]",
        ),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_one_sentence(model_of, frames_for, actions_for, name):
    model: WorldModel = model_of("conditional")
    call, sentence = bad_calls()[name]
    with pytest.raises(UserError, match=sentence) as caught:
        call(model, frames_for(model, count=4), actions_for(model, horizon=4))
    assert len(str(caught.value).splitlines()) == 1


def test_an_action_free_model_takes_no_actions(model_of, frames_for):
    model = model_of("action_free")
    with pytest.raises(UserError, match="actions came, but this model is action-free"):
        model.imagine(frames_for(model), torch.zeros(2, 3, 4))
    with pytest.raises(UserError, match="action came, but this model is action-free"):
        model.session(frames_for(model)).step(torch.zeros(2, 4))


def test_a_refused_step_leaves_the_session_as_it_was(model_of, frames_for, actions_for):
    model = model_of("conditional")
    frames, actions = frames_for(model, count=3), actions_for(model, horizon=5)
    expected = play(model.session(frames[:, :2]), actions, 0, 5)
    session = model.session(frames[:, :2])
    found = []
    for index in range(5):
        with pytest.raises(UserError):
            session.step()
        with pytest.raises(UserError):
            session.observe(frames[:, 2] * 2, actions[:, index])
        with pytest.raises(UserError):
            session.observe(frames[:, 2])
        found += play(session, actions, index, index + 1)
    assert_same(found, expected)


def test_warmup_does_beforehand_what_the_first_step_would_wait_for(model_of, frames_for, actions_for, monkeypatch):
    model = model_of("conditional")
    context, actions = frames_for(model), actions_for(model, horizon=2)
    plain, warm = model.session(context), model.session(context)
    expected = [plain.step(actions[:, index]) for index in range(2)]
    for part in model.modules():
        if isinstance(part, Projection):
            part._products = WeightCache()
    warm.warmup()
    assert warm.steps == 0
    monkeypatch.setattr(cpu_linear, "packed_product", lambda weight: pytest.fail("packed during a step"))
    for index in range(2):
        step = warm.step(actions[:, index])
        assert torch.equal(step.ids, expected[index].ids) and torch.equal(step.frames, expected[index].frames)
