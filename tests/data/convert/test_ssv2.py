"""Something-Something V2: official lists with folders of JPEG files, WebM files with their labels, what is refused."""

import io
import json
import pickle

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.core.errors import UserError
from ivideogpt.data.convert import ssv2
from ivideogpt.data.convert.source_episode import JpegFrames

LABELS = {
    "Approaching something with your camera": "0",
    "Attaching something to something": "1",
    "Closing something": "5",
}


def jpeg(brightness, size=(32, 24), mode="RGB"):
    buffer = io.BytesIO()
    colour = brightness if mode == "L" else (brightness,) * 3
    Image.new(mode, size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def frames(tmp_path):
    """Folders of frames with both lists: 4 train and 2 val videos, of which 0-labelled ones are not selected."""
    rows = {"train": ["30 3 5", "7 4 0", "100 2 1", "9 0 1"], "val": ["55 2 5", "56 2 0"]}
    for split, lines in rows.items():
        (tmp_path / f"{split}_video_folder.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            name, count, _ = line.split()
            folder = tmp_path / "20bn-something-something-v2-frames" / name
            folder.mkdir(parents=True)
            for index in range(int(count)):
                (folder / f"{index + 1:06d}.jpg").write_bytes(jpeg(40 * index + 20))
    return tmp_path


@pytest.fixture
def videos(tmp_path):
    """WebM files with the JSON files of the download."""
    entries = {
        "train": [
            ("21", "[Attaching] x", "Attaching [something] to [something]"),
            ("8", "seen", "Closing [something]"),
        ],
        "validation": [("3", "camera", "Approaching [something] with your camera"), ("4", "shut", "Closing something")],
    }
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(LABELS))
    (tmp_path / "videos").mkdir()
    for name, rows in entries.items():
        listing = [{"id": i, "label": label, "template": template, "placeholders": []} for i, label, template in rows]
        (tmp_path / "labels" / f"{name}.json").write_text(json.dumps(listing))
        for index, _, _ in rows:
            with av.open(str(tmp_path / "videos" / f"{index}.webm"), "w") as container:
                stream = container.add_stream("libvpx", rate=12)
                stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
                for frame in range(6):
                    picture = np.full((24, 32, 3), 30 * frame + 20, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode())
    return tmp_path


def episodes(folder, **options):
    return [episode for task in ssv2.tasks(folder, **options) for episode in task.read()]


def test_the_official_choice_of_labels():
    assert len(ssv2.SELECTED_LABELS) == 95
    assert {1, 13, 93, 173} <= ssv2.SELECTED_LABELS
    assert not ssv2.SELECTED_LABELS & {0, 2, 12, 22, 41, 59, 84, 121, 124, 142, 155, 165, 172}


def test_frames_are_kept_as_they_are_in_the_order_of_the_list(frames):
    found = episodes(frames)
    assert [(episode.split, episode.key) for episode in found] == [("train", "30"), ("train", "100"), ("val", "55")]
    for episode, count in zip(found, (3, 2, 2), strict=True):
        stored = episode.cameras["image"]
        assert isinstance(stored, JpegFrames) and (stored.height, stored.width) == (24, 32)
        assert stored.files == [jpeg(40 * index + 20) for index in range(count)]
        assert episode.fps == 12 and episode.actions is None
    assert found[0].meta == {"source": "20bn-something-something-v2-frames/30", "label": 5}


def test_all_labels_may_be_kept_and_videos_without_frames_are_left_out(frames):
    assert [episode.key for episode in episodes(frames, labels="all")] == ["30", "7", "100", "55", "56"]


def test_webm_files_have_their_text(videos):
    found = episodes(videos)
    assert [(e.split, e.key, e.text) for e in found] == [
        ("train", "21", "[Attaching] x"),
        ("train", "8", "seen"),
        ("val", "4", "shut"),
    ]
    assert [episode.meta["label"] for episode in found] == [1, 5, 5]
    assert all(episode.fps == 12 and episode.cameras["image"].shape == (6, 24, 32, 3) for episode in found)
    brightness = found[0].cameras["image"].mean(axis=(1, 2, 3))
    assert np.abs(brightness - (30 * np.arange(6) + 20)).max() < 6
    assert [episode.key for episode in episodes(videos, labels="all")] == ["21", "8", "3", "4"]


def test_frames_take_their_text_from_the_json_files_where_these_are_there(frames):
    entry = {"id": "100", "label": "hanging a coat", "template": "Attaching [something] to [something]"}
    (frames / "train.json").write_text(json.dumps([entry]))
    assert [episode.text for episode in episodes(frames)] == ["", "hanging a coat", ""]


def test_tasks_can_be_sent_and_hold_so_many_videos(frames, monkeypatch):
    monkeypatch.setattr(ssv2, "EPISODES_A_SHARD", 1)
    tasks = pickle.loads(pickle.dumps(ssv2.tasks(frames)))
    assert [task.name for task in tasks] == ["train-00000", "train-00001", "val-00000"]
    assert [episode.key for episode in tasks[1].read()] == ["100"]


def test_grey_and_turned_jpegs_and_other_images(frames):
    folder = frames / "20bn-something-something-v2-frames" / "30"
    (folder / "000002.jpg").write_bytes(jpeg(60, mode="L"))
    assert isinstance(episodes(frames)[0].cameras["image"], JpegFrames)
    turned = Image.Exif()
    turned[0x0112] = 6
    for index in range(3):  # the camera lay on its side
        Image.new("RGB", (24, 32), (50 * index,) * 3).save(folder / f"{index + 1:06d}.jpg", exif=turned)
    stored = episodes(frames)[0].cameras["image"]
    assert isinstance(stored, np.ndarray) and stored.shape == (3, 24, 32, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (jpeg(9)[:-20], "000002.jpg is not a readable image"),
        (b"", "000002.jpg is not a readable image"),
        (jpeg(9, (33, 24)), "000002.jpg has 33 x 24 pixels, but the first image has 32 x 24"),
        (None, "000002.jpg is missing, but the list gives 3 frames"),
    ],
)
def test_damaged_frames_are_named(frames, content, said):
    path = frames / "20bn-something-something-v2-frames" / "30" / "000002.jpg"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        episodes(frames)


def test_a_damaged_webm_file_is_named(videos):
    path = videos / "videos" / "8.webm"
    path.write_bytes(b"no video")
    with pytest.raises(UserError, match="8.webm cannot be decoded"):
        episodes(videos)
    path.unlink()
    with pytest.raises(UserError, match="no video file .*8.webm"):
        episodes(videos)


@pytest.mark.parametrize("line", ["30 3", "30 three 5", "a 30 3 5"])
def test_a_line_that_is_no_video_is_named(frames, line):
    (frames / "train_video_folder.txt").write_text(f"100 2 1\n{line}\n")
    with pytest.raises(UserError, match=f"train_video_folder.txt line 2 is '{line}'"):
        episodes(frames)


def test_labels_are_needed_to_select(videos):
    (videos / "labels" / "labels.json").unlink()
    with pytest.raises(UserError, match="does not give the label of 2 train videos, such as 21"):
        episodes(videos)
    assert len(episodes(videos, labels="all")) == 4


def test_folders_of_another_kind_are_refused(tmp_path, videos):
    with pytest.raises(UserError, match="labels is 'some'; expected selected or all"):
        ssv2.tasks(tmp_path, labels="some")
    (videos / "labels" / "train.json").write_text('[{"id": "1"}]')
    with pytest.raises(UserError, match="train.json has an entry with id; expected id, label and template"):
        ssv2.tasks(videos)
    (videos / "labels" / "train.json").write_text("{")
    with pytest.raises(UserError, match="train.json is not a readable JSON file"):
        ssv2.tasks(videos)
    (tmp_path / "empty" / "something").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no list of videos; expected train_video_folder.txt .* found something"):
        ssv2.tasks(tmp_path / "empty")


def test_lists_without_their_videos_are_refused(videos):
    (videos / "videos" / "21.webm").unlink()
    with pytest.raises(UserError, match="does not hold 21.webm, the first video of the list"):
        ssv2.tasks(videos)
