"""TokenLayout: where tokens sit, which ids they may have, and the official numbers of both."""

import pytest
import torch

from ivideogpt import TokenLayout, UserError

OFFICIAL = TokenLayout(context_tokens=256, dynamics_tokens=16, context_codes=8192, dynamics_codes=8192)
SMALL = TokenLayout(context_tokens=9, dynamics_tokens=4, context_codes=7, dynamics_codes=5)


def codes(layout, frames, rows=2, dynamics=False, seed=0):
    count, size = (
        (layout.dynamics_tokens, layout.dynamics_codes) if dynamics else (layout.context_tokens, layout.context_codes)
    )
    return torch.randint(size, (rows, frames, count), generator=torch.Generator().manual_seed(seed))


def test_the_official_numbers():
    assert OFFICIAL.vocab_size == 16386
    assert (OFFICIAL.context_separator, OFFICIAL.dynamics_separator) == (16384, 16385)
    assert OFFICIAL.length(2, 14) == 257 * 2 - 1 + 17 * 14
    assert OFFICIAL.prompt_length(2) == 514
    assert OFFICIAL.frame_length == 17
    assert OFFICIAL.future_frames(2, 1024) == 30
    assert OFFICIAL.action_positions(1, 3).tolist() == [256, 273, 290]


@pytest.mark.parametrize("layout", [SMALL, OFFICIAL])
@pytest.mark.parametrize(("context_frames", "future_frames"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_layout_splits_what_it_joined(layout, context_frames, future_frames):
    context, future = codes(layout, context_frames), codes(layout, future_frames, dynamics=True)
    ids = layout.join(context, future)
    assert ids.shape == (2, layout.length(context_frames, future_frames))
    found = layout.split(ids, context_frames)
    assert torch.equal(found[0], context) and torch.equal(found[1], future)


def test_a_context_alone_is_joined_and_split():
    context = codes(SMALL, 2)
    ids = SMALL.join(context)
    assert ids.shape == (2, SMALL.context_length(2))
    found, future = SMALL.split(ids, 2)
    assert torch.equal(found, context) and future.shape == (2, 0, 4)


def test_every_joined_id_is_legal_where_it_stands():
    ids = SMALL.join(codes(SMALL, 2, rows=20), codes(SMALL, 3, rows=20, dynamics=True))
    for position, column in enumerate(ids.T.tolist()):
        legal = SMALL.legal_ids(position, 2)
        assert set(column) <= set(legal), position
        assert set(legal) <= set(range(SMALL.vocab_size))


def test_legal_ids_of_all_kinds_are_the_vocabulary_without_overlap():
    kinds = {SMALL.legal_ids(position, 2) for position in range(SMALL.length(2, 1))}
    listed = sorted(number for kind in kinds for number in kind)
    assert listed == list(range(SMALL.vocab_size))


def test_separators_open_all_frames_but_the_first():
    ids = SMALL.join(codes(SMALL, 3, rows=1), codes(SMALL, 2, rows=1, dynamics=True))[0]
    assert (ids == SMALL.context_separator).nonzero().flatten().tolist() == [9, 19]
    assert (ids == SMALL.dynamics_separator).nonzero().flatten().tolist() == SMALL.action_positions(3, 2).tolist()


def test_slots_tell_the_place_in_the_frame():
    assert SMALL.slots(2, 2).tolist() == [*range(1, 10), *range(10), *range(5), *range(5)]
    ids = SMALL.join(codes(SMALL, 2, rows=1), codes(SMALL, 2, rows=1, dynamics=True))[0]
    assert torch.equal(SMALL.slots(2, 2) == 0, ids >= SMALL.context_separator)


def test_labels_ignore_the_prompt_and_keep_later_separators():
    ids = SMALL.join(codes(SMALL, 2), codes(SMALL, 2, dynamics=True))
    labels = SMALL.labels(ids, 2)
    prompt = SMALL.prompt_length(2)
    assert (labels[:, :prompt] == -100).all() and ids[0, prompt - 1] == SMALL.dynamics_separator
    assert torch.equal(labels[:, prompt:], ids[:, prompt:])
    assert (labels == SMALL.dynamics_separator).sum(dim=1).tolist() == [1, 1]
    assert (ids != -100).all(), "labels are a copy"


def test_split_ignores_separator_slots_and_clamps_dynamics_ids():
    context, future = codes(SMALL, 1), codes(SMALL, 2, dynamics=True)
    ids = SMALL.join(context, future)
    ids[:, SMALL.action_positions(1, 2)] = 0
    ids[0, -1], ids[1, -1] = 0, SMALL.vocab_size - 1
    found = SMALL.split(ids, 1)
    assert torch.equal(found[0], context) and torch.equal(found[1][:, :, :-1], future[:, :, :-1])
    assert found[1][:, -1, -1].tolist() == [0, SMALL.dynamics_codes - 1]


@pytest.mark.parametrize("length", [3, SMALL.context_length(2) - 1, SMALL.length(2, 1) - 1, SMALL.length(2, 1) + 1])
def test_a_length_that_holds_no_whole_frames_is_refused(length):
    with pytest.raises(UserError, match=f"sequence of {length} tokens"):
        SMALL.split(torch.zeros(1, length, dtype=torch.int64), 2)


@pytest.mark.parametrize("context_frames", [1, 2, 3])
def test_future_frames_are_as_many_as_fit(context_frames):
    for positions in range(SMALL.length(context_frames, 3)):
        count = SMALL.future_frames(context_frames, positions)
        assert count == 0 or SMALL.length(context_frames, count) <= positions
        assert SMALL.length(context_frames, count + 1) > positions
