"""Drafts change how often the transformer is asked, and nothing of what it says."""

import pytest
import torch

from ivideogpt import Sampling
from ivideogpt.decoding import decode, speculative
from ivideogpt.models.transformer import KVCache

KINDS = {
    "greedy": Sampling(greedy=True),
    "all tokens": Sampling(top_k=None),
    "top-k": Sampling(top_k=5, temperature=0.7),
    "top-p": Sampling(top_p=0.8),
    "any id": Sampling(legal_only=False),
    "free separators": Sampling(free_separators=True),
}
GREEDY = KINDS["greedy"]


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


@pytest.fixture
def whole(monkeypatch):
    """Drafts are never given up."""
    monkeypatch.setattr(speculative, "LEAST_SHARE", 0.0)
    monkeypatch.setattr(speculative, "MOST_LOSS", float("inf"))
    monkeypatch.setattr(speculative.DraftCost, "paid", True)


def quiet(model):
    """The same model with layers that say little: what it says of a token hardly depends on other tokens."""
    with torch.no_grad():
        for layer in model.transformer.layers:
            layer.attention.out.weight.mul_(0.02)
            layer.feed_forward.down.weight.mul_(0.02)
        model.transformer.embed.weight.mul_(0.02)
        if model.config.heads.slots:
            model.heads.slot_embedding.weight.mul_(0.02)
        model.heads.action_linear.weight.mul_(0.02)
    return model


def draft_with(monkeypatch, ids, share=1.0):
    """The draft of every frame is what ``ids`` returns then."""
    monkeypatch.setattr(speculative, "DRAFTERS", (lambda _: speculative.Draft(ids(), share),))


def token_by_token(model, context, actions, sampling=None, seed=0):
    session = model.session(context, sampling, seed, speculative=False)
    return session.rollout(actions)


def assert_same(found, expected):
    assert torch.equal(found.ids, expected.ids)
    for field in ("log_probs", "entropies", "frames", "rewards"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), atol=2e-4, rtol=1e-3)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("drafter", ["forecast", "previous", "previous, two codebooks"])
def test_drafts_give_what_one_token_after_another_gives(
    build, frames_for, actions_for, monkeypatch, passes, name, rows, drafter
):
    model = build("conditional" if drafter == "previous, two codebooks" else "plain")
    if drafter == "previous":
        monkeypatch.setattr(speculative, "DRAFTERS", (speculative.draft_from_previous_frame,))
    horizon, length = 6, model.layout.frame_length
    data = frames_for(model, rows=rows), actions_for(model, rows=rows, horizon=horizon)
    drafted = model.imagine(*data, sampling=KINDS[name], seed=3)
    asked = list(passes)
    passes.clear()
    expected = token_by_token(model, *data, sampling=KINDS[name], seed=3)
    assert_same(drafted, expected)
    assert len(passes) == horizon * length + 2  # the context is read twice: a clip has 4 future frames
    undrafted = 4 * (drafter == "previous, two codebooks")  # two frames after each context
    starts = [count for count in asked if count == length]
    assert len(starts) == horizon - undrafted


@pytest.mark.parametrize("rows", [1, 4])
def test_good_drafts_save_passes(model, frames_for, actions_for, passes, rows):
    model = quiet(model)
    data = frames_for(model, rows=rows), actions_for(model, rows=rows, horizon=4)
    drafted = model.imagine(*data, seed=3)
    asked = len(passes)
    assert torch.equal(drafted.ids, token_by_token(model, *data, seed=3).ids)
    assert asked <= 1 + 4 * 4


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("kind", ["plain", "conditional"])
def test_it_does_not_matter_what_is_drafted(build, frames_for, actions_for, monkeypatch, kind):
    model = build(kind)
    generator = torch.Generator().manual_seed(0)
    shape = (2, model.layout.dynamics_tokens)
    draft_with(monkeypatch, lambda: torch.randint(model.layout.vocab_size, shape, generator=generator))
    data = frames_for(model), actions_for(model, horizon=4)
    assert_same(model.imagine(*data, seed=5), token_by_token(model, *data, seed=5))


# Distribution


def chi_square(counts, probabilities):
    """The statistic over its degrees of freedom, in standard deviations; rare tokens count together."""
    expected = probabilities.double() * counts.sum()
    rare = expected < 8
    found, wanted = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts.double(), expected))
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    return (((found - wanted) ** 2 / wanted).sum() - freedom) / (2 * freedom) ** 0.5


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("top_k", [None, 6])
@pytest.mark.parametrize("drafter", ["forecast", "previous"])
@torch.inference_mode()
def test_tokens_are_drawn_from_the_transformers_distribution(
    model, frames_for, actions_for, monkeypatch, drafter, top_k
):
    if drafter == "previous":
        monkeypatch.setattr(speculative, "DRAFTERS", (speculative.draft_from_previous_frame,))
    rows, turns, drawn, drafted = 32, 48, [], []
    sampling, layout = Sampling(top_k=top_k), model.layout
    codes, _ = model.tokenizer.encode_context(frames_for(model, rows=1).expand(rows, -1, -1, -1, -1))
    action = actions_for(model, rows=1, horizon=1)[:, 0].expand(rows, -1)
    cache, dynamics = decode.prefill(model.dynamics, codes, 1), model.dynamics
    separators, start = torch.full((rows,), layout.dynamics_separator), cache.length
    generator, first_draft = torch.Generator().manual_seed(1), speculative.first_draft

    def noted(inputs):
        draft = first_draft(inputs)
        drafted.append(draft.ids)
        return draft

    monkeypatch.setattr(speculative, "first_draft", noted)
    for _ in range(turns):
        uniforms = torch.rand(rows, layout.dynamics_tokens, generator=generator)
        inputs = decode.FrameInputs(dynamics, cache, separators, action, sampling, uniforms)
        frame = speculative.decode_frame_speculatively(inputs, speculative.DraftStatistics())
        drawn.append(frame.ids)
        cache.truncate(start)
    drawn, drafted = (torch.cat(ids) - layout.dynamics_ids.start for ids in (drawn, drafted))

    def scores(before):
        """What one pass after another says of the token after ``before``, for one row."""
        single = decode.prefill(dynamics, codes[:1], 1)
        ids = torch.cat([separators[:1], before])[None]
        inputs = dynamics.frame_inputs(dynamics.next_forecast(single, action[:1]), action[:1])
        for place in range(ids.shape[1]):
            here = slice(place, place + 1)
            hidden = dynamics.append(single, ids[:, here], torch.tensor([place]), inputs[:, here])
        found = dynamics.logits(hidden[0, -1:], layout.dynamics_ids)
        kept = sampling._mask_unlikely(sampling.log_probabilities(found))[0].exp()
        return kept / kept.sum()

    size = layout.dynamics_codes
    first = drawn[:, 0].bincount(minlength=size)
    assert chi_square(first, scores(separators[:0])) < 4
    likeliest = first.argmax()
    second = drawn[drawn[:, 0] == likeliest, 1].bincount(minlength=size)
    assert second.sum() > 150
    assert chi_square(second, scores(layout.dynamics_ids.start + likeliest[None])) < 4
    # The test would notice: what was drafted is drawn from something else.
    assert chi_square(drafted[:, 0].bincount(minlength=size), scores(separators[:0])) > 20


# Passes


def test_a_perfect_draft_is_one_pass(model, frames_for, actions_for, monkeypatch, passes):
    data = frames_for(model)[:1], actions_for(model, horizon=1)[:1]
    expected = model.imagine(*data, sampling=GREEDY)
    draft_with(monkeypatch, lambda: expected.ids[:, 0])
    passes.clear()
    found = model.imagine(*data, sampling=GREEDY)
    assert torch.equal(found.ids, expected.ids)
    assert passes[1:] == [model.layout.frame_length]


def test_what_was_drawn_after_a_wrong_token_is_the_next_draft(model, frames_for, actions_for, monkeypatch, passes):
    model = quiet(model)
    data = frames_for(model)[:1], actions_for(model, horizon=1)[:1]
    expected = model.imagine(*data, sampling=GREEDY).ids[:, 0]
    wrong = expected.clone()
    wrong[:, [0, 5, 9]] = model.layout.dynamics_ids.start + (expected[:, [0, 5, 9]] + 1) % model.layout.dynamics_codes
    draft_with(monkeypatch, lambda: wrong)
    passes.clear()
    assert torch.equal(model.imagine(*data, sampling=GREEDY).ids[:, 0], expected)
    assert passes[1:] == [17, 16]


@pytest.mark.usefixtures("whole")
def test_a_wrong_token_of_one_row_is_waited_for_by_the_others(model, frames_for, actions_for, monkeypatch, passes):
    model = quiet(model)
    data = frames_for(model), actions_for(model, horizon=1)
    expected = model.imagine(*data, sampling=GREEDY).ids[:, 0]
    draft = expected.clone()
    draft[1, 7] = model.layout.dynamics_separator
    draft_with(monkeypatch, lambda: draft)
    passes.clear()
    assert torch.equal(model.imagine(*data, sampling=GREEDY).ids[:, 0], expected)
    assert passes[1:] == [17, 9]


def test_more_rows_than_pay_are_decoded_one_token_after_another(model, frames_for, actions_for, monkeypatch, passes):
    monkeypatch.setattr(speculative, "DRAFT_ROWS", 2)
    model.imagine(frames_for(model, rows=3), actions_for(model, rows=3, horizon=1))
    assert passes[1:] == [1] * 17


# Drafters


@pytest.fixture
def opened(model, frames_for):
    """A cache that has read the context of one row, and the codes of its frames."""
    with torch.inference_mode():
        codes, _ = model.tokenizer.encode_context(frames_for(model, rows=1))
        return decode.prefill(model.dynamics, codes, 4), codes


def previous_draft(model, cache):
    inputs = speculative.DraftInputs(model.dynamics, cache, None, GREEDY, torch.zeros(1, 16))
    return speculative.draft_from_previous_frame(inputs)


def test_the_last_frame_of_one_codebook_is_a_draft_even_of_the_context(model, opened, actions_for):
    cache, codes = opened
    start, layout = model.layout.dynamics_ids.start, model.layout
    draft = speculative.draft_from_previous_frame(
        speculative.DraftInputs(model.dynamics, cache, None, GREEDY, torch.zeros(1, 16))
    )
    assert torch.equal(draft.ids, start + codes[:, 1])
    assert draft.share == pytest.approx((codes[:, 0] == codes[:, 1]).float().mean().item())
    with torch.inference_mode():
        action, ids = actions_for(model, rows=1)[:, 0], codes[:, 1] + start
        ids[:, :4] = start + (codes[:, 1, :4] + 1) % layout.dynamics_codes
        decode.read_frame(model.dynamics, cache, torch.tensor([layout.dynamics_separator]), ids, action, GREEDY)
    draft = speculative.draft_from_previous_frame(
        speculative.DraftInputs(model.dynamics, cache, None, GREEDY, torch.zeros(1, 16))
    )
    assert torch.equal(draft.ids, ids)
    assert draft.share == 0.75


@pytest.mark.usefixtures("whole")
def test_a_context_of_another_codebook_is_no_draft(build, frames_for, actions_for, passes):
    model = build("conditional")
    model.imagine(frames_for(model), actions_for(model, horizon=3))
    length = model.layout.frame_length
    assert passes[1 : 1 + 2 * length] == [1] * (2 * length)
    assert passes[1 + 2 * length] == length


@pytest.mark.parametrize("sampling", [GREEDY, KINDS["all tokens"], KINDS["any id"]])
def test_a_forecast_is_drawn_from_as_the_transformer_is_and_says_how_sure_it_is(model, opened, actions_for, sampling):
    cache, _ = opened
    legal = model.layout.dynamics_ids if sampling.legal_only else range(model.layout.vocab_size)
    uniforms = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        guess = model.dynamics.next_forecast(cache, actions_for(model, rows=1)[:, 0])
        draft = speculative.draft_from_forecast(
            speculative.DraftInputs(model.dynamics, cache, guess, sampling, uniforms)
        )
        expected = sampling.choose(model.dynamics.forecast_logits(guess, legal)[0], uniforms[0])
    assert torch.equal(draft.ids[0], legal.start + expected.index)
    assert draft.share == pytest.approx(expected.log_prob.exp().mean().item(), abs=1e-5)


# Whether to draft


@pytest.mark.parametrize(("share", "drafted"), [(0.05, False), (0.2, True)])
def test_a_draft_that_is_hardly_ever_right_is_not_read(
    model, frames_for, actions_for, monkeypatch, passes, share, drafted
):
    draft_with(monkeypatch, lambda: torch.full((2, 16), model.layout.dynamics_ids.start), share)
    model.imagine(frames_for(model), actions_for(model, horizon=1))
    assert (passes[1] == 17) == drafted


def drafted_steps(model, session, actions, passes, first, count):
    """For each of the next steps whether it began with a pass over the whole frame."""
    found = []
    for index in range(first, first + count):
        passes.clear()
        session.step(None if actions is None else actions[:, index])
        found.append(passes[0] == model.layout.frame_length)
    return found


@pytest.fixture
def hopeless(model, monkeypatch, passes):
    """Drafts that are always wrong, where only positions count, so that they never pay."""
    monkeypatch.setattr(speculative, "PASS_POSITIONS", 0)
    monkeypatch.setattr(speculative, "ROW_POSITIONS", 0)
    draft_with(monkeypatch, lambda: torch.full((1, 16), model.layout.dynamics_separator))


@pytest.mark.usefixtures("hopeless")
def test_drafts_that_did_not_pay_are_left_out_for_some_frames_and_tried_again(
    model, frames_for, actions_for, monkeypatch, passes
):
    monkeypatch.setattr(speculative, "RETRY_FRAMES", 3)
    actions = actions_for(model, rows=1, horizon=9)
    session = model.session(frames_for(model, rows=1), reanchor_every=9)
    found = drafted_steps(model, session, actions, passes, 0, 8)
    assert found == [True, False, False] * 2 + [True, False]


@pytest.mark.usefixtures("hopeless")
def test_a_step_that_is_made_again_is_made_in_the_same_way(model, frames_for, actions_for, monkeypatch, passes):
    monkeypatch.setattr(speculative, "RETRY_FRAMES", 4)
    actions = actions_for(model, rows=1, horizon=9)
    session = model.session(frames_for(model, rows=1), reanchor_every=9)
    found = drafted_steps(model, session, actions, passes, 0, 7)
    for back in (1, 3, 6):
        session.rewind(back)
        assert drafted_steps(model, session, actions, passes, 7 - back, back) == found[-back:]


@pytest.mark.usefixtures("hopeless")
def test_what_was_taken_back_counts_no_longer(model, frames_for, actions_for, monkeypatch, passes):
    monkeypatch.setattr(speculative, "RETRY_FRAMES", 3)
    actions = actions_for(model, rows=1, horizon=9)
    session = model.session(frames_for(model, rows=1), reanchor_every=9)
    drafted_steps(model, session, actions, passes, 0, 4)
    session.rewind(2)
    session.observe(frames_for(model, rows=1, count=1)[:, 0], actions[:, 2])
    session.observe(frames_for(model, rows=1, count=1)[:, 0], actions[:, 3])
    assert drafted_steps(model, session, actions, passes, 4, 2) == [True, False]


def test_drafts_are_given_up_within_a_frame_where_they_lose(model, frames_for, actions_for, monkeypatch, passes):
    monkeypatch.setattr(speculative, "PASS_POSITIONS", 0)
    monkeypatch.setattr(speculative, "ROW_POSITIONS", 0)
    draft_with(monkeypatch, lambda: torch.full((1, 16), model.layout.dynamics_separator))
    model.imagine(frames_for(model, rows=1), actions_for(model, rows=1, horizon=1))
    # One position is one unit: the first pass loses 16 of 17, more than half.
    assert passes[1:] == [17] + [1] * 16


def test_a_frame_is_charged_for_its_passes_and_the_cache_and_positions_of_all_rows(monkeypatch):
    monkeypatch.setattr(speculative, "PASS_POSITIONS", 1)
    monkeypatch.setattr(speculative, "ROW_POSITIONS", 10)
    cost = speculative.DraftCost(rows=2, tokens=3)
    for _ in range(3):
        cost.add(4)
    assert cost.paid  # 3 * 21 + 12 * 2 against 4 * 21 + 4 * 2
    cost.add(1)
    assert not cost.paid


def test_a_session_without_drafts_and_its_forks_decode_token_by_token(model, frames_for, actions_for, passes):
    context, actions = frames_for(model), actions_for(model, horizon=1)
    session = model.session(context, speculative=False)
    session.fork().rollout(actions)
    session.rollout(actions)
    assert passes[1:] == [1] * 34
    passes.clear()
    model.session(context).rollout(actions)
    assert passes[1] == 17
