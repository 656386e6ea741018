"""RoboNet files: lengths, the action rule, cameras of both encodings, the official lists, and what is refused."""

import io
import pickle
import sys
from importlib import resources
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import robonet
from ivideogpt.data.convert.source_episode import JpegFrames

h5py = pytest.importorskip("h5py")

SHARED = Path(__file__).parents[3] / "../shared/data"
HEIGHT, WIDTH = 24, 32


def drawn(count, camera=0):
    """Frame t is as bright as t says, with a coloured mark for the camera."""
    frames = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    frames += (np.arange(count) * 12 + 20).astype(np.uint8)[:, None, None, None]
    frames[:, :4, :4] = (250, 10 + 60 * camera, 0)
    return frames


def lossless_mp4(frames):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=5, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return np.frombuffer(buffer.getvalue(), np.uint8)


def jpeg(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.fixture
def write(tmp_path):
    def write(
        name="kuka_traj1.hdf5",
        *,
        encoding="mp4",
        colours="RGB",
        frames=7,
        states=7,
        actions=6,
        width=5,
        primitives="autograsp",
        cameras=2,
        without=(),
    ):
        random = np.random.default_rng(0)
        path = tmp_path / "hdf5" / name
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            file["file_version"] = "0.1.1"
            env = file.create_group("env")
            env.attrs["n_cams"], env.attrs["cam_encoding"] = cameras, encoding
            env["state"] = random.normal(size=(states, 5))
            env["low_bound"], env["high_bound"] = np.tile([-1.0, 0.0], (2, 1)), np.tile([1.0, 0.25], (2, 1))
            for camera in range(cameras):
                video = env.create_group(f"cam{camera}_video")
                pictures = drawn(frames, camera)
                parts = [lossless_mp4(pictures)] if encoding == "mp4" else map(jpeg, pictures)
                for index, content in enumerate(parts):
                    data = video.create_dataset("frames" if encoding == "mp4" else f"frame{index}", data=content)
                    data.attrs["shape"], data.attrs["T"] = pictures.shape[1:], frames
                    data.attrs["image_format"] = colours
            file["policy/actions"] = random.normal(size=(actions, width))
            file.create_group("misc")["run"] = 3
            about = file.create_group("metadata")
            about.attrs["robot"], about.attrs["primitives"] = "kuka", primitives
            about.attrs["object_classes"] = np.array([b"cups", b"bowls"])
            for key in without:
                del file[key]
        return path

    return write


def read(path, **options):
    (task,) = robonet.tasks(path.parent, **options)
    (episode,) = task.read()
    return episode


# What is there to read


def test_the_official_lists_are_the_authors():
    folder = resources.files("ivideogpt") / "assets" / "data"
    lines = (folder / "oxe_robonet_testset_filenames.txt").read_text().splitlines()
    assert len(robonet.test_names()) == 256 and all(name.endswith(".hdf5") for name in robonet.test_names())
    assert len(lines) == 126
    names = {f"{line.split()[0]}.hdf5" for line in lines}
    assert len(names & robonet.test_names()) == len(names)
    for name in ("robonet_testset_filenames.txt", "oxe_robonet_testset_filenames.txt"):
        if (SHARED / name).exists():
            assert (folder / name).read_bytes() == (SHARED / name).read_bytes()


def test_every_camera_of_an_mp4_file_is_read_frame_by_frame(write):
    episode = read(write(cameras=3))
    assert episode.key == "kuka_traj1" and episode.split == "train" and episode.camera == "image"
    for name, camera in (("image", 0), ("cam1", 1), ("cam2", 2)):
        assert np.array_equal(episode.cameras[name], drawn(7, camera))
    assert list(read(write(cameras=3), all_cameras=False).cameras) == ["image"]


def test_jpeg_files_are_kept_as_they_are(write):
    episode = read(write(encoding="jpg"))
    frames = episode.cameras["cam1"]
    assert isinstance(frames, JpegFrames) and (frames.height, frames.width, frames.fast) == (HEIGHT, WIDTH, False)
    assert frames.files == [jpeg(frame).tobytes() for frame in drawn(7, 1)]


@pytest.mark.parametrize("encoding", ["mp4", "jpg"])
def test_red_and_blue_change_places_where_the_file_says_bgr(write, encoding):
    frames = read(write(encoding=encoding, colours="BGR")).cameras["image"]
    assert np.abs(frames.astype(int) - drawn(7)[..., ::-1]).mean() < (0.01 if encoding == "mp4" else 3)
    assert frames[0, 1, 1, 2] > 240 > 20 > frames[0, 1, 1, 0]


@pytest.mark.parametrize(("frames", "states", "actions"), [(7, 9, 9), (9, 7, 9), (9, 9, 6), (7, 7, 7)])
@pytest.mark.parametrize("encoding", ["mp4", "jpg"])
def test_the_shortest_part_says_how_long_the_episode_is(write, encoding, frames, states, actions):
    path = write(encoding=encoding, frames=frames, states=states, actions=actions)
    episode = read(path)
    with h5py.File(path) as file:
        assert np.array_equal(episode.state, file["env/state"][:7].astype(np.float32))
        assert np.array_equal(episode.actions[:-1], file["policy/actions"][:6].astype(np.float32))
    assert [len(episode), *map(len, episode.cameras.values())] == [7, 7, 7]
    assert episode.actions.dtype == np.float32 and not episode.actions[-1].any()


# The action rule


def test_a_gripper_that_moves_by_itself_is_told_where_it_is_found_next(write):
    path = write(width=4)
    actions = read(path).actions
    with h5py.File(path) as file:
        state, recorded = file["env/state"][:], file["policy/actions"][:]
    assert np.array_equal(actions[:-1, :4], recorded.astype(np.float32))
    expected = [0.25 if state[t + 1, -1] > 0.125 else 0.0 for t in range(6)]
    assert actions[:-1, 4].tolist() == expected and len(set(expected)) == 2


def test_bounds_beside_the_metadata_win(write):
    path = write(width=4)
    with h5py.File(path, "a") as file:
        file["metadata"].attrs["high_bound"], file["metadata"].attrs["low_bound"] = [9.0, 100.0], [0.0, -100.0]
    assert set(read(path).actions[:-1, 4]) == {100.0, -100.0}


@pytest.mark.parametrize("width", [1, 3])
def test_short_actions_are_padded_with_zeros(write, width):
    path = write(width=width)
    actions = read(path).actions
    with h5py.File(path) as file:
        assert np.array_equal(actions[:-1, :width], file["policy/actions"][:].astype(np.float32))
    assert actions.shape == (7, 5) and not actions[:, width:].any()


def test_long_actions_are_cut(write):
    path = write(width=7)
    with h5py.File(path) as file:
        assert np.array_equal(read(path).actions[:-1], file["policy/actions"][:, :5].astype(np.float32))


def test_four_numbers_without_autograsp_are_refused(write):
    with pytest.raises(UserError, match="sawyer_traj2.hdf5 has actions of 4 numbers and primitives 'none'"):
        read(write("sawyer_traj2.hdf5", width=4, primitives="none"))


# Names


def test_the_test_list_splits_and_names_are_in_the_official_order(write):
    held_out = sorted(robonet.test_names())[:2]
    for name in ["b_1.hdf5", held_out[1], "b.hdf5", "a_10.hdf5", held_out[0], "a_9.hdf5", "b-1.hdf5"]:
        write(name, cameras=1)
    tasks = robonet.tasks(write().parent)
    assert [task.name for task in tasks] == ["train-00000", "test-00000"]
    keys = {task.name: [(episode.key, episode.split) for episode in task.read()] for task in tasks}
    # As sorted names of files that end in .npz: "-" stands before ".", "." before "_".
    assert [key for key, _ in keys["train-00000"]] == ["a_10", "a_9", "b-1", "b", "b_1", "kuka_traj1"]
    assert keys["test-00000"] == [(Path(name).stem, "test") for name in held_out]


def test_a_task_can_be_sent_to_another_process(write, monkeypatch):
    monkeypatch.setattr(robonet, "EPISODES_A_SHARD", 2)
    for name in ("a.hdf5", "b.hdf5", "c.hdf5"):
        path = write(name, cameras=1)
    tasks = pickle.loads(pickle.dumps(robonet.tasks(path.parent)))
    assert [[episode.key for episode in task.read()] for task in tasks] == [["a", "b"], ["c"]]


def test_what_the_file_says_of_itself_is_kept_as_plain_values(write):
    meta = read(write()).meta
    assert meta["source"] == "kuka_traj1.hdf5"
    assert meta["about"] == {"run": 3, "robot": "kuka", "primitives": "autograsp", "object_classes": ["cups", "bowls"]}


# What is refused


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("env/state", "kuka_traj1.hdf5: /env/state is missing; it holds .*cam0_video"),
        ("policy/actions", "/policy/actions is missing; policy holds nothing"),
        ("env/cam1_video", "/env/cam1_video is missing"),
        ("env", "/env is missing; it holds file_version, metadata, misc, policy"),
    ],
)
def test_a_missing_key_is_named_beside_those_that_are_there(write, key, said):
    with pytest.raises(UserError, match=said):
        read(write(without=[key]))


def test_a_damaged_file_is_named(write):
    path = write()
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="kuka_traj1.hdf5 is not a readable HDF5 file"):
        read(path)


def test_a_damaged_video_inside_is_named(write):
    path = write()
    with h5py.File(path, "a") as file:
        file["env/cam0_video/frames"][100:] = 0
    with pytest.raises(UserError, match="cam0_video of .*kuka_traj1.hdf5"):
        read(path)


def test_a_video_with_fewer_frames_than_it_says_is_refused(write):
    path = write(frames=5, states=9, actions=9)
    with h5py.File(path, "a") as file:
        file["env/cam0_video/frames"].attrs["T"] = 8
    with pytest.raises(UserError, match="cam0_video of .* has 5 frames; expected 8"):
        read(path)


def test_nan_is_refused(write):
    path = write()
    with h5py.File(path, "a") as file:
        file["policy/actions"][2, 1] = np.nan
    with pytest.raises(UserError, match="policy/actions of .*kuka_traj1.hdf5 has NaN or infinity in row 2"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colours": "HSV"}, "image_format 'HSV'; expected 'RGB' or 'BGR'"),
        ({"cameras": 0}, "no cameras"),
        ({"states": 1}, "1 frames with state and action"),
    ],
)
def test_files_that_hold_no_episode_are_refused(write, changes, said):
    with pytest.raises(UserError, match=said):
        read(write(**changes))


def test_folders_without_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder .*nowhere"):
        robonet.tasks(tmp_path / "nowhere")
    (tmp_path / "meta_data.pkl").touch()
    with pytest.raises(UserError, match="holds no .hdf5 files; it holds meta_data.pkl"):
        robonet.tasks(tmp_path)


def test_a_missing_package_names_the_extra(write, monkeypatch):
    path = write()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"h5py is not installed; run: pip install 'ivideogpt\[data\]'"):
        read(path)
