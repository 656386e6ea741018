"""Reading recordings: the official samples, our own files, videos and images, and what is refused."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.media import read_episode
from ivideogpt.data.render import write_gif, write_mp4

SHARED = Path(__file__).parents[2] / "../shared/data"


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture
def frames():
    """Uint8 [5 16 24 3], each frame another smooth picture."""
    time, row, column = np.meshgrid(np.arange(5), np.arange(16), np.arange(24), indexing="ij")
    return np.stack([time * 40 + row, row * 12, 250 - column * 9 - time], axis=-1).astype(np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "episode.npz", **arrays)
        return tmp_path / "episode.npz"

    return save


# What is there to read


def test_the_bair_sample_keeps_the_official_convention_of_actions():
    path = shared("samples/bair_sample.npz")
    episode = read_episode(path, dataset_name="bair_robot_pushing")
    with np.load(path) as stored:
        assert np.array_equal(episode.frames, stored["aux1_image"])
        assert np.array_equal(episode.actions[:-1], stored["action"][:-1].astype(np.float32))
    assert episode.frames.dtype == np.uint8 and episode.actions.dtype == np.float32
    assert not episode.actions[-1].any()
    assert episode.key == "bair_sample" and episode.meta["camera"] == "aux1_image"


def test_a_camera_asked_for_wins_over_the_dataset():
    path = shared("samples/bair_sample.npz")
    main = read_episode(path, dataset_name="bair_robot_pushing", camera_key="image")
    with np.load(path) as stored:
        assert np.array_equal(main.frames, stored["image"])


def test_the_fractal_sample_is_squeezed_not_cropped():
    path = shared("samples/fractal_sample.npz")
    whole, small = read_episode(path).frames, read_episode(path, size=64).frames
    assert whole.shape == (22, 256, 320, 3) and small.shape == (22, 64, 64, 3)
    averaged = whole.reshape(22, 64, 4, 64, 5, 3).mean((2, 4))
    assert np.abs(averaged - small).mean() < 3


def test_metaworld_demonstrations_give_the_newest_frame_and_move_up_what_led_into_it():
    folder = shared("metaworld-demos/door-lock")
    path = sorted(folder.glob("*.npz"))[0]
    episode = read_episode(path)
    with np.load(path) as stored:
        assert np.array_equal(episode.frames, stored["observation"][:, 6:].transpose(0, 2, 3, 1))
        assert np.array_equal(episode.actions[:-1], stored["action"][1:])
        assert np.array_equal(episode.rewards[:-1], stored["reward"][1:, 0])
    assert not episode.actions[-1].any() and episode.rewards[-1] == 0
    named = read_episode(path, dataset_name="metaworld")
    assert np.array_equal(named.actions, np.clip(episode.actions, -1, 1))
    assert np.abs(episode.actions).max() > 1


def test_our_own_npz_is_read_as_it_was_recorded(save, frames):
    rows = {
        "actions": np.float32([[1, 2], [3, 4], [5, 6], [7, 8], [0, 0]]),
        "rewards": np.float32([0, 1, 0, 1, 0]),
        "terminated": np.array([False, False, False, True, False]),
        "state": np.arange(15, dtype=np.float32).reshape(5, 3),
    }
    episode = read_episode(save(frames=frames, **rows))
    assert np.array_equal(episode.frames, frames)
    for name, value in rows.items():
        assert np.array_equal(getattr(episode, name), value) and getattr(episode, name).dtype == value.dtype


def test_one_action_less_than_frames_is_padded(save, frames):
    episode = read_episode(save(image=frames, action=np.ones((4, 5))))
    assert episode.actions.tolist() == [[1] * 5] * 4 + [[0] * 5]


@pytest.mark.parametrize(
    "convert", [lambda x: x / 255, lambda x: x.astype(np.int64), lambda x: x.transpose(0, 3, 1, 2)]
)
def test_number_types_and_layouts_give_the_same_frames(save, frames, convert):
    assert np.array_equal(read_episode(save(frames=convert(frames))).frames, frames)


@pytest.mark.parametrize("fps", [4, 29.97])
def test_an_mp4_is_read_back(tmp_path, frames, fps):
    write_mp4(tmp_path / "video.mp4", frames, fps=fps, shortest_side=16)
    episode = read_episode(tmp_path / "video.mp4")
    assert episode.frames.shape == frames.shape and episode.meta["fps"] == pytest.approx(fps)
    assert np.abs(episode.frames.astype(int) - frames).mean() < 4
    assert read_episode(tmp_path / "video.mp4", size=8).frames.shape == (5, 8, 8, 3)


def test_a_video_filmed_sideways_is_turned_upright(tmp_path, frames):
    write_mp4(tmp_path / "video.mp4", frames, shortest_side=16)
    content = (tmp_path / "video.mp4").read_bytes()
    unit, zero = (0x10000).to_bytes(4, "big"), bytes(4)
    matrices = {
        "upright": unit + zero * 3 + unit,
        "clockwise": zero + unit + zero + (-0x10000).to_bytes(4, "big", signed=True) + zero,
    }
    # The matrix of the track header says how a player turns the picture.
    start = content.index(matrices["upright"], content.index(b"tkhd"))
    (tmp_path / "video.mp4").write_bytes(content[:start] + matrices["clockwise"] + content[start + 20 :])
    turned = read_episode(tmp_path / "video.mp4").frames
    assert np.abs(turned.astype(int) - np.rot90(frames, -1, axes=(1, 2))).mean() < 4


def test_a_gif_is_read_back(tmp_path, frames):
    write_gif(tmp_path / "video.gif", frames, fps=10, shortest_side=16)
    episode = read_episode(tmp_path / "video.gif")
    assert episode.frames.shape == frames.shape and episode.meta["fps"] == 10
    assert np.abs(episode.frames.astype(int) - frames).mean() < 4


def test_a_folder_of_images_is_read_in_natural_order(tmp_path, frames):
    for number, frame in zip((2, 10, 9, 1, 100), frames, strict=True):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert np.array_equal(read_episode(tmp_path).frames, frames[[3, 0, 2, 1, 4]])


def test_grey_and_opaque_images_become_rgb(tmp_path):
    Image.new("L", (4, 4), 77).save(tmp_path / "1.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "2.png")
    assert read_episode(tmp_path).frames[:, 0, 0].tolist() == [[77] * 3, [1, 2, 3]]


# What is refused: the message says what was found, what was expected and what to do


def test_two_cameras_ask_for_a_choice(save, frames):
    with pytest.raises(UserError, match="left, right; give one as camera_key"):
        read_episode(save(left=frames, right=frames, action=np.zeros((5, 2))))


def test_no_camera_lists_what_there_is(save):
    with pytest.raises(UserError, match=r"no array of frames.*depth \[5, 8, 8\]"):
        read_episode(save(depth=np.zeros((5, 8, 8))))


def test_a_missing_camera_lists_the_arrays(save, frames):
    path = save(image=frames, action=np.zeros((5, 2)))
    with pytest.raises(UserError, match="no array 'aux1_image'; it has image, action"):
        read_episode(path, dataset_name="bair_robot_pushing")


def test_an_unknown_dataset_is_refused_before_the_file(tmp_path):
    with pytest.raises(UserError, match="did you mean 'bridge'"):
        read_episode(tmp_path / "nothing.npz", dataset_name="brigde")


@pytest.mark.parametrize("shape", [(5, 8, 8, 1), (5, 8, 8, 4), (8, 8, 3), (5, 8, 8)])
def test_frames_that_are_not_rgb_are_refused(save, shape):
    with pytest.raises(UserError, match="expected RGB frames"):
        read_episode(save(image=np.zeros(shape, np.uint8)), camera_key="image")


def test_an_episode_without_frames_is_refused(save):
    with pytest.raises(UserError, match="no frames"):
        read_episode(save(image=np.zeros((0, 8, 8, 3), np.uint8)))


@pytest.mark.parametrize(
    "values", [np.full((2, 8, 8, 3), 200.0), np.full((2, 8, 8, 3), -1), np.full((2, 8, 8, 3), np.nan)]
)
def test_values_that_are_no_pixels_are_refused(save, values):
    with pytest.raises(UserError, match="expected floats from 0 to 1 or integers from 0 to 255"):
        read_episode(save(image=values))


def test_booleans_are_no_frames(save):
    with pytest.raises(UserError, match="has type bool"):
        read_episode(save(image=np.zeros((2, 8, 8, 3), bool)))


@pytest.mark.parametrize("wrong", [np.nan, 2, -1, np.inf, 0.5])
def test_flags_that_are_neither_0_nor_1_are_refused(save, frames, wrong):
    flags = np.array([0, 0, 1, 0, 0], np.float64)
    assert read_episode(save(frames=frames, terminated=flags)).terminated.tolist() == [False, False, True, False, False]
    flags[1] = wrong
    with pytest.raises(UserError, match="array 'terminated' of .* at number 1; expected 0 or 1"):
        read_episode(save(frames=frames, terminated=flags))


def test_an_end_in_the_padding_row_is_not_lost_silently(save, frames):
    flags = np.array([False, False, False, False, True])
    with pytest.raises(UserError, match="is true in the last row"):
        read_episode(save(frames=frames, terminated=flags))
    assert read_episode(save(frames=frames, terminated=flags[1:])).terminated.tolist() == [False] * 3 + [True, False]


def test_nan_in_actions_is_refused(save, frames):
    actions = np.zeros((5, 2))
    actions[3, 1] = np.nan
    with pytest.raises(UserError, match="NaN or infinity in actions at frame 3"):
        read_episode(save(image=frames, action=actions))


def test_actions_of_another_length_are_refused(save, frames):
    with pytest.raises(UserError, match="7 rows for 5 frames"):
        read_episode(save(image=frames, action=np.zeros((7, 2))))


def test_a_replay_file_that_starts_with_an_action_is_refused(save):
    with pytest.raises(UserError, match="starts with zeros"):
        read_episode(save(observation=np.zeros((3, 9, 8, 8), np.uint8), action=np.ones((3, 2))))


@pytest.mark.parametrize("arrays", [{"image": "objects"}, {"image": "frames", "action": "objects"}])
def test_python_objects_are_never_unpickled(save, frames, arrays):
    values = {"objects": np.array([{"a": 1}] * 5, dtype=object), "frames": frames}
    with pytest.raises(UserError, match="never unpickled"):
        read_episode(save(**{name: values[kind] for name, kind in arrays.items()}), camera_key="image")


def test_object_arrays_nobody_asks_for_do_no_harm(save, frames):
    assert len(read_episode(save(image=frames, language=np.array(["pick", None], dtype=object)))) == 5


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file or folder .*nothing\.npz"):
        read_episode(tmp_path / "nothing.npz")


def test_an_unknown_kind_of_file_lists_the_known(tmp_path):
    (tmp_path / "frames.txt").write_text("0")
    with pytest.raises(UserError, match=r"'\.txt'; expected \.npz, \.gif, \.mp4"):
        read_episode(tmp_path / "frames.txt")


@pytest.mark.parametrize("name", ["broken.npz", "broken.mp4", "broken.gif"])
@pytest.mark.parametrize("content", [b"", b"not what the name says" * 20])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        read_episode(tmp_path / name)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(save, tmp_path, frames, kept):
    write_gif(tmp_path / "video.gif", frames)
    write_mp4(tmp_path / "video.mp4", frames)
    for path in (save(image=frames), tmp_path / "video.gif", tmp_path / "video.mp4"):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        with pytest.raises(UserError, match=path.name):
            read_episode(path)


def test_damage_inside_an_npz_is_named(tmp_path, frames):
    np.savez_compressed(tmp_path / "episode.npz", image=frames)
    content = bytearray((tmp_path / "episode.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "episode.npz").write_bytes(content)
    with pytest.raises(UserError, match="'image' of .*damaged"):
        read_episode(tmp_path / "episode.npz", camera_key="image")


def test_a_bare_array_named_npz_is_refused(tmp_path, frames):
    with (tmp_path / "episode.npz").open("wb") as file:
        np.save(file, frames)
    with pytest.raises(UserError, match="bare array"):
        read_episode(tmp_path / "episode.npz")


def test_a_video_without_pictures_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="only sound"):
        read_episode(tmp_path / "sound.mp4")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no images"):
        read_episode(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="FIFOs are POSIX")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["x.npz", "x.mp4", "x.gif", "x.txt", "folder/1.png"])
def test_a_fifo_is_refused_and_never_opened(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a FIFO, a socket or a device"):
        read_episode(tmp_path / name.removesuffix("/1.png"))


def test_a_name_that_no_file_can_have_is_refused():
    for name in ("x" * 5000, "~nobody-of-this-name/a.npz", "a\0b.npz"):
        with pytest.raises(UserError, match="cannot be used as a path"):
            read_episode(name)


def test_images_of_different_sizes_are_refused_even_when_resized(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "2.png")
    with pytest.raises(UserError, match="frame 1 of .* is 8 x 9 pixels, but the first is 8 x 8"):
        read_episode(tmp_path, size=4)


@pytest.mark.parametrize(
    ("mode", "colour", "reason"), [("I;16", 40000, "8 bits"), ("RGBA", (1, 2, 3, 100), "transparent")]
)
def test_images_that_would_change_silently_are_refused(tmp_path, mode, colour, reason):
    Image.new(mode, (4, 4), colour).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=reason):
        read_episode(tmp_path)


def test_options_that_would_do_nothing_are_refused(tmp_path, frames):
    write_gif(tmp_path / "video.gif", frames)
    with pytest.raises(UserError, match="camera_key is 'image'"):
        read_episode(tmp_path / "video.gif", camera_key="image")
    with pytest.raises(UserError, match="size is 0"):
        read_episode(tmp_path / "video.gif", size=0)
