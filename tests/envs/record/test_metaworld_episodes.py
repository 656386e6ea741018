"""Recorded Meta-World episodes: what is in them, and the store they are written into."""

import pickle

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="Meta-World needs its package: pip install 'ivideogpt[metaworld]'")
pytest.importorskip("pyarrow", reason="stores need pyarrow: pip install 'ivideogpt[data]'")

from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore

try:
    from ivideogpt.envs.metaworld import MetaWorld
except UserError as error:
    pytest.skip(f"no pictures can be drawn here: {error}", allow_module_level=True)

from ivideogpt.envs.record import metaworld_episodes
from ivideogpt.envs.record.metaworld_episodes import (
    MetaworldRecording,
    collect_metaworld,
    metaworld_shards,
    record_metaworld,
)
from ivideogpt.policies.scripted import MetaWorldScript

TASK = "plate-slide"
ROUGH = MetaworldRecording(noise=0.2, random_share=0.3, size=16, steps=4, shadow_size=0, samples=0)


@pytest.fixture(scope="module")
def environment():
    made = ROUGH.environment(TASK)
    yield made
    made.close()


@pytest.fixture
def quick(environment, monkeypatch):
    """Recordings share one environment, which nobody closes, and a shard has two episodes."""
    monkeypatch.setattr(MetaWorld, "close", lambda self: None)
    monkeypatch.setattr(MetaworldRecording, "environment", lambda self, task: environment)
    monkeypatch.setattr(metaworld_episodes, "EPISODES_A_SHARD", 2)


@pytest.mark.usefixtures("quick")
def test_an_episode_follows_the_contract():
    (episode,) = record_metaworld(TASK, [7], ROUGH)
    assert (episode.key, episode.split, episode.fps) == ("plate-slide_00000007", "train", 40)
    assert episode.cameras[episode.camera].shape == (5, 16, 16, 3)
    assert (episode.actions.shape, episode.actions.dtype) == ((5, 4), np.float32)
    assert [(field.name, field.size) for field in episode.action_fields] == [("hand", 3), ("gripper", 1)]
    assert np.abs(episode.actions).max() <= 1 and episode.actions[:-1].any(-1).all()
    assert not episode.actions[-1].any() and episode.rewards[-1] == 0 and not episode.arrays["success"][-1]
    assert (episode.rewards[:-1] > 0).all() and not episode.terminated.any()
    assert (episode.state.shape, episode.state.dtype) == ((5, 39), np.float32)
    assert episode.meta == {
        "task": TASK,
        "seed": 7,
        "noise": 0.2,
        "random_share": 0.3,
        "success": False,
        "return": float(episode.rewards.sum()),
    }


@pytest.mark.usefixtures("quick")
def test_actions_lead_from_a_frame_to_the_next(environment):
    (episode,) = record_metaworld(TASK, [3], ROUGH)
    frame, info = environment.reset(seed=3)
    for step in range(4):
        np.testing.assert_array_equal(frame, episode.cameras[episode.camera][step])
        np.testing.assert_array_equal(np.float32(info["state"]), episode.state[step])
        frame, reward, _, _, info = environment.step(episode.actions[step])
        assert np.float32(reward) == episode.rewards[step]
    np.testing.assert_array_equal(frame, episode.cameras[episode.camera][-1])


@pytest.mark.usefixtures("quick")
def test_an_episode_depends_on_its_seed_only():
    (alone,) = record_metaworld(TASK, [5], ROUGH)
    _, after_another = record_metaworld(TASK, [4, 5], ROUGH)
    np.testing.assert_array_equal(alone.actions, after_another.actions)
    np.testing.assert_array_equal(alone.cameras[alone.camera], after_another.cameras[alone.camera])


@pytest.mark.usefixtures("quick")
def test_seeds_from_10000_are_held_out():
    assert [episode.split for episode in record_metaworld(TASK, [9999, 10000], ROUGH)] == ["train", "test"]


def test_the_script_succeeds_without_noise_and_it_is_written_where_it_did():
    steady = MetaworldRecording(size=16, steps=30, shadow_size=0, samples=0)
    (episode,) = record_metaworld(TASK, [0], steady)
    success = episode.arrays["success"]
    assert episode.meta["success"] and success.any() and not success[:10].any()
    # The package pays up to 10 for each of two simulator steps; above that is the bonus.
    np.testing.assert_array_equal(episode.rewards > 20, success)


class Still:
    """A script that does nothing."""

    def get_action(self, state):
        return np.zeros(4)


def shaken(noise, random_share, count=4000):
    script = MetaWorldScript(TASK, np.random.default_rng(0), noise=noise, random_share=random_share)
    script._script = Still()
    return np.stack([script(np.zeros(39)) for _ in range(count)])


def test_noise_has_the_standard_deviation_that_was_asked_for():
    assert not shaken(0.0, 0.0).any()
    np.testing.assert_allclose(shaken(0.2, 0.0).std(0), 0.2, rtol=0.05)
    assert np.abs(shaken(5.0, 0.0)).max() == 1


def test_random_stretches_take_their_share_and_last_5_to_15_steps():
    actions = shaken(0.0, 0.4)
    at_random = actions.any(-1)
    assert at_random.mean() == pytest.approx(0.4, abs=0.05)
    changes = np.flatnonzero((actions[1:] != actions[:-1]).any(-1)) + 1
    lengths = [stop - start for start, stop in zip(changes, changes[1:], strict=False) if at_random[start]]
    assert min(lengths) == 5 and max(lengths) == 15


@pytest.mark.usefixtures("quick")
def test_a_recording_goes_on_where_it_stopped_and_repeating_it_changes_nothing(tmp_path):
    collect_metaworld([TASK], range(4), tmp_path, ROUGH, workers=0)
    store = EpisodeStore(tmp_path)
    frames = store[3].frames
    assert store.keys == [f"plate-slide_{seed:08d}" for seed in range(4)] and len(store.shards) == 2
    first, second = (tmp_path / "shards" / name for name in store.shards)
    written = first.stat().st_mtime_ns
    second.unlink()
    (tmp_path / "index.parquet").unlink()
    collect_metaworld([TASK], range(4), tmp_path, ROUGH, workers=0)
    again = EpisodeStore(tmp_path)
    again.verify()
    assert again.keys == store.keys and first.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again[3].frames, frames)
    rewritten = second.stat().st_mtime_ns
    collect_metaworld([TASK], range(4), tmp_path, ROUGH, workers=0)
    assert (first.stat().st_mtime_ns, second.stat().st_mtime_ns) == (written, rewritten)


@pytest.mark.usefixtures("quick")
def test_more_seeds_join_full_shards_and_nothing_else_does(tmp_path):
    collect_metaworld([TASK], range(2), tmp_path, ROUGH, workers=0)
    collect_metaworld([TASK], range(3), tmp_path, ROUGH, workers=0)
    assert len(EpisodeStore(tmp_path)) == 3
    with pytest.raises(UserError, match="plate-slide-00000002-00000003', which this conversion does not make"):
        collect_metaworld([TASK], range(4), tmp_path, ROUGH, workers=0)
    with pytest.raises(UserError, match="was converted with"):
        collect_metaworld([TASK], range(3), tmp_path, MetaworldRecording(noise=0.1), workers=0)


@pytest.mark.usefixtures("quick")
def test_the_store_says_how_it_was_recorded(tmp_path):
    collect_metaworld([TASK], range(1), tmp_path, ROUGH, workers=0)
    facts = EpisodeStore(tmp_path).facts
    assert facts.dataset.name == "metaworld"
    assert facts.dataset.options["random_share"] == 0.3 and facts.dataset.options["steps"] == 4
    assert facts.dataset.notes["mujoco"] == "3.3.0"
    assert facts.actions.names == ("hand[0]", "hand[1]", "hand[2]", "gripper") and facts.actions.count == 4


def test_shards_can_be_sent_to_other_processes():
    tasks = metaworld_shards(["hammer", "coffee_push"], range(25), ROUGH)
    assert [task.name for task in tasks[2:4]] == ["hammer-00000020-00000025", "coffee-push-00000000-00000010"]
    assert pickle.loads(pickle.dumps(tasks[0])) is not None


@pytest.mark.slow
def test_worker_processes_write_the_same_store(tmp_path):
    collect_metaworld([TASK], range(11), tmp_path / "one", ROUGH, workers=0)
    collect_metaworld([TASK], range(11), tmp_path / "two", ROUGH, workers=2)
    one, two = EpisodeStore(tmp_path / "one"), EpisodeStore(tmp_path / "two")
    assert one.keys == two.keys
    for index in range(11):
        np.testing.assert_array_equal(one[index].frames, two[index].frames)


def test_what_is_wrong_is_said_before_the_folder_is_made(tmp_path):
    with pytest.raises(UserError, match="no Meta-World task 'plate-slid'"):
        collect_metaworld(["plate-slid"], range(2), tmp_path / "store", ROUGH)
    with pytest.raises(UserError, match="steps is 0"):
        collect_metaworld([TASK], range(2), tmp_path / "store", MetaworldRecording(steps=0))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"noise": -0.1}, "noise is -0.1; expected a standard deviation of at least 0"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"random_share": 1.5}, "random_share is 1.5; expected a share between 0 and 1"),
        ({"longest_stretch": 4}, "longest_stretch is 4; expected at least 5 steps"),
    ],
)
def test_noise_out_of_range_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        MetaworldRecording(**options)
