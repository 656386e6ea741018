"""Minari datasets, written here as Minari 0.5.4 writes them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ivideogpt.cli import main
from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.convert import minari
from ivideogpt.data.convert.source_episode import JpegFrames

h5py = pytest.importorskip("h5py")
STEPS = 4


def pictures(seed, size=(6, 8)):
    return np.random.default_rng(seed).integers(0, 256, (STEPS + 1, *size, 3), np.uint8)


def jpeg(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def write(root, kind="dict", episodes=2, **metadata):
    (root / "data").mkdir(parents=True)
    about = {"dataset_id": "toy/pictures-v0", "data_format": "hdf5", "total_episodes": episodes} | metadata
    (root / "data" / "metadata.json").write_text(json.dumps(about))
    with h5py.File(root / "data" / "main_data.hdf5", "w") as file:
        for index in range(episodes):
            episode, frames = file.create_group(f"episode_{index}"), pictures(index)
            if kind == "dict":
                episode["observations/pixels"] = frames
                episode["observations/state"] = np.arange(STEPS + 1.0)[:, None]
                episode["observations/mission"] = np.array([b"go"] * (STEPS + 1), h5py.string_dtype())
            elif kind == "jpeg":
                files = episode.create_dataset("observations", (STEPS + 1,), h5py.vlen_dtype(np.uint8))
                for row, frame in enumerate(frames):
                    files[row] = jpeg(frame)
            else:
                episode["observations"] = frames
            episode["actions"] = np.arange(STEPS * 2.0).reshape(STEPS, 2)
            episode["rewards"] = np.arange(STEPS, dtype=np.float64)
            episode["terminations"], episode["truncations"] = np.arange(STEPS) == STEPS - 1, np.zeros(STEPS, bool)
            episode["infos/k"] = np.arange(STEPS + 1)
    return root


def episodes(source, **options):
    return [episode for task in minari.tasks(source, **options) for episode in task.read()]


def test_an_episode_has_one_frame_more_than_actions(tmp_path):
    first, _ = episodes(write(tmp_path))
    assert (first.key, first.camera, first.text, len(first)) == ("episode_0", "pixels", "go", STEPS + 1)
    assert np.array_equal(first.cameras["pixels"], pictures(0)) and first.arrays["state"][:, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert first.actions[:-1].tolist() == np.arange(8.0).reshape(4, 2).tolist() and not first.actions[-1].any()
    assert first.rewards.tolist() == [0, 1, 2, 3, 0] and first.terminated.tolist() == [False] * 3 + [True, False]
    assert first.omissions[0].names == ("mission", "infos", "truncations")


@pytest.mark.parametrize("kind", ["array", "jpeg"])
def test_an_observation_that_is_a_picture_is_called_image(tmp_path, kind):
    (episode, _) = episodes(write(tmp_path, kind))
    frames = episode.cameras["image"]
    assert len(frames) == STEPS + 1
    if kind == "jpeg":
        assert isinstance(frames, JpegFrames) and frames.files[2] == jpeg(pictures(0)[2]).tobytes()
    else:
        assert np.array_equal(frames, pictures(0))


def test_the_command_converts_a_dataset(tmp_path, capsys):
    write(tmp_path / "pictures-v0", algorithm_name="expert")
    words = ["convert", "minari", str(tmp_path / "pictures-v0"), str(tmp_path / "store"), "--workers", "0"]
    assert main([*words, "--val-every", "2"]) == 0
    assert "6 fields of episodes (they are no part of an episode of a store" in capsys.readouterr().out
    store = EpisodeStore(tmp_path / "store")
    assert store.splits == ["train", "val"] and store.facts.dataset.name == "toy/pictures-v0"
    assert store.facts.dataset.notes["algorithm_name"] == "expert"


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="has no data/main_data.hdf5; download the dataset first"):
        minari.tasks(tmp_path)
    write(tmp_path / "a" / "b-v0")
    with pytest.raises(UserError, match="give one of .*b-v0"):
        minari.tasks(tmp_path)
    with pytest.raises(UserError, match="has no camera 'front'; it has pixels"):
        minari.tasks(tmp_path / "a" / "b-v0", camera="front")
    (tmp_path / "arrow" / "data").mkdir(parents=True)
    (tmp_path / "arrow" / "data" / "metadata.json").write_text('{"data_format": "arrow"}')
    with pytest.raises(UserError, match="is kept as 'arrow'; only 'hdf5' is read"):
        minari.tasks(tmp_path / "arrow")
    with h5py.File(tmp_path / "a/b-v0/data/main_data.hdf5", "r+") as file:
        del file["episode_1/actions"]
        file["episode_1/actions/left"] = np.zeros((STEPS, 1))
    with pytest.raises(UserError, match="episode_1/actions is a group; expected an array"):
        episodes(tmp_path / "a" / "b-v0")
