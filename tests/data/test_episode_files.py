"""Episode files give back what was put in, or say in one sentence why not."""

import io
import json
import struct
from functools import partial

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ivideogpt.core.episode import Episode
from ivideogpt.core.errors import UserError
from ivideogpt.data.convert.source_episode import SourceEpisode
from ivideogpt.data.episode_files import is_store, load_episodes, open_episodes, save_episodes
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import ShardTask, convert_to_store


def _episode(key: str, length: int = 5, split: str = "train", size: int = 16) -> Episode:
    random = np.random.default_rng(length)
    return Episode(
        frames=random.integers(0, 256, (length, size, size + 2, 3), dtype=np.uint8),
        actions=random.normal(size=(length, 2)).astype(np.float32),
        rewards=random.normal(size=length).astype(np.float32),
        terminated=np.zeros(length, bool),
        state=random.normal(size=(length, 3)).astype(np.float32),
        key=key,
        split=split,
        meta={"seed": 3, "note": "ü"},
    )


def test_what_was_saved_is_loaded(tmp_path):
    saved = [_episode("a"), _episode("b", length=3, split="test", size=8)]
    save_episodes(tmp_path / "new" / "some.safetensors", saved)
    loaded = load_episodes(tmp_path / "new" / "some.safetensors")
    assert len(loaded) == 2
    for one, other in zip(saved, loaded, strict=True):
        assert (one.key, one.split, one.meta) == (other.key, other.split, other.meta)
        for label in ("frames", "actions", "rewards", "terminated", "state"):
            np.testing.assert_array_equal(getattr(one, label), getattr(other, label))
            assert getattr(one, label).dtype == getattr(other, label).dtype


def test_absent_arrays_stay_absent(tmp_path):
    save_episodes(tmp_path / "some.safetensors", [Episode(frames=np.zeros((2, 4, 4, 3), np.uint8))])
    (loaded,) = load_episodes(tmp_path / "some.safetensors")
    assert loaded.actions is None and loaded.rewards is None and loaded.terminated is None and loaded.state is None


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "some.safetensors"
    save_episodes(path, [_episode("old")])

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match="no space left on device; choose another place"):
        save_episodes(path, [_episode("new")])
    assert [episode.key for episode in load_episodes(path)] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="no episode file"):
        load_episodes(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_cut_off_file_is_explained(tmp_path, keep):
    path = tmp_path / "some.safetensors"
    save_episodes(path, [_episode("a")])
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="damaged"):
        load_episodes(path)


def test_damaged_picture_is_explained(tmp_path):
    path = tmp_path / "some.safetensors"
    save_episodes(path, [_episode("a")])
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 40
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_episodes(path)


def test_long_episodes_are_no_decompression_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    save_episodes(tmp_path / "some.safetensors", [_episode("a")])
    assert len(load_episodes(tmp_path / "some.safetensors")[0]) == 5


def test_other_safetensors_file_is_explained(tmp_path):
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not an episode file"):
        load_episodes(tmp_path / "model.safetensors")


def test_a_store_gives_held_out_episodes_first_and_no_more_than_asked_for(tmp_path):
    tasks = [ShardTask("all", partial(_three, ("train", "test", "train")))]
    convert_to_store(tasks, tmp_path / "store", facts=StoreFacts(name="mine"), workers=0)
    assert is_store(tmp_path / "store") and not is_store(tmp_path)
    assert [episode.key for episode in open_episodes(tmp_path / "store", most=2)] == ["1", "0"]
    save_episodes(tmp_path / "some.safetensors", [_episode("a"), _episode("b")])
    assert [episode.key for episode in open_episodes(tmp_path / "some.safetensors", most=1)] == ["a", "b"]
    with pytest.raises(UserError, match="no finished store|no episode store|index"):
        open_episodes(tmp_path / "nothing")


def _three(splits):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    return (SourceEpisode(key=str(k), split=split, cameras={"image": frames}) for k, split in enumerate(splits))


ENTRIES = {
    "an entry is a number": [7],
    "frames is huge": [{"key": "a", "split": "train", "frames": 10**30, "meta": {}}],
    "frames is a list": [{"key": "a", "split": "train", "frames": [1], "meta": {}}],
    "frames does not divide the picture": [{"key": "a", "split": "train", "frames": 3, "meta": {}}],
    "frames is 0": [{"key": "a", "split": "train", "frames": 0, "meta": {}}],
    "the key is a number": [{"key": 3, "split": "train", "frames": 5, "meta": {}}],
    "meta is a list": [{"key": "a", "split": "train", "frames": 5, "meta": []}],
    "an episode that has no tensors": [{"key": "a", "split": "train", "frames": 5, "meta": {}}] * 2,
    "the list is a number": 3,
    "the list is an object": {"key": "a"},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_list_of_episodes_of_other_types_is_explained(tmp_path, name):
    path = tmp_path / "some.safetensors"
    save_episodes(path, [_episode("a")])
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    head["__metadata__"]["episodes"] = json.dumps(ENTRIES[name])
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(UserError, match=r"some\.safetensors is damaged"):
        load_episodes(path)


def test_tensors_of_other_types_are_explained(tmp_path):
    for label, wrong in (("actions", np.zeros((5, 2), np.uint8)), ("terminated", np.full(5, np.nan, np.float32))):
        path = tmp_path / "some.safetensors"
        save_episodes(path, [_episode("a")])
        tensors = load_file(path)
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        save_file(tensors | {f"0.{label}": wrong}, path, metadata=metadata)
        with pytest.raises(UserError, match=f"{label} of episode 0 has type"):
            load_episodes(path)


def test_frames_that_would_fill_the_memory_are_refused(tmp_path):
    path = tmp_path / "some.safetensors"
    picture = io.BytesIO()
    Image.new("RGB", (10_000, 10_000)).save(picture, "PNG")
    entry = {"key": "a", "split": "train", "frames": 10, "meta": {}}
    metadata = {"format": "ivideogpt-episodes-1", "episodes": json.dumps([entry])}
    save_file({"0.frames": np.frombuffer(picture.getvalue(), np.uint8)}, path, metadata=metadata)
    with pytest.raises(UserError, match="made to fill the memory"):
        load_episodes(path)
