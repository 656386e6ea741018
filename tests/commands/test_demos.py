"""``ivideogpt demos``: demonstrations of ManiSkill and LIBERO, with the spellings that people paste."""

import numpy as np
import pytest

from ivideogpt.data import EpisodeStore

h5py = pytest.importorskip("h5py")


def write_suite(folder) -> None:
    """A file of LIBERO with two episodes of four rows."""
    folder.mkdir(parents=True)
    with h5py.File(folder / "pick_up_the_bowl_demo.hdf5", "w") as file:
        for index in range(2):
            demo = file.create_group(f"data/demo_{index}")
            demo["obs/agentview_rgb"] = np.random.default_rng(index).integers(0, 256, (4, 16, 16, 3), np.uint8)
            demo["actions"], demo["rewards"] = np.ones((4, 7)), np.eye(4)[-1]
            demo["dones"], demo["states"] = np.eye(4, dtype=np.uint8)[-1], np.ones((4, 20))


@pytest.mark.parametrize("flags", [("--rotate_180", "--image_size", 8), ("--rotate-180", "image-size=8")])
def test_a_suite_of_libero_becomes_a_store_where_mbrl_finds_it(run, tmp_path, flags) -> None:
    write_suite(tmp_path / "raw" / "libero_spatial")
    done = run("demos", "libero", "--download-dir", "raw", "--output-dir", "d", "--suites", "libero_spatial", *flags)
    assert done.code == 0, done.err
    store = EpisodeStore(tmp_path / "d" / "libero_spatial")
    assert done.json["stores"] == {"d/libero_spatial": {"episodes": 2, "successes": 2, "frames": 8}}
    raw = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)[0, -2:, -2:].mean((0, 1))
    assert np.abs(store[0].frames[0, 0, 0] - raw).max() <= 1


def test_all_suites_are_those_that_are_there(run, tmp_path) -> None:
    for suite in ("libero_goal", "libero_10"):
        write_suite(tmp_path / "raw" / suite)
    done = run("demos", "libero", "--download_dir", "raw", "--output_dir", "d", "--max_demos", 1)
    assert done.code == 0, done.err
    assert {name: row["episodes"] for name, row in done.json["stores"].items()} == {
        "d/libero_goal": 1,
        "d/libero_10": 1,
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "libero --download-dir raw --suites libero_space",
            "there is no suite 'libero_space'; expected all, or some of",
        ),
        ("libero --download-dir raw --suites libero_goal", "there is no folder raw/libero_goal; give the folder"),
        ("libero --download-dir raw", "there is no folder raw/libero_spatial"),
        ("maniskill --task PickCube-v1 --trajectory_path a.h5 --obj_set train", "obj_set is 'train'; expected null"),
        ("maniskill --task PickCube-v1 --trajectory_path a.h5 --action_repeat 2", "action_repeat is 2; expected 1"),
        ("maniskill --task PickCube-v1 --trajectory_path a.h5 --size 64 32", "size is 64, 32; expected one number"),
        ("maniskill --task plate-slide --trajectory_path a.h5", "there is no ManiSkill task 'plate-slide' here"),
        ("maniskill --task PickCube-v1 --trajectory_path a.h5 --episodes 0", "episodes is 0; expected at least 1"),
        ("maniskill --task PickCube-v1 --trajectory_path a.h5 --replay all", "replay is 'all'; expected one of states"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, words, sentence) -> None:
    done = run("demos", *words.split())
    assert done.code == 2 and sentence in done.err and done.err.count("\n") == 1
