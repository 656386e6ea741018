"""Replay buffers: what is drawn, what leaves, and what a stop leaves behind."""

import hashlib

import numpy as np
import pytest
import torch

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.mbrl.replay_buffer import ReplayBuffer


def episode(length: int, *, value: int = 0, ended: bool = False) -> Episode:
    """Frame t shows ``value + t``; action, reward t are t and t + 1."""
    frames = np.full((length, 8, 8, 3), value, np.uint8) + np.arange(length, dtype=np.uint8)[:, None, None, None]
    actions = np.zeros((length, 2), np.float32)
    actions[:-1] = np.arange(length - 1)[:, None] / 100
    rewards = np.zeros(length, np.float32)
    rewards[:-1] = np.arange(1, length)
    terminated = np.zeros(length, bool)
    terminated[-2] = ended
    return Episode(frames=frames, actions=actions, rewards=rewards, terminated=terminated)


def drawn(replay: ReplayBuffer, count: int = 400, stack: int = 3, steps: int = 3, discount: float = 0.5):
    return replay.transitions(count, stack=stack, steps=steps, discount=discount, random=np.random.default_rng(0))


def test_observations_are_stacked_oldest_first_and_begin_with_the_first_frame_repeated() -> None:
    replay = ReplayBuffer(100)
    replay.add(episode(6))
    batch = drawn(replay)
    newest = batch.observations[:, 0, 0].view(-1, 3, 3)[:, :, 0]
    for oldest, middle, last in newest.tolist():
        assert (oldest, middle) == (max(last - 2, 0), max(last - 1, 0))
    assert set(newest[:, 2].tolist()) == {0, 1, 2, 3, 4}  # the last frame starts nothing, every other one does


def test_returns_sum_up_to_n_discounted_rewards_and_fewer_at_a_cut() -> None:
    replay = ReplayBuffer(100)
    replay.add(episode(6))
    batch = drawn(replay)
    for now, reward, left, coming in zip(
        batch.observations[:, 0, 0, -1].tolist(),
        batch.rewards.tolist(),
        batch.discounts.tolist(),
        batch.next_observations[:, 0, 0, -1].tolist(),
        strict=True,
    ):
        steps = min(3, 5 - now)
        assert reward == pytest.approx(sum(0.5**i * (now + 1 + i) for i in range(steps)))
        assert left == 0.5**steps and coming == now + steps


def test_demonstrations_can_be_drawn_alone_whenever_they_came() -> None:
    replay = ReplayBuffer(100)
    replay.add(episode(6, value=100))
    replay.add(episode(4), permanent=True)
    options = {"stack": 1, "steps": 1, "discount": 0.5, "random": np.random.default_rng(0)}
    batch = replay.transitions(100, demonstrations=True, **options)
    assert replay.demonstrations == 3
    assert set(batch.observations[:, 0, 0, 0].tolist()) == {0, 1, 2} and batch.demonstrated.all()
    both = replay.transitions(100, **options)
    assert torch.equal(both.demonstrated, both.observations[:, 0, 0, 0] < 100) and not both.demonstrated.all()


def test_a_termination_leaves_nothing_to_come_and_a_cut_does() -> None:
    """The official ``discount or 1.0`` made a true 0 into 1."""
    for ended in (True, False):
        replay = ReplayBuffer(100)
        replay.add(episode(4, ended=ended))
        batch = drawn(replay)
        last = batch.observations[:, 0, 0, -1] == 2
        assert ((batch.discounts[last] == 0) == ended).all()
        assert (batch.rewards[last] == 3).all()


def test_segments_reach_the_first_and_the_last_start_of_an_episode() -> None:
    """The official sampler never drew the last two starts, so the end of an episode, success, was hardly learned."""
    replay = ReplayBuffer(100)
    replay.add(episode(8))
    random = np.random.default_rng(0)
    starts = set(replay.segments(300, 4, random).frames[:, 0, 0, 0, 0].tolist())
    assert starts == {0, 1, 2, 3, 4}
    whole = replay.segments(5, 8, random)
    assert whole.frames.shape == (5, 8, 8, 8, 3) and (whole.frames[:, 0, 0, 0, 0] == 0).all()
    with pytest.raises(UserError, match=r"no episode has 9 frames \(the longest has 8\)"):
        replay.segments(1, 9, random)


def test_segments_keep_actions_and_rewards_beside_the_frames_they_lead_from() -> None:
    replay = ReplayBuffer(100)
    replay.add(episode(8))
    frames, actions, rewards, _ = replay.segments(50, 4, np.random.default_rng(0))
    first = frames[:, :-1, 0, 0, 0].astype(np.float32)
    np.testing.assert_allclose(actions[:, :, 0], first / 100)
    np.testing.assert_allclose(rewards, first + 1)


def test_whole_episodes_leave_oldest_first_and_demonstrations_never() -> None:
    replay = ReplayBuffer(10)
    replay.add(episode(6, value=100), permanent=True)
    for value in (10, 20, 30, 40):
        replay.add(episode(5, value=value))
        assert len(replay) <= 5 + 10 + 4
    assert [int(kept.episode.frames[0, 0, 0, 0]) for kept in replay] == [100, 30, 40]
    replay.keep_newest(1)
    assert [int(kept.episode.frames[0, 0, 0, 0]) for kept in replay] == [100, 40]
    assert len(replay) == 9


def test_an_episode_longer_than_the_buffer_stays_until_the_next() -> None:
    replay = ReplayBuffer(3)
    replay.add(episode(9))
    assert len(replay) == 8
    replay.add(episode(3))
    assert len(replay) == 2


def test_transitions_before_the_first_are_seen_but_not_drawn() -> None:
    replay = ReplayBuffer(100)
    replay.add(episode(7), first=2)
    batch = drawn(replay)
    assert set(batch.observations[:, 0, 0, -1].tolist()) == {2, 3, 4, 5}
    assert (batch.observations[:, 0, 0, 0] == batch.observations[:, 0, 0, -1] - 2).all()


def test_every_state_is_a_start_with_the_frames_before_it() -> None:
    replay = ReplayBuffer(100)
    replay.add(episode(5))
    states, rewards = replay.starts(200, 3, np.random.default_rng(0))
    starts = states[:, :, 0, 0, 0]
    given = replay._stored[0].episode.rewards
    for number, reward in zip(starts[:, -1].tolist(), rewards, strict=True):
        assert np.isnan(reward) if number == 0 else reward == given[number - 1]
    assert set(starts[:, -1].tolist()) == {0, 1, 2, 3}
    assert (starts[:, 0] == np.maximum(starts[:, -1].astype(int) - 2, 0)).all()


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_drawn_after_a_resume_is_what_would_have_been(tmp_path, on_disk: bool) -> None:
    folder = tmp_path if on_disk else None
    replay = ReplayBuffer(20, folder=folder)
    replay.add(episode(6, value=100), permanent=True)
    for value in (10, 20, 30):
        replay.add(episode(9, value=value), first=1)
    state = replay.state_dict()
    again = ReplayBuffer(20, folder=folder)
    again.load_state_dict(state)
    for mine, other in zip(drawn(replay), drawn(again), strict=True):
        assert (mine == other).all()
    for one in (replay, again):
        one.add(episode(9, value=40), first=1)
    assert len(replay) == len(again) and [k.number for k in replay] == [k.number for k in again]


def test_files_of_episodes_that_left_are_deleted_only_when_asked(tmp_path) -> None:
    replay = ReplayBuffer(8, folder=tmp_path)
    for value in range(4):
        replay.add(episode(5, value=value))
    assert len(list(tmp_path.iterdir())) == 4
    replay.forget_files(replay.state_dict())
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "episode-0000002.safetensors",
        "episode-0000003.safetensors",
    ]


def test_a_demonstration_file_is_read_and_never_touched(tmp_path) -> None:
    """The official loader unlinked the files of demonstrations that it had read."""
    from ivideogpt.data.episode_files import load_episodes, save_episodes

    source = tmp_path / "demo.safetensors"
    save_episodes(source, [episode(6)])
    before = hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns
    replay = ReplayBuffer(4, folder=tmp_path / "replay")
    replay.add(load_episodes(source)[0], permanent=True)
    for value in range(5):
        replay.add(episode(5, value=value))
        replay.forget_files(replay.state_dict())
    assert (hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns) == before
    assert next(iter(replay)).permanent


def test_an_episode_without_rewards_or_transitions_is_refused() -> None:
    with pytest.raises(UserError, match="no actions or no rewards"):
        ReplayBuffer(5).add(Episode(frames=np.zeros((3, 8, 8, 3), np.uint8)))
    with pytest.raises(UserError, match="expected at least 3"):
        ReplayBuffer(5).add(episode(2), first=1)
    with pytest.raises(UserError, match="at least 1"):
        ReplayBuffer(0)
