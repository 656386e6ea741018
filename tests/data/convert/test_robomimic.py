"""HDF5 files in the layout of robomimic, written here."""

import json

import numpy as np
import pytest

from ivideogpt.cli import main
from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.convert import robomimic

h5py = pytest.importorskip("h5py")
LENGTH = 5


def pictures(seed, length=LENGTH):
    return np.random.default_rng(seed).integers(0, 256, (length, 6, 8, 3), np.uint8)


def write(path, demos=3, next_obs=False, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, value in attributes.items():
            data.attrs[name] = value
        for index in range(demos):
            demo, images = data.create_group(f"demo_{index}"), pictures(index, LENGTH + 1)
            demo["obs/agentview_image"], demo["obs/wrist_image"] = images[:-1], 255 - images[:-1]
            demo["obs/depth"] = np.zeros((LENGTH, 6, 8, 1), np.float32)
            demo["obs/joints"] = np.arange(LENGTH * 2.0).reshape(LENGTH, 2)
            demo["actions"] = np.arange(LENGTH * 3.0).reshape(LENGTH, 3)
            demo["rewards"], demo["dones"] = np.eye(LENGTH)[-1], np.eye(LENGTH, dtype=int)[-1]
            demo["states"] = np.ones((LENGTH, 4))
            if next_obs:
                demo["next_obs/agentview_image"], demo["next_obs/wrist_image"] = images[1:], 255 - images[1:]
                demo["next_obs/joints"] = np.arange(2.0, LENGTH * 2 + 2).reshape(LENGTH, 2)
        if demos > 2:
            file["mask/train"], file["mask/valid"] = np.array([b"demo_0", b"demo_2"]), np.array([b"demo_1"])
    return path


def episodes(source, **options):
    return [episode for task in robomimic.tasks(source, **options) for episode in task.read()]


def test_an_episode_has_its_pictures_rows_and_end(tmp_path):
    write(tmp_path / "low.hdf5")
    first, second, third = episodes(tmp_path / "low.hdf5")
    assert [(e.key, e.split) for e in (first, second, third)] == [
        ("demo_0", "train"),
        ("demo_2", "train"),
        ("demo_1", "val"),
    ]
    assert first.camera == "agentview_image" and list(first.cameras) == ["agentview_image", "wrist_image"]
    assert np.array_equal(first.cameras["agentview_image"], pictures(0, LENGTH + 1)[:-1])
    assert first.actions[:-1].tolist() == np.arange(12.0).reshape(4, 3).tolist() and not first.actions[-1].any()
    assert first.rewards.tolist() == [0, 0, 0, 1, 0] and first.terminated.tolist() == [False] * 3 + [True, False]
    assert first.arrays["joints"].shape == (LENGTH, 2) and first.state.shape == (LENGTH, 4)
    reasons = {entry.items: entry.reason for entry in first.omissions}
    assert reasons["ends of episodes"] == "moved to the last recorded transition"
    assert set(reasons) == {"observations", "last actions", "last rewards", "ends of episodes"}


def test_the_last_next_observation_is_the_last_frame(tmp_path):
    episode = episodes(write(tmp_path / "a.hdf5", next_obs=True))[0]
    assert len(episode) == LENGTH + 1 and np.array_equal(episode.cameras["agentview_image"], pictures(0, LENGTH + 1))
    assert episode.actions[LENGTH - 1].tolist() == [12, 13, 14] and not episode.actions[LENGTH].any()
    assert episode.rewards.tolist() == [0, 0, 0, 0, 1, 0] and episode.terminated[LENGTH - 1]
    assert episode.arrays["joints"][-1].tolist() == [10, 11]
    assert [entry.items for entry in episode.omissions] == ["observations", "simulator states"]


def test_the_command_converts_a_folder_and_reports(tmp_path, capsys):
    info = json.dumps({"language_instruction": "lift the cube"})
    write(tmp_path / "data" / "a.hdf5", demos=1, problem_info=info)
    write(tmp_path / "data" / "b.hdf5", demos=2)
    (tmp_path / "data" / "notes.txt").touch()
    words = ["convert", "robomimic", str(tmp_path / "data"), str(tmp_path / "store"), "--workers", "0"]
    assert main([*words, "--camera", "wrist_image", "--val-every", "3"]) == 0
    printed = capsys.readouterr().out
    assert "stored 3 episodes with 15 frames" in printed and "1 files (they are no HDF5 files: notes.txt)" in printed
    store = EpisodeStore(tmp_path / "store")
    assert store.keys == ["b/demo_0", "b/demo_1", "a/demo_0"] and store.splits == ["train", "train", "val"]
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(tmp_path / "store" / "index.parquet")["text"].to_pylist()
    assert texts == ["", "", "lift the cube"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera": "front"}, "has no camera 'front'; it has agentview_image, wrist_image"),
        ({"cameras": ["wrist_image"], "camera": "agentview_image"}, "has no camera 'agentview_image'"),
        ({"val_every": 1}, "val_every is 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    write(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match=message):
        robomimic.tasks(tmp_path, **options)


def test_what_lies_outside_of_the_file_is_not_read(tmp_path):
    write(tmp_path / "secret.h5")
    path = write(tmp_path / "a.hdf5", demos=1)
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = h5py.ExternalLink("secret.h5", "data/demo_0/actions")
    with pytest.raises(UserError, match="actions lies in another file, which is not read"):
        episodes(path)


@pytest.mark.parametrize("change", ["shorter", "text", "missing", "huge"])
def test_damage_is_one_sentence(tmp_path, change):
    path = write(tmp_path / "a.hdf5", demos=1)
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_0"]
        del demo["actions"]
        if change == "shorter":
            demo["actions"] = np.zeros((2, 3))
        if change == "text":
            demo["actions"] = np.array([b"up"] * LENGTH)
        if change == "huge":
            demo.create_dataset("actions", shape=(10**9, 500), dtype="f8", chunks=(1, 500))
    with pytest.raises(UserError, match=r"actions|a\.hdf5"):
        episodes(path)
