"""VP2: official names, splits and order, masks, rewards and states, and what is refused."""

import pickle

import numpy as np
import pytest

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import vp2

h5py = pytest.importorskip("h5py")


@pytest.fixture
def write(tmp_path):
    def write(name, *, camera="camera_image", train=(0, 2, 10), valid=(1,), length=5, width=5, **extra):
        random = np.random.default_rng(len(name))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["mask/train"] = np.array([f"demo_{i}".encode() for i in train])
            file["mask/valid"] = np.array([f"demo_{i}".encode() for i in valid])
            for index in (*train, *valid):
                demo = file.create_group(f"data/demo_{index}")
                demo[f"obs/{camera}"] = random.integers(0, 256, (length, 6, 8, 3), np.uint8)
                demo["obs/gripper"] = random.normal(size=(length, 2))
                demo["obs/agentview_seg"] = random.integers(0, 5, (length, 6, 8, 1), np.int32)
                demo["obs/wrist_image"] = random.integers(0, 256, (length, 6, 8, 3), np.uint8)
                demo["obs/agentview_depth"] = random.random((length, 6, 8, 1), np.float32)
                demo["actions"] = random.normal(size=(length, width))
                demo["rewards"], demo["states"] = np.arange(length) / 7, random.normal(size=(length, 9))
                demo["dones"] = np.arange(length) == length - 2
                for key, value in extra.items():
                    if key in demo:
                        del demo[key]
                    demo[key] = value
        return path

    return write


def keys(tasks):
    return [(episode.split, episode.key) for task in tasks for episode in task.read()]


def test_robodesk_names_say_task_noise_and_number_in_the_official_order(write, tmp_path):
    write("push_red/noise_0.2.hdf5", train=(7,), valid=())
    write("push_red/noise_0.1.hdf5")
    write("open_slide/noise_0.1_demo.hdf5", train=(3,), valid=(4,))
    assert keys(vp2.tasks(tmp_path, benchmark="robodesk")) == [
        ("train", "open_slide/train_noise1/train_eps_demo_00003"),
        ("train", "push_red/train_noise1/train_eps_demo_00000"),
        ("train", "push_red/train_noise1/train_eps_demo_00002"),
        ("train", "push_red/train_noise1/train_eps_demo_00010"),
        ("train", "push_red/train_noise2/train_eps_demo_00007"),
        ("val", "open_slide/validation_noise1/validation_eps_demo_00004"),
        ("val", "push_red/validation_noise1/validation_eps_demo_00001"),
    ]


def test_robosuite_has_one_file(write, tmp_path):
    write("5k_slice_rendered_256.hdf5", camera="agentview_shift_2_image", width=4)
    tasks = pickle.loads(pickle.dumps(vp2.tasks(tmp_path, benchmark="robosuite")))
    assert [task.name for task in tasks] == ["train-00000", "val-00000"]
    assert keys(tasks)[-2:] == [
        ("train", "train/train_eps_demo_00010"),
        ("val", "validation/validation_eps_demo_00001"),
    ]
    assert next(tasks[0].read()).actions.shape == (5, 4)


def test_everything_of_an_episode_is_kept(write, tmp_path):
    path = write("task/noise_0.1.hdf5")
    episode = list(vp2.tasks(tmp_path, benchmark="robodesk")[0].read())[1]
    with h5py.File(path) as file:
        demo = file["data/demo_2"]
        assert np.array_equal(episode.cameras["image"], demo["obs/camera_image"])
        assert np.array_equal(episode.cameras["wrist_image"], demo["obs/wrist_image"])
        assert np.array_equal(episode.arrays["agentview_seg"], demo["obs/agentview_seg"])
        assert np.array_equal(episode.arrays["gripper"], demo["obs/gripper"])
        assert np.array_equal(episode.actions[:-1], demo["actions"][:-1].astype(np.float32))
        assert np.array_equal(episode.rewards[:-1], demo["rewards"][:-1].astype(np.float32))
        assert np.array_equal(episode.state, demo["states"][:].astype(np.float32))
    assert episode.terminated.tolist() == [False, False, False, True, False] and episode.terminated.dtype == bool
    assert not episode.actions[-1].any() and episode.rewards[-1] == 0
    assert episode.meta == {"source": "task/noise_0.1.hdf5", "demo": "demo_2", "left_out": ["agentview_depth"]}


def test_one_action_less_than_frames_is_understood(write, tmp_path):
    actions = np.arange(8.0).reshape(4, 2)
    write("noise_0.1.hdf5", actions=actions)
    episode = next(vp2.tasks(tmp_path, benchmark="robodesk")[0].read())
    assert np.array_equal(episode.actions, np.pad(actions, ((0, 1), (0, 0))).astype(np.float32))
    assert episode.key == "train_noise1/train_eps_demo_00000"


def test_unknown_noise_and_names_that_clash_are_refused(write, tmp_path):
    write("a/noise_0.1.hdf5")
    write("a/noise_0.1_again.hdf5")
    with pytest.raises(UserError, match="both hold a/train_noise1/train_eps_demo_00000"):
        vp2.tasks(tmp_path, benchmark="robodesk")
    write("a/noise.hdf5")
    with pytest.raises(UserError, match="noise.hdf5 does not name its noise"):
        vp2.tasks(tmp_path, benchmark="robodesk")


def test_the_camera_of_the_other_benchmark_is_refused(write, tmp_path):
    write("noise_0.1.hdf5")
    with pytest.raises(
        UserError, match="noise_0.1.hdf5: /data/demo_0/obs/agentview_shift_2_image is missing; it holds"
    ):
        keys(vp2.tasks(tmp_path, benchmark="robosuite"))
    with pytest.raises(UserError, match="benchmark is 'libero'; expected robodesk or robosuite"):
        vp2.tasks(tmp_path, benchmark="libero")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"actions": np.zeros((9, 5))}, r"actions of demo_0 of .*noise_0.1.hdf5 has shape \[9, 5\] for 5 frames"),
        ({"actions": np.full((5, 5), np.nan)}, "actions of demo_0 .* has NaN or infinity in row 0"),
        ({"rewards": np.zeros((5, 2))}, "rewards of demo_0 .* has 2 columns"),
        ({"states": np.zeros((3, 2))}, "states of demo_0 .* expected a row for each frame"),
        ({"obs/agentview_seg": np.zeros((2, 6, 8, 1))}, r"obs/agentview_seg of demo_0 .* expected 5 rows"),
        ({"obs/camera_image": np.zeros((5, 6, 8))}, r"camera_image of demo_0 .* expected uint8 \[t h w 3\]"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(write, tmp_path, extra, said):
    write("noise_0.1.hdf5", **extra)
    with pytest.raises(UserError, match=said):
        keys(vp2.tasks(tmp_path, benchmark="robodesk"))


def test_files_of_another_layout_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no .hdf5 files"):
        vp2.tasks(tmp_path, benchmark="robodesk")
    with h5py.File(tmp_path / "noise_0.1.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(UserError, match="noise_0.1.hdf5: /mask/train is missing; it holds data"):
        vp2.tasks(tmp_path, benchmark="robodesk")
    (tmp_path / "noise_0.1.hdf5").write_bytes(b"no")
    with pytest.raises(UserError, match="noise_0.1.hdf5 is not a readable HDF5 file"):
        vp2.tasks(tmp_path, benchmark="robodesk")
