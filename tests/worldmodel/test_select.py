"""Some rows of a session go on as they would have."""

import pytest
import torch

from ivideogpt import UserError

STEPS = 6
ROWS = [3, 0, 2]


@pytest.fixture(params=["conditional", "plain", "goal", "action_free"])
def model(request, model_of):
    return model_of(request.param)


def play(session, actions, rows, first, last):
    for index in range(first, last):
        session.step(None if actions is None else actions[rows, index])
    return session


@pytest.mark.parametrize("before", [0, 1, 5])
def test_selected_rows_go_on_as_they_would_have_also_past_a_re_anchoring(model, frames_for, actions_for, before):
    context, actions = frames_for(model, rows=4), actions_for(model, rows=4, horizon=before + STEPS)
    whole = play(model.session(context, seed=1), actions, range(4), 0, before)
    some = whole.select(ROWS)
    play(some, actions, ROWS, before, before + STEPS)
    play(whole, actions, range(4), before, before + STEPS)
    torch.testing.assert_close(some.frames, whole.frames[ROWS], atol=1e-4, rtol=0)
    for mine, other in zip(some._past, whole._past, strict=True):
        assert torch.equal(mine.ids, other.ids[ROWS])


def test_children_of_a_fork_can_be_selected(model, frames_for, actions_for):
    context, actions = frames_for(model), actions_for(model, rows=6, horizon=STEPS)
    parent = play(model.session(context, seed=1), actions, range(2), 0, 2)
    children = parent.fork(3)
    some = children.select([5, 1])
    play(children, actions, range(6), 2, STEPS)
    play(some, actions, [5, 1], 2, STEPS)
    torch.testing.assert_close(some.frames, children.frames[[5, 1]], atol=1e-4, rtol=0)


def test_a_selection_rewinds_and_leaves_the_others_alone(model, frames_for, actions_for):
    context, actions = frames_for(model, rows=4), actions_for(model, rows=4, horizon=STEPS)
    whole = play(model.session(context, seed=1), actions, range(4), 0, STEPS)
    some = whole.select([2])
    seen = some.frames.clone()
    some.rewind(STEPS)
    play(some, actions, [2], 0, STEPS)
    torch.testing.assert_close(some.frames, seen, atol=1e-4, rtol=0)
    assert whole.rows == 4 and whole.steps == STEPS


@pytest.mark.parametrize("rows", [[], [4], [-1]])
def test_rows_that_are_not_there_are_refused(model_of, frames_for, rows):
    with pytest.raises(UserError, match="expected some of 0 to 3"):
        model_of("plain").session(frames_for(model_of("plain"), rows=4)).select(rows)
