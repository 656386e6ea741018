"""A folder of one's own recordings: videos, GIFs, npz files, folders of images, tables of actions, what is refused."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import video
from ivideogpt.data.convert.source_episode import JpegFrames
from ivideogpt.data.render import write_gif, write_mp4
from ivideogpt.data.store.metadata import StoreFacts
from ivideogpt.data.store.writer import convert_to_store

ACTIONS = np.round(np.random.default_rng(0).normal(size=(5, 2)), 6)


def drawn(count=5, height=16, width=24):
    frames = np.zeros((count, height, width, 3), np.uint8)
    return frames + (np.arange(count) * 40 + 20).astype(np.uint8)[:, None, None, None]


def table(path, rows, header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([",".join(header)] if header else []) + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def images(folder, suffix, frames):
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index + 8}{suffix}")  # 8, 9, 10, 11: natural order
    return folder


def episodes(folder, **options):
    return [episode for task in video.tasks(folder, **options) for episode in task.read()]


# What is there to read


def test_each_kind_of_recording_gives_its_frames(tmp_path):
    write_mp4(tmp_path / "a.mp4", drawn(), fps=5, shortest_side=16)
    write_gif(tmp_path / "b.gif", drawn(), fps=10, shortest_side=16)
    np.savez(tmp_path / "c.npz", frames=drawn(), actions=ACTIONS, rewards=np.arange(5.0))
    images(tmp_path / "d", ".png", drawn())
    images(tmp_path / "e", ".jpg", drawn())
    found = {episode.key: episode for episode in episodes(tmp_path)}
    assert list(found) == ["a", "b", "c", "d", "e"]
    for key in "abcd":
        assert np.abs(found[key].cameras["image"].astype(int) - drawn()).max() < 5
    assert [found[key].fps for key in "abcde"] == [5, 10, None, None, None]
    assert np.array_equal(found["c"].actions[:-1], ACTIONS[:-1].astype(np.float32))
    assert found["c"].rewards.tolist() == [0, 1, 2, 3, 0] and found["a"].actions is None
    stored = found["e"].cameras["image"]
    assert isinstance(stored, JpegFrames)
    assert stored.files == [(tmp_path / "e" / f"{index}.jpg").read_bytes() for index in range(8, 13)]


@pytest.mark.parametrize("rows", [5, 4])
def test_actions_stand_in_a_table_beside_the_recording(tmp_path, rows):
    write_mp4(tmp_path / "a.mp4", drawn(), shortest_side=16)
    table(tmp_path / "a.csv", ACTIONS[:rows], header=["x", " y"])
    images(tmp_path / "b", ".png", drawn())
    np.save(tmp_path / "b.npy", ACTIONS[:rows])
    images(tmp_path / "c", ".png", drawn())
    table(tmp_path / "c" / "actions.csv", ACTIONS[:rows])
    expected = np.pad(ACTIONS[:4], ((0, 1), (0, 0))).astype(np.float32)
    found = episodes(tmp_path)
    for episode in found:
        assert np.array_equal(episode.actions, expected)
    assert [[field.name for field in episode.action_fields] for episode in found] == [
        ["x", "y"],
        ["actions"],
        ["actions"],
    ]


def test_one_number_a_line_is_an_action_of_one_number(tmp_path):
    images(tmp_path / "a", ".png", drawn())
    np.save(tmp_path / "a.npy", np.arange(5))
    assert episodes(tmp_path)[0].actions.tolist() == [[0], [1], [2], [3], [0]]


def test_folders_say_the_split_and_keys_the_place(tmp_path):
    for name in ("train/take10", "train/take2", "val/take1", "Test/robot/take1", "other/take1"):
        images(tmp_path / name, ".png", drawn(2))
    found = [(episode.split, episode.key) for episode in episodes(tmp_path)]
    assert found == [
        ("train", "other/take1"),
        ("train", "train/take2"),
        ("train", "train/take10"),
        ("val", "val/take1"),
        ("test", "Test/robot/take1"),
    ]


def test_every_so_many_recordings_may_be_held_out(tmp_path):
    for index in range(7):
        images(tmp_path / f"take{index}", ".png", drawn(2))
    found = [(episode.split, episode.key) for episode in episodes(tmp_path, val_every=3)]
    assert [key for split, key in found if split == "val"] == ["take0", "take3", "take6"]
    assert len(found) == 7


def test_a_folder_of_images_alone_is_one_episode(tmp_path, monkeypatch):
    images(tmp_path / "take", ".png", drawn())
    np.save(tmp_path / "take.npy", ACTIONS)
    monkeypatch.chdir(tmp_path / "take")
    for folder in (tmp_path / "take", "."):
        (episode,) = episodes(folder)
        assert episode.key == "take" and episode.actions is not None


def test_the_rate_may_be_given(tmp_path):
    images(tmp_path / "a", ".png", drawn())
    assert episodes(tmp_path, fps=7.5)[0].fps == 7.5


def test_the_camera_of_npz_files_may_be_given(tmp_path):
    np.savez(tmp_path / "a.npz", left=drawn(), right=255 - drawn())
    write_gif(tmp_path / "b.gif", drawn(), shortest_side=16)
    assert np.array_equal(episodes(tmp_path, camera_key="right")[0].cameras["image"], 255 - drawn())
    with pytest.raises(UserError, match="a.npz has 2 arrays of frames"):
        episodes(tmp_path)


def test_tasks_can_be_sent_and_hold_so_many_recordings(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "EPISODES_A_SHARD", 2)
    for index in range(3):
        images(tmp_path / f"{index}", ".png", drawn(2))
    tasks = pickle.loads(pickle.dumps(video.tasks(tmp_path)))
    assert [[episode.key for episode in task.read()] for task in tasks] == [["0", "1"], ["2"]]


def test_hidden_files_are_passed_over(tmp_path):
    images(tmp_path / "a", ".png", drawn(2))
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.mp4").touch()
    (tmp_path / "a" / "._8.png").touch()
    assert [len(episode) for episode in episodes(tmp_path)] == [2]


# What is left out


def test_names_are_compared_without_regard_to_case(tmp_path):
    write_mp4(tmp_path / "take.mp4", drawn(), shortest_side=16)
    (tmp_path / "take.mp4").rename(tmp_path / "TAKE.MP4")
    table(tmp_path / "TAKE.CSV", ACTIONS, header=["x", "y"])
    images(tmp_path / "second", ".png", drawn())
    table(tmp_path / "second" / "ACTIONS.CSV", ACTIONS)
    assert [episode.actions.shape for episode in episodes(tmp_path)] == [(5, 2), (5, 2)]


def test_what_is_left_out_is_reported(tmp_path):
    np.savez(tmp_path / "a.npz", frames=drawn(), actions=ACTIONS, joints=ACTIONS)
    images(tmp_path / "b", ".webp", drawn())
    table(tmp_path / "tyop.csv", ACTIONS)
    (tmp_path / "b" / "notes.txt").touch()
    summary = convert_to_store(video.tasks(tmp_path), tmp_path / "store", facts=StoreFacts(name="mine"), workers=0)
    assert str(summary) == (
        "stored 2 episodes with 10 frames from 1 .npz files, 1 folders of .webp images; left out or moved: "
        "1 tables of actions (no recording has their name: tyop.csv); "
        "1 files (they are no recordings: b/notes.txt); "
        "1 arrays of .npz files (they are no part of an episode: joints)"
    )


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["1700000000.1", "1700000000.0333", "1699999999.9"], [2, 1, 0]),
        (["-1", "0", "-10", "2"], [2, 0, 1, 3]),
        (["frame-10", "frame-9"], [1, 0]),
    ],
)
def test_images_are_in_the_order_of_their_numbers(tmp_path, names, order):
    (tmp_path / "take").mkdir()
    frames = drawn(len(names))
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(tmp_path / "take" / f"{name}.png")
    assert np.array_equal(episodes(tmp_path)[0].cameras["image"], frames[order])


@pytest.mark.parametrize(("first", "second"), [("0001.jpg", "0001.png"), ("0001.png", "0001_mask.png")])
def test_images_of_two_kinds_are_no_recording(tmp_path, first, second):
    (tmp_path / "take").mkdir()
    for name in (first, second):
        Image.fromarray(drawn()[0]).save(tmp_path / "take" / name)
    with pytest.raises(UserError, match="take holds|in doubt"):
        episodes(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2\n3,4\n", r"a.csv has shape \[2, 2\] for 5 frames; expected a row for each frame, or one less"),
        ("1\n2\nnan\n4\n", "a.csv has NaN or infinity in row 2"),
        ("1,2\n3\n", "a.csv line 2 has 1 columns; expected 2"),
        ("x,y\n1,2\n3,up\n", "a.csv line 3 has 'up'; expected a number"),
        ("x,y\n", "a.csv has no lines of numbers"),
        ("", "a.csv has no lines of numbers"),
    ],
)
def test_tables_that_do_not_fit_are_named(tmp_path, text, said):
    images(tmp_path / "a", ".png", drawn())
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        episodes(tmp_path)


def test_other_arrays_of_actions_are_refused(tmp_path):
    images(tmp_path / "a", ".png", drawn())
    np.save(tmp_path / "a.npy", np.zeros((5, 2, 2)))
    with pytest.raises(UserError, match=r"a.npy does not hold an array \[t a\]"):
        episodes(tmp_path)
    (tmp_path / "a.npy").write_bytes(b"no")
    with pytest.raises(UserError, match="a.npy is not a readable .npy file"):
        episodes(tmp_path)
    np.save(tmp_path / "a.npy", np.array(["up"] * 5))
    with pytest.raises(UserError, match="a.npy has type <U2"):
        episodes(tmp_path)


def test_what_could_be_meant_in_two_ways_is_refused(tmp_path):
    images(tmp_path / "a", ".png", drawn())
    np.save(tmp_path / "a.npy", ACTIONS)
    table(tmp_path / "a.csv", ACTIONS)
    with pytest.raises(UserError, match="two tables of actions, a.csv and a.npy"):
        episodes(tmp_path)
    (tmp_path / "a.npy").unlink()
    write_gif(tmp_path / "a.gif", drawn(), shortest_side=16)
    with pytest.raises(UserError, match="differ in their endings only"):
        episodes(tmp_path)
    (tmp_path / "poster.png").touch()
    with pytest.raises(UserError, match="recordings and images side by side"):
        episodes(tmp_path)


def test_actions_in_the_file_and_beside_it_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", frames=drawn(), actions=ACTIONS)
    table(tmp_path / "a.csv", ACTIONS)
    with pytest.raises(UserError, match="a.npz holds actions and .*a.csv too"):
        episodes(tmp_path)


def test_damaged_recordings_are_named(tmp_path):
    write_mp4(tmp_path / "a.mp4", drawn(), shortest_side=16)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="a.mp4 (cannot be decoded|has no frames)"):
        episodes(tmp_path)
    (tmp_path / "a.mp4").unlink()
    folder = images(tmp_path / "b", ".png", drawn())
    buffer = io.BytesIO()
    Image.fromarray(drawn()[0]).save(buffer, "PNG")
    (folder / "9.png").write_bytes(buffer.getvalue()[:60])
    with pytest.raises(UserError, match="9.png is not a readable image"):
        episodes(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"fps": 0}, "fps is 0"), ({"fps": float("nan")}, "fps is nan"), ({"val_every": 1}, "val_every is 1")],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        video.tasks(tmp_path, **options)


def test_folders_without_recordings_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no recordings; expected .mp4, .* found notes.txt"):
        video.tasks(tmp_path)
    with pytest.raises(UserError, match="no folder .*nowhere"):
        video.tasks(tmp_path / "nowhere")
