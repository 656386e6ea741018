"""BAIR's TFRecord files become the episodes of the official converter."""

import json
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import bair

SAMPLE = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "samples" / "bair_sample.npz"


def trajectory(seed):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (30, 64, 64, 3), dtype=np.uint8),
        "aux1_image": random.integers(0, 256, (30, 64, 64, 3), dtype=np.uint8),
        "action": random.normal(size=(30, 4)).astype(np.float32),
        "position": random.normal(size=(30, 3)).astype(np.float32),
    }


def read(source):
    return [episode for task in bair.tasks(source) for episode in task.read()]


def test_trajectories_come_back(made, tmp_path):
    held = [trajectory(0), trajectory(1)]
    made.write_bair(tmp_path, held, first=256)
    made.write_bair(tmp_path, [trajectory(2)], split="test")
    found = read(tmp_path)
    assert [(e.split, e.key) for e in found] == [
        ("train", "traj_00256"),
        ("train", "traj_00257"),
        ("test", "traj_00000"),
    ]
    for episode, expected in zip(found, held, strict=False):
        assert episode.camera == "aux1_image" and list(episode.cameras) == ["aux1_image", "image"]
        for name, frames in episode.cameras.items():
            np.testing.assert_array_equal(frames, expected[name])
        np.testing.assert_array_equal(episode.actions[:-1], expected["action"][:-1])
        assert not episode.actions[-1].any()
        np.testing.assert_array_equal(np.float32(episode.meta["last_action"]), expected["action"][-1])
        np.testing.assert_array_equal(episode.state, expected["position"])
        assert json.dumps(episode.meta)


def test_the_official_sample_is_the_same(made, tmp_path):
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE} is not here")
    with np.load(SAMPLE) as sample:
        held = {name: sample[name].astype(np.uint8) for name in ("image", "aux1_image")}
        held |= {"action": sample["action"], "position": np.zeros((30, 3))}
        made.write_bair(tmp_path, [held])
        made.write_bair(tmp_path, [held], split="test")
        found = read(tmp_path)[0]
        np.testing.assert_array_equal(found.cameras["image"], sample["image"])
        np.testing.assert_array_equal(found.cameras["aux1_image"], sample["aux1_image"])
        np.testing.assert_array_equal(found.actions[:-1], sample["action"][:-1])


def test_files_come_in_the_order_of_their_numbers_not_of_their_letters(made, tmp_path):
    for first in (1000, 256, 0, 20):
        made.write_bair(tmp_path / "softmotion30_44k", [trajectory(first)], first=first)
    made.write_bair(tmp_path / "softmotion30_44k", [trajectory(9)], split="test")
    found = read(tmp_path)
    assert [e.key for e in found] == ["traj_00000", "traj_00020", "traj_00256", "traj_01000", "traj_00000"]
    assert [task.name for task in bair.tasks(tmp_path)][:2] == ["train-000000", "train-000020"]


def test_what_is_wrong_is_named(made, tmp_path):
    with pytest.raises(UserError, match=r"train holds no \.tfrecords files"):
        bair.tasks(tmp_path)
    file = made.write_bair(tmp_path, [trajectory(0)])
    with pytest.raises(UserError, match=r"test holds no \.tfrecords files"):
        bair.tasks(tmp_path)
    made.write_bair(tmp_path, [trajectory(0)], split="test")
    named = file.rename(file.with_name("traj_0_to_4.tfrecords"))
    with pytest.raises(UserError, match="holds 1 records; its name says 5"):
        read(tmp_path)
    named.write_bytes(named.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"traj_0_to_4\.tfrecords ends within the record at byte 0"):
        read(tmp_path)
    named.rename(file.with_name("part.tfrecords"))
    with pytest.raises(UserError, match="unexpected name; expected traj_FIRST_to_LAST"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("29/image_main/encoded", None, "no '29/image_main/encoded'; it has: 0/action, "),
        ("7/action", None, "no '7/action'; it has: "),
        ("7/action", np.zeros(3, np.float32), "3 values in '7/action'; expected 4 numbers"),
        ("0/image_aux1/encoded", [b"short"], "no picture of 64 x 64 x 3 bytes in '0/image_aux1/encoded'"),
    ],
)
def test_a_record_of_another_make_is_named(made, tmp_path, key, value, message):
    held = trajectory(0)
    features = {}
    for t in range(30):
        features[f"{t}/image_main/encoded"] = [held["image"][t].tobytes()]
        features[f"{t}/image_aux1/encoded"] = [held["aux1_image"][t].tobytes()]
        features |= {f"{t}/action": held["action"][t], f"{t}/endeffector_pos": held["position"][t]}
    features[key] = value
    record = made.example({name: values for name, values in features.items() if values is not None})
    file = bair.BairFile(path=made.write_records(tmp_path / "x", [record]), split="train", first=0, last=0)
    with pytest.raises(UserError, match=message):
        list(bair.read_file(file))
