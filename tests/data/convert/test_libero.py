"""Demonstrations of LIBERO in the layout of the official files: which action leads from which picture to which."""

import json

import numpy as np
import pytest

from ivideogpt.cli import main
from ivideogpt.core.errors import UserError
from ivideogpt.data import EpisodeStore
from ivideogpt.data.convert import libero

h5py = pytest.importorskip("h5py")
LENGTH, SIDE = 24, 16


def write(path, demos=2, alignment="after", joints=True, states=True):
    """Write a file whose picture i has the brightness i and shows the state i; action i leads from state i to i + 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shift = int(alignment == "after")
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": ["pick up ", "the bowl"]})
        for index in range(demos):
            demo = data.create_group(f"demo_{index}")
            rows = np.arange(LENGTH)
            pictures = np.zeros((LENGTH, SIDE, SIDE, 3), np.uint8)
            pictures[:] = (rows + shift)[:, None, None, None]
            pictures[:, 0, 0] = 200  # the upper left corner
            demo["obs/agentview_rgb"], demo["obs/eye_in_hand_rgb"] = pictures, pictures
            demo["obs/ee_states"], demo["obs/gripper_states"] = np.ones((LENGTH, 6)), np.zeros((LENGTH, 2))
            if joints:
                demo["obs/joint_states"] = np.repeat((rows + shift)[:, None] / 10, 7, 1)
            demo["actions"] = np.repeat(rows[:, None] / 100, 7, 1)
            if states:
                demo["states"] = np.concatenate([np.full((LENGTH, 1), 5.0), np.repeat(rows[:, None] / 10, 19, 1)], 1)
            demo["rewards"], demo["dones"] = np.eye(LENGTH)[-1], np.eye(LENGTH, dtype=np.uint8)[-1]
    return path


def episodes(source, **options):
    return [episode for task in libero.tasks(source, **options) for episode in task.read()]


@pytest.mark.parametrize("alignment", ["after", "before"])
def test_the_action_of_a_row_leads_from_its_picture_to_the_next(tmp_path, alignment) -> None:
    write(tmp_path / "libero_spatial" / "pick_up_the_bowl_demo.hdf5", alignment=alignment)
    first, second = episodes(tmp_path / "libero_spatial", alignment=alignment)
    brightness = first.cameras["agentview_rgb"][:, 5, 5, 0].astype(int)
    # action i leads from brightness i to i + 1
    assert np.allclose(first.actions[:-1, 0] * 100, brightness[:-1]) and not first.actions[-1].any()
    assert first.meta["initial_state"][1] == pytest.approx(brightness[0] / 10)
    assert first.rewards.tolist() == [0.0] * (LENGTH - 2) + [1.0, 0.0]
    assert first.terminated[-2] and not first.terminated[-1]
    assert first.text == "pick up the bowl" and first.state.shape == (LENGTH, 8) and first.fps == 20
    assert first.meta["task"] == "pick_up_the_bowl" and first.meta["suite"] == "libero_spatial"
    assert first.meta["success"] and second.key == "pick_up_the_bowl/demo_1"
    assert [field.name for field in first.action_fields] == ["position", "rotation", "gripper"]


def test_a_wrong_alignment_is_refused_by_the_joint_angles(tmp_path) -> None:
    for written, asked in (("after", "before"), ("before", "after")):
        path = write(tmp_path / f"{written}_demo.hdf5", alignment=written)
        with pytest.raises(UserError, match=f"demo_0 are {written} the actions .* give --alignment {written}"):
            libero.tasks(path, alignment=asked)


@pytest.mark.parametrize("alignment", ["after", "before"])
def test_motion_in_the_pictures_tells_the_alignment_where_there_are_no_joint_angles(alignment) -> None:
    sizes = np.random.default_rng(0).uniform(0, 1, 40)
    motion = sizes[1:] if alignment == "after" else sizes[:-1]
    assert libero._optical_alignment(motion, sizes) == alignment
    assert libero._optical_alignment(np.random.default_rng(1).uniform(0, 1, 39), sizes) is None


def test_motion_that_contradicts_the_alignment_is_reported_and_not_refused(tmp_path) -> None:
    path = write(tmp_path / "pick_demo.hdf5", joints=False)
    with h5py.File(path, "a") as file:
        sizes = np.random.default_rng(0).uniform(0, 1, LENGTH)
        for demo in file["data"].values():
            demo["actions"][:] = np.repeat(sizes[:, None], 7, 1)
            level = np.cumsum(np.concatenate([[0], sizes[:-1]])) * 8  # motion t is the size of action t
            demo["obs/agentview_rgb"][:] = level.astype(np.uint8)[:, None, None, None]
    shards = libero.tasks(path)
    assert [str(entry) for entry in shards.omissions] == [
        "1 files to check (their pictures move as with --alignment before: pick_demo.hdf5)"
    ]
    assert not libero.tasks(path, alignment="before").omissions


def test_pictures_are_turned_and_resized(tmp_path) -> None:
    path = write(tmp_path / "pick_demo.hdf5", demos=1)
    (raw,) = episodes(path)
    (turned,) = episodes(path, rotate_180=True, image_size=8)
    assert raw.cameras["agentview_rgb"][0, 0, 0, 0] == 200 and turned.cameras["agentview_rgb"].shape[1:] == (8, 8, 3)
    assert turned.cameras["agentview_rgb"][0, 0, 0, 0] == 1 and turned.cameras["agentview_rgb"][0, -1, -1, 0] > 20


def test_a_suite_is_converted_by_the_command(tmp_path, capsys) -> None:
    for name in ("a_demo.hdf5", "b_demo.hdf5"):
        write(tmp_path / "raw" / "libero_goal" / name, demos=3)
    words = ["convert", "libero", str(tmp_path / "raw/libero_goal"), str(tmp_path / "store"), "--workers", "0"]
    assert main([*words, "--rotate_180", "--max-demos", "2", "--image_size=8"]) == 0
    store = EpisodeStore(tmp_path / "store")
    assert len(store) == 4 and store.facts.dataset.name == "libero"
    assert store.facts.dataset.options == {"rotate_180": True, "max_demos": 2, "image_size": 8}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alignment": "during"}, "alignment is 'during'; expected after .* or before"),
        ({"image_size": 2}, "image_size is 2; expected at least 8"),
        ({"camera": "front"}, "has no camera 'front'; it has agentview_rgb, eye_in_hand_rgb"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, options, sentence) -> None:
    path = write(tmp_path / "pick_demo.hdf5", demos=1)
    with pytest.raises(UserError, match=sentence):
        libero.tasks(path, **options)


def test_an_episode_of_other_lengths_is_one_sentence(tmp_path) -> None:
    path = write(tmp_path / "pick_demo.hdf5", demos=1)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = np.zeros((LENGTH - 1, 7))
    with pytest.raises(UserError, match="actions of .*demo_0.* has shape"):
        episodes(path)
