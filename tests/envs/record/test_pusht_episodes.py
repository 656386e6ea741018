"""Collected PushT episodes are whole, reproducible and full of contact."""

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="collecting PushT needs gym-pusht: pip install 'ivideogpt[pusht]'")

from ivideogpt.core.errors import UserError
from ivideogpt.data.store.reader import EpisodeStore
from ivideogpt.envs.record.pusht_episodes import collect_pusht, collect_pusht_store
from ivideogpt.policies.scripted import DragScript


def test_episode_follows_the_contract():
    (episode,) = collect_pusht([7], length=12)
    assert episode.frames.shape == (12, 64, 64, 3)
    assert episode.actions.shape == (12, 2) and episode.actions.dtype == np.float32
    assert episode.actions.min() >= 0 and episode.actions.max() <= 512
    assert episode.state.shape == (12, 5)
    assert not episode.actions[-1].any() and not episode.terminated.any()
    assert (episode.key, episode.split) == ("pusht_00000007", "train")


def test_actions_lead_from_a_frame_to_the_next():
    from ivideogpt.envs.pusht import PushT, normalised_action

    (episode,) = collect_pusht([3], length=10)
    environment = PushT()
    frame, _ = environment.reset(seed=3)
    for step in range(9):
        np.testing.assert_array_equal(frame, episode.frames[step])
        frame, reward, _, _, info = environment.step(normalised_action(episode.actions[step]))
        assert np.float32(reward) == episode.rewards[step]
        np.testing.assert_array_equal(info["state"], episode.state[step + 1])


def test_episode_depends_on_its_seed_only():
    alone = next(collect_pusht([5], length=8))
    *_, after_another = collect_pusht([4, 5], length=8)
    np.testing.assert_array_equal(alone.frames, after_another.frames)
    np.testing.assert_array_equal(alone.actions, after_another.actions)


def test_seeds_from_10000_are_held_out():
    assert [episode.split for episode in collect_pusht([9999, 10000], length=2)] == ["train", "test"]


def test_most_episodes_push_the_block_far():
    episodes = list(collect_pusht(range(20), length=48))
    contact = np.mean([episode.meta["contact_steps"] / 47 for episode in episodes])
    travelled = [
        np.linalg.norm(episode.state[14:, 2:4] - episode.state[:-14, 2:4], axis=-1).max() for episode in episodes
    ]
    assert contact > 0.35
    assert np.mean(np.array(travelled) >= 64) > 0.5


def test_drag_stays_on_the_plane():
    script = DragScript(np.random.default_rng(0))
    state = np.float32([256, 400, 20, 20, 1.0])
    targets = np.stack([script(state) for _ in range(500)])
    assert targets.min() >= 0 and targets.max() <= 512


def test_collect_resumes_without_touching_finished_files(tmp_path):
    collect_pusht_store("0:2", tmp_path, shard=1, length=3, workers=0)
    first, second = (tmp_path / "shards" / f"pusht-0000000{seed}-0000000{seed + 1}.safetensors" for seed in (0, 1))
    written = first.stat().st_mtime_ns
    second.unlink()
    collect_pusht_store("0:2", tmp_path, shard=1, length=3, workers=0)
    assert first.stat().st_mtime_ns == written
    store = EpisodeStore(tmp_path)
    assert store.keys == ["pusht_00000000", "pusht_00000001"]
    (episode,) = collect_pusht([1], length=3)
    assert np.array_equal(store[1].frames, episode.frames) and np.array_equal(store[1].actions, episode.actions)
    assert np.array_equal(store[1].state, episode.state)


def test_more_seeds_join_those_that_are_there(tmp_path):
    collect_pusht_store("10000:10001", tmp_path, shard=1, length=3, workers=0)
    collect_pusht_store("10000:10002", tmp_path, shard=1, length=3, workers=0)
    assert EpisodeStore(tmp_path).splits == ["test", "test"]


def test_a_range_that_would_leave_seeds_out_is_refused(tmp_path):
    collect_pusht_store("0:3", tmp_path, shard=2, length=3, workers=0)
    with pytest.raises(UserError, match="which this conversion does not make"):
        collect_pusht_store("0:6", tmp_path, shard=2, length=3, workers=0)


@pytest.mark.parametrize("seeds", ["3", "5:2", "a:b", "1:2:3"])
def test_bad_seeds_are_explained(tmp_path, seeds):
    with pytest.raises(UserError, match="first"):
        collect_pusht_store(seeds, tmp_path)
