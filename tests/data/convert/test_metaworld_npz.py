"""Meta-World demonstrations: the real ones where they are at hand, written ones for the convention and for errors."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import metaworld_npz

SHARED = Path(__file__).parents[3] / "../shared/data"


@pytest.fixture
def write(tmp_path):
    def write(name="door-lock/20240515T053940_0_4.npz", length=5, **changes):
        random = np.random.default_rng(0)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        arrays = {
            "observation": random.integers(0, 256, (length, 9, 6, 8), np.uint8),
            "action": random.normal(size=(length, 4)).astype(np.float32) * 3,
            "reward": np.arange(length, dtype=np.float32)[:, None],
            "discount": np.ones((length, 1), np.float32),
        }
        arrays["action"][0] = 0
        arrays |= changes
        np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return write


def episodes(folder):
    return [episode for task in metaworld_npz.tasks(folder) for episode in task.read()]


def test_the_real_demonstrations_are_read():
    folder = SHARED / "metaworld-demos"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    found = episodes(folder)
    assert len(found) == 30 and len({episode.meta["task"] for episode in found}) == 6
    assert [episode.key for episode in found] == sorted(episode.key for episode in found)
    assert found[0].key == "button-press-topdown-wall/20240512T060844_0_100"
    for episode in (found[0], found[12], found[-1]):
        with np.load(folder / episode.meta["source"]) as stored:
            assert np.array_equal(episode.cameras["observation"], stored["observation"][:, 6:].transpose(0, 2, 3, 1))
            assert np.array_equal(episode.actions[:-1], np.clip(stored["action"][1:], -1, 1))
            assert np.array_equal(episode.rewards[:-1], stored["reward"][1:, 0])
        assert len(episode) == 101 and not episode.actions[-1].any() and not episode.terminated.any()


def test_rows_that_lead_into_a_frame_move_up_and_the_newest_picture_is_taken(write):
    path = write()
    (episode,) = metaworld_npz.tasks(path.parent)[0].read()
    with np.load(path) as stored:
        assert np.array_equal(episode.cameras["observation"], stored["observation"][:, 6:].transpose(0, 2, 3, 1))
        assert np.array_equal(episode.actions[:4], np.clip(stored["action"][1:], -1, 1))
    assert episode.rewards.tolist() == [1, 2, 3, 4, 0]
    assert (episode.key, episode.split, episode.camera) == ("20240515T053940_0_4", "train", "observation")


def test_the_end_is_where_the_discount_is_zero(write):
    discount = np.ones((5, 1), np.float32)
    discount[3] = 0  # the step into frame 3
    write(discount=discount)
    write("hammer/1.npz", discount=None)
    first, second = episodes(write().parents[1])
    assert (first.terminated, second.terminated)[1] is None
    write(discount=discount)
    assert episodes(write(discount=discount).parent)[0].terminated.tolist() == [False, False, True, False, False]


def test_keys_name_the_task_and_tasks_can_be_sent(write, monkeypatch):
    monkeypatch.setattr(metaworld_npz, "EPISODES_A_SHARD", 2)
    for name in ("hammer/2.npz", "door-lock/1.npz", "hammer/1.npz"):
        folder = write(name).parents[1]
    tasks = pickle.loads(pickle.dumps(metaworld_npz.tasks(folder)))
    assert [[episode.key for episode in task.read()] for task in tasks] == [["door-lock/1", "hammer/1"], ["hammer/2"]]


def test_all_episodes_can_be_held_out(write):
    (task,) = metaworld_npz.tasks(write().parents[1], split="test")
    assert {episode.split for episode in task.read()} == {"test"} and task.name.startswith("test")
    with pytest.raises(UserError, match="split is 'tests'; expected train, val, test"):
        metaworld_npz.tasks(write().parents[1], split="tests")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"observation": np.zeros((5, 3, 6, 8), np.uint8)}, r"expected stacked frames \[t 9 h w\]"),
        ({"observation": None}, "no array 'observation'; it has action, reward, discount"),
        ({"action": None}, "no array 'action'"),
        ({"reward": None}, "no array 'reward'"),
        ({"action": np.ones((5, 4), np.float32)}, "starts with"),
        ({"action": np.zeros((3, 4), np.float32)}, "has 3 rows for 5 frames"),
        ({"action": np.array([[0.0]] * 4 + [[np.nan]])}, "NaN or infinity in actions"),
        ({"discount": np.ones((4, 1))}, r"'discount' of .* has shape \[4, 1\] for 5 frames"),
    ],
)
def test_files_that_are_no_replay_are_refused_by_name(write, changes, said):
    path = write("door-lock/bad.npz", **changes)
    with pytest.raises(UserError, match=said) as caught:
        episodes(path.parent)
    assert "bad" in str(caught.value)


def test_damage_and_empty_folders_are_refused(write, tmp_path):
    with pytest.raises(UserError, match="holds no .npz files; it holds nothing"):
        metaworld_npz.tasks(tmp_path)
    path = write()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="20240515T053940_0_4.npz is not a readable .npz file"):
        episodes(path.parent)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="20240515T053940_0_4.npz is not a readable .npz file"):
        episodes(path.parent)
