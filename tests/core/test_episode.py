"""Episode and Clip: one time convention, and shapes that fit."""

import numpy as np
import pytest
import torch

from ivideogpt import Clip, Episode, UserError


def episode(length=6, **changes):
    values = {
        "frames": np.arange(length * 4 * 4 * 3, dtype=np.uint8).reshape(length, 4, 4, 3),
        "actions": np.arange(1, 2 * length + 1, dtype=np.float32).reshape(length, 2),
        "rewards": np.arange(1, length + 1, dtype=np.float32),
        "terminated": np.ones(length, bool),
        "state": np.arange(1, length + 1, dtype=np.float32)[:, None],
        "key": "seven",
        "split": "test",
        "meta": {"seed": 7},
    }
    return Episode(**{**values, **changes})


def test_a_window_keeps_rows_beside_their_frames():
    whole = episode()
    part = whole.window(1, 3)
    assert len(part) == 3
    for label in ("frames", "state"):
        assert np.array_equal(getattr(part, label), getattr(whole, label)[1:4])
    for label in ("actions", "rewards", "terminated"):
        assert np.array_equal(getattr(part, label)[:-1], getattr(whole, label)[1:3])
    assert (part.key, part.split, part.meta) == ("seven", "test", {"seed": 7})


def test_the_last_transition_of_a_window_is_padding_and_the_episode_stays_whole():
    whole = episode()
    part = whole.window(0, 4)
    assert not part.actions[-1].any() and part.rewards[-1] == 0 and not part.terminated[-1]
    assert whole.actions[3].any() and whole.rewards[3] and whole.terminated[3]


def test_a_window_of_an_episode_without_actions_has_none():
    part = Episode(frames=np.zeros((3, 4, 4, 3), np.uint8)).window(1, 2)
    assert part.actions is None and part.rewards is None and part.terminated is None and part.state is None


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 0), (0, 7), (5, 2), (9, 1)])
def test_a_window_outside_the_episode_is_refused(start, length):
    with pytest.raises(UserError, match=r"asked of episode 'seven', which has 6"):
        episode().window(start, length)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 4, 4, 3), np.float32),
        np.zeros((3, 4, 4, 1), np.uint8),
        np.zeros((3, 3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
    ],
)
def test_frames_of_another_type_or_shape_are_refused(frames):
    with pytest.raises(UserError, match=r"expected uint8 \[t h w 3\]"):
        Episode(frames=frames)


@pytest.mark.parametrize("label", ["actions", "rewards", "terminated", "state"])
def test_rows_must_be_as_many_as_frames(label):
    with pytest.raises(UserError, match=f"'seven' has 5 rows of {label} for 6 frames"):
        episode(**{label: getattr(episode(), label)[:-1]})


@pytest.mark.parametrize("label", ["actions", "rewards", "state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_place(label, value):
    rows = getattr(episode(), label).copy()
    rows[4] = value
    with pytest.raises(UserError, match=f"NaN or infinity in {label} at frame 4"):
        episode(**{label: rows})


def test_a_clip_moves_with_all_its_parts():
    clip = Clip(frames=torch.zeros(1, 3, 3, 4, 4), actions=torch.zeros(1, 3, 2), rewards=torch.zeros(1, 3))
    moved = clip.to("meta")
    assert moved.frames.is_meta and moved.actions.is_meta and moved.rewards.is_meta and moved.context_frames == 2
    assert Clip(frames=torch.zeros(1, 3, 3, 4, 4)).to("meta").actions is None
