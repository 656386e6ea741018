import numpy as np
import pytest
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.frames import EpisodeArrays, contiguous, random_after_context


def episodes(*lengths: int, size: int = 4) -> list[Episode]:
    made = []
    for index, length in enumerate(lengths):
        frames = np.full((length, size, size, 3), index, np.uint8)
        actions = np.arange(length, dtype=np.float32)[:, None] + 100 * index
        made.append(Episode(frames=frames, actions=actions, rewards=actions[:, 0], key=str(index)))
    return made


def test_a_window_never_leaves_its_episode() -> None:
    data = EpisodeArrays.from_episodes(episodes(5, 3, 9))
    starts = data.draw(500, 4, torch.Generator().manual_seed(0))
    frames = data.clips(contiguous(starts, 4), 2).frames
    assert (frames == frames[:, :1]).all()
    assert set((frames[:, 0, 0, 0, 0] * 255).round().int().tolist()) == {0, 2}  # the second episode is too short


def test_every_window_is_drawn_equally_often() -> None:
    data = EpisodeArrays.from_episodes(episodes(5, 9))
    starts = data.draw(8000, 4, torch.Generator().manual_seed(0))
    counts = torch.bincount(starts, minlength=14)
    assert (counts[[0, 1, 5, 6, 7, 8, 9, 10]] - 1000).abs().max() < 150
    assert counts.sum() == counts[[0, 1, 5, 6, 7, 8, 9, 10]].sum()


def test_clips_keep_the_actions_and_rewards_of_their_frames() -> None:
    data = EpisodeArrays.from_episodes(episodes(5, 3))
    rows = contiguous(torch.tensor([5]), 3)
    clip = data.clips(rows, 2)
    assert clip.actions is not None
    assert clip.actions[0, :, 0].tolist() == [100, 101, 102]
    assert data.rewards is not None
    assert data.rewards[rows][0].tolist() == [100, 101, 102]


def test_random_frames_follow_the_context_in_order() -> None:
    rows = random_after_context(torch.zeros(200, dtype=torch.long), 2, 3, 6, torch.Generator().manual_seed(0))
    assert (rows[:, :2] == torch.arange(2)).all()
    assert (rows[:, 2:].diff(dim=1) > 0).all()
    assert rows[:, 2:].min() == 2
    assert rows[:, 2:].max() == 7


def test_a_clip_longer_than_every_episode_is_refused() -> None:
    data = EpisodeArrays.from_episodes(episodes(5, 3))
    with pytest.raises(UserError, match=r"no episode has 6 frames \(longest: 5\)"):
        data.draw(1, 6, torch.Generator())


def test_episodes_of_different_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="resize"):
        EpisodeArrays.from_episodes([*episodes(3), *episodes(3, size=8)])
    with pytest.raises(UserError, match="no episodes"):
        EpisodeArrays.from_episodes([])
