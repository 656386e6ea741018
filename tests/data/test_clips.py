"""Which frames a clip has: the rules of the official loader, whatever the length of the episode."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivideogpt.core.errors import UserError
from ivideogpt.data.catalog import dataset_info
from ivideogpt.data.clips import MODES, ClipSpec, draw_rows, effective_stride


def draw(mode="contiguous", length=40, stride=1, seed=0, **fields):
    return draw_rows(ClipSpec(mode=mode, **fields), length, stride, np.random.default_rng(seed))


def test_a_reference_comes_up_to_a_distance_before_a_contiguous_clip():
    found = set()
    for seed in range(200):
        drawn = draw("reference_first", length=30, stride=2, seed=seed, frames=4, horizon=3 + 5)
        rows = drawn.rows.tolist()
        assert np.diff(rows[1:]).tolist() == [2, 2] and rows[-1] < 30 and not drawn.padding.any()
        assert drawn.transitions.tolist() == [False, True, True, False]
        found.add((rows[1] - rows[0]) // 2)
    assert found == {1, 2, 3, 4, 5}
    short = draw("reference_first", length=5, seed=1, frames=4, horizon=8)
    assert not short.padding.any() and short.rows[-1] <= 4  # the distance shrinks before frames are repeated


@pytest.mark.parametrize(
    ("name", "step", "stride"),
    [
        ("fractal20220817_data", 1, 1),
        ("bridge", 1, 2),
        ("kuka", 1, 3),
        ("asu_table_top_converted_externally_to_rlds", 1, 4),
        ("taco_play", 1, 5),
        ("toto", 1, 10),
        ("robo_net", 1, 1),
        ("bridge", 3, 5),
    ],
)
def test_strides_are_those_of_the_official_table(name, step, stride):
    assert dataset_info(name).stride(step) == stride


@pytest.mark.parametrize(
    ("length", "span", "stride", "expected"),
    [(40, 16, 2, 2), (32, 16, 2, 2), (31, 16, 2, 1), (9, 16, 3, 1), (50, 8, 9, 6)],
)
def test_the_stride_shrinks_to_what_the_episode_has_room_for(length, span, stride, expected):
    assert effective_stride(length, span, stride) == expected


def test_a_contiguous_clip_is_one_stride_apart():
    drawn = draw(length=40, stride=2)
    assert (np.diff(drawn.rows) == 2).all() and drawn.rows[0] + 32 <= 40
    assert drawn.transitions.tolist() == [True] * 15 + [False] and not drawn.padding.any()


def test_every_start_is_drawn():
    starts = {int(draw(length=6, frames=4, seed=seed).rows[0]) for seed in range(60)}
    assert starts == {0, 1, 2}


def test_a_short_episode_repeats_its_last_frame():
    drawn = draw(length=3, stride=4, frames=5)
    assert drawn.rows.tolist() == [0, 1, 2, 2, 2]
    assert drawn.padding.tolist() == [False, False, False, True, True]
    assert drawn.transitions.tolist() == [True, True, False, False, False]


def test_random_frames_follow_a_strided_context():
    later = set()
    for seed in range(50):
        drawn = draw("random_after_context", length=100, stride=3, frames=5, horizon=16, seed=seed)
        start = drawn.rows[0]
        assert drawn.rows[1] == start + 3
        assert (np.diff(drawn.rows) > 0).all() and drawn.rows[2] >= start + 6 and drawn.rows[-1] < start + 48
        later |= {int(row - start) % 3 for row in drawn.rows[2:]}
    assert later == {0, 1, 2}  # not only every third frame


def test_the_last_frame_used_is_the_one_repeated():
    drawn = draw("random_after_context", length=3, frames=8, horizon=16)
    assert drawn.rows.tolist() == [0, 1, 2, 2, 2, 2, 2, 2] and drawn.padding.sum() == 5
    assert draw("random_after_context", length=1, frames=3).rows.tolist() == [0, 0, 0]


def test_a_random_order_has_no_transitions():
    drawn = draw("random_order", length=100, stride=2, frames=6, horizon=16)
    assert len(set(drawn.rows.tolist())) == 6 and len({row % 2 for row in drawn.rows.tolist()}) == 1
    assert np.ptp(drawn.rows) < 32 and not drawn.transitions.any()
    assert any((np.diff(draw("random_order", seed=seed).rows) < 0).any() for seed in range(3))


def test_the_goal_is_the_last_frame_of_what_follows():
    drawn = draw("goal_first", length=40, stride=2, frames=6)
    assert drawn.rows[0] == drawn.rows[-1] and (np.diff(drawn.rows[1:]) == 2).all()
    assert drawn.transitions.tolist() == [False, True, True, True, True, False]
    short = draw("goal_first", length=2, frames=5)
    assert short.rows.tolist() == [1, 0, 1, 1, 1] and short.padding.tolist() == [False, False, False, True, True]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    length=st.integers(1, 70),
    stride=st.integers(1, 9),
    frames=st.integers(2, 9),
    extra=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_any_clip_stays_inside_its_episode(mode, length, stride, frames, extra, seed):
    spec = ClipSpec(mode=mode, frames=frames, horizon=frames + extra)
    drawn = draw_rows(spec, length, stride, np.random.default_rng(seed))
    assert drawn.rows.shape == drawn.padding.shape == drawn.transitions.shape == (frames,)
    assert drawn.rows.min() >= 0 and drawn.rows.max() < length and not drawn.padding.all()
    assert not drawn.transitions[-1]
    used = drawn.rows[~drawn.padding]
    assert (drawn.rows[drawn.padding] == used.max()).all()
    if mode == "random_order":
        return
    body = slice(1, None) if mode in ("goal_first", "reference_first") else slice(None)
    rows, padding = drawn.rows[body], drawn.padding[body]
    assert (np.diff(rows) >= 0).all() and (np.diff(padding.astype(int)) >= 0).all()
    assert (np.diff(rows[~padding]) > 0).all()
    assert (drawn.transitions[body][:-1] == ~padding[1:]).all()
    if mode in ("contiguous", "goal_first"):
        assert (np.diff(rows[~padding]) == effective_stride(length, spec.span, stride)).all()
        assert padding.any() == (length < spec.span)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "backwards"}, "mode is 'backwards'"),
        ({"context_frames": 5, "frames": 4}, "cannot have 5 context frames"),
        ({"stride": 0}, "stride is 0"),
        ({"horizon": 3}, "horizon is 3"),
        ({"video_stepsize": 0}, "video_stepsize is 0"),
        ({"mode": "goal_first", "frames": 1, "context_frames": 1}, "no room for a goal"),
    ],
)
def test_impossible_clips_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ClipSpec(**fields)
